"""Whether predictions that are fused are of one cross-validation.

Predictions of an image by models that were not trained with it lose their worth beside those of a model that was: what
is fused, tuned or learned from them looks better than it is. The `provenance` of an image in a Predictions file says by
which fold's model it was predicted (`fold`), and whether that was trained with it (`in_training`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from detseg.coco.pairing import ImageIndex
from detseg.coco.predictions_file import PredictionsFile
from detseg.coco.predictions_parsing import ImageEntry
from detseg.errors import DataError, list_problems
from detseg.structures.predictions import IN_TRAINING

FOLD = "fold"

logger = logging.getLogger(__name__)


def refuse_different_splits(files: Mapping[str, PredictionsFile]) -> None:
    """Compare the Predictions files of members, by name, with the one that has the most images out of fold.

    Folds may have other numbers, but not other images. What does not say how it was made is warned of.

    Raises DataError, with images, where files are out of the folds of different splits, or where a model was trained
    with an image that another file has out of fold.
    """
    counts = {name: sum(map(_is_out_of_fold, file.images)) for name, file in files.items()}
    first = max(counts, key=counts.__getitem__, default=None)
    if first is None or not counts[first]:
        return
    for name, file in files.items():
        if name == first:
            continue
        index = ImageIndex(file.images, str(file.path))
        pairs = [(own, other) for own in files[first].images if (other := index.find(own)) is not None]
        pairs = [(own, other) for own, other in pairs if _is_out_of_fold(own)]
        seen = [f"{own.file_name}: fold {own.provenance[FOLD]} in {first}" for own, other in pairs if _is_seen(other)]
        if seen:
            raise DataError(
                f"the model of {name} was trained with {len(seen)} images that {first} has out of fold, and is "
                "not fused or tuned together with it. Take those of models that did not see them (predict --folds):\n"
                f"{list_problems(seen)}"
            )
        folds = [(own, own.provenance[FOLD], other.provenance.get(FOLD)) for own, other in pairs]
        different = _in_other_folds([one for one in folds if one[2] is not None])
        if different:
            lines = [f"{own.file_name}: fold {a} in {first}, fold {b} in {name}" for own, a, b in different]
            raise DataError(
                f"{first} and {name} are out of the folds of different splits, and are not fused or tuned together; "
                f"train them with the same folds (DATASETS.FOLDS):\n{list_problems(lines)}"
            )
        unknown = [own for own, other in pairs if not {FOLD, IN_TRAINING} & other.provenance.keys()]
        if unknown:
            logger.warning(
                "%s is predicted out of fold; %s does not say which images its model was trained with (%s, ...): if it "
                "saw these, the result looks better than it is",
                first,
                name,
                unknown[0].file_name or unknown[0].image_id,
            )


def _is_seen(image: ImageEntry) -> bool:
    return image.provenance.get(IN_TRAINING) is True


def _is_out_of_fold(image: ImageEntry) -> bool:
    return image.provenance.get(FOLD) is not None and not _is_seen(image)


def _in_other_folds(images: list[tuple[ImageEntry, object, object]]) -> list[tuple[ImageEntry, object, object]]:
    """Return the images whose folds in two files (second and third entry) keep together other images there."""
    partner: dict[tuple[int, str], str] = {}
    different = []
    for image, first, second in images:
        pair = str(first), str(second)
        agrees = partner.setdefault((0, pair[0]), pair[1]) == pair[1]
        agrees &= partner.setdefault((1, pair[1]), pair[0]) == pair[0]
        if not agrees:
            different.append((image, first, second))
    return different
