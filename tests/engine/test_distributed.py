"""Two processes train one model: as one process would, and they end together, however they end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_equal, without_times
from test_train_command import ROOT, config_of
from tiny_segmenter import TinySegmenter, write_disks
from two_processes import WholeBatchSegmenter, tiny_run

from detseg.cli.main import run_command
from detseg.coco.predictions_file import read_predictions
from detseg.data.loader import Share
from detseg.files.run_files import read_metrics
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.distributed import SINGLE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scenarios fork")

PROGRAM = Path(__file__).with_name("two_processes.py")
# A Mask R-CNN in which all losses are means over images, so that they do not depend on who has which image: 20
# proposals for every image (nothing is suppressed), all of them and all anchors looked at, one object in the mask loss.
SAME_NUMBERS = """
MODEL:
  RESNETS: {NORM: SyncBN}
  FPN: {NORM: SyncBN}
  RPN: {NMS_THRESH: 1.0, BATCH_SIZE_PER_IMAGE: 100000}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 64, IOU_THRESHOLDS: [0.95]}
  ROI_MASK_HEAD: {NORM: SyncBN}
INPUT: {RANDOM_FLIP: both, MIN_SIZE_TRAIN: [64]}
SOLVER: {IMS_PER_BATCH: 4}
"""
FAMILIES = ("GeneralizedRCNN", "InstanceUNet", "PixelEmbedding")
SCENARIOS = [
    *("decisions", "sync_batch_norm", "whole_batch", "uninterrupted", "interrupted", "resumed", "grown"),
    *("not_finite", "killed", "out_of_memory", "no_objects"),
    *("mask_rcnn", "mask_rcnn_evaluated", "uneven", "occupied", "broken_image"),
    *(f"{name}_{how}" for name in FAMILIES for how in ("whole", "torn", "resumed")),
]
# The program finds modules of tests/ as tests do.
PATH = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all scenarios ran, with an odd number of images."""
    folder = tmp_path_factory.mktemp("two")
    data = write_disks(folder / "data", count=5)
    write_disks(folder / "broken", count=4)
    (folder / "broken" / "2.png").write_bytes((folder / "broken" / "2.png").read_bytes()[:200])
    (folder / "small.yaml").write_text(config_of(data))
    coco = json.loads(data.read_text())
    some = [entry for entry in coco["annotations"] if entry["image_id"] == 1]
    (folder / "data" / "one_object.json").write_text(json.dumps({**coco, "annotations": some}))
    (folder / "disks.yaml").write_text("_BASE_: small.yaml" + SAME_NUMBERS)
    with open(folder / "out", "w") as output:
        subprocess.run(
            [sys.executable, str(PROGRAM), str(folder), *SCENARIOS],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": PATH},
            timeout=600,
            check=True,
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


def reports(here: Path, name: str) -> list[Any]:
    """What the scenario returned in both processes."""
    found = [json.loads((here / f"{name}_{rank}.json").read_text()) for rank in range(2)]
    assert all("result" in report for report in found), [*found, said(here, name)]
    return [report["result"] for report in found]


def failures(here: Path, name: str) -> list[tuple[str, str]]:
    """How the scenario failed in both processes: type and message."""
    found = [json.loads((here / f"{name}_{rank}.json").read_text()) for rank in range(2)]
    return [(report.get("error", "none"), report.get("message", "")) for report in found]


def said(here: Path, name: str) -> list[str]:
    return [(here / f"{name}_{rank}.txt").read_text() for rank in range(2)]


def statuses(here: Path) -> dict[str, list[int]]:
    return dict(json.loads(line) for line in (here / "out").read_text().splitlines())


def assert_close_metrics(one: Path, two: Path) -> None:
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
    assert len(lines[0]) == len(lines[1])
    for alone, shared in zip(*lines, strict=True):
        for key, value in without_times([alone])[0].items():
            if isinstance(value, float):
                assert shared[key] == pytest.approx(value, rel=2e-4, abs=1e-6), (key, alone, shared)


def assert_close_weights(one: Path, two: Path, tolerance: float) -> None:
    states = [load_checkpoint(folder / "checkpoints" / "last.pth")["model"] for folder in (one, two)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(
            states[1][name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n} {m}"
        )


def test_decisions_are_the_same_in_all_processes(here: Path) -> None:
    main, other = reports(here, "decisions")
    expected = ["DataError", "cells.png is cut off", True]
    assert main["caught"][0] == other["caught"][0] == expected
    assert other["caught"][1] == ["ValueError", "odd", True]
    assert main["caught"][1] == ["RunError", "process 1 failed; see its own output: ValueError: odd", True]
    assert main["caught"][2][0] == "FileNotFoundError"
    assert other["caught"][2][0] == "RunError"
    assert main["from_main"] == other["from_main"] == main["pid"] != other["pid"]
    assert (main["gathered"], other["gathered"]) == ([0, 10], [])
    assert str(main["mean"]) == str(other["mean"]) == "[0.5, nan]"


def test_synchronised_batch_norm_is_batch_norm_over_all_values(here: Path) -> None:
    for report in reports(here, "sync_batch_norm"):
        assert {name: difference for name, difference in report.items() if difference} == {}


def test_accumulated_and_shared_batches_train_as_one_process(here: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(here / "data")
    tiny_run(SINGLE, tmp_path, "whole_batch", WholeBatchSegmenter, SOLVER__ACCUMULATE=2, SOLVER__OPTIMIZER="SGD")
    assert_close_metrics(tmp_path / "whole_batch", here / "whole_batch")
    assert_close_weights(tmp_path / "whole_batch", here / "whole_batch", 1e-4)
    assert statuses(here)["whole_batch"] == [0, 0]


def test_mask_rcnn_has_the_losses_of_one_process_with_the_double_batch(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reports(here, "mask_rcnn") == [0, 0], said(here, "mask_rcnn")
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(here / "disks.yaml"), "--num-threads", "1", "OUTPUT_DIR", "one"]
    assert run_command("train_net", words, prog="train_net") == 0
    assert_close_metrics(tmp_path / "one", here / "two")
    main, other = said(here, "mask_rcnn")
    assert "2 processes, 2 of the 4 images of a batch in each" in main
    assert "object AP" in main
    assert "iteration" not in other
    assert "Everything is in" not in other


def test_a_process_without_objects_trains_on_with_the_others(here: Path) -> None:
    assert reports(here, "no_objects") == [0, 0], said(here, "no_objects")
    lines = read_metrics(here / "no_objects" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert any(line["loss_mask"] == 0 for line in lines)
    assert any(line["loss_mask"] > 0 for line in lines)


def test_an_odd_number_of_images_is_evaluated_once_each(here: Path) -> None:
    predictions = list(read_predictions(here / "two" / "predictions" / "disks.json.gz"))
    assert [prediction.image_id for prediction in predictions] == [1, 2, 3, 4, 5]
    final = json.loads((here / "two" / "final_metrics.json").read_text())
    assert final["images"] == final["objects"] == 5
    assert reports(here, "mask_rcnn_evaluated") == [0, 0]
    again = json.loads((here / "two" / "evaluations" / "001" / "final_metrics.json").read_text())
    assert again == final


def test_shares_of_a_batch_are_the_batch() -> None:
    parts = [list(Share(rank, 3).of(range(12, 18))) for rank in range(3)]
    assert parts == [[12, 13], [14, 15], [16, 17]]


def test_a_signal_to_one_process_saves_and_stops_all_and_resuming_is_bit_identical(here: Path) -> None:
    assert (
        failures(here, "interrupted")
        == [
            (
                "TrainingInterrupted",
                f"stopped after iteration 3, which is saved in {here}/interrupted/checkpoints/last.pth",
            )
        ]
        * 2
    )
    assert reports(here, "resumed")[0] == reports(here, "uninterrupted")[0]
    states = [load_checkpoint(here / name / "checkpoints" / "last.pth") for name in ("uninterrupted", "interrupted")]
    for key in ("model", "optimizer", "ema", "rng", "rng_of_others"):
        assert_equal(states[0][key], states[1][key], key)
    assert len(states[0]["rng_of_others"]) == 1
    assert not torch.equal(states[0]["rng"]["torch"], states[0]["rng_of_others"][0]["torch"])
    lines = [without_times(read_metrics(here / name / "metrics.jsonl")) for name in ("uninterrupted", "interrupted")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_goes_on_bit_identical_in_two_processes(here: Path, name: str) -> None:
    assert [kind for kind, _ in failures(here, f"{name}_torn")] == ["TrainingInterrupted"] * 2
    assert reports(here, f"{name}_resumed") == reports(here, f"{name}_whole")
    folders = [here / f"{name}_{how}" for how in ("whole", "torn")]
    states = [load_checkpoint(folder / "checkpoints" / "last.pth") for folder in folders]
    for key in ("model", "optimizer", "ema", "rng", "rng_of_others"):
        assert_equal(states[0][key], states[1][key], key)
    lines = [without_times(read_metrics(folder / "metrics.jsonl")) for folder in folders]
    assert lines[0] == lines[1]
    record = json.loads((folders[1] / "run.json").read_text())
    assert (record["processes"], record["status"], len(record["resumed"])) == (2, "finished", 1)


def test_one_process_continues_what_two_began_and_says_what_changes(
    here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").symlink_to(here / "data")
    shutil.copytree(here / "uninterrupted", tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        tiny_run(SINGLE, tmp_path, "run", TinySegmenter, resume=True, SOLVER__MAX_ITER=8)
    assert "resumed with 1 process, was 2." in caplog.text
    assert "4 at a time" in caplog.text
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pth")
    assert (last["iteration"], last["position"], last["rng_of_others"]) == (8, 32, [])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed"][0]["processes"] == 1


def test_two_processes_continue_what_one_began(here: Path) -> None:
    first, second = reports(here, "grown")
    assert first == second
    assert "resumed with 2 processes, was 1." in (here / "grown" / "log.txt").read_text()
    last = load_checkpoint(here / "grown" / "checkpoints" / "last.pth")
    assert (last["iteration"], last["position"], len(last["rng_of_others"])) == (6, 24, 1)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_and_is_dumped_there(here: Path) -> None:
    (first, message), (second, same) = failures(here, "not_finite")
    assert (first, second) == ("RunError", "RunError")
    assert message == same
    assert "loss is not finite in iteration 2" in message
    dumps = list((here / "not_finite" / "non_finite").iterdir())
    assert [dump.name for dump in dumps] == ["iteration_0000002_process_1"]
    assert len(json.loads((dumps[0] / "report.json").read_text())["images"]) == 2


def test_a_killed_process_does_not_leave_the_other_waiting(here: Path) -> None:
    assert statuses(here)["killed"] == [0, -9]
    report = json.loads((here / "killed_0.json").read_text())
    assert report["error"] == "RunError"
    assert "process 0 of 2 lost the connection to another one" in report["message"]
    assert "--resume" in report["message"]
    assert json.loads((here / "killed" / "run.json").read_text())["status"] == "failed"


def test_an_unforeseen_error_of_one_process_ends_both(here: Path) -> None:
    (lost, message), failure = failures(here, "out_of_memory")
    assert failure == ("MemoryError", "no more")
    assert lost == "RunError", message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uneven", "SOLVER.IMS_PER_BATCH is 3, the images of all processes together, which 2 processes cannot share"),
        ("occupied", "two holds another run: --resume continues it"),
        ("broken_image", "2.png"),
    ],
)
def test_what_cannot_be_trained_is_refused_once(here: Path, name: str, message: str) -> None:
    assert reports(here, name) == [2, 2]
    main, other = said(here, name)
    assert main.count("error: ") == 1, main
    assert message in main
    assert "error" not in other
    assert "Traceback" not in main + other


def test_torchrun_starts_it(here: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += [str(ROOT / "tools" / "train_net.py"), "--config", str(here / "disks.yaml"), "OUTPUT_DIR", "run"]
    words += ["SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "[]"]
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(tmp_path / "out", "w") as output:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=600, check=False
        )
    text = (tmp_path / "out").read_text()
    assert done.returncode == 0, text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["processes"]) == ("finished", 2)
    assert text.count("Everything is in") == 1
