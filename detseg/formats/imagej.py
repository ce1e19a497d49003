"""ImageJ's regions of interest: a zip archive of them (from its ROI manager), or a single .roi, beside each image."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from detseg.coco.masks import fill_polygon
from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.formats.annotated_images import AnnotatedImages
from detseg.formats.objects import ImageObjects
from detseg.formats.outlines import Polygon, trace_polygons
from detseg.formats.reader import FoundObjects, objects_of_crops
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import EMPTY, MaskCrop

if TYPE_CHECKING:
    from roifile import ImagejRoi


# What programs put behind the name of the image (Cellpose: _rois), and people in front of it.
ENDINGS = ("_rois", "_roi", "_ROIs", "_RoiSet", "-rois")
BEGINNINGS = ("RoiSet_", "RoiSet-")
# A region of a million points has 8 MB.
MAX_ROI_BYTES = 2**26


class ImageJRegions(AnnotatedImages):
    """Images of one class with regions of ImageJ."""

    kind = "ImageJ regions"
    expected = "NAME.zip, NAME_rois.zip, RoiSet_NAME.zip or NAME.roi"

    def image_of(self, file: str) -> str | None:
        path = PurePosixPath(file)
        if path.suffix.lower() not in (".zip", ".roi"):
            return None
        stem = path.stem
        for beginning in BEGINNINGS:
            stem = stem.removeprefix(beginning)
        for ending in ENDINGS:
            stem = stem.removesuffix(ending)
        return path.with_name(stem or path.stem).as_posix()

    def read_annotation(self, data: bytes, where: str, height: int, width: int) -> FoundObjects:
        return read_roi_file(data, where, height, width)


def read_roi_file(data: bytes, where: str, height: int, width: int) -> FoundObjects:
    """Read the regions of an image of height x width pixels from a .zip or .roi.

    Objects are called by the number of their group in ImageJ, else by their name. What is a line or a point, lies
    outside of the image or covers no pixel goes to `problems`. An archive without any file has no objects.

    Raises DataError where the file is neither, or holds regions of several slices.
    """
    rois = _rois_of(data, where)
    places = {(roi.z_position, roi.t_position, roi.position) for _, roi, _ in rois if roi is not None}
    if len({(z, t) for z, t, _ in places}) > 1 or len({position for _, _, position in places if position}) > 1:
        raise DataError(
            f"{where}: has regions of several slices or points in time; save those of each as a file of its own"
        )
    crops: list[MaskCrop] = []
    labels, problems = [], []
    for name, roi, problem in rois:
        try:
            if roi is None:
                raise DataError(problem)
            crops.append(fill_roi(roi, height, width))
            labels.append(str(roi.group) if roi.group else name)
        except DataError as error:
            problems.append(f"{where}: {name}: {error}")
    return objects_of_crops(crops, height, width, labels=labels, problems=problems)


def _rois_of(data: bytes, where: str) -> list[tuple[str, ImagejRoi | None, str]]:
    """Return name, region and what is wrong with it, of every region of a file."""
    if data[:4] == b"Iout":
        return [(PurePosixPath(where.replace("\\", "/")).stem, *_parse(data))]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            others = [name for name in archive.namelist() if not name.lower().endswith(".roi")]
            members = [member for member in archive.infolist() if member.filename.lower().endswith(".roi")]
            members = [member for member in members if not member.filename.startswith("__MACOSX")]
            for member in members:
                if member.file_size > MAX_ROI_BYTES:
                    raise DataError(f"{member.filename} claims {member.file_size} bytes; no region has as many")
            found = [(PurePosixPath(member.filename).stem, *_parse(archive.read(member))) for member in members]
    # What zipfile raises for a broken or encrypted member is RuntimeError, EOFError, zlib.error, ...
    except Exception as error:
        raise DataError(
            f"{where}: is neither a whole zip archive of regions nor a .roi ({error}); save it again"
        ) from None
    if not found and others:
        raise DataError(f"{where}: holds {others[0]} and no .roi; expected what ImageJ's ROI manager saves")
    return found


def _parse(data: bytes) -> tuple[ImagejRoi | None, str]:
    from roifile import ImagejRoi

    try:
        return ImagejRoi.frombytes(data), ""
    except Exception as error:  # roifile raises nearly anything for a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return None, f"is no region of ImageJ, or is cut off ({reason})"


def fill_roi(roi: ImagejRoi, height: int, width: int) -> MaskCrop:
    """Return the pixels of an area of an image of height x width pixels.

    Raises DataError for what is no area, lies outside or covers no pixel's centre.
    """
    from roifile import ROI_TYPE

    if roi.roitype not in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL):
        kind = getattr(roi.roitype, "name", str(roi.roitype)).lower()
        raise DataError(f"is a {kind}; expected an area (polygon, freehand, traced, rectangle, oval, composite)")
    if roi.roitype == ROI_TYPE.OVAL and roi.multi_coordinates is None:
        crop = _fill_oval(_box(roi), height, width)
    else:
        crop = fill_polygon(_rings(roi), height, width)
    if not crop.mask.any():
        raise DataError(f"covers no pixel of the image of {height} x {width} (height x width)")
    return crop


def _box(roi: ImagejRoi) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom, which ImageJ may store as fractions of pixels."""
    if roi.subpixelrect and roi.widthd > 0 and roi.heightd > 0:
        box = roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd
        if not np.isfinite(box).all():
            raise DataError("has a coordinate that is not finite")
        return box
    return roi.left, roi.top, roi.right, roi.bottom


def _rings(roi: ImagejRoi) -> list[np.ndarray]:
    """Return the outlines (P, 2) float64 of an area and of its holes."""
    from roifile import ROI_TYPE

    if roi.roitype == ROI_TYPE.RECT and roi.multi_coordinates is None:
        x0, y0, x1, y1 = _box(roi)
        return [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)]
    try:
        rings = [np.asarray(ring, dtype=np.float64) for ring in roi.coordinates(multi=True)]
    except NotImplementedError:
        raise DataError("has curves; turn it into a polygon in ImageJ (Edit > Selection > Interpolate)") from None
    except Exception as error:  # roifile raises nearly anything for a broken path
        raise DataError(f"has a broken outline ({error})") from None
    if not all(np.isfinite(ring).all() for ring in rings):
        raise DataError("has a coordinate that is not finite")
    return rings


def _fill_oval(box: tuple[float, float, float, float], height: int, width: int) -> MaskCrop:
    """Fill the ellipse within a box."""
    x0, y0, x1, y1 = box
    left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
    right, bottom = min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height)
    if left >= right or top >= bottom or x1 <= x0 or y1 <= y0:
        return EMPTY
    across = (np.arange(left, right) + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    down = (np.arange(top, bottom) + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return MaskCrop(down[:, None] ** 2 + across[None, :] ** 2 <= 1, left, top)


# ImageJ: one zip of regions an image, which its ROI manager opens; holes and separate parts are kept.

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
