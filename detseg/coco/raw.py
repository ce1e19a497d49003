"""A COCO file as it is written, checked: for whatever writes it again with all that it knows nothing of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset, image_root_for, write_coco
from detseg.coco.index import index_coco, is_text, shown
from detseg.coco.json_scan import read_json_text, scan_object
from detseg.errors import DataError

_KNOWN = ("info", "images", "categories", "annotations")


class RawCoco:
    """Images, annotations and further keys of a COCO file, unchanged.

    path: the file. info: its info. image_rows: the objects of its images, in order. category_rows: of its categories.
    further: its other keys. dataset: the same as a CocoDataset. root: the folder that file names are relative to.
    """

    def __init__(self, path: Path, *, skipped: list[str] | None = None, keep_empty: bool = False) -> None:
        """Read a file; skipped, keep_empty: see `index_coco`. Raises DataError with all that is wrong with it."""
        self.path = path
        self.info, images, categories, table = index_coco(path, skipped, keep_empty=keep_empty)
        said = self.info.get("image_root") or ""
        if not is_text(said) or "\0" in said:
            raise DataError(f"{path}: its info.image_root is {shown(said)}; expected the path of a folder")
        self.root = path.parent / said
        other = scan_object(read_json_text(path), "annotations", lambda *_: None, path)
        rows = {row["id"]: row for row in other["images"] if isinstance(row, dict) and "id" in row}
        self.image_rows: list[dict[str, Any]] = [rows[image.image_id] for image in images]
        self.category_rows: list[dict[str, Any]] = other["categories"]
        self.further = {key: value for key, value in other.items() if key not in _KNOWN}
        self.dataset = CocoDataset.of_entries(images, categories, table, root=self.root, name=str(path))

    def __len__(self) -> int:
        return len(self.image_rows)

    def annotations(self, index: int) -> list[dict[str, Any]]:
        """Return the annotations of image number `index` as the file has them."""
        return self.dataset.table.decode(index)

    def write(
        self,
        path: Path,
        *,
        indices: Sequence[int] | np.ndarray | None = None,
        annotations: Iterable[Mapping[str, Any]] | None = None,
        image_fields: Sequence[Mapping[str, Any]] | None = None,
        info: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write images and annotations again, with what is to be other.

        Args:
            path: .json or .json.gz; `info.image_root` is made to fit it.
            indices: of the images to write; None: all.
            annotations: instead of those of these images.
            image_fields: further fields of each of these images.
            info: further keys of the file's info.
            overwrite: replace a file that is there; else DataError.
        """
        chosen = range(len(self)) if indices is None else [int(index) for index in indices]
        fields = image_fields or [{}] * len(chosen)
        write_coco(
            path,
            images=[{**self.image_rows[index], **more} for index, more in zip(chosen, fields, strict=True)],
            annotations=annotations or (row for index in chosen for row in self.annotations(index)),
            categories=self.category_rows,
            info={**self.info, "image_root": image_root_for(self.root, path.parent), **(info or {})},
            further=self.further,
            overwrite=overwrite,
        )
