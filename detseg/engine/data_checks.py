"""What is looked at before a training starts, because later it would cost hours."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detseg.errors import ConfigError

logger = logging.getLogger(__name__)


def check_classes(data_classes: Sequence[str], wanted: Sequence[str], num_classes: int, name: str) -> list[str]:
    """The class names of a training, in order.

    Args:
        data_classes: names of the data set's categories.
        wanted: DATASETS.CLASSES; empty takes the data's.
        num_classes: MODEL.ROI_HEADS.NUM_CLASSES.
        name: the data set, for messages.

    Raises:
        ConfigError: numbers or names do not agree.
    """
    if len(data_classes) != num_classes:
        raise ConfigError(
            f"data set {name} has {len(data_classes)} classes ({', '.join(data_classes)}), but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}: set MODEL.ROI_HEADS.NUM_CLASSES {len(data_classes)}"
        )
    if wanted and list(wanted) != list(data_classes):
        raise ConfigError(
            f"data set {name} has the classes {', '.join(data_classes)}, but DATASETS.CLASSES is {', '.join(wanted)}: "
            "set DATASETS.CLASSES to the data's names in the order of their category ids, or to []"
        )
    return list(data_classes)


def point_out_dense_images(counts: Sequence[int], detections_per_image: int, name: str) -> int:
    """Warn of images with more objects than the model may find; return how many there are.

    Args:
        counts: objects of each image.
        detections_per_image: TEST.DETECTIONS_PER_IMAGE; negative means without limit.
        name: the data set, for the message.
    """
    if detections_per_image < 0:
        return 0
    dense = sum(count > detections_per_image for count in counts)
    if dense:
        logger.warning(
            "data set %s: %d of %d images have more than TEST.DETECTIONS_PER_IMAGE (%d) objects, at most %d; the rest "
            "cannot be found: raise it, and MODEL.RPN.POST_NMS_TOPK_TEST with it",
            name,
            dense,
            len(counts),
            detections_per_image,
            max(counts),
        )
    return dense
