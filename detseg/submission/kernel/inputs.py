"""Find the inputs of a notebook by their content, because Kaggle has moved its folders before."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detseg.errors import DataError, list_problems
from detseg.files.hashing import sha256_of
from detseg.files.table import read_table
from detseg.formats.run_lengths import competition_name
from detseg.submission.formats import CsvFormat, SubmissionImage, image_files
from detseg.submission.kernel.facts import Competition, TestImages

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FoundImages:
    """images: all images of the submission, in order. files: those that exist. sample, folder: where they are from."""

    images: dict[str, SubmissionImage]
    files: dict[str, Path]
    sample: Path
    folder: Path | None


def find_images(inputs: Path, competition: Competition, temporary: Path) -> FoundImages:
    """Find the competition's test images anywhere below a folder.

    temporary: folder to extract zipped images to.

    Raises DataError, with what was expected and what was found, if there is no table of test images.
    """
    tables: dict[str, list[Path]] = {}
    for parent, folders, files in os.walk(inputs, followlinks=True):
        folders.sort()
        for name in files:
            if name.endswith(".csv"):
                tables.setdefault(name, []).append(Path(parent, name))
    for test in competition.tests:
        for sample in tables.get(test.sample, ()):
            if (names := _names_in(sample, competition.layout)) is not None:
                return _images_beside(sample, test, names, temporary)
    there = sorted(path.relative_to(inputs).as_posix() for path in [*inputs.glob("*"), *inputs.glob("*/*")])
    wanted = " or ".join(test.sample for test in competition.tests)
    raise DataError(
        f"{inputs}: no {wanted} with the columns {competition.layout.key},{competition.layout.runs}; add the "
        f"competition {competition.slug} to the notebook as an input. Found:\n{list_problems(there or ['nothing'])}"
    )


def _names_in(sample: Path, layout: CsvFormat) -> list[str] | None:
    """Return the image names of a sample submission; None if the file is another table."""
    try:
        table = read_table(sample, [])
    except DataError as error:
        logger.warning("%s", error)
        return None
    if layout.key not in table.columns or layout.runs not in table.columns:
        return None
    return list(dict.fromkeys(row.values[layout.key] for row in table.rows))


def _images_beside(sample: Path, test: TestImages, names: Sequence[str], temporary: Path) -> FoundImages:
    folder: Path | None = sample.parent / test.images
    archive = sample.parent / f"{test.images}.zip"
    if not folder.is_dir():
        folder = None
        if archive.is_file():
            folder = temporary / test.images
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        else:
            logger.warning("no folder %s next to %s: all images are submitted without objects", test.images, sample)
    files: dict[str, Path] = {}
    for path in image_files(folder) if folder else ():
        files.setdefault(competition_name(path.name), path)
    lacking = [name for name in names if name not in files]
    if lacking:
        logger.warning("%d images of %s have no file, %s for example", len(lacking), sample.name, lacking[0])
    further = [name for name in files if name not in set(names)]
    if further:
        text = "%d images are not in %s, %s for example: they are predicted too"
        logger.warning(text, len(further), sample.name, further[0])
    images = {name: SubmissionImage(name) for name in [*names, *further]}
    return FoundImages(images, files, sample, folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of the data set, and compare the files with it.

    Raises DataError for missing or different files.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    problems = [
        f"{name}: {'differs' if (folder / name).is_file() else 'is missing'}"
        for name, digest in manifest["files"].items()
        if not (folder / name).is_file() or sha256_of(folder / name) != digest
    ]
    if problems:
        raise DataError(f"{folder}: the data set does not match its manifest:\n{list_problems(problems)}")
    return manifest
