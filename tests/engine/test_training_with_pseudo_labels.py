"""Trainings with pseudo-labels: apart from what is validated on, by fold, and bit-identical when they go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_segmenter import TinySegmenter, write_disks
from train_and_die import tiny_config

from detseg.coco.dataset import CocoDataset
from detseg.config import Config
from detseg.data.trained_images import FIELD, TrainedImages
from detseg.engine.data_sets import check_apart, load_test_sets, load_training_set
from detseg.engine.train import train
from detseg.errors import DataError
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.run_folder import open_run


def part_of(path: Path, name: str, chosen: list[int], **info: object) -> Path:
    """Write a data set of some of the images of another one, with scores."""
    content = json.loads(path.read_text())
    for kind in ("images", "annotations"):
        content[kind] = [content[kind][index] for index in chosen]
    content["annotations"] = [{**one, "score": 0.5} for one in content["annotations"]]
    target = path.with_name(name)
    target.write_text(json.dumps({**content, "info": info}))
    return target


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    return write_disks(tmp_path / "disks", count=8)


@pytest.fixture
def labelled(disks: Path) -> Path:
    """The first four images, in two folds."""
    path = part_of(disks, "labelled.json", [0, 1, 2, 3])
    content = json.loads(path.read_text())
    for number, image in enumerate(content["images"]):
        image["fold"] = number % 2
    path.write_text(json.dumps(content))
    return path


def config_of(labelled: Path, folder: Path, pseudo: str, **changed: object) -> Config:
    cfg = tiny_config(labelled, folder).clone()
    values = {"DATASETS.PSEUDO": [pseudo], "DATASETS.FOLD": 0, "DATASETS.TEST": [], "TEST.EVAL_PERIOD": 0}
    for key, value in {**values, "SOLVER.STEPS": [], **changed}.items():
        cfg.set(key, value)
    return cfg.freeze()


def names(dataset: CocoDataset) -> list[str]:
    return [record.file_name for record in dataset.images]


def test_every_fold_has_its_own_pseudo_labels(disks: Path, labelled: Path, tmp_path: Path) -> None:
    for fold in range(2):
        part_of(disks, f"pseudo{fold}.json", [4 + fold, 6])
    for fold, others in ((0, ["1.png", "3.png"]), (1, ["0.png", "2.png"])):
        pattern = str(disks.with_name("pseudo{fold}.json"))
        cfg = config_of(labelled, tmp_path / "run", pseudo=pattern, **{"DATASETS.FOLD": fold})
        assert names(load_training_set(cfg)) == [*others, f"{4 + fold}.png", "6.png"]
        assert names(load_test_sets(cfg)[f"fold{fold}"]) == [f"{fold}.png", f"{fold + 2}.png"]


def check(cfg: Config) -> None:
    check_apart(load_training_set(cfg), cfg, load_test_sets(cfg))


def test_a_validated_image_is_no_pseudo_label(disks: Path, labelled: Path, tmp_path: Path) -> None:
    """Whatever its name is there: files are compared by content."""
    path = part_of(disks, "pseudo.json", [5, 2])
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = "other.png"
    path.write_text(json.dumps(content))
    (disks.parent / "other.png").write_bytes((disks.parent / "2.png").read_bytes())
    with pytest.raises(DataError, match=r"PSEUDO are also validation images.*\n.*other.png .* is 2.png"):
        check(config_of(labelled, tmp_path / "run", pseudo=str(path)))
    check(config_of(labelled, tmp_path / "run", pseudo=str(path), **{"DATASETS.FOLD": 1}))


def test_teachers_that_saw_the_validation_are_refused(
    disks: Path, labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = TrainedImages.of_records(CocoDataset.load(labelled).select([1, 3]).images)
    path = part_of(disks, "pseudo.json", [5, 6], pseudo_labels={FIELD: seen.to_plain()})
    check(config_of(labelled, tmp_path / "run", pseudo=str(path)))
    assert "does not say" not in caplog.text
    with pytest.raises(DataError, match=r"teachers were trained on 2 of the validation images.*\{fold\}") as error:
        check(config_of(labelled, tmp_path / "run", pseudo=str(path), **{"DATASETS.FOLD": 1}))
    assert "1.png" in str(error.value)
    unknown = part_of(disks, "unknown.json", [5, 6])
    check(config_of(labelled, tmp_path / "run", pseudo=str(unknown)))
    assert "does not say on which images its teachers were trained" in caplog.text


def test_a_training_goes_on_bit_by_bit(disks: Path, labelled: Path, tmp_path: Path) -> None:
    path = part_of(disks, "pseudo.json", [4, 5, 6])
    changed = {"INPUT.PSEUDO.RANDOM_CONTRAST": 0.4, "DATASETS.PSEUDO_RATIO": [1, 2]}
    weights = []
    for folder, lengths in (("whole", [7]), ("parts", [3, 7])):
        for length in lengths:
            cfg = config_of(labelled, tmp_path / folder, str(path), **{**changed, "SOLVER.MAX_ITER": length})
            with open_run(cfg, resume=length == 7 and folder == "parts") as run:
                train(cfg, run, resume=length == 7 and folder == "parts", build=lambda cfg: TinySegmenter())
        weights.append(load_checkpoint(tmp_path / folder / "checkpoints" / "last.pth")["model"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
