"""The rules of repair one by one, on masks small enough to see the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from detseg.curation.repair.image import near_duplicates, nested
from detseg.curation.repair.masks import far_groups, filled, filled_where_free, label_holes, pieces_of, spurs_of
from detseg.curation.repair.rules import NOTHING, RepairRules, one_class_hint
from detseg.errors import DataError
from detseg.structures.mask_crop import MaskCrop, runs_of_crops
from detseg.structures.overlaps import Overlaps, shared_pixels

masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def drawn(*rows: str) -> np.ndarray:
    """A mask from text: # is object."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def same(mask: np.ndarray, *rows: str) -> None:
    found = "\n".join("".join(".#"[value] for value in row) for row in mask.astype(int))
    assert np.array_equal(mask, drawn(*rows)), f"found\n{found}"


def hole_areas(mask: np.ndarray) -> list[int]:
    labels, count = label_holes(mask)
    return [int((labels == number).sum()) for number in range(1, count + 1)]


def test_holes_are_counted_apart():
    assert sorted(hole_areas(drawn("#######", "#.#...#", "#######"))) == [1, 3]
    assert hole_areas(drawn("###", "#..", "###")) == [], "open to the border: no hole"
    assert hole_areas(np.ones((3, 3), dtype=bool)) == []


@given(masks)
def test_filling_is_scipys(mask: np.ndarray):
    assert np.array_equal(filled(mask), ndimage.binary_fill_holes(mask))
    assert sum(hole_areas(mask)) == (ndimage.binary_fill_holes(mask) & ~mask).sum()


def test_a_hole_stays_for_the_object_in_it_and_not_for_one_that_crosses():
    ring = drawn("#########", "#..#....#", "#..#....#", "#########")
    inside = box(1, 1, 2, 2)
    crossing = box(5, 0, 1, 4)  # half of its pixels lie in the hole: it counts as lying there
    longer = box(5, 0, 1, 5)
    mask, left = filled_where_free(MaskCrop(ring, 0, 0), [inside, longer])
    same(mask, "#########", "#..######", "#..######", "#########")
    assert left
    mask, left = filled_where_free(MaskCrop(ring, 0, 0), [crossing])
    same(mask, "#########", "####....#", "####....#", "#########")
    assert left
    mask, left = filled_where_free(MaskCrop(ring, 0, 0), [])
    assert mask.all()
    assert not left


def test_spurs_are_spikes_and_corners_and_not_processes_bridges_or_outline():
    mask = drawn(
        "..............#.",
        "..............#.",
        ".###..........#.",
        ".###..........#.",
        ".############.#.",
        ".###......######",
        "#.........######",
        ".........#######",
        "..........######",
    )
    # a thread of 6 that joins two bodies, a pixel at a corner, one at a side, a process of 5
    same(
        spurs_of(mask, largest=4),
        "................",
        "................",
        "................",
        "................",
        "................",
        "................",
        "#...............",
        "................",
        "................",
    )
    assert spurs_of(mask, largest=5).sum() == 6
    assert not spurs_of(mask, largest=0).any()


def test_what_is_thin_all_over_has_no_spurs():
    thread = np.zeros((5, 12), dtype=bool)
    thread[2] = True
    assert not spurs_of(thread, 20).any()
    thread[3, :2] = True
    assert not spurs_of(thread, 20).any(), "more than a fifth would go"


@given(masks, st.integers(0, 12))
def test_smoothing_twice_changes_nothing_more_and_tears_nothing(mask: np.ndarray, largest: int):
    square = np.ones((2, 2), dtype=bool)
    opened = ndimage.binary_opening(np.pad(mask, 2), square)[2:-2, 2:-2]
    spurs = spurs_of(mask, largest)
    assert not (spurs & opened).any()
    assert spurs.sum() <= 0.2 * mask.sum()
    left = mask & ~spurs
    assert not spurs_of(left, largest).any()
    assert len(pieces_of(left)) <= max(len(pieces_of(mask)), 1)


def test_pieces_come_by_size():
    mask = drawn("#....##", ".......", "###....", "###....", "...#...")
    pieces = pieces_of(mask)
    assert [int(piece.sum()) for piece in pieces] == [7, 2, 1], "a corner joins"


def test_pieces_far_away_are_other_objects_and_chains_join():
    mask = np.zeros((10, 60), dtype=bool)
    mask[:6, :6] = mask[:3, 10:13] = mask[:3, 18:21] = mask[4:8, 50:54] = True
    groups = far_groups(pieces_of(mask), 1.0)
    assert [int(group.sum()) for group in groups] == [36 + 9 + 9, 16]
    assert len(far_groups(pieces_of(mask), 0.5)) == 4
    assert len(far_groups(pieces_of(mask), 10.0)) == 1


def box(x0: int, y0: int, wide: int, high: int) -> MaskCrop:
    return MaskCrop(np.ones((high, wide), dtype=bool), x0, y0)


def overlaps_of(crops: list[MaskCrop]) -> Overlaps:
    return shared_pixels(runs_of_crops(crops, 30, 30))


def test_overlaps_are_counted_by_pixels():
    crops = [box(0, 0, 10, 10), box(5, 5, 10, 10), box(2, 2, 4, 4), box(10, 0, 3, 3), box(0, 0, 10, 9)]
    overlaps = overlaps_of(crops)
    pairs = list(zip(overlaps.first.tolist(), overlaps.second.tolist(), overlaps.pixels.tolist(), strict=True))
    assert pairs == [(0, 1, 25), (0, 2, 16), (0, 4, 90), (1, 2, 1), (1, 4, 20), (2, 4, 16)]
    assert overlaps.iou[:3].tolist() == [25 / 175, 16 / 100, 0.9]
    assert overlaps.of_smaller[:3].tolist() == [0.25, 1.0, 1.0]
    assert len(overlaps_of([])) == 0


def test_of_duplicates_the_largest_stays_and_chains_do_not_run_on():
    crops = [box(0, 0, 10, 10), box(1, 0, 10, 10), box(0, 0, 10, 11), box(2, 0, 10, 10), box(0, 0, 10, 11)]
    pairs = near_duplicates(overlaps_of(crops), 0.76)
    assert pairs == [(2, 0), (2, 4), (1, 3)]


def test_nested_masks_are_of_one_class():
    crops = [box(0, 0, 10, 10), box(1, 1, 3, 3), box(5, 5, 3, 3), box(9, 9, 4, 4), box(2, 2, 1, 1)]
    found = nested(overlaps_of(crops), np.array([0, 0, 1, 0, 0]), 0.95)
    assert found == {0: [1, 4], 1: [4]}


def test_the_kind_of_an_image_allows_classes():
    rules = RepairRules(kind_classes="mixed:a|b, other : b")
    names = ["a", "b", "c"]
    assert rules.allowed_classes("c", names) == {2}
    assert rules.allowed_classes("mixed", names) == {0, 1}
    assert rules.allowed_classes("unknown", names) is None
    with pytest.raises(DataError, match=r"'other' has the class 'b'; expected one of a"):
        rules.allowed_classes("other", ["a"])
    assert rules.allowed_classes(None, names) is None


def test_a_hint_is_given_where_images_have_one_class_each_but_for_a_few():
    counts = np.array([[5, 0]] * 10 + [[0, 7]] * 9 + [[8, 1]])
    assert one_class_hint(counts).startswith("19 of 20 images have objects of one class only, 1 of several")
    assert one_class_hint(counts[:-1]) is None
    rare = np.array([[5, 0]] * 19 + [[8, 1]])
    assert one_class_hint(rare) is None, "a class that never comes alone may be rare and right"
    assert one_class_hint(np.zeros((3, 2), dtype=np.int64)) is None


def test_rules_are_read_from_words():
    assert RepairRules.parse([]) == RepairRules()
    rules = RepairRules.parse(["holes=all", "spurs=off", "duplicates=0.9", "one_class_per_image=yes"])
    assert (rules.holes, rules.spurs, rules.duplicates, rules.one_class_per_image) == ("all", 0, 0.9, True)
    assert RepairRules.parse(["min_area=5", "none", "holes=all"]).to_dict() == {**NOTHING.to_dict(), "holes": "all"}
    assert RepairRules.parse(["spurs=2"], RepairRules(one_class_per_image=True)).one_class_per_image


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hole=all", "did you mean holes?"),
        ("crumbs=4", "did you mean spurs?"),
        ("holes", "=VALUE"),
        ("holes=some", "expected one of free, all, off"),
        ("spurs=1.5", "expected a whole number"),
        ("spurs=-1", "0 or more"),
        ("duplicates=1.5", "a fraction"),
        ("duplicates=nan", "expected a number"),
        ("one_class_per_image=1", "yes or no"),
        ("kind_classes=a", "VALUE:CLASS"),
        ("far=inf", "expected a number"),
    ],
)
def test_words_that_are_no_rules_are_refused(word: str, said: str):
    with pytest.raises(DataError, match=said.replace("?", r"\?")):
        RepairRules.parse([word])
