"""Artifacts: which name and hash a file has, and what W&B's offline runs hold of it, read back from their files."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wandb_cases import OfflineRun, read_run, without_account

from detseg.coco.dataset import CocoDataset
from detseg.config import Config, get_default_config
from detseg.files.hashing import hash_file
from detseg.runs.artifacts import (
    DATASET,
    MODEL,
    PREDICTIONS,
    SUBMISSION,
    THRESHOLDS,
    artifact_name,
    dataset_artifact,
    file_artifact,
    images_artifact,
    input_artifact,
    log_folds,
    log_inputs,
    log_training_inputs,
    log_training_outputs,
)
from detseg.runs.tracked_command import group_of
from detseg.runs.wandb_run import Identity, WandbRun

pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_account(monkeypatch, tmp_path)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """A COCO file of two images, of which the second does not exist, with one and two objects of two classes."""
    folder = tmp_path / "cells"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 9), dtype=np.uint8)).save(folder / "a.png")
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    images = [{"id": n, "file_name": f"{name}.png", "height": 8, "width": 9} for n, name in ((1, "a"), (2, "b"))]
    owners = [(1, 1, 1), (2, 2, 1), (3, 2, 2)]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "segmentation": square, "bbox": [1, 1, 4, 4], "area": 16}
        for n, image, category in owners
    ]
    categories = [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def make_run(folder: Path) -> Path:
    """A run folder as a training leaves it."""
    for name in ("checkpoints/best.pth", "checkpoints/last.pth", "predictions/val.json.gz", "postprocess.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{folder.name} {name}")
    (folder / "run.json").write_text("{}")
    return folder


def logged(folder: Path, *actions: object) -> OfflineRun:
    """What an offline run's file holds after the actions."""
    run = WandbRun(Identity("abcd1234", "cells", folder), mode="offline", config={"inputs": {}})
    for action in actions:
        run.do(action)
    assert run.finish()
    return read_run(next(run.path.glob("*.wandb")))


def config(**changes: object) -> Config:
    cfg = get_default_config()
    for name, value in changes.items():
        cfg.set(name.replace("__", "."), value)
    return cfg


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        ("data/train.json", DATASET, "data-train-dataset"),
        ("data/train.v2.json.gz", DATASET, "data-train.v2-dataset"),
        ("r/cells/001/checkpoints/best.pth", MODEL, "cells-001-model"),
        ("r/cells/002/fold3/checkpoints/best.pth", MODEL, "cells-002-model"),
        ("r/cells/001/predictions/val.json.gz", PREDICTIONS, "cells-001-val-predictions"),
        ("r/cells/002/fold3/predictions/fold3.json.gz", PREDICTIONS, "cells-002-fold3-predictions"),
        ("r/cells/002/oof.json.gz", PREDICTIONS, "cells-002-oof-predictions"),
        ("r/cells/001/postprocess.yaml", THRESHOLDS, "cells-001-thresholds"),
        ("r/cells/002/fold3/postprocess.yaml", THRESHOLDS, "cells-002-fold3-thresholds"),
        ("r/cells/001/tuned.yaml", THRESHOLDS, "cells-001-tuned-thresholds"),
        ("work/submission.csv", SUBMISSION, "work-submission"),
        ("Zellkerne µm (1)/ä b.csv", SUBMISSION, "Zellkerne_m_1_-_b-submission"),
        ("x" * 200 + "/train.json", DATASET, "x" * (128 - 14) + "-train-dataset"),
    ],
)
def test_a_name_says_the_run_or_the_folder_in_characters_that_are_taken(
    tmp_path: Path, path: str, kind: str, name: str
) -> None:
    for record in ("r/cells/001/run.json", "r/cells/002/folds.json", "r/cells/002/fold3/run.json"):
        (tmp_path / record).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / record).write_text("{}")
    assert artifact_name(tmp_path / path, kind) == name


def test_the_manifest_of_a_data_set_says_objects_and_content_and_no_path_of_this_machine(cells: Path) -> None:
    artifact = input_artifact(DATASET, cells)
    assert artifact.hash == hashlib.sha256(cells.read_bytes()).hexdigest()[:16]
    assert artifact.reference == f"cells-train-dataset:{artifact.hash}"
    assert not artifact.files
    assert artifact.manifest["objects_per_class"] == {"x": 2, "y": 1}
    first, second = artifact.manifest["images"]
    assert (first["file_name"], first["height"], first["width"], first["objects"]) == ("a.png", 8, 9, 1)
    assert second["content"] is None
    assert second["objects"] == 2
    assert str(cells.parent) not in json.dumps(artifact.manifest)
    Image.fromarray(np.ones((8, 9), dtype=np.uint8)).save(cells.parent / "a.png")
    changed = input_artifact(DATASET, cells).manifest["images"][0]["content"]
    assert changed != first["content"], "another image under the same name has another manifest"


def test_images_and_folders_without_a_file_of_their_own_are_told_apart_by_their_content(cells: Path) -> None:
    records = CocoDataset.load(cells).images
    whole, part = images_artifact(records, str(cells.parent)), images_artifact(records[:1], str(cells.parent))
    assert whole.name == part.name
    assert whole.hash != part.hash
    before = file_artifact(PREDICTIONS, cells.parent)
    assert [one["file"] for one in before.manifest["files"]] == ["a.png", "train.json"]
    (cells.parent / "c.png").write_bytes(b"new")
    assert file_artifact(PREDICTIONS, cells.parent).hash != before.hash


def test_a_training_logs_its_models_by_alias_and_keeps_them_as_they_were(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "cells" / "001")
    best, content = folder / "checkpoints" / "best.pth", (folder / "checkpoints" / "best.pth").read_bytes()
    scores = {"object_ap": 0.25, "mean_f1": float("nan")}
    run = logged(tmp_path, partial(log_training_outputs, config(), folder, scores))
    found = {frozenset(one.aliases) - {"latest"}: one for one in run.artifacts}
    model = found[frozenset(["best", hash_file(best)])]
    assert model.name == "cells-001-model"
    assert json.loads(model.metadata) == {"hash": hash_file(best), "file": str(best), "object_ap": 0.25}
    (entry,) = model.manifest.contents
    assert entry.digest == base64.b64encode(hashlib.md5(content).digest()).decode()
    best.with_name("new").write_bytes(b"the next training")
    best.with_name("new").replace(best)
    assert Path(entry.local_path).read_bytes() == content, "what is synchronized later is what was logged"

    last = folder / "checkpoints" / "last.pth"
    (entry,) = found[frozenset(["last", hash_file(last)])].manifest.contents
    assert entry.path == "manifest.json"
    assert json.loads(Path(entry.local_path).read_text())["sha256"] == hashlib.sha256(last.read_bytes()).hexdigest()
    assert {one.type for one in run.artifacts} == {"model", "predictions", "thresholds"}


def test_folds_are_versions_of_one_model_under_their_names_and_files_are_kept_as_asked(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "cells" / "002" / "fold1")
    cfg = config(DATASETS__FOLD=1, TRACKING__STORE=["last"])
    run = logged(tmp_path, partial(log_training_outputs, cfg, folder, {}))
    models = [one for one in run.artifacts if one.type == "model"]
    assert {one.name for one in models} == {"cells-002-model"}
    files = {alias: one.manifest.contents[0].path for one in models for alias in one.aliases}
    assert (files["fold1"], files["fold1-last"]) == ("manifest.json", "last.pth")
    (predictions,) = [one for one in run.artifacts if one.type == "predictions"]
    assert [entry.path for entry in predictions.manifest.contents] == ["manifest.json"]


def test_what_all_folds_gave_leads_back_to_the_predictions_of_each_and_to_the_data_set(
    tmp_path: Path, cells: Path
) -> None:
    folder = tmp_path / "runs" / "cells" / "003"
    files = [folder / f"fold{fold}" / "predictions" / f"fold{fold}.json.gz" for fold in (0, 1)]
    for path in (*files, folder / "oof.json.gz", folder / "postprocess.yaml", folder / "folds.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    truth = folder / "oof_ground_truth.json"
    truth.write_bytes(cells.read_bytes())
    run = logged(tmp_path, partial(log_folds, config(DATASETS__TRAIN=[str(cells)]), folder))
    names = {path: artifact_name(path, PREDICTIONS) for path in files}
    assert run.config["inputs"] == {
        "dataset": [f"cells-train-dataset:{hash_file(cells)}"],
        "predictions": [f"{name}:{hash_file(path)}" for path, name in names.items()],
    }
    assert run.outputs == {
        f"cells-003-oof-predictions:{hash_file(folder / 'oof.json.gz')}",
        f"cells-003-thresholds:{hash_file(folder / 'postprocess.yaml')}",
        f"cells-003-oof_ground_truth-dataset:{hash_file(truth)}",
    }


@pytest.mark.parametrize("store", [[], ["dataset"]])
def test_a_data_set_is_an_input_and_is_copied_only_where_that_is_asked_for(
    tmp_path: Path, cells: Path, store: list[str]
) -> None:
    cfg = config(DATASETS__TRAIN=[str(cells)], DATASETS__TEST=[str(cells)], TRACKING__STORE=store)
    run = logged(tmp_path, partial(log_training_inputs, cfg))
    assert run.config["inputs"] == {"dataset": [f"cells-train-dataset:{hash_file(cells)}"]}
    (dataset,) = run.artifacts
    assert dataset.use_after_commit, "when it is synchronized, it is what the run used and not what it made"
    files = {entry.path for entry in dataset.manifest.contents}
    assert files == ({"manifest.json", "images/a.png", "train.json"} if store else {"manifest.json"})


def test_inputs_of_several_kinds_add_up(tmp_path: Path, cells: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("a")
    second.write_text("b")
    both = [file_artifact(PREDICTIONS, path, stored=False) for path in (first, second)]
    parts = [both[:1], both, [input_artifact(DATASET, cells)]]
    run = logged(tmp_path, *(partial(log_inputs, part) for part in parts))
    assert run.config["inputs"] == {
        "predictions": [one.reference for one in both],
        "dataset": [f"cells-train-dataset:{hash_file(cells)}"],
    }


def test_the_data_set_of_a_dataset_object_is_that_of_its_file(cells: Path) -> None:
    assert dataset_artifact(CocoDataset.load(cells), cells) == input_artifact(DATASET, cells)


def test_the_group_of_a_file_is_that_of_its_run(tmp_path: Path) -> None:
    own = {"project": "p", "entity": "", "group": "g"}
    run = tmp_path / "runs" / "cells" / "001"
    (run / "predictions").mkdir(parents=True)
    file = run / "predictions" / "val.json.gz"
    assert group_of(file, {}) == {}
    for damaged in ("", "[1]", '{"wandb": 3}', '{"wandb": null}'):
        (run / "run.json").write_text(damaged)
        assert group_of(file, {}) == {}
    (run / "run.json").write_text(json.dumps({"wandb": {**own, "id": "abc"}}))
    assert group_of(file, {}) == own
    assert group_of(run, {}) == own
    elsewhere = tmp_path / "elsewhere" / "predictions.json"
    assert group_of(elsewhere, {"given": {"run": [str(run)]}}) == own
    written = {"tracking": {**own, "group": "of the file"}}
    assert group_of(file, written)["group"] == "of the file"
    assert group_of(elsewhere, {"fused": {"inputs": [{"info": {}}, {"info": written}]}})["group"] == "of the file"
    for hostile in ({"tracking": 3}, {"tracking": {"group": 3}}, {"given": 3}, {"given": {"run": None}}):
        assert group_of(elsewhere, hostile) == {}
    (tmp_path / "folds" / "fold0").mkdir(parents=True)
    (tmp_path / "folds" / "fold0" / "run.json").write_text(json.dumps({"wandb": own}))
    assert group_of(tmp_path / "folds" / "oof.json.gz", {}) == own
