"""The competition's score of a submission."""

from __future__ import annotations

from typing import Any

import numpy as np

from detseg.errors import DataError, list_problems
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.object_ap import count_objects, summarize_objects
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.submission.images import SubmissionImage, by_name, name_of
from detseg.submission.reading import Submission


def images_of(truth: GroundTruth) -> dict[str, SubmissionImage]:
    """Return the images of a ground truth by their names in a submission."""
    return by_name(SubmissionImage(name_of(image.file_name), image.height, image.width) for image in truth.images)


def score_submission(truth: GroundTruth, submission: Submission) -> dict[str, Any]:
    """Score what was read with the images of the truth, as both competitions do: `object_ap`, whatever the classes.

    Returns what `summarize_objects` does. Raises DataError for a submission that has problems: no competition scores
    it.
    """
    if submission.problems:
        raise DataError("a submission that is not valid has no score:\n" + list_problems(submission.problems))
    counts = []
    for image in truth.images:
        rles = submission.masks[name_of(image.file_name)]
        found = Predictions(
            image.image_id,
            image.file_name,
            image.height,
            image.width,
            rle_codec.bounding_boxes(rles),
            np.ones(len(rles)),
            np.zeros(len(rles)),
            rles,
        )
        counts.append(count_objects(image, found, 0))
    return summarize_objects(counts)
