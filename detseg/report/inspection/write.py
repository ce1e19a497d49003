"""The report of a data set as a folder: index.html for people, report.json for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detseg.data.coco import CocoDataset
from detseg.errors import DataError
from detseg.report.inspection.sections import whole_page
from detseg.structures.atomic_write import written_whole

PAGE, NUMBERS = "index.html", "report.json"


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise DataError where the report would replace a file, unless `overwrite`."""
    for name in (PAGE, NUMBERS):
        if (folder / name).exists() and not overwrite:
            raise DataError(f"{folder / name} exists already; pass --overwrite to replace it, or name another folder")


def write_report(
    folder: Path, report: Mapping[str, Any], dataset: CocoDataset, config: str, *, overwrite: bool = False
) -> Path:
    """Write the page and the numbers; return the path of the page.

    report: see data/inspection/inspect_data.py. dataset: what its image indices count. config: the suggested YAML.
    Raises DataError where a file is there, unless `overwrite`, or cannot be written.
    """
    check_folder(folder, overwrite=overwrite)
    contents = {PAGE: whole_page(report, dataset, config), NUMBERS: json.dumps(report, indent=1) + "\n"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be made ({error.strerror}); name another one") from None
    for name, content in contents.items():
        with written_whole(folder / name, "the report") as temporary:
            temporary.write_text(content, encoding="utf-8")
    return folder / PAGE
