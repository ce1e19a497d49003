"""A round is accepted where it is better by more than chance allows, and by scores of images that were not seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.coco.predictions_file import PredictionsWriter
from detseg.errors import DataError
from detseg.semi_supervised.acceptance import decide, score_out_of_fold
from detseg.structures.label_layers import LabelLayers
from detseg.structures.predictions import Predictions

IMAGES, OBJECTS = 12, 6
FOLDS = np.arange(IMAGES) % 2


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    labels = np.zeros((40, 120), np.int32)
    for number in range(OBJECTS):
        labels[10:30, 20 * number + 4 : 20 * number + 16] = number + 1
    rles = LabelLayers.from_label_image(labels).to_rles()
    rows = [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 120} for n in range(IMAGES)]
    annotations = [
        one for n in range(IMAGES) for one in annotations_of(rles, [1] * OBJECTS, image_id=n, first_id=10 * n + 1)
    ]
    write_coco(tmp_path / "set.json", images=rows, annotations=annotations, categories=[{"id": 1, "name": "cell"}])
    return CocoDataset.load(tmp_path / "set.json")


def write(path: Path, dataset: CocoDataset, found: list[int], threshold: list[float] | None = None) -> Path:
    """Predictions that find the first `found` objects of every image, with the score of its fold, others below it."""
    with PredictionsWriter(path, ["cell"]) as writer:
        for index, count in enumerate(found):
            rles = dataset.annotations(index).rles[:count]
            scores = np.full(count, threshold[FOLDS[index]] if threshold else 0.9, dtype=np.float32)
            record = dataset.images[index]
            boxes = np.tile(np.array([[0, 0, 5, 5]], dtype=np.float32), (count, 1))
            classes = np.zeros(count, dtype=np.int64)
            writer.write(Predictions(record.image_id, record.file_name, 40, 120, boxes, scores, classes, rles=rles))
    return path


def scored(path: Path, dataset: CocoDataset):
    return score_out_of_fold(path, dataset, FOLDS)


def test_a_clear_gain_is_accepted_and_its_opposite_not(dataset: CocoDataset, tmp_path: Path) -> None:
    few = scored(write(tmp_path / "few.json", dataset, [2] * IMAGES), dataset)
    many = scored(write(tmp_path / "many.json", dataset, [5, 4] * 6), dataset)
    better, worse = decide(few, many, "object_ap"), decide(many, few, "object_ap")
    assert better.accepted
    assert not worse.accepted
    assert (better.before, better.after) == pytest.approx((2 / 6, 4.5 / 6))
    assert better.gain[0] == pytest.approx(2.5 / 6)
    assert better.gain[1] > 0.3
    assert "accepted" in str(better)
    assert "the teacher is kept" in str(worse)
    assert not decide(few, many, "object_ap", least_gain=0.5).accepted


def test_equal_scores_are_no_gain(dataset: CocoDataset, tmp_path: Path) -> None:
    same = scored(write(tmp_path / "a.json", dataset, [3] * IMAGES), dataset)
    assert not decide(same, same, "object_ap").accepted


def test_a_gain_of_one_image_is_chance(dataset: CocoDataset, tmp_path: Path) -> None:
    base = scored(write(tmp_path / "a.json", dataset, [3] * IMAGES), dataset)
    lucky = scored(write(tmp_path / "b.json", dataset, [6, *[3] * (IMAGES - 1)]), dataset)
    decision = decide(base, lucky, "object_ap")
    assert decision.gain[0] > 0
    assert not decision.accepted


def test_thresholds_come_from_the_other_folds(dataset: CocoDataset, tmp_path: Path) -> None:
    """Where the scores of one fold mean something else, its own best threshold would hide it."""
    path = write(tmp_path / "a.json", dataset, [6] * IMAGES, threshold=[0.9, 0.2])
    both = scored(path, dataset).scores()["all"]["object_ap"][0]
    assert both == pytest.approx(0.5), "the threshold of the fold with high scores finds nothing in the other one"


def test_what_cannot_be_compared_is_refused(dataset: CocoDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="11 of the 12 labelled images"):
        scored(write(tmp_path / "a.json", dataset, [3] * (IMAGES - 1)), dataset)


def test_no_object_anywhere_is_no_score(dataset: CocoDataset, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", dataset, [0] * IMAGES)
    table = dataset.table.keep(np.zeros(len(dataset.table.classes), dtype=bool))
    nothing = scored(path, dataclasses.replace(dataset, table=table))
    assert not decide(nothing, nothing, "precision").accepted
    assert "not defined" in str(decide(nothing, nothing, "precision"))
