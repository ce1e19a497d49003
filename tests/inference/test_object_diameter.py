"""INPUT.OBJECT_SIZE in prediction: the diameter is found from far off, and decides on the size at the network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from detseg.config import load_config
from detseg.data.object_size import MOST_ENLARGED
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.errors import ConfigError, DataError, OutputError
from detseg.images.pixel_source import ArraySource
from detseg.inference.combine import combine, with_views
from detseg.inference.image_model import ImageModel
from detseg.inference.object_size import ENOUGH, WINDOW, estimate_diameter
from detseg.inference.predictor import Predictor
from detseg.inference.tiling import Tiling
from detseg.inference.validation import InferenceOptions
from detseg.inference.views import parse_views
from detseg.models.base import Segmenter
from detseg.structures.predictions import Predictions
from detseg.structures.rle import encode_mask

SIZE = 32.0


class SizedSegmenter(Segmenter):
    """Finds bright discs, the surer the nearer to 32 pixels they come to the network; none 8 times as large or small.

    seen: the shapes of all images. is_broken: its outputs are not finite.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[int, int]] = []
        self.is_broken = False

    def forward(self, samples):
        return {}

    def predict(self, images, output_sizes=None, *, soft_masks=False):
        if self.is_broken:
            raise OutputError("the model's scores are not finite")
        sizes = output_sizes or [image.shape[:2] for image in images]
        return [self._found(image, size) for image, size in zip(images, sizes, strict=True)]

    def _found(self, image: np.ndarray, size: tuple[int, int]) -> Predictions:
        self.seen.append(image.shape[:2])
        labels, _ = ndimage.label(image[:, :, 0] > 128)
        factor = np.array([size[1] / image.shape[1], size[0] / image.shape[0]] * 2)
        boxes, scores = [], []
        for rows, columns in ndimage.find_objects(labels):
            box = np.array([columns.start, rows.start, columns.stop, rows.stop], float)
            octaves = abs(math.log2(math.sqrt((box[2] - box[0]) * (box[3] - box[1])) / SIZE))
            if octaves < 3:
                boxes.append(box * factor)
                scores.append(1 - octaves / 6)
        rles = [encode_mask(np.zeros(size, bool)) for _ in scores]
        return Predictions(0, "", *size, np.array(boxes), np.array(scores), np.zeros(len(scores)), rles)


def discs(diameter: float, height: int, width: int, *, every: float = 2.0) -> np.ndarray:
    """(H, W, 1) uint8 with a disc in every square of `every` diameters."""
    y, x = np.mgrid[:height, :width] + 0.5
    step = diameter * every
    distance = np.hypot(y % step - step / 2, x % step - step / 2)
    return np.where(distance <= diameter / 2, 255, 0).astype(np.uint8)[:, :, None]


def predictor_of(segmenter: Segmenter | None = None, *, typical: float | None = 20.0, **options) -> Predictor:
    model = ImageModel(
        segmenter or SizedSegmenter(),
        ImagePreprocess(num_channels=1),
        TestSizeOptions(object_size=SIZE, min_size=512),
        typical_diameter=typical,
    )
    return Predictor(model, ["cell"], **options)


def network_size(predictor: Predictor) -> tuple[int, int]:
    """The last image that the network saw, which is the one that was predicted."""
    return predictor.model.seen[-1]


@pytest.mark.parametrize(
    ("diameter", "shape"),
    [
        *((diameter, (519, 161)) for diameter in (6, 20, 40)),
        *((diameter, (440, 440)) for diameter in (12, 33, 60, 110)),
    ],
)
def test_the_network_sees_objects_at_one_size_whatever_image_they_are_in(diameter: int, shape: tuple[int, int]) -> None:
    predictor = predictor_of()
    found = predictor(discs(diameter, *shape))
    assert len(found)
    about = found.provenance
    assert abs(math.log2(about["object_diameter"] / diameter)) < 0.5  # a single one is drawn to the typical 20
    assert about["object_diameter_from"].startswith("estimated from ")
    scale = min(SIZE / about["object_diameter"], MOST_ENLARGED)
    assert network_size(predictor) == (round(shape[0] * scale), round(shape[1] * scale))


def test_a_diameter_by_hand_is_taken_without_a_look() -> None:
    predictor = predictor_of(diameter=16)
    found = predictor(discs(33, 200, 300))
    assert predictor.model.seen == [(400, 600)]
    assert (found.provenance["object_diameter"], found.provenance["object_diameter_from"]) == (16.0, "given")
    # an image may say it too
    predictor.diameter = None
    predictor(discs(33, 200, 300), facts={"object_diameter": 64})
    assert network_size(predictor) == (100, 150)
    for wrong in (0, -3, "wide", True, float("nan")):
        with pytest.raises(DataError, match=r"diameter of objects is .*; expected pixels"):
            predictor(discs(33, 200, 300), facts={"object_diameter": wrong})
    with pytest.raises(DataError, match="diameter of objects is '0'; expected pixels"):
        predictor_of(diameter=0)


def test_an_image_without_objects_is_seen_as_a_typical_one() -> None:
    predictor = predictor_of(typical=16.0)
    found = predictor(np.zeros((100, 150, 1), np.uint8))
    assert not len(found)
    assert network_size(predictor) == (200, 300)
    assert found.provenance["object_diameter_from"] == "typical of the training images"
    # of weights that say nothing of their training: as the image is
    unknown = predictor_of(typical=None)
    unknown(np.zeros((100, 150, 1), np.uint8))
    assert network_size(unknown) == (100, 150)


def test_large_images_are_looked_at_in_few_windows() -> None:
    segmenter, read = SizedSegmenter(), []
    image = discs(20, 4000, 4000)

    def window(place: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
        read.append(place)
        y0, x0, y1, x1 = place
        return cv2.resize(image[y0:y1, x0:x1], size[::-1], interpolation=cv2.INTER_AREA)[:, :, None]

    diameter, objects = estimate_diameter(segmenter, window, (4000, 4000), object_size=SIZE, typical=20.0)
    assert diameter == pytest.approx(20, rel=0.1)
    assert objects >= ENOUGH
    assert len(read) == 1
    assert max(segmenter.seen[0]) <= WINDOW * 1.5


def test_outputs_that_are_not_finite_are_reported_by_the_prediction_alone() -> None:
    predictor = predictor_of()
    predictor.model.is_broken = True
    with pytest.raises(OutputError, match="not finite"):
        predictor(discs(20, 100, 100))


def test_tiles_are_seen_at_the_size_of_the_objects_too() -> None:
    predictor = predictor_of(tiling=Tiling("always", tile=128, overlap=32))
    predictor(discs(64, 700, 600))
    diameter = 64
    tiles = predictor.model.seen[-20:]
    assert max(max(size) for size in tiles) == pytest.approx(128 * SIZE / diameter, rel=0.15)


def test_images_that_need_tiles_only_because_they_are_enlarged_get_them(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, discs(4, 900, 900))
    predictor = predictor_of()
    found = predictor(path)
    assert "tiles" in found.provenance
    assert found.provenance["object_diameter"] == pytest.approx(4, rel=0.4)


def test_views_are_relative_to_the_objects_and_other_ones_are_refused() -> None:
    predictor = with_views(predictor_of(diameter=16), parse_views(["none", "scale=0.5"]))
    predictor.diameter = 16.0
    predictor(discs(16, 100, 150))
    assert set(predictor.model.seen) == {(200, 300), (100, 150)}
    with pytest.raises(ConfigError, match="no one shorter edge"):
        with_views(predictor_of(), parse_views(["short=400"]))
    words = ["INPUT.OBJECT_SIZE", "32", "TEST.AUG.ENABLED", "True"]
    with pytest.raises(ConfigError, match=r"TEST\.AUG\.VIEWS.*no one shorter edge"):
        InferenceOptions.from_config(load_config(None, words))
    InferenceOptions.from_config(load_config(None, [*words, "TEST.AUG.VIEWS", "[none, scale=0.8]"]))


def test_several_models_share_the_diameter_that_the_first_of_them_finds() -> None:
    first, second = predictor_of(), predictor_of()
    both = combine([first, second])
    found = both(discs(60, 400, 400))
    assert len(first.model.seen) > 1
    assert second.model.seen == [first.model.seen[-1]]
    assert found.provenance["object_diameter"] == pytest.approx(60, rel=0.1)


def test_records_in_a_thread_and_in_turn_are_the_same(tmp_path: Path) -> None:
    from detseg.coco.dataset import ImageRecord

    records = []
    for number, diameter in enumerate((10, 25, 70)):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), discs(diameter, 300, 400)[:, :, 0])
        records.append(ImageRecord(number, path.name, path, 0, 0, {}))
    answers = [list(predictor_of().predict_records(records, workers=workers)) for workers in (0, 2)]
    assert json.dumps([one.provenance for one in answers[0]]) == json.dumps([one.provenance for one in answers[1]])
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_a_source_that_cannot_be_read_says_so() -> None:
    class Broken(ArraySource):
        def read(self, *place):
            raise DataError("a.tif: the image is truncated")

    tiles = predictor_of().tile_predictor()
    with pytest.raises(DataError, match="truncated"):
        tiles.find_diameter(Broken(discs(10, 64, 64), {}, "a.tif"))
