"""Pasted objects against a plain reference with full masks; what ids, classes, masks and ignored pixels become."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.config import load_config
from detseg.data.augment.canvas import Canvas, SourceImage
from detseg.data.augment.copy_paste import CopyPaste
from detseg.data.paste_sources import CopyPasteOptions
from detseg.errors import ConfigError, DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample


def sample_of(
    height: int, width: int, count: int, seed: int, *, channels: int = 1, dtype: type = np.uint8, ignore: bool = False
) -> Sample:
    """Rectangles that overlap, over noise; the class of an object stands in its pixels: 100 * (class + 1) + noise."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.integers(0, height), rng.integers(0, width)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
    image = rng.integers(0, 250, (height, width, channels)).astype(dtype)
    ignored = rng.random((height, width)) < 0.02 if ignore else None
    return Sample(
        image,
        LabelLayers.from_masks(masks.reshape(-1, height, width)),
        rng.integers(0, 3, count),
        ignored,
        seed,
        "a.png",
    )


def reference_paste(
    target: Sample, source: Sample, placed: list[tuple[int, int, int]], min_visible: float, kept_overlaps: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, masks (N, H, W), classes and ignored pixels after pasting (object, down, right), with full masks."""
    image = target.image.copy()
    masks, classes = list(target.layers.masks()), list(target.classes)
    areas = [mask.sum() for mask in masks]
    before = len(masks)
    for index, down, right in placed:
        moved = np.zeros((target.height, target.width), bool)
        for y, x in zip(*np.nonzero(source.layers.mask(index)), strict=True):
            if 0 <= y + down < target.height and 0 <= x + right < target.width:
                moved[y + down, x + right] = True
                image[y + down, x + right] = source.image[y, x]
        for number, mask in enumerate(masks):
            if number < before or not kept_overlaps:
                masks[number] = mask & ~moved
        masks.append(moved)
        classes.append(source.classes[index])
        areas.append(moved.sum())
    keep = [mask.any() and mask.sum() >= min_visible * area for mask, area in zip(masks, areas, strict=True)]
    ignore = np.zeros((target.height, target.width), bool) if target.ignore is None else target.ignore.copy()
    for mask, kept in zip(masks, keep, strict=True):
        if not kept:
            ignore |= mask
    kept_masks = [mask for mask, kept in zip(masks, keep, strict=True) if kept]
    shape = (0, target.height, target.width)
    return (
        image,
        np.stack(kept_masks) if kept_masks else np.zeros(shape, bool),
        np.array([c for c, kept in zip(classes, keep, strict=True) if kept], dtype=np.int64),
        ignore,
    )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    counts=st.tuples(st.integers(0, 12), st.integers(1, 12)),
    kept_overlaps=st.booleans(),
    min_visible=st.sampled_from([0.0, 0.3, 0.8]),
)
def test_every_pixel_is_where_full_masks_put_it(
    seed: int, counts: tuple[int, int], kept_overlaps: bool, min_visible: float
) -> None:
    target, source = sample_of(20, 24, counts[0], seed, ignore=True), sample_of(22, 18, counts[1], seed + 1)
    rng = np.random.default_rng(seed)
    shift = rng.integers(-5, 6, 2)
    placed = []
    cutouts = SourceImage(source)
    canvas = Canvas(target, cutouts, kept_overlaps=kept_overlaps)
    for index in rng.permutation(len(source.layers)).tolist():
        down, right = (shift if kept_overlaps else rng.integers(-5, 6, 2)).tolist()
        cutout = cutouts.cut_out(index)
        if canvas.fits(cutout, cutout.y0 + down, cutout.x0 + right, max_overlap=1.0, min_visible=0.0):
            canvas.paste(cutout, cutout.y0 + down, cutout.x0 + right)
            placed.append((index, down, right))
    result = canvas.finish(min_visible)
    image, masks, classes, ignore = reference_paste(target, source, placed, min_visible, kept_overlaps)
    np.testing.assert_array_equal(result.image, image)
    np.testing.assert_array_equal(result.layers.masks(), masks)
    np.testing.assert_array_equal(result.classes, classes)
    np.testing.assert_array_equal(result.ignore, ignore)
    if not placed:
        assert result is target


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    place=st.sampled_from(["kept", "free"]),
    max_overlap=st.sampled_from([0.0, 0.2, 0.6]),
    soft=st.sampled_from([(0.0, 0, False), (1.0, 2, True)]),
)
def test_what_is_pasted_keeps_the_limits(seed: int, place: str, max_overlap: float, soft: tuple) -> None:
    target = sample_of(30, 40, 8, seed, ignore=True, dtype=np.float32)
    source = sample_of(34, 36, 10, seed + 1, ignore=True, dtype=np.float32)
    before = target.image.copy(), target.layers.layers.copy(), target.ignore.copy()
    policy = CopyPaste(
        place=place, max_overlap=max_overlap, min_visible=0.0, soft_edge=soft[0], margin=soft[1], match_gray=soft[2]
    )
    result = policy.paste(target, source, np.random.default_rng(seed))
    again = policy.paste(target, source, np.random.default_rng(seed))
    np.testing.assert_array_equal(result.image, again.image)
    np.testing.assert_array_equal(result.layers.layers, again.layers.layers)
    np.testing.assert_array_equal(target.image, before[0])
    np.testing.assert_array_equal(target.layers.layers, before[1])
    np.testing.assert_array_equal(result.ignore & before[2], before[2])
    pasted = len(result.layers) - len(target.layers)
    assert len(result.classes) == len(result.layers)
    assert pasted >= 0
    old, new = target.layers.masks(), result.layers.masks()
    for mask, now in zip(old, new, strict=False):
        assert not (now & ~mask).any(), "an object that was there only loses pixels"
        assert (mask & ~now).sum() <= max_overlap * mask.sum()
    for mask in new[len(old) :]:
        assert not (mask & before[2]).any(), "nothing is pasted upon ignored pixels"
    if soft == (0.0, 0, False):
        covered = new[len(old) :].any(axis=0)
        np.testing.assert_array_equal(result.image[~covered], target.image[~covered])
    if place == "free" and max_overlap == 0:
        assert new.sum(axis=0).max(initial=0) <= max(old.sum(axis=0).max(initial=0), 1)


def test_objects_bring_their_pixels_and_class() -> None:
    target = Sample(np.zeros((40, 40, 1), np.uint8), LabelLayers.empty(40, 40))
    labels = np.zeros((40, 40), np.int32)
    labels[5:12, 6:10], labels[20:25, 20:30] = 1, 2
    image = (labels * 50).astype(np.uint8)[:, :, None]
    source = Sample(image, LabelLayers.from_label_image(labels), np.array([4, 7]))
    for place in ("kept", "free"):
        result = CopyPaste(place=place).paste(target, source, np.random.default_rng(1))
        for index, class_index in enumerate(result.classes):
            mask = result.layers.mask(index)
            value = {4: 50, 7: 100}[int(class_index)]
            assert mask.sum() == {4: 28, 7: 50}[int(class_index)]
            assert (result.image[mask] == value).all()
        assert (result.image[~result.layers.foreground()] == 0).all()


@pytest.mark.parametrize("place", ["kept", "free"])
def test_nothing_to_paste_leaves_the_target_itself(place: str) -> None:
    target = sample_of(30, 30, 5, 0)
    paste = CopyPaste(place=place).paste
    rng = np.random.default_rng(0)
    empty = Sample(np.zeros((30, 30, 1), np.uint8), LabelLayers.empty(30, 30))
    assert paste(target, empty, rng) is target
    assert paste(target, Sample(np.zeros((30, 30, 1), np.uint8)), rng) is target
    ignored = dataclasses.replace(sample_of(30, 30, 5, 1), ignore=np.ones((30, 30), bool))
    assert paste(target, ignored, rng) is target, "of what is ignored nothing is taken"
    closed = dataclasses.replace(target, ignore=np.ones((30, 30), bool))
    assert paste(closed, sample_of(30, 30, 5, 1), rng) is closed
    full = Sample(np.zeros((30, 30, 1), np.uint8), LabelLayers(np.ones((1, 30, 30), np.int32), 1), np.zeros(1, int))
    assert paste(full, sample_of(30, 30, 5, 1), rng) is full, "an object may not lie upon another with all its pixels"


def test_upon_an_image_without_annotations_or_objects() -> None:
    source = sample_of(30, 30, 5, 1)
    for layers in (None, LabelLayers.empty(20, 50)):
        target = Sample(np.zeros((20, 50, 1), np.uint8), layers)
        result = CopyPaste(place="free").paste(target, source, np.random.default_rng(0))
        assert len(result.layers) == len(result.classes) > 0


def test_cut_objects_do_not_show_their_cut() -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[0:6, 10:16] = 1
    source = Sample(np.zeros((30, 30, 1), np.uint8), LabelLayers.from_label_image(labels), np.zeros(1, int))
    small, large = (Sample(np.zeros((size, size, 1), np.uint8), LabelLayers.empty(size, size)) for size in (30, 60))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        assert len(CopyPaste().paste(small, source, rng).layers) == 1, "same size, same place"
        for policy in (CopyPaste(), CopyPaste(place="free")):
            boxes = policy.paste(large, source, rng).layers
            assert len(boxes) == 0 or boxes.boxes()[0, 1] <= 2, (
                "its upper edge is cut: only an upper edge may hide that"
            )


def test_dropped_objects_leave_ignored_pixels() -> None:
    labels = np.zeros((20, 20), np.int32)
    labels[8:12, 8:12] = 1
    target = Sample(np.zeros((20, 20, 1), np.uint8), LabelLayers.from_label_image(labels), np.zeros(1, int))
    labels = np.zeros((20, 20), np.int32)
    labels[8:11, 5:15] = 1
    source = Sample(np.zeros((20, 20, 1), np.uint8), LabelLayers.from_label_image(labels), np.ones(1, int))
    result = CopyPaste(max_overlap=1.0, min_visible=0.3).paste(target, source, np.random.default_rng(0))
    assert result.classes.tolist() == [1]
    expected = np.zeros((20, 20), bool)
    expected[11, 8:12] = True
    np.testing.assert_array_equal(result.ignore, expected)
    kept = CopyPaste(max_overlap=1.0, min_visible=0.25).paste(target, source, np.random.default_rng(0))
    assert kept.classes.tolist() == [0, 1]
    assert kept.layers.boxes()[0].tolist() == [8, 11, 12, 12]
    assert kept.ignore is None


def test_rare_classes_come_as_often_as_their_weights_say() -> None:
    labels = np.zeros((40, 90), np.int32)
    for number in range(10):
        labels[10:14, 5 + 8 * number : 9 + 8 * number] = number + 1
    classes = np.array([0] * 9 + [1])
    source = Sample(np.zeros((40, 90, 1), np.uint8), LabelLayers.from_label_image(labels), classes)
    target = Sample(np.zeros((40, 90, 1), np.uint8), LabelLayers.empty(40, 90))

    def share(weights: tuple[float, ...]) -> float:
        policy = CopyPaste(max_objects=1, class_weights=weights)
        drawn = [policy.paste(target, source, np.random.default_rng(seed)).classes for seed in range(400)]
        assert all(len(one) == 1 for one in drawn)
        return float(np.mean([one[0] for one in drawn]))

    assert share(()) == pytest.approx(0.1, abs=0.05)
    assert share((1 / 9, 1.0)) == pytest.approx(0.5, abs=0.07)
    assert share((1.0, 0.0)) == 0


def test_gray_levels_follow_the_surroundings() -> None:
    labels = np.zeros((60, 60), np.int32)
    labels[20:30, 20:30] = 1
    source = Sample(
        np.where(labels > 0, 120, 100).astype(np.uint8)[:, :, None],
        LabelLayers.from_label_image(labels),
        np.zeros(1, int),
    )
    image = np.full((60, 60, 1), 30, np.uint8)
    image[:, 30:] = 200
    target = Sample(image, LabelLayers.empty(60, 60))
    plain = CopyPaste().paste(target, source, np.random.default_rng(0))
    assert (plain.image[labels > 0] == 120).all()
    matched = CopyPaste(place="free", match_gray=True)
    seen = set()
    for seed in range(20):
        result = matched.paste(target, source, np.random.default_rng(seed))
        x0 = int(result.layers.boxes()[0, 0])
        value = int(result.image[result.layers.mask(0)][0, 0])
        if x0 + 15 <= 30:
            assert value == 50
        elif x0 - 5 >= 30:
            assert value == 220
        seen.add(value)
    assert {50, 220} <= seen


def test_soft_edges_blend_and_a_margin_brings_the_halo() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[15:25, 15:25] = 1
    halo = np.zeros((40, 40), bool)
    halo[13:27, 13:27] = True
    image = np.where(labels > 0, 200, np.where(halo, 250, 0)).astype(np.float32)[:, :, None]
    source = Sample(image, LabelLayers.from_label_image(labels), np.zeros(1, int))
    target = Sample(np.zeros((40, 40, 1), np.float32), LabelLayers.empty(40, 40))
    with_halo = CopyPaste(margin=2).paste(target, source, np.random.default_rng(0))
    assert with_halo.image[19, 13, 0] == 250
    assert with_halo.layers.areas().tolist() == [100], "the mask has no margin"
    soft = CopyPaste(soft_edge=1.0).paste(target, source, np.random.default_rng(0))
    assert soft.image[20, 20, 0] == pytest.approx(200, abs=0.1)
    assert 0 < soft.image[20, 14, 0] < 125
    assert 100 < soft.image[20, 15, 0] < 200
    assert (soft.image[:10] == 0).all()


def test_images_of_other_kinds_are_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"uint16 with 1 channels.*INPUT\.SCALING"):
        CopyPaste().paste(sample_of(20, 20, 2, 0), sample_of(20, 20, 2, 0, dtype=np.uint16), np.random.default_rng(0))


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_kind_of_image_keeps_its_kind(channels: int, dtype: type) -> None:
    target, source = (sample_of(40, 40, 6, seed, channels=channels, dtype=dtype) for seed in (1, 2))
    policy = CopyPaste(place="free", match_gray=True, soft_edge=0.7, margin=1)
    result = policy.paste(target, source, np.random.default_rng(0))
    assert result.image.dtype == dtype
    assert result.image.shape == target.image.shape
    assert len(result.layers) > len(target.layers)


def test_keys_become_the_policy() -> None:
    overrides = {"MAX_OBJECTS": 7, "PLACE": "free", "MAX_OVERLAP": 0.1, "MIN_VISIBLE": 0.5, "SOFT_EDGE": 2, "MARGIN": 3}
    cfg = load_config(None, [f"INPUT.COPY_PASTE.{key}={value}" for key, value in overrides.items()])
    expected = CopyPaste(max_objects=7, place="free", max_overlap=0.1, min_visible=0.5, soft_edge=2.0, margin=3)
    assert CopyPasteOptions.from_config(cfg).how == expected
    for key, value in [("PROBABILITY", 1.5), ("PLACE", "near"), ("SOURCES", "[]"), ("SOURCE_WEIGHTS", "[1, 2]")]:
        with pytest.raises(ConfigError, match=f"COPY_PASTE.{key}"):
            CopyPasteOptions.from_config(load_config(None, [f"INPUT.COPY_PASTE.{key}={value}"]))


def test_memory_grows_with_the_image_and_not_with_its_objects() -> None:
    rows, columns = np.mgrid[:512, :512]
    labels = np.where((rows % 10 < 6) & (columns % 10 < 6), (rows // 10) * 52 + columns // 10 + 1, 0)
    layers = LabelLayers.from_label_image(labels)
    target, source = (Sample(np.zeros((512, 512, 1), np.uint8), layers, np.zeros(len(layers), int)) for _ in range(2))
    tracemalloc.start()
    result = CopyPaste(max_objects=0, max_overlap=1.0, min_visible=0.0).paste(target, source, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(layers) == 2704
    assert len(result.layers) > 2704 // 2
    assert peak < 32 * 512 * 512, "in bytes; 2,704 full masks would be 700 MB"
