"""Two views of an unlabelled image: the map between them is exact, and both are a function of (seed, position)."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.coco.records import ImageRecord
from detseg.data.augment.geometric import GeometricMap
from detseg.data.augment.policy import TrainPolicy
from detseg.data.augment.random_geometry import RandomAffine, RandomCrop, RandomElastic
from detseg.data.augment.strong import StrongChanges
from detseg.data.loader import TrainLoader
from detseg.data.preprocess import ImagePreprocess
from detseg.data.views import ViewStream
from detseg.models.paste import paste_crops, paste_masks, paste_through
from detseg.structures import rle as rle_codec
from detseg.structures.sample import Sample

NO_CHANGES = StrongChanges(brightness=0.0, contrast=0.0, blur=0.0, noise=0.0, erase=0)
EVERYTHING = TrainPolicy(
    min_sizes=(90,),
    scales=(0.6, 1.7),
    crop=RandomCrop(size=(64, 72), after_resize=True),
    affine=RandomAffine(rotation=40, shear=8, stretch=1.3, translate=0.1),
    elastic=RandomElastic(magnitude=2.0, spacing=32.0),
    flip="both",
    rotate90=True,
)


def ramps(height: int = 120, width: int = 160) -> np.ndarray:
    """(H, W, 3) float32 whose channels are x, y and 0 at every pixel's centre: it says where a pixel comes from."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
    return np.stack([x, y, np.zeros_like(x)], axis=2)


def stream(policy: TrainPolicy, changes: StrongChanges = NO_CHANGES, records: list[ImageRecord] | None = None):
    records = records or [ImageRecord(1, "a.png", Path("a.png"), 0, 0)]
    return ViewStream(records, preprocess=ImagePreprocess(), policy=policy, changes=changes, seed=3)


@pytest.mark.parametrize("seed", range(12))
def test_a_pixel_of_the_strong_view_shows_the_place_of_the_weak_view_that_the_map_says(seed: int) -> None:
    image = ramps()
    weak, strong = stream(EVERYTHING).draw(Sample(image), np.random.default_rng(seed))
    between = strong.seen_from(weak)
    seen = strong.apply_image(image)
    points = between.points()
    x, y = points.x + points.left, points.y + points.top
    # From the strong view to the weak view by the map, then to the image by the weak view's own matrix.
    (xx, xy, x0), (yx, yy, y0), _ = weak.whole_matrix
    expected_x, expected_y = xx * x + xy * y + x0, yx * x + yy * y + y0
    # Within the image and not at its border, where colours end.
    inside = (expected_x > 4) & (expected_x < 156) & (expected_y > 4) & (expected_y < 116)
    assert inside.mean() > 0.3
    assert np.abs(seen[..., 0] - expected_x)[inside].max() < 0.1
    assert np.abs(seen[..., 1] - expected_y)[inside].max() < 0.1


def test_views_of_the_same_geometry_are_the_same_to_the_last_bit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    crop = GeometricMap.identity(40, 50).window(3, 5, 30, 32).resize(37, 41)
    between = crop.flip_horizontal().rotate90(1).seen_from(crop)
    turned = np.rot90(crop.apply_image(image)[:, ::-1])
    np.testing.assert_array_equal(between.apply_image(crop.apply_image(image)), turned)
    np.testing.assert_array_equal(crop.seen_from(crop).matrix, np.eye(3))


def disks() -> tuple[np.ndarray, np.ndarray]:
    """Soft masks (3, 28, 28) of disks, and their boxes (3, 4)."""
    y, x = np.mgrid[:28, :28] + 0.5
    soft = np.clip((13.0 - np.hypot(x - 14, y - 14)) / 4 + 0.5, 0, 1).astype(np.float32)
    boxes = np.array([[10.3, 12.7, 31.2, 30.1], [40, 20, 60, 44.5], [2.5, 40.25, 30.5, 62]], dtype=np.float32)
    return np.stack([soft] * 3), boxes


def test_masks_pasted_through_no_change_are_those_that_are_pasted() -> None:
    masks, boxes = disks()
    plain = [np.zeros((70, 80), np.float32) for _ in masks]
    through = [np.zeros((70, 80), np.float32) for _ in masks]
    for crops, images in (
        (paste_crops(masks, boxes, 70, 80), plain),
        (paste_through(masks, boxes, GeometricMap.identity(70, 80)), through),
    ):
        for (crop, x0, y0), image in zip(crops, images, strict=True):
            image[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    for one, other in zip(plain, through, strict=True):
        counted = one > 0.4  # less than half, `paste_crops` ends at the box
        assert np.abs(one - other)[counted].max() < 0.03


@pytest.mark.parametrize("seed", range(8))
def test_masks_go_into_the_strong_view_and_back_within_a_fraction_of_a_pixel(seed: int) -> None:
    """Centre and area of what a pseudo-label is in the student's view, mapped back, are the teacher's."""
    policy = TrainPolicy(
        scales=(1.0, 1.2), affine=RandomAffine(rotation=180, shear=10, stretch=1.2), flip="both", rotate90=True
    )
    weak, strong = stream(policy).draw(Sample(ramps(70, 80)), np.random.default_rng(seed))
    between = strong.seen_from(weak)
    masks, boxes = disks()
    rles, _ = paste_masks(masks, boxes, weak.height, weak.width)
    compared = 0
    for (crop, x0, y0), box, rle in zip(paste_through(masks, boxes, between), boxes, rles, strict=True):
        inside = crop >= 0.5
        on_edge = min(x0, y0) == 0 or x0 + crop.shape[1] >= between.width or y0 + crop.shape[0] >= between.height
        if on_edge or not inside.any():
            continue
        rows, columns = np.nonzero(inside)
        x, y, _ = between.matrix @ [columns.mean() + 0.5 + x0, rows.mean() + 0.5 + y0, 1]
        assert (x, y) == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), abs=0.15)
        assert inside.sum() * between.area_factor == pytest.approx(rle_codec.area([rle])[0], rel=0.04)
        compared += 1
    assert compared


def test_boxes_without_area_and_out_of_sight_give_nothing() -> None:
    masks, _ = disks()
    boxes = np.array([[5, 5, 5, 9], [200, 200, 220, 220], [-50, 0, -40, 8]], dtype=np.float32)
    assert not any((crop >= 0.5).any() for crop, _, _ in paste_through(masks, boxes, GeometricMap.identity(30, 30)))


def test_a_bent_view_is_no_input() -> None:
    identity = GeometricMap.identity(64, 64)
    bent = RandomElastic(magnitude=2.0, spacing=32.0).apply(identity, np.random.default_rng(0))
    with pytest.raises(ValueError, match="view with a displacement"):
        identity.seen_from(bent)


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (80, 100), dtype=np.uint8)).save(path)
        found.append(ImageRecord(number, path.name, path, 0, 0))
    return found


def assert_same(first, second) -> None:
    np.testing.assert_array_equal(first.weak, second.weak)
    np.testing.assert_array_equal(first.strong.image, second.strong.image)
    np.testing.assert_array_equal(first.strong.ignore, second.strong.ignore)
    np.testing.assert_array_equal(first.geometry.whole_matrix, second.geometry.whole_matrix)


def test_views_depend_on_seed_and_position_alone(records: list[ImageRecord]) -> None:
    own = stream(EVERYTHING, StrongChanges(), records)
    alone = own.expand(own.make(5))
    loader = TrainLoader(stream(EVERYTHING, StrongChanges(), records), batch_size=2, start_position=4, total=8)
    (fourth, fifth), _ = loader
    assert_same(alone, fifth)
    assert_same(own.expand(pickle.loads(pickle.dumps(own.make(4)))), fourth)
    assert fourth.weak.shape == (64, 72, 3)
    assert not np.array_equal(fourth.weak, fifth.weak)


def test_the_weak_view_has_no_random_change_but_its_crop(records: list[ImageRecord]) -> None:
    whole = TrainPolicy(scales=(0.5, 2.0), flip="both", rotate90=True, invert=1.0, brightness=0.5)
    own = stream(whole, StrongChanges(), records)
    for position in range(4):
        views = own.expand(own.make(position))
        image = np.asarray(Image.open(own.file_name(position)))
        np.testing.assert_array_equal(views.weak[..., 1], image)
        assert max(views.strong.image.shape[:2]) <= 100


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_strong_changes_keep_type_shape_and_range(dtype: type, channels: int) -> None:
    rng = np.random.default_rng(1)
    image = (rng.random((40, 50, channels)) * 200).astype(dtype)
    before = image.copy()
    hidden = []
    for _ in range(20):
        changed, mask = StrongChanges(erase=2)(image, rng, (0.0, 255.0))
        assert (changed.dtype, changed.shape) == (image.dtype, image.shape)
        assert 0 <= changed.min() <= changed.max() <= 255
        hidden.append(mask is not None)
        if mask is not None:
            assert 0 < mask.mean() < 0.1
    np.testing.assert_array_equal(image, before)
    assert 3 < sum(hidden) < 17
