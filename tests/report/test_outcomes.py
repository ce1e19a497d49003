"""Pictures of hits, false predictions and misses: every object in its colour, nothing where nothing is."""

from __future__ import annotations

import numpy as np

from detseg.evaluation.ground_truth import ImageTruth
from detseg.evaluation.matches import match_image
from detseg.report.outcomes import FALSE, HIT, MISSED, draw_outcomes, outcome_legend, outcome_note
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

SIDE = 60


def square(x: int, y: int) -> dict:
    return rle_codec.encode_crop(np.ones((16, 16), dtype=bool), x, y, SIDE, SIDE)


def has(picture: np.ndarray, colour: tuple[int, int, int], part: tuple[slice, slice]) -> bool:
    return bool((np.abs(picture[part].astype(int) - colour).max(axis=-1) < 12).any())


def test_every_outcome_has_its_colour_at_its_place() -> None:
    true, found = [square(2, 2), square(40, 2)], [square(3, 2), square(2, 40)]
    truth = ImageTruth(1, "a.png", SIDE, SIDE, true, np.array([0, 0]))
    boxes = rle_codec.bounding_boxes(found)
    predictions = Predictions(1, "a.png", SIDE, SIDE, boxes=boxes, scores=[0.9, 0.8], classes=[0, 0], rles=found)
    matches = match_image(truth, predictions)
    picture = draw_outcomes(np.full((SIDE, SIDE), 90, dtype=np.uint8), true, found, matches, scale=4)
    assert picture.shape == (240, 240, 3)
    top_left, top_right = (slice(0, 90), slice(0, 90)), (slice(0, 90), slice(140, 240))
    below = (slice(150, 240), slice(0, 90))
    seen = {
        part: [has(picture, colour, where) for colour in (HIT, FALSE, MISSED)]
        for part, where in {"hit": top_left, "missed": top_right, "false": below}.items()
    }
    assert seen == {"hit": [True, False, False], "missed": [False, False, True], "false": [False, True, False]}
    assert outcome_note(matches) == "1 hit, 1 false, 1 missed"
    assert [entry.colour for entry in outcome_legend()] == [HIT, FALSE, MISSED]


def test_an_image_without_objects_and_predictions_stays_as_it_is() -> None:
    image = np.full((20, 20), 90, dtype=np.uint8)
    empty = match_image(ImageTruth(1, "a", 20, 20, [], np.zeros(0)), Predictions.empty(1, "a", 20, 20, masks=True))
    assert len(np.unique(draw_outcomes(image, [], [], empty, scale=1))) == 1
