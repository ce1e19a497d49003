"""Box methods against the package ensemble-boxes, on thousands of boxes."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.errors import DataError
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.structures import Predictions

HEIGHT, WIDTH = 300, 400


def members_of(seed: int, count: int = 5, boxes: int = 150, classes: int = 2) -> list[Predictions]:
    random = np.random.default_rng(seed)
    centres = random.uniform([10, 10], [WIDTH - 10, HEIGHT - 10], (boxes, 2))
    sides = random.uniform(4, 20, (boxes, 2))
    kinds = random.integers(0, classes, boxes)
    result = []
    for _ in range(count):
        seen = np.flatnonzero(random.random(boxes) < 0.8)
        centre = centres[seen] + random.normal(0, 1.2, (len(seen), 2))
        half = sides[seen] * random.uniform(0.8, 1.2, (len(seen), 2)) / 2
        found = np.concatenate([centre - half, centre + half], axis=1).clip(0, [WIDTH, HEIGHT] * 2)
        result.append(Predictions(1, "a.png", HEIGHT, WIDTH, found, random.random(len(seen)), kinds[seen]))
    return result


def rows_of(predictions: Predictions) -> np.ndarray:
    """Boxes, scores and classes as one sorted table."""
    table = np.column_stack([predictions.classes, predictions.scores, predictions.boxes])
    return table[np.lexsort(np.round(table, 2).T[::-1])]


@pytest.mark.parametrize("weights", [None, [3, 1, 1, 2, 0.5]])
@pytest.mark.parametrize(
    "settings",
    [
        {"method": "nms", "threshold": 0.5},
        {"method": "nms", "threshold": 0.2, "min_score": 0.3},
        {"method": "wbf", "threshold": 0.55},
        {"method": "wbf", "threshold": 0.3, "min_score": 0.2},
        {"method": "wbf", "threshold": 0.55, "scores": "max"},
        {"method": "wbf", "threshold": 0.55, "scores": "box_and_model_avg"},
        {"method": "wbf", "threshold": 0.55, "scores": "absent_model_aware_avg"},
    ],
    ids=str,
)
def test_equal_to_ensemble_boxes(settings, weights):
    for seed in range(3):
        members = members_of(seed)
        own = fuse(members, FusionOptions(**settings), weights)
        reference = fuse(members, FusionOptions(**settings, backend="ensemble_boxes"), weights)
        assert len(own) == len(reference) < sum(map(len, members))
        # The package sums boxes in float32, in parts of the image's size.
        np.testing.assert_allclose(rows_of(own), rows_of(reference), atol=2e-3)


@pytest.mark.parametrize("decay", ["linear", "gaussian"])
def test_soft_nms_keeps_what_ensemble_boxes_keeps(decay):
    # The package returns the scores as they were before the decay, so that what is kept is compared.
    import ensemble_boxes

    size = np.array([WIDTH, HEIGHT] * 2)
    for seed in range(2):
        members = members_of(seed, count=3, classes=1)
        arguments = [
            [member.boxes.astype(float) / size for member in members],
            [member.scores.astype(float) for member in members],
            [member.classes for member in members],
        ]
        number = 1 if decay == "linear" else 2
        boxes, _, _ = ensemble_boxes.soft_nms(*arguments, method=number, iou_thr=0.4, sigma=0.5, thresh=0.2)
        options = FusionOptions(method="soft_nms", decay=decay, threshold=0.4, min_decayed_score=0.2)
        own = fuse(members, options).boxes
        np.testing.assert_allclose(sorted(own.tolist()), sorted((boxes * size).tolist()), atol=1e-3)


def test_what_the_package_cannot_do_is_refused():
    for settings, message in (
        ({"overlap": "mask_iou"}, "has no overlap"),
        ({"across_classes": True}, "has no across_classes"),
        ({"method": "soft_nms"}, "scores as they were before"),
        ({"classes": ["a"], "threshold": {"a": 0.5}}, "has no threshold per class"),
    ):
        with pytest.raises(DataError, match=message):
            FusionOptions(backend="ensemble_boxes", **settings)
    masks = Predictions(1, "a", 4, 4, [[0, 0, 1, 1]], [0.5], [0], rles=[{"size": [4, 4], "counts": b"01?"}])
    with pytest.raises(DataError, match="does not return which detections were fused"):
        fuse([masks], FusionOptions(backend="ensemble_boxes"))
    nothing = Predictions.empty(1, "a", 4, 4, masks=False)
    assert len(fuse([nothing], FusionOptions(backend="ensemble_boxes"))) == 0
