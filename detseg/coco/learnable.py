"""Whether a COCO data set has objects to learn from, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError

# Fraction of the annotations from which on there is a warning.
LARGE_SHARE = 0.2
NOTHING = "there is nothing to learn or to score"
# Number of annotations that are examined for a cause.
_LOOKED_AT = 200


def check_objects(dataset: CocoDataset) -> list[str]:
    """Return warnings, with remedies, if many annotations are no objects: crowd regions, or at most one pixel.

    Raises DataError if there are no images, or no object is larger than a pixel.
    """
    table, name = dataset.table, dataset.name
    crowd, pixels = table.crowd, table.pixels
    count = len(crowd)
    if not len(dataset):
        raise DataError(f"{name}: it has no images: {NOTHING}")
    if not count:
        raise DataError(f"{name}: {len(dataset)} images without annotations: {NOTHING}")
    found = []
    for is_such, what in (
        (crowd, "are crowd regions (iscrowd 1), which are neither learned nor scored"),
        (~crowd & (pixels == 0), "cover no pixel of their image and are left out"),
        (~crowd & (pixels == 1), "cover one pixel of their image"),
    ):
        if is_such.sum() >= LARGE_SHARE * count:
            cause = _CROWD_CAUSE if is_such is crowd else _cause(dataset, is_such)
            found.append(f"{name}: {is_such.sum()} of {count} annotations {what}; {cause}")
    if not (table.is_object & (pixels > 1)).any():
        raise DataError(f"{NOTHING}:\n" + "\n".join(f"  - {line}" for line in found))
    return found


def object_warnings(dataset: CocoDataset) -> list[str]:
    """Return the messages of `check_objects` as warnings, for data that are only inspected or split."""
    try:
        return check_objects(dataset)
    except DataError as error:
        return [str(error)]


def check_sets(datasets: Sequence[CocoDataset]) -> list[str]:
    """Return the warnings of `check_objects` for several data sets. Raises DataError if none of them has an object."""
    said, errors = [], []
    for dataset in datasets:
        try:
            said += check_objects(dataset)
        except DataError as error:
            errors.append(str(error))
    if errors and len(errors) == len(datasets):
        raise DataError("\n".join(errors))
    return said + errors


_CROWD_CAUSE = (
    "CVAT, for example, marks everything painted with its brush this way. If they are objects, `detseg prepare coco "
    "--annotations FILE --output DIR --split 1 --iscrowd clear` turns them into objects"
)


def _cause(dataset: CocoDataset, rows: np.ndarray) -> str:
    """Guess from the polygons of some annotations, rows (A,) bool, why they cover at most one pixel."""
    points, sizes = [], []
    of_image = np.repeat(np.arange(len(dataset)), np.diff(dataset.table.offsets))
    chosen = np.flatnonzero(rows)[:_LOOKED_AT]
    for image in np.unique(of_image[chosen]):
        record, first = dataset.images[image], dataset.table.rows(image).start
        decoded = dataset.table.decode(image)
        for row in chosen[of_image[chosen] == image]:
            polygons = decoded[row - first].get("segmentation")
            for polygon in polygons if isinstance(polygons, list) else ():
                xy = np.array(polygon[: len(polygon) // 2 * 2], dtype=np.float64).reshape(-1, 2)
                points.append(xy)
                sizes.append(np.broadcast_to([record.width, record.height], xy.shape))
    if not points:
        return "inspect them: `detseg inspect_data`"
    xy, size = np.concatenate(points), np.concatenate(sizes)
    if xy.min() >= 0 and xy.max() <= 1:
        return "their coordinates are fractions from 0 to 1: multiply x by the image's width and y by its height"
    is_inside = ((xy >= 0) & (xy <= size)).all(axis=1)
    would_be = ((xy >= 0) & (xy <= size[:, ::-1])).all(axis=1)
    if is_inside.mean() < 0.5 <= would_be.mean():
        return "x and y are swapped: COCO polygons are [[x, y, x, y, ...]]"
    if is_inside.mean() < 0.5:
        return "they lie outside it: the images may have been cropped, scaled or replaced after annotation"
    return "they are thinner than a pixel: they may have been scaled down, or not be in pixels"
