"""Cut images into tiles: each becomes an image with the visible parts of the objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from detseg.coco.dataset import AnnotationTable, CocoDataset, ImageRecord
from detseg.coco.json_files import annotations_of
from detseg.files.atomic import make_folder, written_whole
from detseg.files.names import without_ending
from detseg.images.planes import FIELD as PLANE
from detseg.images.reading import stored_facts
from detseg.progress import ProgressBar
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop
from detseg.structures.windows import Window, grid_windows

# A part of an object with less than this fraction of its pixels is too small to be recognized and becomes a crowd
# region.
LEAST_SHARE = 0.1


def cut_into_tiles(dataset: CocoDataset, folder: Path, *, tile: int, overlap: int) -> tuple[CocoDataset, np.ndarray]:
    """Write the tiles of all images into a folder, as PNG or, if that cannot store the dtype, as NPY.

    Parts of objects become objects, those below `LEAST_SHARE` crowd regions. A tile has the fields of its image, plus
    `source`, its file name, and `tile`, the x and y of its first pixel there.

    tile, overlap: as in `grid_windows`.

    Returns:
        the tiles, image by image; the index (T,) int64 of the image of each.

    Raises DataError if an image cannot be read, or its size differs from the COCO file's.
    """
    stems = without_ending(record.file_name for record in dataset.images)
    images: list[ImageRecord] = []
    rows: list[list[dict]] = []
    origins: list[int] = []
    next_id = 1
    for index, record in enumerate(ProgressBar(dataset.images, desc="cutting tiles", unit="image")):
        picture, facts = dataset.read_picture(index)
        fields = {name: value for name, value in stored_facts(facts).items() if name != PLANE}
        annotations = dataset.annotations(index)
        crops = rle_codec.decode_crops(annotations.rles)
        ids = [dataset.categories[class_index].id for class_index in annotations.classes]
        objects = list(zip(crops, ids, annotations.crowd.tolist(), strict=True))
        for window in grid_windows(record.height, record.width, tile=tile, overlap=overlap):
            x0, y0, x1, y1 = window
            name = _write_picture(picture[y0:y1, x0:x1], folder, f"{stems[index]}_x{x0}_y{y0}")
            place = {"source": record.file_name, "tile": [x0, y0]}
            images.append(ImageRecord(len(images) + 1, name, folder / name, y1 - y0, x1 - x0, {**fields, **place}))
            rows.append(_annotations(objects, window, len(images), next_id))
            origins.append(index)
            next_id += len(rows[-1])
    table = AnnotationTable.from_rows(rows, {one.id: number for number, one in enumerate(dataset.categories)})
    return CocoDataset(images, dataset.categories, table, dataset.name, info=dataset.info), np.array(origins)


def _annotations(
    objects: Sequence[tuple[MaskCrop, int, bool]], window: Window, image_id: int, first_id: int
) -> list[dict]:
    """Return the annotations visible in a window of an image; objects: mask, category id, and whether it is a crowd."""
    x0, y0, x1, y1 = window
    parts, ids, ignored = [], [], []
    for crop, category_id, is_crowd in objects:
        part = crop.within(window).moved(-x0, -y0)
        if pixels := part.area:
            parts.append(part)
            ids.append(category_id)
            ignored.append(is_crowd or pixels < LEAST_SHARE * crop.area)
    found = rle_codec.encode_crops(parts, y1 - y0, x1 - x0)
    return list(annotations_of(found, ids, image_id=image_id, first_id=first_id, crowd=ignored))


def _write_picture(picture: np.ndarray, folder: Path, name: str) -> str:
    """Write an image (H, W, C) losslessly below a folder; return its name with the suffix."""
    fits_png = picture.dtype in (np.uint8, np.uint16) and picture.shape[2] in (1, 3)
    path = folder / f"{name}{'.png' if fits_png else '.npy'}"
    make_folder(path.parent)
    with written_whole(path, "the tile") as temporary, open(temporary, "wb") as file:
        if fits_png:  # BGR for OpenCV; encoded in memory, because it cannot open every path on Windows
            file.write(cv2.imencode(".png", np.ascontiguousarray(picture[:, :, ::-1]))[1].tobytes())
        else:
            np.save(file, np.ascontiguousarray(picture))
    return path.relative_to(folder).as_posix()
