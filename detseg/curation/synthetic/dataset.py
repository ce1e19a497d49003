"""Data sets of synthetic images as PNG files and COCO JSON."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detseg.coco.catalog import find_dataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.curation.synthetic.cells import KINDS
from detseg.curation.synthetic.rendering import make_image
from detseg.errors import DataError
from detseg.files.atomic import whole_folder
from detseg.files.lock import wait_for_lock
from detseg.progress import ProgressBar
from detseg.version import __version__

logger = logging.getLogger(__name__)

_DESCRIPTION = "synthetic cells drawn by detseg; not real images of cells"
_OPTIONS = ("touching", "overlapping", "size", "contrast", "noise", "debris", "channels")


def generate_dataset(
    output_folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    counts: Mapping[str, int],
    height: int | Sequence[int] = (256, 320),
    width: int | Sequence[int] = (256, 320),
    cells: int | Sequence[int] = (30, 100),
    kinds: Sequence[str] = KINDS,
    one_kind_per_image: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> dict[str, Path]:
    """Draw synthetic data sets and write `NAME.json` with the images `NAME/00000.png` ... for each of them.

    Image i of a set is a function of (seed, name, i) and the options only: a larger set starts with the smaller one.
    Everything is written to a temporary folder next to the output and renamed, so an interrupted run leaves no partial
    set.

    Args:
        output_folder: created; must be empty or not exist.
        seed: determines everything.
        counts: name of a set ("train", "val") -> number of images.
        height, width, cells: pixels and number of cells, or (minimum, maximum) of which each image gets a random value.
        kinds: subset of `KINDS`; all three are categories (1, 2, 3) in any case.
        one_kind_per_image: every image shows one kind, in turn, as in the Sartorius task; else they are mixed.
        overwrite: replace a synthetic set in `output_folder`; anything else is never deleted.
        progress: show a progress bar.
        options: `touching`, `overlapping`, `size`, `contrast`, `noise`, `debris`, `channels` of `make_image`.

    Returns:
        name -> its COCO JSON. `info` has the seed and the options; every image has a field `group` (its kind, or
        "mixed").

    Raises:
        DataError: an unusable folder, or an invalid option.
    """
    folder = Path(output_folder)
    _check_arguments(seed, counts, kinds, options)
    _check_folder(folder, overwrite)
    recorded = {"seed": seed, "height": height, "width": width, "cells": cells, "kinds": list(kinds)}
    recorded |= {"one_kind_per_image": one_kind_per_image, **options}
    bar = ProgressBar(total=sum(counts.values()), desc="drawing cells", unit="image", disable=not progress)
    with whole_folder(folder) as temporary, bar:
        for name, count in counts.items():
            _draw_set(temporary, name, count, bar, recorded, options)
    logger.info("wrote %s synthetic images to %s", " + ".join(f"{n} {k}" for k, n in counts.items()), folder)
    return {name: folder / f"{name}.json" for name in counts}


def _draw_set(
    folder: Path, name: str, count: int, bar: ProgressBar, recorded: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Draw the images of one set into folder/name, and write folder/name.json."""
    (folder / name).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    least, most = np.array([_limits(recorded[side]) for side in ("height", "width")]).T
    kinds = recorded["kinds"]
    for index in range(count):
        image_seed = (recorded["seed"], zlib.crc32(name.encode()), index)
        size_rng = np.random.default_rng((*image_seed, 1))
        height, width = (int(size_rng.integers(a, b + 1)) for a, b in zip(least, most, strict=True))
        own_kinds = [kinds[index % len(kinds)]] if recorded["one_kind_per_image"] and kinds else kinds
        image, layers, classes = make_image(
            image_seed, height, width, _limits(recorded["cells"]), kinds=own_kinds, **options
        )
        # BGR, and encoded in memory, because OpenCV cannot open every path on Windows.
        file_name = f"{name}/{index:05d}.png"
        (folder / file_name).write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
        row = {"id": index + 1, "file_name": file_name, "height": height, "width": width}
        images.append({**row, "group": own_kinds[0] if recorded["one_kind_per_image"] else "mixed"})
        annotations += annotations_of(layers.to_rles(), classes + 1, image_id=index + 1, first_id=len(annotations) + 1)
        bar.update()
    categories = [{"id": number, "name": kind, "supercategory": "cell"} for number, kind in enumerate(KINDS, start=1)]
    info = {"description": _DESCRIPTION, "synthetic": recorded, "detseg_version": __version__}
    write_coco(folder / f"{name}.json", images=images, annotations=annotations, categories=categories, info=info)


def make_missing_sets(names: Sequence[str]) -> None:
    """Draw the missing ones of the catalog's synthetic sets among `names`; one process at a time."""
    for name in names:
        try:
            entry = find_dataset(name)
        except DataError:  # loading it will report that there is no such set
            continue
        if entry.generator != "synthetic" or entry.json.is_file():
            continue
        folder = entry.json.parent
        with wait_for_lock(folder.with_name(f".{folder.name}.lock")):
            if not entry.json.is_file():
                generate_dataset(folder, **entry.options)


def _limits(value: int | Sequence[int]) -> tuple[int, int]:
    """Return a number, or (minimum, maximum), as (minimum, maximum)."""
    limits = (value, value) if isinstance(value, int) else tuple(value)
    if len(limits) != 2 or not all(isinstance(limit, int) for limit in limits) or limits[0] > limits[1]:
        raise DataError(f"synthetic cells: expected a whole number or (minimum, maximum), got {value!r}")
    return limits


def _check_arguments(seed: int, counts: Mapping[str, int], kinds: Sequence[str], options: Mapping[str, Any]) -> None:
    if not isinstance(seed, int) or seed < 0:
        raise DataError(f"synthetic cells: the seed is {seed!r}, not a whole number >= 0")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise DataError(f"synthetic cells: unknown options {', '.join(unknown)}; known are {', '.join(_OPTIONS)}")
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DataError(f"synthetic cells: {name} is {value!r}, not a number")
    if not isinstance(kinds, (list, tuple)):
        raise DataError(f"synthetic cells: kinds is {kinds!r}, not a list of {', '.join(KINDS)}")
    if not isinstance(counts, Mapping) or not counts:
        raise DataError(f"synthetic cells: counts is {counts!r}; expected a number of images for at least one set")
    for name, count in counts.items():
        if not name or not all(letter.isalnum() or letter in "-_" for letter in name):
            raise DataError(f"synthetic cells: {name!r} is not a valid name for a set; use letters, digits, - and _")
        if not isinstance(count, int) or count < 0:
            raise DataError(f"synthetic cells: the number of images of {name!r} is {count!r}, not a whole number >= 0")


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Raise DataError for a folder with any content, or, with `overwrite`, any that this module did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder that does not exist yet")
    entries = {entry.name for entry in folder.iterdir()}
    if entries and not overwrite:
        raise DataError(f"{folder} is not empty; pass --overwrite to replace a synthetic set, or give another folder")
    ours = {entry for entry in entries if entry.endswith(".json") and _is_synthetic(folder / entry)}
    foreign = entries - ours - {entry.removesuffix(".json") for entry in ours}
    if foreign:
        raise DataError(
            f"{folder} has content other than a synthetic set ({', '.join(sorted(foreign)[:5])}); nothing was deleted: "
            "give another folder, or empty this one yourself"
        )


def _is_synthetic(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["info"]["description"] == _DESCRIPTION
    except (OSError, ValueError, KeyError, TypeError):
        return False
