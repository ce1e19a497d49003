"""ImageJ's regions of interest: a zip archive of them (from its ROI manager), or a single .roi, per image."""

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
from detseg.files.reading import unpacked_limit
from detseg.formats.annotated_images import AnnotatedImages
from detseg.formats.objects import ImageObjects
from detseg.formats.outlines import Polygon, trace_polygons
from detseg.formats.reader import FoundObjects, objects_of_crops
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop

if TYPE_CHECKING:
    from roifile import ImagejRoi


# Suffixes of the image name by other programs (Cellpose: _rois); a prefix is used too.
ENDINGS = ("_rois", "_roi", "_ROIs", "_RoiSet", "-rois")
BEGINNINGS = ("RoiSet_", "RoiSet-")
# A region with a million points has 8 MB.
MAX_ROI_BYTES = 2**26


class ImageJRegions(AnnotatedImages):
    """Images of one class with ImageJ regions."""

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

    Objects are labelled with their group number in ImageJ, else with their name. Lines, points, and regions that are
    outside the image or cover no pixel go to `problems`. An archive without files has no objects.

    Raises DataError if the file is neither, or has regions of several slices.
    """
    crops: list[MaskCrop] = []
    labels, problems, slices, positions = [], [], set(), set()
    for name, content in _regions_of(data, where):
        try:
            roi = _parse(content)
            slices.add((roi.z_position, roi.t_position))
            positions.add(roi.position)
            crops.append(fill_roi(roi, height, width))
            labels.append(str(roi.group) if roi.group else name)
        except DataError as error:
            problems.append(f"{where}: {name}: {error}")
    if len(slices) > 1 or len(positions - {0}) > 1:
        raise DataError(f"{where}: has regions of several slices or time points; save those of each as a separate file")
    return objects_of_crops(crops, height, width, labels=labels, problems=problems)


def _regions_of(data: bytes, where: str) -> list[tuple[str, bytes]]:
    """Return name and content of every region of a file."""
    if data[:4] == b"Iout":
        return [(PurePosixPath(where.replace("\\", "/")).stem, data)]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            others = [name for name in archive.namelist() if not name.lower().endswith(".roi")]
            members = [member for member in archive.infolist() if member.filename.lower().endswith(".roi")]
            members = [member for member in members if not member.filename.startswith("__MACOSX")]
            if sum(member.file_size for member in members) > unpacked_limit(len(data)):
                raise DataError("its regions claim more bytes than an archive of this size can hold")
            for member in members:
                if member.file_size > MAX_ROI_BYTES:
                    raise DataError(f"{member.filename} claims {member.file_size} bytes, too many for a region")
            found = [(PurePosixPath(member.filename).stem, archive.read(member)) for member in members]
    # For a broken or encrypted member zipfile raises RuntimeError, EOFError, zlib.error, ...
    except Exception as error:
        raise DataError(
            f"{where}: is neither a complete zip archive of regions nor a .roi ({error}); save it again"
        ) from None
    if not found and others:
        raise DataError(f"{where}: contains {others[0]} but no .roi; expected a file saved by ImageJ's ROI manager")
    return found


def _parse(data: bytes) -> ImagejRoi:
    from roifile import ImagejRoi

    try:
        return ImagejRoi.frombytes(data)
    except Exception as error:  # roifile raises all kinds of exceptions for a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"is not an ImageJ region, or is truncated ({reason})") from None


def fill_roi(roi: ImagejRoi, height: int, width: int) -> MaskCrop:
    """Return the pixels of an area in an image of height x width pixels.

    Raises DataError for a region that is not an area, is outside or covers no pixel centre.
    """
    from roifile import ROI_OPTIONS, ROI_TYPE

    if roi.roitype not in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED, ROI_TYPE.RECT, ROI_TYPE.OVAL):
        kind = getattr(roi.roitype, "name", str(roi.roitype)).lower()
        raise DataError(f"is a {kind}; expected an area (polygon, freehand, traced, rectangle, oval, composite)")
    if ROI_OPTIONS.SPLINE_FIT in ROI_OPTIONS(roi.options):
        raise DataError(
            "is a spline through its points, which only ImageJ can draw; convert it to a polygon there (Edit > "
            "Selection > Interpolate)"
        )
    is_box = roi.roitype in (ROI_TYPE.RECT, ROI_TYPE.OVAL) and roi.multi_coordinates is None
    x0, y0, x1, y1 = roi.left, roi.top, roi.right, roi.bottom
    if is_box and roi.subpixelrect and roi.widthd > 0 and roi.heightd > 0:  # subpixel coordinates
        x0, y0, x1, y1 = roi.xd, roi.yd, roi.xd + roi.widthd, roi.yd + roi.heightd
    if is_box:
        rings = [np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)]
    else:
        try:
            rings = [np.asarray(ring, dtype=np.float64) for ring in roi.coordinates(multi=True)]
        except NotImplementedError:
            raise DataError("has curves; convert it to a polygon in ImageJ (Edit > Selection > Interpolate)") from None
        except Exception as error:  # roifile raises all kinds of exceptions for a broken path
            raise DataError(f"has an invalid outline ({error})") from None
    if not all(np.isfinite(ring).all() for ring in rings):
        raise DataError("has a coordinate that is not finite")
    crop, left, top = fill_polygon(rings, height, width)
    if is_box and roi.roitype == ROI_TYPE.OVAL:
        # The pixels of the box whose centres are inside its ellipse.
        rows, columns = top + np.arange(crop.shape[0]) + 0.5, left + np.arange(crop.shape[1]) + 0.5
        down, across = (rows - (y0 + y1) / 2) / ((y1 - y0) / 2), (columns - (x0 + x1) / 2) / ((x1 - x0) / 2)
        crop = crop & (down[:, None] ** 2 + across[None, :] ** 2 <= 1) & (x1 > x0 and y1 > y0)
    if not crop.any():
        raise DataError(f"covers no pixel of the image of {height} x {width} (height x width)")
    return MaskCrop(crop, left, top)


# Writing: one zip of regions per image, for ImageJ's ROI manager; holes and separate parts are kept.

# Regions store coordinates as signed 16-bit integers.
MAX_SIDE = 32767
# Path segments of java.awt.geom: move to, line to, close.
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write_rois(path: Path, objects: ImageObjects, class_names: Sequence[str]) -> None:
    """Write a zip with one region per object, named `0001-cell`; with several classes, each is a group.

    Outlines follow pixel edges. A mask in one piece without holes becomes a traced region, any other a composite one.
    An existing file is replaced.

    Raises DataError if the image is too large for regions.
    """
    if max(objects.height, objects.width) > MAX_SIDE:
        raise DataError(
            f"{objects.file_name}: has {objects.height} x {objects.width} pixels, but ImageJ regions are limited to "
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
            # The current time would give the same objects different bytes.
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
    numbers = []
    for ring in (ring for polygon in polygons for ring in polygon):
        # A path: step, x, y, step, x, y, ..., close.
        steps = np.full((len(ring), 3), _LINE, dtype=np.float32)
        steps[0, 0], steps[:, 1:] = _MOVE, ring
        numbers += [steps.ravel(), np.float32([_CLOSE])]
    roi.multi_coordinates = np.concatenate(numbers)
    roi.shape_roi_size = len(roi.multi_coordinates)
    return roi
