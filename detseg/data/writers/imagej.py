"""ImageJ: one zip of regions an image, which its ROI manager opens; holes and separate parts are kept."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detseg.data.writers.objects import ImageObjects
from detseg.data.writers.outlines import Polygon, trace_polygons
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole

if TYPE_CHECKING:
    from roifile import ImagejRoi

# Regions hold their place in 16 bits with a sign.
MAX_SIDE = 32767
# Steps of a path of java.awt.geom: move to, line to, close.
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write_rois(path: Path, objects: ImageObjects, class_names: Sequence[str]) -> None:
    """Write a zip of one region an object, named `0001-cell`; of several classes each is a group of its own.

    Outlines run along the edges of pixels. A mask in one piece without holes is a traced region, any other a composite
    one. An existing file is replaced.

    Raises DataError where the image is larger than regions can say.
    """
    if max(objects.height, objects.width) > MAX_SIDE:
        raise DataError(
            f"{objects.file_name}: has {objects.height} x {objects.width} pixels, but ImageJ's regions reach to "
            f"{MAX_SIDE}; export to geojson or label images"
        )
    with written_whole(path, "the regions") as temporary, zipfile.ZipFile(temporary, "w") as archive:
        crops = rle_codec.decode_crops(objects.rles)
        for index, (crop, class_index) in enumerate(zip(crops, objects.classes.tolist(), strict=True)):
            polygons = trace_polygons(*crop)
            if not polygons:
                continue
            roi = _to_roi(polygons)
            roi.name = f"{index + 1:04d}-{re.sub(r'[^A-Za-z0-9._ -]', '_', class_names[class_index])}"
            roi.group = class_index + 1 if len(class_names) > 1 else 0
            if objects.scores is not None:
                roi.props = f"score: {objects.scores[index]:.6g}\n"
            # A time of its own would make the same objects other bytes.
            member = zipfile.ZipInfo(f"{roi.name}.roi", date_time=_NO_TIME)
            archive.writestr(member, roi.tobytes(), zipfile.ZIP_DEFLATED)


def _to_roi(polygons: Sequence[Polygon]) -> ImagejRoi:
    from roifile import ROI_TYPE, ImagejRoi

    points = np.concatenate([ring for polygon in polygons for ring in polygon])
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    roi = ImagejRoi()
    roi.version = 229
    roi.left, roi.top, roi.right, roi.bottom = left, top, right, bottom
    if len(polygons) == 1 and len(polygons[0]) == 1:
        roi.roitype = ROI_TYPE.TRACED
        roi.n_coordinates = len(points)
        roi.integer_coordinates = (points - (left, top)).astype(np.int32)
        return roi
    roi.roitype = ROI_TYPE.RECT
    roi.multi_coordinates = np.concatenate([_path(ring) for polygon in polygons for ring in polygon])
    roi.shape_roi_size = len(roi.multi_coordinates)
    return roi


def _path(ring: np.ndarray) -> np.ndarray:
    """Return a ring (P, 2) as the numbers of a path: step, x, y, step, x, y, ..., close."""
    steps = np.full((len(ring), 3), _LINE, dtype=np.float32)
    steps[0, 0] = _MOVE
    steps[:, 1:] = ring
    return np.append(steps.ravel(), np.float32(_CLOSE))
