"""Mending masks: holes are filled, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detseg.cli.main import main
from detseg.curation.repair.masks import filled


def ring(size: int, x0: int = 0, y0: int = 0, height: int = 9, width: int = 9) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[y0 : y0 + size, x0 : x0 + size] = True
    mask[y0 + 1 : y0 + size - 1, x0 + 1 : x0 + size - 1] = False
    return mask


def test_an_enclosed_hole_is_filled():
    expected = np.zeros((9, 9), dtype=bool)
    expected[3:8, 2:7] = True
    assert np.array_equal(filled(ring(5, 2, 3)), expected)


def test_what_is_open_or_whole_stays_as_it_came():
    gap = ring(5)
    gap[0, 2] = False
    for mask in (gap, np.zeros((9, 9), dtype=bool), np.eye(9, dtype=bool)):
        assert filled(mask) is mask
    diagonal = ring(4)  # its hole is joined to the outside through a corner only: 4-connected paths do not pass
    diagonal[0, 0] = False
    whole = filled(diagonal)
    assert np.count_nonzero(whole) - np.count_nonzero(diagonal) == 4
    assert filled(whole) is whole, "filling twice changes something"


@pytest.mark.parametrize("fill", [False, True])
def test_prepare_fills_holes_when_asked(fill, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = ring(5).astype(np.uint8) + 2 * ring(3, 5, 5).astype(np.uint8)
    np.save(tmp_path / "labels" / "a.npy", labels)
    np.save(tmp_path / "images" / "a.npy", np.zeros((9, 9), dtype=np.uint8))
    words = ["prepare", "label_images", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    words += ["--output", str(tmp_path / "out"), "--split", "1"]
    assert main(words + ["--fill-holes"] * fill) == 0
    coco = json.loads((tmp_path / "out" / "all.json").read_text(encoding="utf-8"))
    assert [annotation["area"] for annotation in coco["annotations"]] == ([25, 9] if fill else [16, 8])
