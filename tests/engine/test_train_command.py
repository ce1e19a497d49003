"""The command as users run it, with a real Mask R-CNN that is small enough for a test."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_segmenter import write_disks

from detseg import Predictor, progress
from detseg.cli.main import run_command
from detseg.coco.predictions_file import read_predictions
from detseg.files.run_files import read_metrics
from detseg.optim.precision import cpu_has_bfloat16
from detseg.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]


def config_of(data: Path) -> str:
    return f"""
_BASE_: {(ROOT / "tests" / "tiny_mask_rcnn.yaml").as_posix()}
DATASETS: {{TRAIN: [{data.as_posix()}], TEST: [{data.as_posix()}]}}
SOLVER: {{MAX_ITER: 4, CHECKPOINT_PERIOD: 2, CHECKPOINT_KEEP: 5}}
TEST: {{EVAL_PERIOD: 2}}
SEED: 5
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A working folder with data and a configuration; one thread."""
    (tmp_path / "disks.yaml").write_text(config_of(write_disks(tmp_path / "data", count=4)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_net(*words: str) -> int:
    return run_command("train_net", ["--num-threads", "1", *words], prog="train_net")


def test_from_configuration_to_a_finished_run_and_on(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train_net("--config", "disks.yaml") == 0
    run = Path("runs/disks/001")
    printed = capsys.readouterr().out
    assert "object AP" in printed
    assert str(run) in printed

    metrics = json.loads((run / "final_metrics.json").read_text())
    assert {"object_ap", "object_ap50", "object_ap75", "mean_f1", "coco_bbox_ap", "coco_segm_ap"} <= metrics.keys()
    assert {"per_class", "images", "objects", "predictions", "score_threshold"} <= metrics.keys()
    assert metrics["images"] == metrics["objects"] == 4
    with gzip.open(run / "predictions" / "disks.json.gz") as file:
        assert metrics["number_format"] == json.load(file)["info"]["precision"]
    weights = load_checkpoint(run / "checkpoints" / "best.pth")["model"]
    assert metrics["parameters"] == sum(
        value.numel() for name, value in weights.items() if "running_" not in name and "num_batches" not in name
    )
    if cpu_has_bfloat16():
        assert metrics["object_ap_of_precisions"].keys() >= {"float32", "bfloat16"}
    assert len(list(read_predictions(run / "predictions" / "disks.json.gz"))) == 4
    assert len(list((run / "overlays" / "disks").glob("*.png"))) == 2
    assert f"score_threshold: {metrics['score_threshold']}" in (run / "postprocess.yaml").read_text()
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["iteration"] for line in lines[:-1]] == [1, 2, 2, 3, 4, 4]
    assert lines[-1] == {"iteration": 4, "kind": "final", **metrics}
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["engine"], record["seed"]) == ("finished", "native", 5)
    log = (run / "log.txt").read_text()
    assert "iteration 4" in log
    assert "native engine" in log
    assert "docs/engines.md" in log
    assert "No module named" not in log, "it reads like an error; run.json has the reason"
    assert record["engine_reason"].startswith("MODEL.ENGINE is ")

    predictor = Predictor.from_run(run)
    assert predictor.classes == ("disk",)
    assert predictor.postprocess.score_threshold == metrics["score_threshold"]
    assert (predictor(here / "data" / "0.png").height, predictor(here / "data" / "0.png").width) == (24, 24)

    # Resumed from iteration 2 in a copy: the same weights, bit for bit
    copy = Path("runs/disks/002")
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "iteration_0000002.pth").replace(copy / "checkpoints" / "last.pth")
    assert train_net("--config", "disks.yaml", "--resume") == 0
    states = [load_checkpoint(folder / "checkpoints" / "last.pth") for folder in (run, copy)]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name
    assert [line["iteration"] for line in read_metrics(copy / "metrics.jsonl")] == [1, 2, 2, 3, 4, 4, 4]

    # A file of the same name elsewhere, which may have been meant: what it says otherwise is told
    Path("elsewhere").mkdir()
    Path("elsewhere/disks.yaml").write_text(Path("disks.yaml").read_text().replace("MAX_ITER: 4", "MAX_ITER: 9"))
    assert train_net("--config", "elsewhere/disks.yaml", "--resume") == 0
    assert "disks.yaml are ignored: SOLVER.MAX_ITER\n" in caplog.text

    # Evaluated again: beside, and the same
    assert train_net("--config", "disks.yaml", "--eval-only", "OUTPUT_DIR", str(run)) == 0
    again = json.loads((run / "evaluations" / "001" / "final_metrics.json").read_text())
    assert again == metrics
    weights = run / "checkpoints" / "best.pth"
    assert train_net("--config", "disks.yaml", "--eval-only", f"--MODEL.WEIGHTS={weights}", "OUTPUT_DIR=other") == 0
    assert json.loads(Path("other/final_metrics.json").read_text()) == metrics

    data = json.dumps([str(here / "data" / "disks.json")] * 2)
    assert train_net("--eval-only", "OUTPUT_DIR", str(run), "DATASETS.TEST", data) == 0
    both = json.loads((run / "evaluations" / "002" / "final_metrics.json").read_text())
    assert both["datasets"].keys() == {"disks", "disks_2"}
    about_model = ("number_format", "object_ap_of_precisions", "parameters")
    scores = {name: value for name, value in metrics.items() if name not in about_model}
    assert both["datasets"]["disks_2"] == {**both["datasets"]["disks"]} == scores

    # Not silent for minutes where there is no terminal
    class Impatient(progress.ProgressBar):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, mininterval=0, **options)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "ProgressBar", Impatient)
        patch.setattr(progress, "LINE_PERIOD", 0)
        assert train_net("--eval-only", "OUTPUT_DIR", str(run)) == 0
    assert "predicting disks: 3 of 4" in capsys.readouterr().err

    # A named folder is not trained over
    assert train_net("--config", "disks.yaml", "OUTPUT_DIR", str(run)) == 2
    assert "holds another run" in capsys.readouterr().err
    assert train_net("--config", "disks.yaml", "OUTPUT_DIR", str(run), "--overwrite", "SOLVER.MAX_ITER", "1") == 0
    assert not (run / "evaluations").exists()
    assert load_checkpoint(run / "checkpoints" / "last.pth")["iteration"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--config FILE"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--config", "disks.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", "3"], "has 1 classes (disk)"),
        (["--config", "disks.yaml", "DATASETS.TRAIN", "['nowhere']"], "nowhere"),
        (["--config", "disks.yaml", "MODEL.WEIGHTS", "gone.pth"], "gone.pth"),
        (["--config", "disks.yaml", "--SOLVER.BASE_LRR=1"], "SOLVER.BASE_LR"),
        (["--config", "disks.yaml", "--eval-only"], "MODEL.WEIGHTS"),
        (["--config", "disks.yaml", "--num-threads", "0"], "--num-threads"),
        (["--config", "disks.yaml", "--resume", "--overwrite"], "give one of them"),
        (["disks.yaml"], "use --config disks.yaml"),
        (["--resume", "OUTPUT_DIR", "nowhere"], "nowhere contains no run to continue; name the folder"),
        (["--config", "disks.yaml", "DATASETS.TEST", "[data]"], "data: is a folder; expected a COCO file"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert train_net(*words) == 2
    assert said in capsys.readouterr().err
    assert not list(here.glob("runs/*/*")), "a run that never began leaves nothing behind"


def test_a_named_folder_stays_free_when_the_run_could_not_begin(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("keep")
    assert train_net("--config", "disks.yaml", "OUTPUT_DIR=mine", "MODEL.WEIGHTS=gone.pth") == 2
    assert [path.name for path in (here / "mine").iterdir()] == ["notes.txt"]


def test_dense_images_are_pointed_out(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = json.loads((here / "data" / "disks.json").read_text())
    data["annotations"] += [{**entry, "id": entry["id"] + 10} for entry in data["annotations"][:1]]
    (here / "data" / "disks.json").write_text(json.dumps(data))
    words = ["TEST.DETECTIONS_PER_IMAGE", "1", "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0", "TEST.OVERLAYS", "0"]
    assert train_net("--config", "disks.yaml", *words) == 0
    assert "1 of 4 images have more than TEST.DETECTIONS_PER_IMAGE (1) objects, at most 2" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C to the tests too")
@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_to_the_group_saves_and_says_how_to_resume(here: Path, number: int, times: int) -> None:
    words = ["--config", "disks.yaml", "--num-threads", "1", "SOLVER.MAX_ITER", "100000", "DATALOADER.NUM_WORKERS", "2"]
    words += ["TEST.EVAL_PERIOD", "0", "OUTPUT_DIR", "run"]
    with open(here / "out", "w") as output:
        training = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "train_net.py"), *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while not (here / "run" / "metrics.jsonl").exists() or len(read_metrics(here / "run" / "metrics.jsonl")) < 2:
        assert training.poll() is None, (here / "out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _ in range(times):  # as a terminal does, and `timeout`, twice: to the workers too
        os.killpg(training.pid, number)
        time.sleep(0.1)
    assert training.wait(timeout=60) == 128 + number, (here / "out").read_text()
    said = (here / "out").read_text()
    assert "Traceback" not in said
    assert "--config disks.yaml --num-threads 1 --resume OUTPUT_DIR run" in said
    done = load_checkpoint(here / "run" / "checkpoints" / "last.pth", for_training=True)["iteration"]
    assert done >= 2
    assert json.loads((here / "run" / "run.json").read_text())["status"] == "interrupted"
    assert train_net("--config", "disks.yaml", "--resume", "OUTPUT_DIR", "run", "SOLVER.MAX_ITER", str(done + 1)) == 0
    assert load_checkpoint(here / "run" / "checkpoints" / "last.pth")["iteration"] == done + 1


def test_intensities_that_do_not_fit_are_warned_of_and_kept(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    import cv2

    words = ["--config", "disks.yaml", "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "1"]
    assert train_net(*words, "OUTPUT_DIR", "eight") == 0
    assert "do not fit the model" not in caplog.text
    for path in (here / "data").glob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype("uint16") * 200)
    assert train_net(*words, "OUTPUT_DIR", "sixteen") == 0
    for text in ("4 of 4 images", "MODEL.PIXEL_MEAN [128, 128, 128]", "INPUT.SCALING percentile"):
        assert text in caplog.text
    caplog.clear()
    assert train_net(*words, "OUTPUT_DIR", "scaled", "INPUT.SCALING", "percentile") == 0
    assert "do not fit the model" not in caplog.text
    bright = [
        load_checkpoint(Path(run) / "checkpoints/best.pth")["intensities"]["bright"][0] for run in ("eight", "sixteen")
    ]
    assert bright[1] == 200 * bright[0]


def test_a_training_leaves_its_report_unless_that_fails(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = ["--config", "disks.yaml", "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0"]
    assert train_net(*words, "OUTPUT_DIR", "quick") == 0
    assert not Path("quick/report.html").exists(), "a report takes longer than this training"
    assert "detseg report --run quick makes one" in caplog.text
    monkeypatch.setattr("detseg.engine.start.SHORTEST_REPORTED", 0)
    assert train_net(*words, "OUTPUT_DIR", "usual") == 0
    page = Path("usual/report.html").read_text(encoding="utf-8")
    assert ">finished<" in page
    assert "2 of 2" in page
    assert train_net(*words, "OUTPUT_DIR", "without", "TEST.REPORT", "False") == 0
    assert not Path("without/report.html").exists()

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("detseg.report.run.page.report_page", fail)
    assert train_net(*words, "OUTPUT_DIR", "unlucky") == 0
    assert json.loads(Path("unlucky/run.json").read_text())["status"] == "finished"
    assert "no report.html was written (MemoryError: no room)" in caplog.text


def test_a_trial_that_a_sweep_agent_gives_out_again_goes_on(here: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r7")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = Path("runs/disks/r7")
    assert train_net("--config", "disks.yaml", "SOLVER={'MAX_ITER': 2.0}") == 0
    assert load_checkpoint(run / "checkpoints" / "last.pth")["iteration"] == 2
    assert train_net("--config", "disks.yaml", "SOLVER={'MAX_ITER': 4.0}") == 0
    assert "resumed after iteration 2 of 4" in caplog.text
    assert load_checkpoint(run / "checkpoints" / "last.pth")["iteration"] == 4
    assert [path.name for path in run.parent.iterdir()] == ["r7"]
