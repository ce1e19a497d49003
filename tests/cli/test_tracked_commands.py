"""Commands with --track: what W&B's offline runs hold of them, from the submission back to the data set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_cases import OfflineRun, runs_in, without_account

from detseg.cli.main import main
from detseg.files.hashing import hash_file

pytest.importorskip("wandb")

REPOSITORY = Path(__file__).parents[2]
TINY = f"""
_BASE_: {REPOSITORY}/configs/quickstart/mask_rcnn.yaml
MODEL:
  DEVICE: cpu
  ENGINE: native
  RESNETS: {{RES2_OUT_CHANNELS: 8, STEM_OUT_CHANNELS: 8}}
  FPN: {{OUT_CHANNELS: 16}}
  RPN: {{BATCH_SIZE_PER_IMAGE: 16, POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 20}}
  ROI_BOX_HEAD: {{FC_DIM: 16}}
  ROI_MASK_HEAD: {{CONV_DIM: 8, NUM_CONV: 1}}
DATASETS: {{TRAIN: [cells/train.json], TEST: [cells/val.json]}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{MAX_ITER: 3, IMS_PER_BATCH: 1, WARMUP_ITERS: 0, STEPS: []}}
TEST: {{DETECTIONS_PER_IMAGE: 20, OVERLAYS: 0}}
TRACKING: {{BACKENDS: [wandb], PROJECT: nuclei, GROUP: try}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells and the run of a training of three iterations, `tiny/001`, that was tracked."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        without_account(patch, folder)
        words = ["--train", "2", "--val", "2", "--height", "64", "--width", "64", "--cells", "5", "6"]
        assert main(["make_synthetic", "--output", "cells", *words]) == 0
        Path("tiny.yaml").write_text(TINY)
        assert main(["train", "--config", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(trained)
    without_account(monkeypatch, tmp_path)
    return tmp_path


def track(folder: Path, *words: object) -> OfflineRun:
    """Run a command with --track; return its run, the newest one of a folder."""
    before = len(runs_in(folder))
    assert main([*map(str, words), "--track"]) == 0
    runs = runs_in(folder)
    assert len(runs) == before + 1
    return runs[-1]


def test_lineage_leads_by_hashes_from_the_submission_back_to_the_data_set(here: Path) -> None:
    raw, fused, tuned, table = here / "raw.json.gz", here / "fused.json", here / "tuned.yaml", here / "s.csv"
    truth, validation = "cells/val.json", "runs/tiny/001/predictions/val.json.gz"
    (training,) = runs_in(Path("runs/tiny/001"))
    ways = ["--folds", "2", "--bootstrap", "0", "--rounds", "1", "--only", "score_threshold"]
    submitted = ["--predictions", fused, "--postprocess", tuned, "--format", "dsb2018", "--output", table]
    runs = {
        "train": training,
        "predict": track(here, "predict", "--run", "runs/tiny", "--images", truth, "--raw", "--output", raw),
        "fuse": track(here, "fuse", "--inputs", raw, validation, "--output", fused),
        "tune_thresholds": track(
            here, "tune_thresholds", "--predictions", fused, "--ground-truth", truth, "--output", tuned, *ways
        ),
        "make_submission": track(here, "make_submission", *submitted, "--images", truth),
    }
    assert {name: (run.project, run.group, run.exit_code) for name, run in runs.items()} == dict.fromkeys(
        runs, ("nuclei", "try", 0)
    )
    assert [run.job_type for run in runs.values()] == list(runs)

    made_by = {reference: run for run in runs.values() for reference in run.outputs}
    seen, waiting = set(), list(runs["make_submission"].outputs)
    assert [reference.split(":")[1] for reference in waiting] == [hash_file(table)]
    while waiting:
        reference = waiting.pop()
        seen.add(reference)
        if reference in made_by:
            waiting += made_by[reference].inputs - seen
    best = Path("runs/tiny/001/checkpoints/best.pth")
    files = (raw, fused, tuned, table, Path(validation), best, Path("cells/train.json"), Path(truth))
    assert {reference.split(":")[1] for reference in seen} == {hash_file(path) for path in files}
    origins = {reference for reference in seen if reference not in made_by}
    assert origins == {
        f"cells-train-dataset:{hash_file(Path('cells/train.json'))}",
        f"cells-val-dataset:{hash_file(Path(truth))}",
    }


def test_evaluate_logs_the_scores_and_tables_under_the_names_of_the_training(here: Path) -> None:
    predictions = Path("runs/tiny/001/predictions/val.json.gz")
    (training,) = runs_in(Path("runs/tiny/001"))
    words = ["--ground-truth", "cells/val.json", "--predictions", predictions, "--json", here / "scores.json"]
    run = track(here, "evaluate", *words)
    scores = json.loads((here / "scores.json").read_text())
    assert (run.project, run.group, run.job_type) == ("nuclei", "try", "evaluate")
    for name in ("object_ap", "object_ap50", "object_ap75", "mean_f1", "per_class/round/object_ap"):
        value = scores
        for part in name.split("/"):
            value = value[part]
        assert run.history[f"evaluation/{name}"] == value
        assert f"evaluation/{name}" in training.history, "a chart of W&B shows both"
    tables = {name: value for name, value in run.history.items() if name.endswith("/nrows")}
    assert (tables["tables/val/images/nrows"], tables["tables/val/classes/nrows"]) == (2, 3)
    assert tables.keys() == {name for name in training.history if name.endswith("/nrows")}
    assert run.config["ground_truth"] == "cells/val.json"
    assert run.inputs == {
        f"cells-val-dataset:{hash_file(Path('cells/val.json'))}",
        f"tiny-001-val-predictions:{hash_file(predictions)}",
    }


def test_the_options_and_the_environment_choose_project_and_group(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = "runs/tiny/001/predictions/val.json.gz"
    words = ["fuse", "--inputs", file, "--output", here / "a.json", "--track-project", "p", "--track-group", "g"]
    run = track(here, *words)
    assert (run.project, run.group) == ("p", "g")
    info = json.loads((here / "a.json").read_text())["info"]
    assert info["tracking"] == {"project": "p", "entity": "", "group": "g"}
    monkeypatch.setenv("WANDB_PROJECT", "of-shell")
    monkeypatch.setenv("WANDB_RUN_GROUP", "group-of-shell")
    monkeypatch.setenv("WANDB_DIR", str(here / "elsewhere"))
    run = track(here / "elsewhere", *words, "--overwrite")
    assert (run.project, run.group) == ("of-shell", "group-of-shell")


def test_predictions_say_the_group_of_their_run_without_track_too(here: Path) -> None:
    words = ["--run", "runs/tiny/001", "--images", "cells/val.json", "--output", str(here / "p.json")]
    assert main(["predict", *words]) == 0
    info = json.loads((here / "p.json").read_text())["info"]
    assert info["tracking"] == {"project": "nuclei", "entity": "", "group": "try"}
    assert not list(here.glob("wandb*/offline-run-*"))


def test_a_table_of_images_and_a_folder_of_images_are_logged_too(here: Path) -> None:
    words = ["--run", "runs/tiny/001", "--images", "cells/val", "--label-images", here / "labels"]
    run = track(here, "predict", *words)
    assert run.history["tables/images/nrows"] == 2
    assert run.history["images"] == 2
    assert sorted(reference.split(":")[0] for reference in run.inputs) == [
        "cells-val-dataset",
        "tiny-001-model",
        "tiny-001-thresholds",
    ]
    (labels,) = [one for one in run.artifacts if one.type == "predictions"]
    assert [entry.path for entry in labels.manifest.contents] == ["manifest.json"]


def test_wrong_input_leaves_no_run_and_a_failure_leaves_a_failed_one(here: Path) -> None:
    words = ["evaluate", "--ground-truth", "cells/val.json", "--track", "--predictions"]
    assert main([*words, str(here / "absent.json")]) == 2
    assert runs_in(here) == []
    wrong = json.loads(Path("cells/val.json").read_text())
    (here / "p.json").write_text(json.dumps({**wrong, "annotations": [{"image_id": 1, "category_id": 1, "score": 2}]}))
    assert main([*words, str(here / "p.json")]) == 2
    assert [run.exit_code for run in runs_in(here)] in ([], [1])


def test_a_wandb_that_fails_changes_nothing_but_one_warning(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("WANDB_DIR", str(here / "file"))
    words = ["--inputs", "runs/tiny/001/predictions/val.json.gz", "--output"]
    assert main(["fuse", *words, str(here / "a.json"), "--track"]) == 0
    assert sum("W&B" in record.message for record in caplog.records) == 1
    monkeypatch.delenv("WANDB_DIR")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["fuse", *words, str(here / "b.json"), "--track"]) == 0
    assert runs_in(here) == []
    ours, theirs = (json.loads((here / name).read_text()) for name in ("a.json", "b.json"))
    assert ours == theirs


def test_without_wandb_the_command_says_how_to_get_it_before_it_works(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["fuse", "--inputs", "runs/tiny/001/predictions/val.json.gz", "--output", str(here / "a.json")]
    assert main([*words, "--track"]) == 2
    assert "--track: wandb is not installed: pip install wandb" in capsys.readouterr().err
    assert not (here / "a.json").exists()
    assert main([*words, "--track-group", "g"]) == 2
    assert "--track-project and --track-group belong to --track" in capsys.readouterr().err


def test_a_tracked_command_without_a_model_loads_no_torch(here: Path) -> None:
    words = ["evaluate", "--ground-truth", "cells/val.json", "--predictions"]
    words += ["runs/tiny/001/predictions/val.json.gz", "--json", str(here / "s.json"), "--track"]
    program = f"import sys\nfrom detseg.cli.main import main\nassert main({words!r}) == 0\n"
    program += "print('torch' in sys.modules, 'wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False True"
