"""Turns by any angle, shears, bends and padding: one map for image, labels and ignored region, equal to plain code."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from detseg.data.augment.geometric import GeometricMap, map_sample
from detseg.data.augment.random_geometry import RandomAffine, RandomElastic
from detseg.data.augment.transforms import Displacement
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

HEIGHT, WIDTH = 60, 80
AFFINE = RandomAffine(rotation=180, shear=20, stretch=1.5, translate=0.1)


def discs(height: int = HEIGHT, width: int = WIDTH, seed: int = 0, count: int = 12) -> Sample:
    """Touching and overlapping discs; the image is bright where objects are, and tells their classes apart."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:height, :width]
    masks = []
    for _ in range(count):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 9)
        masks.append((yy - y) ** 2 + (xx - x) ** 2 < radius**2)
    masks = [mask for mask in masks if mask.any()]
    layers = LabelLayers.from_masks(np.stack(masks))
    image = rng.integers(0, 256, (height, width, 2), dtype=np.uint8)
    ignore = (yy < 10) & (xx < 20)
    return Sample(image, layers, rng.integers(0, 3, len(masks)), ignore, 1, "a.png")


def random_map(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH, bends: int = 1) -> GeometricMap:
    """Any chain of steps, in any order."""
    geometry = GeometricMap.identity(height, width)
    steps = [
        lambda g: g.resize(int(rng.integers(20, 120)), int(rng.integers(20, 120))),
        lambda g: g.flip_horizontal(),
        lambda g: g.flip_vertical(),
        lambda g: g.rotate90(int(rng.integers(4))),
        lambda g: AFFINE.apply(g, rng),
        lambda g: g.window(int(rng.integers(-9, 9)), int(rng.integers(-9, 9)), int(rng.integers(20, 90)), 50),
        *[lambda g: RandomElastic(magnitude=2.0, spacing=20.0).apply(g, rng)] * bends,
    ]
    for number in rng.permutation(len(steps)):
        geometry = steps[number](geometry)
    return geometry


def coordinates(geometry: GeometricMap) -> tuple[np.ndarray, np.ndarray]:
    """x and y, each (height, width) float64, of where the output pixels' centres are in the input."""
    points = geometry.points()
    return points.x.astype(np.float64) + points.left, points.y.astype(np.float64) + points.top


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 1))
def test_labels_equal_those_of_every_mask_alone(seed: int, bends: int) -> None:
    """Each mask by itself, looked up at the map's own points: what one mask per object would give."""
    rng = np.random.default_rng(seed)
    sample = discs(seed=seed)
    geometry = random_map(rng, bends=bends)
    # Enlarged, so that no label is chosen by area.
    step = max(np.hypot(*geometry.whole_matrix[:2, :2]).max(), 1.0)
    geometry = dataclasses.replace(geometry, matrix=geometry.matrix @ np.diag([1 / step, 1 / step, 1]))
    x, y = coordinates(geometry)
    seen = LabelLayers(geometry.apply_labels(sample.layers.layers), sample.layers.num_instances)
    inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    for index, mask in enumerate(sample.layers.masks()):
        expected = np.zeros(inside.shape, bool)
        expected[inside] = mask[np.floor(y[inside]).astype(int), np.floor(x[inside]).astype(int)]
        np.testing.assert_array_equal(seen.mask(index), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_ids_classes_masks_and_ignored_region_stay_together_under_any_chain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = discs(seed=seed)
    # Every object's pixels show its number in the image, so that the mapped image tells which object is where.
    painted = sample.layers.layers.max(axis=0)
    sample = dataclasses.replace(sample, image=np.repeat(painted.astype(np.uint8)[:, :, None] * 16, 2, axis=2))
    mapped = map_sample(sample, random_map(rng))
    assert len(mapped.classes) == len(mapped.layers)
    assert (mapped.layers.areas() > 0).all()
    assert mapped.ignore.shape == mapped.image.shape[:2] == (mapped.layers.height, mapped.layers.width)
    class_of = dict(zip(range(1, 1 + len(sample.classes)), sample.classes, strict=True))
    alone = (mapped.layers.layers > 0).sum(axis=0) == 1
    for index, kind in enumerate(mapped.classes):
        inner = _eroded(mapped.layers.mask(index) & alone, 2)
        values, counts = np.unique(mapped.image[inner][:, 0], return_counts=True)
        if counts.sum() >= 20 and counts.max() > 0.8 * counts.sum():
            number = int(values[counts.argmax()]) // 16
            assert class_of[number] == kind


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    padded = np.pad(mask, times)
    for _ in range(times):
        shifted = [np.roll(padded, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
        padded = padded & np.logical_and.reduce(shifted)
    return padded[times:-times, times:-times]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.4, 1.6))
def test_areas_change_by_the_maps_determinant(seed: int, zoom: float) -> None:
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:120, :120]
    disc = ((yy - 60) ** 2 + (xx - 60) ** 2 < 30**2).astype(np.int32)[None]
    size = round(120 * zoom)
    geometry = GeometricMap.identity(120, 120).resize(size, size).window(-40, -40, size + 80, size + 80)
    geometry = dataclasses.replace(AFFINE, translate=0).apply(geometry, rng)
    area = geometry.apply_labels(disc).sum()
    assert area == pytest.approx(disc.sum() / geometry.area_factor, rel=0.06)


def test_a_bend_keeps_the_sum_of_areas_and_never_folds() -> None:
    for seed in range(20):
        displacement = Displacement.draw(200, 240, spacing=24, magnitude=3.0, rng=np.random.default_rng(seed))
        x, y = coordinates(GeometricMap.identity(200, 240).elastic(displacement))
        (xy, xx), (yy, yx) = np.gradient(x), np.gradient(y)
        determinant = xx * yy - xy * yx
        assert determinant.min() > 0, "no two points see the same place"
        assert determinant.mean() == pytest.approx(1.0, abs=0.05)


def test_displacements_have_the_wanted_spread_and_are_a_cubic_spline() -> None:
    shifts = []
    for seed in range(30):
        displacement = Displacement.draw(128, 160, spacing=32, magnitude=2.0, rng=np.random.default_rng(seed))
        x, y = np.arange(160) + 0.5, np.arange(128) + 0.5
        grid = displacement.on_grid(x, y)
        np.testing.assert_allclose(displacement.at(*np.meshgrid(x, y)), grid, atol=1e-5)
        shifts.append(grid)
    assert np.std(shifts) == pytest.approx(2.0, rel=0.05)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.float32]), st.integers(1, 6))
def test_images_are_interpolated_linearly_at_the_maps_points(seed: int, dtype: type, channels: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, (HEIGHT, WIDTH, channels)).astype(dtype)
    geometry = GeometricMap.identity(HEIGHT, WIDTH).resize(90, 110).affine(_turn(rng.uniform(0, 360), 55, 45))
    geometry = RandomElastic(magnitude=2, spacing=30).apply(geometry, rng).rotate90(1)
    x, y = coordinates(geometry)
    seen = geometry.apply_image(image)
    assert (seen.dtype, seen.shape) == (dtype, (110, 90, channels))
    inside = ~geometry.outside()
    for channel in range(channels):
        plane = image[:, :, channel].astype(float)
        expected = map_coordinates(plane, [y - 0.5, x - 0.5], order=1, mode="nearest")
        # Coordinates are rounded to 1/32 of a pixel by older OpenCV.
        assert np.abs(seen[:, :, channel] - expected)[inside].max() < 8
        assert len(np.unique(seen[:, :, channel][~inside])) <= 1, "one value beyond the image"


def _turn(degrees: float, x: float, y: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, x - c * x + s * y], [s, c, y - s * x - c * y], [0, 0, 1]])


def test_a_turn_by_a_right_angle_is_exact_whether_given_as_an_angle_or_not() -> None:
    sample = discs(64, 64)
    geometry = GeometricMap.identity(64, 64)
    turned, exact = geometry.affine(_turn(90, 32, 32)), geometry.rotate90(1)
    for one in (turned, geometry.affine(_turn(-270, 32, 32))):
        np.testing.assert_array_equal(one.apply_image(sample.image), exact.apply_image(sample.image))
        np.testing.assert_array_equal(one.apply_labels(sample.layers.layers), exact.apply_labels(sample.layers.layers))


def test_turning_there_and_back_leaves_the_middle_as_it_was() -> None:
    yy, xx = np.mgrid[:128, :128]
    labels = (((yy - 64) ** 2 + (xx - 60) ** 2 < 20**2) + 2 * ((yy - 30) ** 2 + (xx - 64) ** 2 < 9**2)).astype(np.int32)
    geometry = GeometricMap.identity(128, 128)
    there = geometry.affine(_turn(33, 64, 64)).apply_labels(labels[None])
    back = geometry.affine(_turn(-33, 64, 64)).apply_labels(there)[0]
    assert (back != labels).sum() < 40, "only pixels along the edges differ"
    composed = geometry.affine(_turn(33, 64, 64)).affine(_turn(-33, 64, 64))
    np.testing.assert_array_equal(composed.apply_labels(labels[None])[0], labels)


def test_image_and_labels_shrink_alike_when_turned() -> None:
    """An image that is the picture of its labels stays so at every factor: nothing is shifted by half a pixel."""
    yy, xx = np.mgrid[:160, :200]
    labels = ((((yy - 80) / 1.5) ** 2 + (xx - 100) ** 2) < 40**2).astype(np.int32)[None]
    image = labels[0, :, :, None].astype(np.float32) * 255
    for factor in (1.3, 1.0, 0.8, 0.6, 0.4, 0.2):
        size = round(160 * factor), round(200 * factor)
        geometry = GeometricMap.identity(160, 200).resize(*size).affine(_turn(25, size[1] / 2, size[0] / 2))
        seen, mask = geometry.apply_image(image)[:, :, 0] > 127.5, geometry.apply_labels(labels)[0] == 1
        assert (seen != mask).sum() <= max(4, 0.02 * mask.sum()), factor
        assert mask.sum() == pytest.approx(labels.sum() / geometry.area_factor, rel=0.03)


def test_shrinking_while_turning_is_antialiased() -> None:
    stripes = np.zeros((128, 128, 1), np.uint8)
    stripes[:, ::2] = 200
    geometry = GeometricMap.identity(128, 128).resize(32, 32).affine(_turn(20, 16, 16))
    seen = geometry.apply_image(stripes)[8:-8, 8:-8].astype(int)
    assert abs(seen - 100).max() <= 6, "every output pixel is the mean of bright and dark stripes"


@pytest.mark.parametrize("border", ["constant", "reflect"])
@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_beyond_the_image_lies_background_or_the_image_mirrored(border: str, degrees: float) -> None:
    image = np.full((40, 50, 1), 70, np.uint8)
    image[:, :8] = 200
    labels = np.zeros((40, 50), np.int32)
    labels[5:20, 2:8] = 1
    sample = Sample(image, LabelLayers.from_label_image(labels), np.array([0]))
    geometry = GeometricMap.identity(40, 50).window(-10, -20, 60, 90)
    geometry = geometry.affine(_turn(degrees, 45, 30)) if degrees else geometry
    mapped = map_sample(sample, geometry, border=border)
    outside = geometry.outside()
    assert 0.3 < outside.mean() < 0.7
    assert not mapped.layers.layers[:, outside].any()
    if border == "constant":
        assert (mapped.image[outside] == 70).all()
        assert mapped.ignore is None, "background is background"
    else:
        assert (mapped.image[outside] == 200).any(), "the bright stripe is seen again"
        np.testing.assert_array_equal(mapped.ignore, outside)
    if not degrees:
        np.testing.assert_array_equal(mapped.image[10:50, 20:70], image)
        mirrored = np.pad(image[:, :, 0], ((10, 10), (20, 20)), mode="symmetric")
        if border == "reflect":
            np.testing.assert_array_equal(mapped.image[:, :, 0], mirrored)


def test_padding_a_resized_image_leaves_it_bit_for_bit() -> None:
    sample = discs()
    resized = GeometricMap.identity(HEIGHT, WIDTH).resize(33, 47)
    padded = resized.window(-5, -7, 64, 64).flip_horizontal().rotate90(1)
    canvas = np.rot90(padded.apply_image(sample.image), -1)[:, ::-1]
    np.testing.assert_array_equal(canvas[5:38, 7:54], resized.apply_image(sample.image))
    labels = np.rot90(padded.apply_labels(sample.layers.layers), -1, axes=(1, 2))[:, :, ::-1]
    np.testing.assert_array_equal(labels[:, 5:38, 7:54], resized.apply_labels(sample.layers.layers))
    assert labels.sum() == resized.apply_labels(sample.layers.layers).sum()


@pytest.mark.parametrize("border", ["constant", "reflect"])
def test_a_window_that_shows_nothing_of_the_image_is_background(border: str) -> None:
    sample = discs()
    for geometry in (
        GeometricMap.identity(HEIGHT, WIDTH).window(500, 0, 20, 30),
        GeometricMap.identity(HEIGHT, WIDTH).affine(_turn(10, 0, 0)).window(900, 900, 20, 30),
    ):
        mapped = map_sample(sample, geometry, border=border)
        assert len(mapped.layers) == 0
        assert mapped.image.shape == (20, 30, 2)


def test_objects_cut_below_the_visible_share_are_dropped_and_what_is_left_is_ignored() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[10:20, 0:10], labels[10:20, 25:35], labels[30:40, 40:50] = 1, 2, 3
    sample = Sample(np.zeros((40, 60, 1), np.uint8), LabelLayers.from_label_image(labels), np.array([5, 6, 7]))
    for scale in (1, 2):  # the share is of the area as it is seen
        geometry = GeometricMap.identity(40, 60).window(0, 3, 32, 40).resize(32 * scale, 40 * scale)
        mapped = map_sample(sample, geometry, min_visible=0.5)
        assert mapped.classes.tolist() == [5, 6]
        assert mapped.layers.areas().tolist() == [70 * scale**2, 100 * scale**2]
        assert mapped.ignore.sum() == 6 * scale**2
        assert map_sample(sample, geometry, min_visible=0.71).classes.tolist() == [6]
    assert map_sample(sample, geometry).classes.tolist() == [5, 6, 7]


def test_what_is_seen_is_moved_into_the_image_where_that_is_larger() -> None:
    rng = np.random.default_rng(0)
    turning = RandomAffine(rotation=180, shear=10, stretch=1.3)
    for _ in range(30):
        y0, x0 = int(rng.integers(300 - 100)), int(rng.integers(400 - 120))
        geometry = turning.apply(GeometricMap.identity(300, 400).window(y0, x0, 100, 120), rng)
        assert geometry.outside() is None


def test_an_object_in_focus_keeps_its_place_or_stays_in_sight() -> None:
    labels = np.zeros((300, 300), np.int32)
    labels[140:150, 150:160] = 1
    labels[8:18, 280:290] = 2
    for label, (y0, x0), focus in (
        (1, (60, 80), (70.0, 80.0, 80.0, 90.0)),
        (2, (0, 170), (110.0, 8.0, 120.0, 18.0)),
    ):
        geometry = GeometricMap.identity(300, 300).window(y0, x0, 128, 128)
        outside = 0
        for seed in range(20):
            turned = RandomAffine(rotation=180).apply(geometry, np.random.default_rng(seed), focus)
            rows, columns = np.nonzero(turned.apply_labels(labels[None])[0] == label)
            assert len(rows) == pytest.approx(100, abs=15)
            if label == 1:
                assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((75.0, 85.0), abs=1.0)
            outside += 0 if turned.outside() is None else turned.outside().mean() / 20
        # In the image's corner, turned by 45 degrees, a seventh cannot be avoided.
        assert outside <= 0.2 * (label == 2)


def test_images_wider_than_opencv_takes_are_turned_in_parts() -> None:
    image = np.zeros((8, 40_000, 1), np.uint8)
    image[:, 20_000:] = 200
    step = np.array([[1, 0.0001, 0], [0.00001, 1, 0], [0, 0, 1.0]])
    seen = GeometricMap.identity(8, 40_000).affine(step).apply_image(image)
    assert seen.shape == image.shape
    assert (seen[3, 100:19_990] == 0).all()
    assert (seen[3, 20_010:39_000] == 200).all()


def test_a_displacement_for_another_size_is_refused() -> None:
    displacement = Displacement.draw(10, 20, spacing=5, magnitude=0.5, rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="10 x 20"):
        GeometricMap.identity(20, 10).elastic(displacement)
