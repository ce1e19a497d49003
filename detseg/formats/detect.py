"""Detect the format of labels by the names of their files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from detseg.errors import DataError
from detseg.formats.file_sets import open_files
from detseg.formats.label_images import LABEL_SUFFIXES
from detseg.formats.reader import path_name
from detseg.formats.table import TOLD
from detseg.images.reading import SUFFIXES


def tell_format(images: Path, labels: Path, label_suffix: str | None = None) -> tuple[str, Path]:
    """Return the format, one of `TOLD`, and the place of its files: `labels`, or the single COCO file in it.

    images: folder of the images, which may also contain the labels. label_suffix: of label images, after NAME.

    Raises DataError if there is no such file, or files of several formats.
    """
    if labels.is_file() and labels.name.lower().endswith((".json", ".json.gz")):
        return "coco", labels
    if labels.is_file() and labels.suffix.lower() != ".zip":
        raise DataError(f"{labels}: the format of the labels cannot be detected; {_expected()}")
    is_one = images.resolve() == labels.resolve()
    found: Counter[str] = Counter()
    coco = []
    for name in open_files(labels).names:
        kind = _kind(name)
        if kind == "label_images" and is_one:
            endings = (label_suffix,) if label_suffix else LABEL_SUFFIXES
            kind = kind if path_name(name).endswith(endings) else ""
        if kind == "coco":
            coco.append(labels / name)
        found.update([kind] if kind else [])
    # Next to other labels a JSON may be anything.
    if len(found) > 1:
        del found["coco"]
    if len(found) == 1 and (set(found) != {"coco"} or len(coco) == 1):
        kind = next(iter(found))
        return kind, coco[0] if kind == "coco" else labels
    what = ", ".join(f"{number} of {kind}" for kind, number in sorted(found.items())) or "no known one"
    names = ", ".join(f"NAME{ending}" for ending in LABEL_SUFFIXES)
    where = f" next to the images (label images are called {names} there)" if is_one else ""
    raise DataError(f"{labels}: the format of the labels cannot be detected: files of {what}{where}; {_expected()}")


def _kind(name: str) -> str:
    lower = PurePosixPath(name).name.lower()
    endings = {
        "_seg.npy": "cellpose",
        ".geojson": "geojson",
        ".roi": "imagej",
        ".zip": "imagej",
        ".json": "coco",
        ".json.gz": "coco",
    }
    kind = next((kind for ending, kind in endings.items() if lower.endswith(ending)), "")
    return kind or ("label_images" if lower.endswith(SUFFIXES) else "")


def _expected() -> str:
    known = "; ".join(f"{kind}: {text}" for kind, text in TOLD.items())
    return f"give it with --format ({known}). `detseg prepare --help` lists all formats; it writes a COCO file"
