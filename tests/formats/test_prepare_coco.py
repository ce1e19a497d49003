"""COCO files that are joined: of the same classes, whatever their ids and folders, and no image twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from readers_for_tests import HEIGHT, WIDTH, expected_masks, labels_of, masks_by_class, run, write_image

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.structures.label_layers import LabelLayers

CLASSES = {4: "cell", 7: "cell", 9: "debris", 300: "cell"}


def write_set(folder: Path, name: str, index: int, classes: list[str], **info: object) -> Path:
    """A COCO file of one image NAME.png with the objects of `labels_of`, ids from 1 on, in a folder of its own."""
    write_image(folder / f"{name}.png")
    labels = np.unique(labels_of(index), return_inverse=True)[1].reshape(1, HEIGHT, WIDTH).astype(np.int32)
    ids = [1 + classes.index(called) for called in CLASSES.values()]
    rows = annotations_of(LabelLayers(labels, len(ids)).to_rles(), ids, image_id=1, first_id=1)
    image = {"id": 1, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH, "fold": index}
    categories = [{"id": number, "name": called} for number, called in enumerate(classes, start=1)]
    path = folder / "own.json"
    write_coco(path, images=[image], annotations=rows, categories=categories, info=info)
    return path


def join(tmp_path: Path, *files: Path) -> int:
    return run("prepare coco", tmp_path / "out", "--annotations", *files, "--split", 1, "--overwrite")


def test_files_are_joined_by_the_names_of_their_classes(tmp_path: Path) -> None:
    first = write_set(tmp_path / "first", "a", 0, ["cell", "debris"])
    second = write_set(tmp_path / "second" / "deeper", "b", 1, ["debris", "cell"])
    assert join(tmp_path, first, second) == 0
    joined = CocoDataset.load(tmp_path / "out" / "all.json")
    joined.check_images_exist()
    assert [record.file_name for record in joined.images] == ["first/a.png", "second/deeper/b.png"]
    assert [record.metadata["fold"] for record in joined.images] == [0, 1]
    assert len({record.image_id for record in joined.images}) == 2
    for index in range(2):
        assert masks_by_class(joined, index) == expected_masks(labels_of(index), CLASSES)


def test_what_does_not_go_together_is_not_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_set(tmp_path / "first", "a", 0, ["cell", "debris"])
    again = first.with_name("again.json")
    again.write_bytes(first.read_bytes())
    assert join(tmp_path, first, again) == 2
    assert "a.png: in " in capsys.readouterr().err, "an image that is in two"
    other = write_set(tmp_path / "second", "b", 1, ["cell", "debris", "dirt"])
    plain = json.loads(other.read_text())
    plain["annotations"][0]["category_id"] = 3
    other.write_text(json.dumps(plain))
    assert join(tmp_path, first, other) == 2
    assert "its classes are cell, debris, dirt; expected cell, debris" in capsys.readouterr().err
    gray = write_set(tmp_path / "third", "c", 1, ["cell", "debris"], input={"INPUT.CHANNELS": [0]})
    green = write_set(tmp_path / "fourth", "d", 1, ["cell", "debris"], input={"INPUT.CHANNELS": [1]})
    assert join(tmp_path, gray, green) == 2
    assert "{'INPUT.CHANNELS': [1]}" in capsys.readouterr().err
    assert join(tmp_path, first, gray) == 0, "one that says nothing goes with any"
