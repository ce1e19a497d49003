"""Folds that are trained with one file of masks and validated on another one, of the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from folds_cases import images_of, set_folds, train_net, working_folder
from tiny_segmenter import write_disks

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import json_rle
from detseg.coco.predictions_file import read_predictions
from detseg.config import load_config
from detseg.engine.data_sets import load_test_sets, load_training_set
from detseg.structures import rle as rle_codec
from detseg.tuning.thresholds import evaluate_tuned


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    return working_folder(tmp_path, monkeypatch)


def repaired_of(path: Path, folds: bool) -> Path:
    """The same images with smaller disks, in another order and under other ids, with or without the folds."""
    content = json.loads(path.read_text())
    content["images"] = content["images"][::-1]
    for image in content["images"]:
        image["id"] += 100
        if not folds:
            del image["fold"]
    for annotation in content["annotations"]:
        annotation["image_id"] += 100
        mask = rle_codec.decode(annotation["segmentation"])
        mask[: mask.shape[0] // 2] = False
        annotation["segmentation"] = json_rle(rle_codec.encode_mask(mask))
    repaired = path.with_name("repaired.json")
    repaired.write_text(json.dumps(content))
    return repaired


@pytest.mark.parametrize("folds_in", ["train", "test"])
def test_repaired_masks_are_trained_with_and_the_original_ones_validated_on(here: Path, folds_in: str) -> None:
    original = here / "data" / "disks.json"
    repaired_of(original, folds=folds_in == "train")
    truth = CocoDataset.load(original)
    if folds_in == "train":
        content = json.loads(original.read_text())
        for image in content["images"]:
            del image["fold"]
        content["images"] = [image for image in content["images"] if image["file_name"] != "6.png"]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 7]
        original.write_text(json.dumps(content))
    sets = ["DATASETS.TRAIN", "['data/repaired.json']", "DATASETS.TEST", "['data/disks.json']"]
    cfg = load_config("disks.yaml", [*sets, "DATASETS.FOLD", "1"])
    training, validation = load_training_set(cfg), load_test_sets(cfg)["fold1"]
    assert images_of(training) == {"0.png", "2.png", "3.png", "5.png"}
    assert images_of(validation) == {"1.png", "4.png"}
    whole = {record.file_name: truth.annotations(index).rles for index, record in enumerate(truth.images)}
    for index, record in enumerate(validation.images):
        assert validation.annotations(index).rles == whole[record.file_name]
    for index, record in enumerate(training.images):
        assert training.annotations(index).rles != whole[record.file_name]

    assert train_net("--fold", "all", "OUTPUT_DIR", "cv", *sets) == 0
    scored = CocoDataset.load("cv/oof_ground_truth.json")
    assert [record.image_id for record in scored.images] == [1, 2, 3, 4, 5, 6], "the ids are those of the originals"
    assert [scored.annotations(index).rles for index in range(6)] == [whole[f"{index}.png"] for index in range(6)]
    metrics = json.loads(Path("cv/final_metrics.json").read_text())
    expected, _ = evaluate_tuned(scored, list(read_predictions("cv/oof.json.gz", scored)))
    assert metrics["object_ap"] == expected["object_ap"]
    original.write_text(original.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    words = ["--fold", "0", "--overwrite", "OUTPUT_DIR", "cv", *sets]
    assert train_net(*words) == 2, "other originals give scores that cannot be joined"


def test_two_files_of_the_same_images_that_disagree_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = here / "data" / "disks.json"
    repaired = repaired_of(original, folds=True)
    words = ["--fold", "all", "DATASETS.TRAIN", "['data/repaired.json']", "DATASETS.TEST", "['data/disks.json']"]
    before = original.read_text(), repaired.read_text()

    def refused(said: str) -> None:
        assert train_net(*words) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert "set DATASETS.TEST []" in printed
        assert not list(here.glob("runs/*/0*"))
        original.write_text(before[0])
        repaired.write_text(before[1])

    set_folds(original, [1, 1, 2, 0, 1, 2, -1])
    refused("0.png: is in fold 0 of data/repaired.json and in fold 1 of data/disks.json")
    (here / "data" / "again.json").write_text(before[1])
    words[3] = "['data/repaired.json', 'data/again.json']"
    refused("(7 in all): occurs twice in DATASETS.TRAIN")
    words[3] = "['data/repaired.json']"
    content = json.loads(before[0])
    content["images"] = content["images"][1:]
    content["annotations"] = content["annotations"][1:]
    original.write_text(json.dumps(content))
    refused("0.png: is in data/repaired.json and not in data/disks.json")
    content = json.loads(before[1])
    content["images"] = [image for image in content["images"] if image["id"] != 102]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 102]
    repaired.write_text(json.dumps(content))
    refused("1.png: is in data/disks.json and not in DATASETS.TRAIN")
    # Another data set whose images happen to have these names is no truth of them
    write_disks(here / "other", count=7)
    for number in range(7):
        shutil.copyfile(here / "data" / f"{(number + 1) % 7}.png", here / "other" / f"{number}.png")
    words[-1] = "['other/disks.json']"
    refused("images of one name are different files")


def test_a_test_set_of_other_images_is_not_looked_at(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = write_disks(here / "other", count=2)
    other.write_text(other.read_text().replace(".png", "_other.png"))
    for number in range(2):
        (here / "other" / f"{number}.png").rename(here / "other" / f"{number}_other.png")
    assert train_net("--fold", "0", "DATASETS.TEST", "['other/disks.json']") == 0
    assert "has no image of DATASETS.TRAIN and is not used" in caplog.text
    assert len(read_predictions("runs/disks/001/fold0/predictions/fold0.json.gz")) == 2
