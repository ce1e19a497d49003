"""Mending masks: holes are filled, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detseg.cli.main import main
from detseg.curation.repair import fill_holes
from detseg.structures import rle as rle_codec


def ring(size: int, x0: int = 0, y0: int = 0, height: int = 9, width: int = 9) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[y0 : y0 + size, x0 : x0 + size] = True
    mask[y0 + 1 : y0 + size - 1, x0 + 1 : x0 + size - 1] = False
    return mask


def test_an_enclosed_hole_is_filled_and_the_pixels_are_counted():
    filled, gained = fill_holes([rle_codec.encode_mask(ring(5, 2, 3))])
    expected = np.zeros((9, 9), dtype=bool)
    expected[3:8, 2:7] = True
    assert np.array_equal(rle_codec.decode(filled[0]), expected)
    assert gained.tolist() == [9]


def test_what_is_open_or_whole_stays_as_it_came():
    gap = ring(5)
    gap[0, 2] = False
    diagonal = ring(4)  # its hole is joined to the outside through a corner only: 4-connected paths do not pass
    diagonal[0, 0] = False
    masks = [gap, np.zeros((9, 9), dtype=bool), np.eye(9, dtype=bool), diagonal]
    filled, gained = fill_holes([rle_codec.encode_mask(mask) for mask in masks])
    assert gained.tolist() == [0, 0, 0, 4]
    for rle, mask in zip(filled[:3], masks[:3], strict=True):
        assert np.array_equal(rle_codec.decode(rle), mask)
    again, gained_again = fill_holes(filled)
    assert gained_again.sum() == 0, "filling twice changes something"
    assert again == filled


def test_no_masks_are_legal():
    filled, gained = fill_holes([])
    assert (filled, gained.shape) == ([], (0,))


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
