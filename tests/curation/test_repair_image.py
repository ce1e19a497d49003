"""All rules on one image: what each does to annotations, and that a second time changes nothing."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.curation.repair.image import ImageMasks, RepairedMasks, repair_image
from detseg.curation.repair.rules import RepairRules
from detseg.structures import rle as rle_codec

SIZE = 40


def repaired(masks: list[np.ndarray], rules: RepairRules | None = None, **known: object) -> RepairedMasks:
    classes = np.array(known.pop("classes", [0] * len(masks)), dtype=np.int64)
    image = ImageMasks(
        "a.png", [rle_codec.encode_mask(m) for m in masks], classes, list(range(1, len(masks) + 1)), "abc", **known
    )
    return repair_image(image, rules or RepairRules())


def rectangle(x0: int, y0: int, wide: int, high: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[y0 : y0 + high, x0 : x0 + wide] = True
    return mask


def said(result: RepairedMasks) -> list[tuple]:
    return [
        (c.annotation, c.rule, c.action, c.pixels_added, c.pixels_removed, c.area_before, c.area_after, c.other)
        for c in result.changes
    ]


def test_nothing_to_repair_is_left_as_it_came():
    masks = [rectangle(2, 3, 10, 8), rectangle(20, 20, 5, 5)]
    result = repaired(masks)
    assert result.rles == [rle_codec.encode_mask(mask) for mask in masks]
    assert (result.changes, result.origins.tolist(), result.changed.any()) == ([], [0, 1], False)
    nothing = repaired([])
    assert (nothing.rles, nothing.changes, nothing.classes.shape) == ([], [], (0,))


def test_every_rule_says_what_it_did():
    holed = rectangle(0, 0, 10, 10) & ~rectangle(3, 3, 2, 2)
    specked = rectangle(0, 15, 10, 6) | rectangle(12, 15, 2, 2)
    two = rectangle(0, 30, 4, 4) | rectangle(30, 30, 4, 3)
    masks = [holed, specked, two, rectangle(30, 0, 3, 3), rectangle(20, 0, 8, 8), rectangle(20, 0, 8, 7)]
    masks += [rectangle(15, 9, 12, 12), rectangle(17, 11, 4, 4), np.zeros((SIZE, SIZE), dtype=bool)]
    result = repaired(masks)
    assert sorted(said(result)) == [
        (1, "holes", "filled", 4, 0, 96, 100, ""),
        (2, "specks", "trimmed", 0, 4, 64, 60, ""),
        (3, "fragments", "split", 0, 12, 28, 16, "2 pieces"),
        (4, "min_area", "dropped", 0, 9, 9, 0, ""),
        (6, "duplicates", "merged", 0, 56, 56, 0, "5"),
        (8, "nested", "dropped", 0, 16, 16, 0, "7"),
        (9, "empty", "dropped", 0, 0, 0, 0, ""),
    ]
    assert result.origins.tolist() == [0, 1, 2, 2, 4, 6]
    assert result.absorbed == [[], [], [], [], [5], []]
    assert rle_codec.area(result.rles).tolist() == [100, 60, 16, 12, 64, 144]
    assert np.array_equal(rle_codec.decode(result.rles[3]), rectangle(30, 30, 4, 3))


def test_fragments_are_kept_split_or_the_largest_is():
    two = rectangle(0, 0, 6, 6) | rectangle(8, 0, 4, 4)
    assert said(repaired([two])) == [], "another cell may cross this one"
    split = repaired([two], RepairRules(fragments="split"))
    assert rle_codec.area(split.rles).tolist() == [36, 16]
    largest = repaired([two], RepairRules(fragments="largest"))
    assert said(largest) == [(1, "fragments", "trimmed", 0, 16, 52, 36, "")]
    assert said(repaired([two | rectangle(30, 30, 1, 1)], RepairRules(fragments="off"))) == []


def test_specks_are_small_pieces_but_never_the_largest():
    mask = rectangle(0, 0, 10, 10) | rectangle(11, 0, 1, 11) | rectangle(13, 0, 1, 9) | rectangle(15, 0, 1, 4)
    nothing = {"spurs": 0, "min_area": 0}
    for area, fraction, left in ((0, 0.1, 111), (5, 0.0, 120), (200, 0.0, 100)):
        rules = RepairRules(speck_area=area, speck_fraction=fraction, **nothing)
        assert rle_codec.area(repaired([mask], rules).rles).tolist() == [left]
    assert said(repaired([rectangle(0, 0, 2, 2)], RepairRules(**nothing))) == []


def test_the_outline_of_a_cluster_goes_and_not_the_cells_in_it():
    cells = [rectangle(x, 0, 9, 18) for x in (0, 10)]
    result = repaired([rectangle(0, 0, 20, 20), *cells])
    assert said(result) == [(1, "nested", "dropped", 0, 400, 400, 0, "2")]
    lonely = repaired([rectangle(0, 0, 20, 20), cells[0]])
    assert said(lonely) == [(2, "nested", "dropped", 0, 162, 162, 0, "1")]
    assert said(repaired([rectangle(0, 0, 20, 20), cells[0]], classes=[0, 1])) == [], "a nucleus in its cell is right"


def test_a_hole_whose_object_turns_out_to_be_none_is_filled_after_all():
    ring = rectangle(0, 0, 12, 12) & ~rectangle(4, 4, 3, 3)
    result = repaired([ring, rectangle(4, 4, 3, 3)])
    assert said(result) == [(2, "min_area", "dropped", 0, 9, 9, 0, ""), (1, "holes", "filled", 9, 0, 135, 144, "")]
    assert said(repaired([ring, rectangle(4, 4, 3, 3)], RepairRules(min_area=0))) == []


def test_classes_that_the_kind_does_not_have():
    masks = [rectangle(x, 0, 5, 5) for x in range(0, 36, 6)]
    stray = repaired(masks, classes=[0, 0, 0, 0, 0, 1], allowed={0})
    assert stray.classes.tolist() == [0] * 6
    assert said(stray) == [(6, "wrong_class", "relabelled", 0, 0, 25, 25, "b to a")]
    assert not stray.changed.any()
    several = repaired(masks, classes=[0, 0, 0, 1, 1, 2], allowed={0, 1})
    assert said(several) == [(6, "wrong_class", "dropped", 0, 25, 25, 0, "c")]
    rules = RepairRules(one_class_per_image=True)
    assert repaired(masks, rules, classes=[0, 0, 0, 0, 0, 1]).classes.tolist() == [0] * 6
    assert repaired(masks, rules, classes=[0, 0, 0, 0, 1, 1]).classes.tolist() == [0, 0, 0, 0, 1, 1], "no majority"
    dropped = repaired(masks, RepairRules(wrong_class="drop"), classes=[0, 0, 0, 0, 0, 1], allowed={0})
    assert len(dropped.rles) == 5


def test_of_two_classes_for_one_object_the_commoner_one_is_taken():
    masks = [rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 9), rectangle(20, 0, 5, 5), rectangle(30, 0, 5, 5)]
    result = repaired(masks, classes=[1, 0, 0, 0])
    assert result.classes.tolist() == [0, 0, 0]
    assert said(result) == [
        (1, "duplicates", "relabelled", 0, 0, 100, 100, "b to a"),
        (2, "duplicates", "merged", 0, 90, 90, 0, "1"),
    ]


@st.composite
def damaged_masks(draw: st.DrawFn) -> tuple[list[np.ndarray], list[int]]:
    """Masks as annotation tools leave them: rings, threads, dust, copies and cells in cells."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    masks: list[np.ndarray] = []
    for _ in range(draw(st.integers(0, 7))):
        kind = draw(st.sampled_from(["blob", "ring", "noise", "copy", "inside", "pieces", "thread"]))
        x, y = rng.integers(0, SIZE - 8, 2)
        wide, high = rng.integers(3, 16, 2)
        mask = rectangle(x, y, wide, high)
        if kind == "ring":
            mask &= ~rectangle(x + 1, y + 1, wide - 2, high - 2)
        elif kind == "noise":
            mask &= rng.random((SIZE, SIZE)) < 0.7
        elif kind == "copy" and masks:
            mask = np.roll(masks[rng.integers(len(masks))], rng.integers(0, 2), axis=rng.integers(0, 2))
        elif kind == "inside" and masks:
            mask &= masks[rng.integers(len(masks))]
        elif kind == "pieces":
            mask |= rectangle(*rng.integers(0, SIZE - 4, 2), *rng.integers(1, 6, 2))
        elif kind == "thread":
            mask |= rectangle(x, y, 1, 16) | np.eye(SIZE, dtype=bool)
        masks.append(mask)
    return masks, rng.integers(0, 3, len(masks)).tolist()


RULES = [
    RepairRules(),
    RepairRules(holes="all", fragments="split", spurs=30, min_area=3, speck_area=3),
    RepairRules(fragments="largest", nested=0.6, duplicates=0.5, one_class_per_image=True),
    RepairRules(min_area=25, far=0.2, speck_fraction=0.0, wrong_class="drop", nested=0.5),
]


@settings(max_examples=80)
@given(damaged_masks(), st.sampled_from(RULES), st.sampled_from([None, {1}, {0, 2}]))
def test_a_second_repair_changes_nothing(masks: tuple[list[np.ndarray], list[int]], rules: RepairRules, allowed):
    first = repaired(masks[0], rules, classes=masks[1], allowed=allowed)
    again = repair_image(
        ImageMasks("a.png", first.rles, first.classes, list(range(len(first.rles))), "abc", allowed), rules
    )
    assert again.changes == []
    assert again.rles == first.rles
    assert again.classes.tolist() == first.classes.tolist()


@settings(max_examples=30)
@given(damaged_masks(), st.sampled_from(RULES))
def test_the_list_of_changes_adds_up(masks: tuple[list[np.ndarray], list[int]], rules: RepairRules):
    result = repaired(masks[0], rules, classes=masks[1])
    before, after = sum(int(mask.sum()) for mask in masks[0]), int(rle_codec.area(result.rles).sum())
    # What a split takes from its annotation its pieces have.
    apart = sum(c.pixels_removed for c in result.changes if c.action == "split")
    added = sum(c.pixels_added for c in result.changes)
    removed = sum(c.pixels_removed for c in result.changes)
    assert before + added - removed + apart == after
    for change in result.changes:
        assert change.area_before + change.pixels_added - change.pixels_removed == change.area_after
    assert all(0 <= origin < len(masks[0]) for origin in result.origins)
