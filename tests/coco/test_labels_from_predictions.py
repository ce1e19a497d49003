"""`CocoDataset.from_predictions`: pseudo-labels by scores alone."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import write_predictions
from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

SIZE = (20, 30)


@pytest.fixture
def file(tmp_path):
    masks = [rle_codec.encode_crop(np.ones((4, 4), bool), 6 * n, 2, *SIZE) for n in range(4)]
    empty = rle_codec.encode_crop(np.zeros((1, 1), bool), 0, 0, *SIZE)
    boxes = rle_codec.bounding_boxes([*masks, empty])
    scores, classes = [0.9, 0.6, 0.6, 0.2, 0.9], [0, 0, 1, 1, 0]
    images = [
        Predictions(7, "a/x.png", *SIZE, boxes, scores, classes, [*masks, empty], metadata={"group": "g"}),
        Predictions.empty(8, "a/y.png", *SIZE),
    ]
    write_predictions(tmp_path / "p.json.gz", images, ["cell", "dot"])
    return tmp_path / "p.json.gz"


def test_sure_objects_unsure_regions_and_the_rest(file, tmp_path) -> None:
    CocoDataset.from_predictions(file, sure=0.8, ignore_from={"cell": 0.5, "dot": 0.7}).save(tmp_path / "c.json")
    loaded = CocoDataset.load(tmp_path / "c.json")
    assert [record.file_name for record in loaded.images] == ["a/x.png", "a/y.png"]
    assert loaded.images[0].path == tmp_path / "a" / "x.png"
    assert loaded.images[0].metadata == {"group": "g", "label_source": "pseudo"}
    assert loaded.annotations(0).crowd.tolist() == [False, True]
    assert loaded.objects_per_image().tolist() == [[1, 0], [0, 0]]
    assert [row["decision"] for row in loaded.table.decode(0)] == ["kept", "ignored"]
    # The mask without a pixel is no object, whatever its score is.
    assert [row["score"] for row in loaded.further["dropped"]] == [0.6, 0.2, 0.9]


def test_everything_may_be_refused(file, tmp_path) -> None:
    dataset = CocoDataset.from_predictions(file, sure=1, ignore_from=1, image_root="pictures")
    assert dataset.num_objects == 0
    assert dataset.images[0].path == tmp_path / "pictures" / "a" / "x.png"


@pytest.mark.parametrize(
    ("sure", "ignore_from", "message"),
    [
        (0.5, 0.6, "expected ignore_from <= sure"),
        (2, 0.5, "expected a score from 0 to 1"),
        ({"cell": 0.5}, 0.1, "one for each of cell, dot"),
        ({"cell": 0.5, "dot": 0.5, "rod": 0.5}, 0.1, "one for each of cell, dot"),
    ],
)
def test_impossible_limits_are_refused(file, sure, ignore_from, message) -> None:
    with pytest.raises(DataError, match=message):
        CocoDataset.from_predictions(file, sure, ignore_from)


def test_boxes_are_no_labels(tmp_path) -> None:
    boxes = Predictions(1, "x.png", *SIZE, [[0, 0, 4, 4]], [0.9], [0])
    write_predictions(tmp_path / "b.json", [boxes], ["cell"])
    with pytest.raises(DataError, match="have no masks, which pseudo-labels need"):
        CocoDataset.from_predictions(tmp_path / "b.json", 0.5, 0.5)
