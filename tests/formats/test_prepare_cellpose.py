"""Cellpose: masks and _seg.npy to the pixel; nothing in a _seg.npy runs; its own data set's names and folders."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from readers_for_tests import HEIGHT, WIDTH, expected_masks, labels_of, masks_by_class, run, write_image

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.cellpose import read_seg_npy


def seg_of(masks: np.ndarray) -> dict[str, object]:
    """What Cellpose's window saves."""
    flows = [np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8), [], None]
    return {
        "outlines": np.zeros((HEIGHT, WIDTH), np.uint16),
        "colors": np.zeros((4, 3), np.uint8),
        "masks": masks,
        "chan_choose": [0, 0],
        "img": np.zeros((HEIGHT, WIDTH), np.float32),
        "filename": "a.png",
        "flows": flows,
        "ismanual": np.zeros(4, bool),
        "manual_changes": [],
        "est_diam": np.float64(30.0),
        "model_path": 0,
    }


def seg_bytes(content: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(content, dtype=object), allow_pickle=True)
    return file.getvalue()


def test_masks_and_segmentations_are_read_to_the_pixel(tmp_path: Path) -> None:
    source = tmp_path / "cells"
    for index, name in enumerate("abc"):
        write_image(source / f"{name}.png", index)
    tifffile.imwrite(source / "a_cp_masks.tif", labels_of(0))
    np.save(source / "b_seg.npy", seg_of(labels_of(1)), allow_pickle=True)
    # Both: what the window saved counts.
    Image.fromarray(labels_of(0)).save(source / "c_masks.png")
    np.save(source / "c_seg.npy", seg_of(labels_of(2).astype(np.int32)[None]), allow_pickle=True)
    write_image(source / "a_cp_output.png")
    write_image(source / "a_flows.tif")
    assert run("prepare cellpose", tmp_path / "out", "--source", source, "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert [record.file_name for record in dataset.images] == ["a.png", "b.png", "c.png"]
    for index in range(3):
        assert masks_by_class(dataset, index) == expected_masks(labels_of(index))


def test_its_own_data_set_keeps_its_split(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for index in range(count):
            write_image(tmp_path / "cells" / part / f"{index:03d}_img.png")
            Image.fromarray(labels_of(index)).save(tmp_path / "cells" / part / f"{index:03d}_masks.png")
    assert run("prepare cellpose", tmp_path / "out", "--source", tmp_path / "cells") == 0
    assert len(CocoDataset.load(tmp_path / "out" / "train.json")) == 3
    assert len(CocoDataset.load(tmp_path / "out" / "test.json")) == 2
    assert run("prepare cellpose", tmp_path / "other", "--source", tmp_path / "cells", "--split", "0.5", "0.5") == 0
    assert not (tmp_path / "other" / "test.json").exists()


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_nothing_in_a_seg_npy_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "cells"
    write_image(source / "a.png")
    write_image(source / "b.png")
    (source / "a_seg.npy").write_bytes(seg_bytes({"masks": labels_of(), "flows": Hostile(tmp_path / "ran")}))
    (source / "b_seg.npy").write_bytes(seg_bytes(seg_of(labels_of())))
    assert run("prepare cellpose", tmp_path / "out", "--source", source, "--split", "1") == 2
    message = capsys.readouterr().err
    assert "a_seg.npy" in message
    assert "not allowed" in message
    assert not (tmp_path / "ran").exists()
    assert run("prepare cellpose", tmp_path / "out", "--source", source, "--split", "1", "--skip-bad") == 0
    assert len(CocoDataset.load(tmp_path / "out" / "all.json")) == 1
    assert "a_seg.npy" in (tmp_path / "out" / "skipped.txt").read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
        (seg_bytes(seg_of(labels_of()))[:-50], "cannot be read"),
        (seg_bytes({"outlines": labels_of()}), "expected a dict with 'masks'"),
        (seg_bytes([1, 2]), "expected a dict with 'masks'"),
        (seg_bytes({"masks": "all"}), "not a label image"),
        (seg_bytes({"masks": np.zeros((2, 2))}), "not a label image"),
        (seg_bytes({"masks": np.zeros((3, 2, 2), np.uint8)}), "3 planes"),
        (seg_bytes({"masks": -np.ones((2, 2), np.int16)}), "labels -1"),
        (pickle.dumps({"masks": labels_of()}), "cannot be read"),
    ],
)
def test_what_is_no_segmentation_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_seg_npy(content, "a_seg.npy")


def test_an_array_of_labels_in_the_place_of_the_dict_is_refused() -> None:
    file = io.BytesIO()
    np.save(file, labels_of())
    with pytest.raises(DataError, match="expected a dict"):
        read_seg_npy(file.getvalue(), "a_seg.npy")


def test_all_that_does_not_fit_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "cells"
    for name in ("a", "b", "c"):
        write_image(source / f"{name}.png")
    Image.fromarray(labels_of()[:-1]).save(source / "a_masks.png")
    Image.fromarray(labels_of()).save(source / "b_masks.png")
    assert run("prepare cellpose", tmp_path / "out", "--source", source, "--split", "1") == 2
    assert "c.png: has no annotation file; expected c_seg.npy" in capsys.readouterr().err
    assert run("prepare cellpose", tmp_path / "out", "--source", source, "--split", "1", "--allow-empty") == 2
    assert "29 x 40 pixels (height x width), its image 30 x 40" in capsys.readouterr().err
    options = ("--source", source, "--split", "1", "--allow-empty", "--skip-bad")
    assert run("prepare cellpose", tmp_path / "out", *options) == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert [len(dataset.annotations(index).rles) for index in range(2)] == [4, 0]
    Image.fromarray(labels_of()).save(source / "z_masks.png")
    assert run("prepare cellpose", tmp_path / "x", "--source", source) == 2
    assert "z_masks.png: has no image of this name" in capsys.readouterr().err


def test_archives_are_read_as_folders_are(tmp_path: Path) -> None:
    source = tmp_path / "cells"
    for index, name in enumerate(("a", "sub/b")):
        write_image(source / f"{name}.png")
        np.save(source / f"{name}_seg.npy", seg_of(labels_of(index)), allow_pickle=True)
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", source))
    assert run("prepare cellpose", tmp_path / "out", "--source", packed, "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    dataset.check_images_exist()
    assert [masks_by_class(dataset, index) for index in range(2)] == [expected_masks(labels_of(n)) for n in range(2)]


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_damaged_segmentation_is_masks_or_a_data_error(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    damaged = bytearray(seg_bytes({"masks": labels_of(), "flows": [None, np.zeros(3)], "filename": "a.png"}))
    for _ in range(count):
        damaged[rng.integers(0, len(damaged))] = rng.integers(0, 256)
    try:
        masks = read_seg_npy(bytes(damaged), "a_seg.npy")
    except DataError:
        return
    assert masks.dtype == np.int32
    assert masks.ndim == 2
