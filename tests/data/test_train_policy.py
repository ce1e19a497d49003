"""The random changes of training: Detectron2's sizes, crops of the right size, the same for the same generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.config import load_config
from detseg.data.augment.intensities import change_intensities, invert
from detseg.data.augment.policy import TrainPolicy
from detseg.data.augment.random_geometry import RandomCrop
from detseg.data.preprocess import resize_shortest_edge_size
from detseg.errors import ConfigError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

CROP_TYPES = RandomCrop.rules()["INPUT.CROP.TYPE"].choices


def sample_of(height: int, width: int, channels: int = 1, seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.int32)
    for index in range(1, 30):
        y, x = rng.integers(height), rng.integers(width)
        labels[y : y + 9, x : x + 7] = index
    layers = LabelLayers.from_label_image(labels)
    image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Sample(image, layers, np.arange(len(layers)) % 3, None, 1, "a.png")


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 1000), 800, 1333, (400, 1333)),
        ((520, 704), 800, 1333, (800, 1083)),
        ((500, 500), 256, 1333, (256, 256)),
        ((333, 1000), 800, 1333, (444, 1333)),
        ((7, 5000), 800, 100, (1, 100)),
        ((520, 704), 0, 100, (520, 704)),
    ],
)
def test_sizes_are_those_of_resize_shortest_edge(
    size: tuple[int, int], short: int, longest: int, expected: tuple[int, int]
) -> None:
    assert resize_shortest_edge_size(*size, short, longest) == expected


def test_the_same_generator_gives_the_same_sample_and_the_input_stays() -> None:
    policy = TrainPolicy(
        min_sizes=(40, 60), sampling="range", scales=(0.7, 1.4), crop=RandomCrop("relative_range", (0.5, 0.5)),
        flip="both", rotate90=True, invert=0.5, brightness=0.3, contrast=0.3,
    )  # fmt: skip
    sample = sample_of(90, 70)
    image, layers = sample.image.copy(), sample.layers.layers.copy()
    seen = set()
    for seed in range(12):
        one, two = (policy(sample, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.layers.layers, two.layers.layers)
        assert one.layers.areas().min(initial=1) > 0
        assert len(one.layers) == len(one.classes)
        seen.add(one.image.shape)
    assert len(seen) > 6
    np.testing.assert_array_equal(sample.image, image)
    np.testing.assert_array_equal(sample.layers.layers, layers)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 80), st.integers(1, 80), st.sampled_from(CROP_TYPES), st.floats(0.5, 2), st.integers(0, 2**32 - 1)
)
def test_crops_of_any_kind_fit_any_image(height: int, width: int, kind: str, zoom: float, seed: int) -> None:
    sizes = {"relative": (0.3, 0.9), "relative_range": (0.2, 0.6), "absolute": (40, 32), "absolute_range": (16, 48)}
    policy = TrainPolicy(crop=RandomCrop(kind, sizes[kind]), scales=(zoom, zoom), flip="both", rotate90=True)
    sample = Sample(np.zeros((height, width, 1), np.uint8), LabelLayers.empty(height, width))
    result = policy(sample, np.random.default_rng(seed))
    assert min(result.height, result.width) >= 1
    if kind == "absolute":
        assert sorted((result.height, result.width)) == sorted(
            (min(40, max(int(height * zoom + 0.5), 1)), min(32, max(int(width * zoom + 0.5), 1)))
        )


def test_an_absolute_crop_has_its_size_at_any_zoom_and_shows_more_or_less_of_the_image() -> None:
    sample = sample_of(200, 200)
    areas = []
    for zoom in (0.6, 1.0, 1.7):
        policy = TrainPolicy(crop=RandomCrop("absolute", (100, 80)), scales=(zoom, zoom))
        geometry = policy.draw_geometry(200, 200, np.random.default_rng(0))
        result = policy(sample, np.random.default_rng(0))
        assert (result.height, result.width) == (100, 80)
        areas.append(abs(np.linalg.det(geometry.matrix[:2, :2])))
    np.testing.assert_allclose(areas, [1 / 0.36, 1, 1 / 2.89], rtol=0.03)


def test_a_crop_after_resizing_has_its_size_and_the_scale_of_the_whole_image() -> None:
    sample = sample_of(200, 300)
    policy = TrainPolicy(min_sizes=(100,), crop=RandomCrop("absolute", (64, 48), after_resize=True), scales=(1.2, 1.2))
    geometry = policy.draw_geometry(200, 300, np.random.default_rng(0))
    np.testing.assert_allclose(np.diag(geometry.matrix), [300 / 180, 200 / 120, 1])
    assert policy(sample, np.random.default_rng(0)).image.shape == (64, 48, 1)
    before = TrainPolicy(min_sizes=(100,), crop=RandomCrop("absolute", (64, 48)))
    assert before(sample, np.random.default_rng(0)).image.shape == (133, 100, 1), "Detectron2 cuts first"


@pytest.mark.parametrize("kind", CROP_TYPES)
def test_zoom_reaches_an_image_that_a_crop_takes_whole(kind: str) -> None:
    size = (1.0, 1.0) if kind.startswith("relative") else (64, 64)
    for zoom in (0.5, 1.0):
        policy = TrainPolicy(min_sizes=(128,), crop=RandomCrop(kind, size), scales=(zoom, zoom))
        result = policy(sample_of(64, 64), np.random.default_rng(0))
        assert (result.height, result.width) == (128 * zoom, 128 * zoom)


def test_a_crop_of_everything_is_the_sample_and_areas_of_a_crop_are_counted_inside() -> None:
    sample = sample_of(60, 80)
    same = TrainPolicy(crop=RandomCrop("relative", (1.0, 1.0)))(sample, np.random.default_rng(0))
    np.testing.assert_array_equal(same.image, sample.image)
    np.testing.assert_array_equal(same.layers.layers, sample.layers.layers)
    policy = TrainPolicy(crop=RandomCrop("absolute", (30, 30)))
    geometry = policy.draw_geometry(60, 80, np.random.default_rng(3))
    x0, y0 = int(geometry.matrix[0, 2]), int(geometry.matrix[1, 2])
    areas = sample.layers.masks()[:, y0 : y0 + 30, x0 : x0 + 30].sum(axis=(1, 2))
    cropped = policy(sample, np.random.default_rng(3))
    assert cropped.layers.areas().tolist() == areas[areas > 0].tolist()
    assert cropped.classes.tolist() == sample.classes[areas > 0].tolist()


def test_every_flip_and_turn_occurs_and_none_where_none_is_asked_for() -> None:
    def seen(policy: TrainPolicy) -> set[bytes]:
        image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
        sample = Sample(image, LabelLayers.empty(2, 3))
        results = [policy(sample, np.random.default_rng(seed)).image for seed in range(60)]
        return {bytes([image.shape[0]]) + image.tobytes() for image in results}

    assert len(seen(TrainPolicy())) == 1
    assert len(seen(TrainPolicy(flip="horizontal"))) == 2
    assert len(seen(TrainPolicy(flip="both"))) == 4
    assert len(seen(TrainPolicy(rotate90=True))) == 4
    assert len(seen(TrainPolicy(flip="both", rotate90=True))) == 8


def test_short_edges_are_chosen_or_drawn() -> None:
    sample = Sample(np.zeros((50, 70, 1), np.uint8), LabelLayers.empty(50, 70))
    chosen = {TrainPolicy(min_sizes=(25, 75))(sample, np.random.default_rng(seed)).height for seed in range(20)}
    assert chosen == {25, 75}
    drawn = TrainPolicy(min_sizes=(25, 28), sampling="range")
    assert {drawn(sample, np.random.default_rng(seed)).height for seed in range(60)} == {25, 26, 27, 28}


def test_intensities_have_known_answers_in_every_dtype() -> None:
    image = np.array([[[0], [100], [200]]], dtype=np.uint8)
    changed = change_intensities(image, contrast=0.5, brightness=0.1, value_range=(0.0, 255.0))
    assert changed.ravel().tolist() == [76, 126, 176]
    for dtype, high in ((np.uint16, 65535.0), (np.float32, 255.0)):
        factor = high / 255
        changed = change_intensities(
            (image * factor).astype(dtype), contrast=0.5, brightness=0.1, value_range=(0.0, high)
        )
        assert changed.dtype == dtype
        np.testing.assert_allclose(changed.ravel() / factor, [75.5, 125.5, 175.5], atol=0.01)
    assert change_intensities(image, contrast=9.0, brightness=0.0, value_range=(0.0, 255.0)).ravel().tolist() == [
        0,
        100,
        255,
    ]
    assert invert(image, (0.0, 255.0)).ravel().tolist() == [255, 155, 55]
    assert invert(image.astype(np.float32), (0.0, 200.0)).ravel().tolist() == [200, 100, 0]


def test_from_config_reads_the_keys_and_a_disabled_crop_is_none() -> None:
    overrides = ["INPUT.MIN_SIZE_TRAIN", "(64, 96)", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[32, 48]"]
    overrides += ["INPUT.RANDOM_FLIP", "both", "INPUT.RANDOM_SCALE", "[0.5, 2.0]", "INPUT.SCALING", "percentile"]
    policy = TrainPolicy.from_config(load_config(None, overrides))
    crop = RandomCrop("absolute", (32, 48), enabled=False)
    assert policy == TrainPolicy(min_sizes=(64, 96), scales=(0.5, 2.0), flip="both", crop=crop)
    policy = TrainPolicy.from_config(load_config(None, [*overrides, "INPUT.CROP.ENABLED", "True"]))
    assert policy.crop == RandomCrop("absolute", (32, 48))


@pytest.mark.parametrize(
    "word",
    [
        "INPUT.BORDER=wrap",
        "INPUT.RANDOM_SCALE_SAMPLING=normal",
        "INPUT.RANDOM_FLIP=left",
        "INPUT.MIN_SIZE_TRAIN_SAMPLING=range",
        "INPUT.RANDOM_SCALE=[0.0, 1.0]",
        "INPUT.RANDOM_SCALE=[2.0, 1.0]",
        "INPUT.MIN_SIZE_TRAIN=[]",
    ],
)
def test_choices_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="INPUT"):
        TrainPolicy.from_config(load_config(None, [word]))
