"""Masks of classes: regions are objects with the class of their number, unlabelled images apart, wrong numbers told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readers_for_tests import HEIGHT, WIDTH, masks_by_class, run, write_image

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.class_masks import write_class_masks
from detseg.formats.objects import ImageObjects
from detseg.structures import rle as rle_codec

NAMES = ["inertinite", "vitrinite", "liptinite"]


def class_mask() -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """A mask and its objects: two regions of class 1, one of class 3 that touches one of them and has a hole."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[2:9, 3:9] = 1
    mask[20:25, 3:9] = 1
    mask[2:9, 9:18] = 3
    mask[4:6, 11:13] = 0
    objects = []
    for name, number, rows in (
        ("inertinite", 1, slice(0, 15)),
        ("inertinite", 1, slice(15, 30)),
        ("liptinite", 3, slice(0, 30)),
    ):
        alone = np.zeros_like(mask, dtype=bool)
        alone[rows] = mask[rows] == number
        objects.append((name, alone))
    return mask, objects


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    root = tmp_path / "stranger"
    for name in ("hsa12q", "tya5k0", "empty"):
        write_image(root / "train" / "image" / f"{name}.JPG", 90)
        (root / "train" / "label").mkdir(parents=True, exist_ok=True)
        mask = class_mask()[0] if name != "empty" else np.zeros((HEIGHT, WIDTH), np.uint8)
        np.save(root / "train" / "label" / f"{name}_gt.npy", mask)
    write_image(root / "pretrain" / "x1.jpg")
    write_image(root / "test" / "image" / "y1.JPG")
    return root


def test_regions_are_objects_and_the_rest_is_unlabelled(downloaded: Path, tmp_path: Path) -> None:
    assert run("prepare stranger_sections", tmp_path / "out", "--source", downloaded, "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert dataset.class_names == NAMES
    expected = sorted((name, np.packbits(mask).tobytes()) for name, mask in class_mask()[1])
    assert [record.file_name for record in dataset.images] == [
        f"train/image/{n}.JPG" for n in ("empty", "hsa12q", "tya5k0")
    ]
    assert [masks_by_class(dataset, index) for index in range(3)] == [[], expected, expected]
    unlabelled = CocoDataset.load(tmp_path / "out" / "unlabelled.json")
    assert [record.file_name for record in unlabelled.images] == ["pretrain/x1.jpg", "test/image/y1.JPG"]


def test_other_classes_pictures_and_an_ignored_number(tmp_path: Path) -> None:
    mask = class_mask()[0]
    mask[0, :] = 255
    write_image(tmp_path / "set" / "a.png")
    Image.fromarray(mask).save(tmp_path / "set" / "a_class.png")
    words = ("--source", tmp_path / "set", "--split", "1", "--label-suffix", "_class", "--classes", "x", "y", "z")
    assert run("prepare stranger_sections", tmp_path / "out", *words) == 2
    assert run("prepare stranger_sections", tmp_path / "out", *words, "--ignore-value", "255") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    _, classes, crowd = dataset.annotations(0)
    assert [dataset.class_names[c] for c in classes[~crowd]] == ["x", "x", "z"]
    assert crowd.sum() == 1
    assert dataset.read_sample(0).ignore.sum() == WIDTH


def test_wrong_numbers_sizes_and_missing_masks_are_told(
    downloaded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = downloaded / "train" / "label"
    np.save(label / "hsa12q_gt.npy", np.full((HEIGHT, WIDTH), 4, np.uint8))
    np.save(label / "tya5k0_gt.npy", class_mask()[0][:, :-1])
    assert run("prepare stranger_sections", tmp_path / "out", "--source", downloaded) == 2
    message = capsys.readouterr().err
    assert "2 problems" in message
    assert "has the values 4; expected 0 for background and 1 to 3 for inertinite, vitrinite, liptinite" in message
    assert "30 x 39 pixels" in message
    (label / "empty_gt.npy").unlink()
    np.save(label / "stray_gt.npy", class_mask()[0])
    assert run("prepare stranger_sections", tmp_path / "out", "--source", downloaded) == 2
    message = capsys.readouterr().err
    assert "empty.JPG: has no mask; expected empty_gt.npy" in message
    assert "stray_gt.npy: has no image of this name" in message


def test_predictions_become_the_masks_that_the_challenge_takes(tmp_path: Path) -> None:
    """The mask that objects were read from is the one that is written of them; the best object is on top."""
    mask, objects = class_mask()
    rles = [rle_codec.encode_mask(one) for _, one in objects]
    classes = np.array([NAMES.index(name) for name, _ in objects])
    write_class_masks(tmp_path / "a_pred.npy", ImageObjects(1, "a.JPG", HEIGHT, WIDTH, rles, classes))
    written = np.load(tmp_path / "a_pred.npy")
    assert written.dtype == np.uint8
    assert np.array_equal(written, mask)
    twice = ImageObjects(1, "a.JPG", HEIGHT, WIDTH, [rles[0]] * 2, np.array([0, 2]), np.float32([0.4, 0.9]))
    with pytest.raises(DataError, match="share pixels"):
        write_class_masks(tmp_path / "b_pred.npy", twice)
    write_class_masks(tmp_path / "b_pred.npy", twice, "top")
    assert np.unique(np.load(tmp_path / "b_pred.npy")).tolist() == [0, 3]
