"""Whether the predictions to fuse belong to the same cross-validation.

If a model that was trained with an image predicts it together with models that were not, whatever is fused, tuned or
learned from these predictions looks better than it is. The `provenance` of an image in a Predictions file records which
fold's model predicted it (`fold`), and whether that model was trained with it (`in_training`).
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
    """Compare the Predictions files of members, by name, with the one that has the most out-of-fold images.

    The numbers of folds may differ, but not their images. Files without provenance give a warning.

    Raises DataError, with images, if files are out-of-fold predictions of different splits, or if a model was trained
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
                f"the model of {name} was trained with {len(seen)} images that {first} has out of fold, so the two are "
                "not fused or tuned together; take predictions of models that did not see them (predict --folds):\n"
                f"{list_problems(seen)}"
            )
        folds = [(own, own.provenance[FOLD], other.provenance.get(FOLD)) for own, other in pairs]
        different = _in_other_folds([one for one in folds if one[2] is not None])
        if different:
            lines = [f"{own.file_name}: fold {a} in {first}, fold {b} in {name}" for own, a, b in different]
            raise DataError(
                f"{first} and {name} are out-of-fold predictions of different splits, so they are not fused or tuned "
                f"together; train them with the same folds (DATASETS.FOLDS):\n{list_problems(lines)}"
            )
        unknown = [own for own, other in pairs if not {FOLD, IN_TRAINING} & other.provenance.keys()]
        if unknown:
            logger.warning(
                "%s has out-of-fold predictions; %s does not record which images its model was trained with (%s, ...): "
                "if it was trained with these, the result looks better than it is",
                first,
                name,
                unknown[0].file_name or unknown[0].image_id,
            )


def _is_seen(image: ImageEntry) -> bool:
    return image.provenance.get(IN_TRAINING) is True


def _is_out_of_fold(image: ImageEntry) -> bool:
    return image.provenance.get(FOLD) is not None and not _is_seen(image)


def _in_other_folds(images: list[tuple[ImageEntry, object, object]]) -> list[tuple[ImageEntry, object, object]]:
    """Return the images whose two folds (second and third entry) group the images differently."""
    partner: dict[tuple[int, str], str] = {}
    different = []
    for image, first, second in images:
        pair = str(first), str(second)
        agrees = partner.setdefault((0, pair[0]), pair[1]) == pair[1]
        agrees &= partner.setdefault((1, pair[1]), pair[0]) == pair[0]
        if not agrees:
            different.append((image, first, second))
    return different
