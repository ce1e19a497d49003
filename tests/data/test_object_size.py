"""INPUT.OBJECT_SIZE in training: the labels' diameter decides on the size at the network, whatever the image's size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from detseg.coco.dataset import CocoDataset
from detseg.config import load_config
from detseg.data.augment.policy import TrainPolicy
from detseg.data.augment.random_geometry import RandomCrop
from detseg.data.object_size import MOST_ENLARGED, TypicalDiameters, image_diameter, object_scale
from detseg.errors import ConfigError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample


def squares(side: int, count: int, height: int, width: int, **facts: object) -> Sample:
    """`count` squares of a side, apart from each other, in an image height x width."""
    labels = np.zeros((height, width), np.int32)
    columns = width // (side + 2)
    for index in range(count):
        y, x = (index // columns) * (side + 2), (index % columns) * (side + 2)
        labels[y : y + side, x : x + side] = index + 1
    layers = LabelLayers.from_label_image(labels)
    assert len(layers) == count
    return Sample(np.zeros((height, width, 1), np.uint8), layers, np.zeros(count, int), metadata=dict(facts))


def test_the_diameter_is_the_median_side_and_the_typical_one_counts_where_there_are_few() -> None:
    boxes = np.array(
        [[0, 0, 4, 9], [5, 5, 11, 11], [1, 1, 2, 2], [0, 0, 50, 50], [3, 3, 9, 9]], float
    )  # 6, 6, 1, 50, 6
    assert image_diameter(boxes, 6.0) == pytest.approx(6.0)
    assert image_diameter(boxes, 12.0) == pytest.approx(6 * 2 ** (0.3 / 5.3))
    assert image_diameter(boxes[:1], 12.0) == pytest.approx(6 * 2 ** (0.3 / 1.3))
    assert image_diameter(np.zeros((0, 4)), 24.0) == 24.0
    # a box without area is no object
    assert image_diameter(np.array([[5, 5, 5, 9.0]]), 24.0) == 24.0


@pytest.mark.parametrize(("height", "width"), [(519, 161), (256, 256), (1024, 1024)])
@pytest.mark.parametrize("side", [8, 16, 48])
def test_objects_come_at_one_size_from_images_of_any_size(height: int, width: int, side: int) -> None:
    typical = TypicalDiameters(float(side))
    policy = TrainPolicy(min_sizes=(512,), object_size=32.0, max_size=10_000, typical=typical)
    seen = policy(squares(side, 6, height, width), np.random.default_rng(0))
    boxes = seen.layers.boxes()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert np.abs(np.median(sides) - 32).max() <= 1
    assert (seen.height, seen.width) == (round(height * 32 / side), round(width * 32 / side))


def test_crops_before_and_after_resizing_show_objects_of_that_size_times_the_zoom() -> None:
    for after in (True, False):
        crop = RandomCrop("absolute", (128, 128), after_resize=after, on_objects=1.0)
        policy = TrainPolicy(
            min_sizes=(999,), object_size=32.0, scales=(1.5, 1.5), crop=crop, typical=TypicalDiameters(16.0)
        )
        seen = policy(squares(16, 60, 200, 300), np.random.default_rng(1))
        assert (seen.height, seen.width) == (128, 128)
        boxes = seen.layers.boxes()
        assert np.quantile(boxes[:, 2:] - boxes[:, :2], 0.8) == pytest.approx(48, abs=2)


def test_images_with_few_objects_or_none_take_the_size_of_their_group_else_of_the_data_set() -> None:
    typical = TypicalDiameters(16.0, {"histology": 8.0})
    policy = TrainPolicy(object_size=32.0, max_size=10_000, typical=typical)
    nothing = Sample(np.zeros((50, 60, 1), np.uint8), LabelLayers.empty(50, 60), metadata={"group": "histology"})
    assert policy(nothing, np.random.default_rng(0)).height == 200
    nothing.metadata = {"group": "other"}
    assert policy(nothing, np.random.default_rng(0)).height == 100
    # one object: drawn from its own 32 to the group's 8
    seen = policy(squares(32, 1, 50, 60, group="histology"), np.random.default_rng(0))
    assert seen.height == round(50 * 32 / (32 * (8 / 32) ** (0.3 / 1.3)))


def test_enlargement_is_limited() -> None:
    assert object_scale(32.0, 1.0) == MOST_ENLARGED
    assert object_scale(32.0, 320.0) == pytest.approx(0.1)
    whole = TrainPolicy(object_size=32.0, max_size=300, typical=TypicalDiameters(8.0))
    assert whole(squares(8, 6, 100, 200), np.random.default_rng(0)).width == 300
    cropped = TrainPolicy(
        object_size=32.0,
        max_size=300,
        typical=TypicalDiameters(8.0),
        crop=RandomCrop("absolute", (64, 64), True, on_objects=1.0),
    )
    boxes = cropped(squares(8, 60, 100, 200), np.random.default_rng(0)).layers.boxes()
    assert (boxes[:, 2:] - boxes[:, :2]).max() == pytest.approx(32, abs=1)


def test_off_changes_nothing() -> None:
    options = {"min_sizes": (64,), "scales": (0.7, 1.4), "crop": RandomCrop("absolute", (48, 48), True), "flip": "both"}
    sample = squares(9, 12, 90, 70)
    without = TrainPolicy(**options)(sample, np.random.default_rng(3))
    off = TrainPolicy(**options, object_size=0.0, typical=TypicalDiameters(5.0))(sample, np.random.default_rng(3))
    np.testing.assert_array_equal(without.layers.layers, off.layers.layers)


def test_the_typical_diameters_of_a_data_set(tmp_path: Path, coco_of_squares: object) -> None:
    dataset: CocoDataset = coco_of_squares
    typical = TypicalDiameters.of_dataset(dataset)
    assert typical.median == 10.0
    assert typical.groups == {"a": 10.0, "b": 40.0}
    assert typical.of({"group": "b"}) == 40.0
    assert typical.of({}) == 10.0
    assert TypicalDiameters.of_dataset(dataset.select([3])) is None
    policy = TrainPolicy(object_size=20.0).for_data(dataset)
    assert policy.typical == typical
    assert TrainPolicy().for_data(dataset).typical is None


@pytest.fixture
def coco_of_squares(tmp_path: Path) -> CocoDataset:
    """Two images of group a with squares of 10, one of group b with squares of 40 and a crowd of 90, one empty."""
    import json

    images, annotations = [], []
    for number, (group, side) in enumerate([("a", 10), ("a", 10), ("b", 40), ("b", 0)]):
        images.append({"id": number, "file_name": f"{number}.png", "height": 200, "width": 200, "group": group})
        corners = [(x, 5) for x in (5, 60, 120)] if side else []
        for x, y in corners:
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append({"image_id": number, "segmentation": [polygon], "iscrowd": 0})
    crowd = {"size": [200, 200], "counts": [0, 200 * 90, 200 * 110]}
    annotations.append({"image_id": 2, "segmentation": crowd, "iscrowd": 1})
    for number, annotation in enumerate(annotations):
        annotation |= {"id": number + 1, "category_id": 1}
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return CocoDataset.load(tmp_path / "a.json")


def test_impossible_sizes_and_two_masters_are_refused() -> None:
    for value in ("-1", "2", "5000"):
        with pytest.raises(ConfigError, match=r"INPUT\.OBJECT_SIZE.*4 to 1000 pixels, or 0"):
            TrainPolicy.from_config(load_config(None, ["INPUT.OBJECT_SIZE", value]))
    both = ["INPUT.OBJECT_SIZE", "32", "INPUT.PIXEL_SIZE", "0.5"]
    with pytest.raises(ConfigError, match=r"INPUT\.OBJECT_SIZE.*INPUT\.PIXEL_SIZE also sets"):
        TrainPolicy.from_config(load_config(None, both))
    assert math.isclose(TrainPolicy.from_config(load_config(None, ["INPUT.OBJECT_SIZE", "32"])).object_size, 32.0)
