"""Read a submission and report every problem of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detseg.errors import DataError, list_problems
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.object_ap import count_objects, summarize_objects
from detseg.files.table import Row, Table, parse_table
from detseg.formats.run_lengths import competition_name, read_pairs
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.submission.formats import FORMATS, CsvFormat, SubmissionImage, format_of

# If the size of an image is unknown, no position is too large.
_ANY_SIZE = 2**40


@dataclass
class Submission:
    """The content of a CSV: masks of every image, as COCO RLEs if its size is known, and the problems, in row order."""

    layout: CsvFormat
    masks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rows: int = 0
    problems: list[str] = field(default_factory=list)


def read_submission(
    path: str | Path, images: Mapping[str, SubmissionImage], layout: CsvFormat | None = None
) -> Submission:
    """Read a CSV and check everything in it; `layout` None detects the format by the columns.

    Problems: unexpected columns, rows with a wrong number of fields, unknown images and images without a row, invalid
    run-lengths, and those that exceed the image or overlap another row's, empty rows next to others. Raises DataError
    if the file is not such a table at all.
    """
    path = Path(path)
    table, layout = _read_table(path, layout)
    result = Submission(layout, rows=len(table.rows))
    found = [(_line_of(problem), problem) for problem in table.problems]
    expected = [layout.key, layout.runs]
    if sorted(table.columns) != sorted(expected):
        others = ", ".join(repr(column) for column in table.columns if column not in expected)
        found.append((1, f"{path}: line 1: unexpected columns ({others}); expected only {','.join(expected)}"))
    rows_of: dict[str, list[Row]] = {}
    for row in table.rows:
        name = row.values[layout.key]
        if name not in images:
            found.append((row.line, f"{_where(path, row, layout)}: {_unknown(name, images)}"))
        rows_of.setdefault(name, []).append(row)
    for name, rows in rows_of.items():
        if name in images:
            result.masks[name] = _read_image(path, rows, images[name], layout, found)
    result.problems = [text for _, text in sorted(found, key=lambda item: item[0])]
    result.problems += [
        f"{path}: image {name} has no row; add one, with {layout.empty or 'nothing'} in {layout.runs} if it has no "
        "objects"
        for name in images
        if name not in rows_of
    ]
    return result


def _read_table(path: Path, layout: CsvFormat | None) -> tuple[Table, CsvFormat]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if layout is not None:
        return parse_table(data, str(path), [layout.key, layout.runs]), layout
    for known in FORMATS.values():
        try:
            return parse_table(data, str(path), [known.key, known.runs]), known
        except DataError as error:
            if "there is no column" not in str(error):
                raise
    first = data.decode("utf-8", errors="replace").strip().splitlines()[0]
    layout = format_of([column.strip() for column in first.split(",")], path)
    return parse_table(data, str(path), [layout.key, layout.runs]), layout


def _read_image(
    path: Path, rows: list[Row], image: SubmissionImage, layout: CsvFormat, problems: list[tuple[int, str]]
) -> list[dict[str, Any]]:
    """Return the valid masks of one image; append problems with their lines."""
    pixels = _ANY_SIZE if image.height is None or image.width is None else image.height * image.width
    good: list[tuple[Row, tuple[np.ndarray, np.ndarray]]] = []
    for row in rows:
        where, text = _where(path, row, layout), row.values[layout.runs]
        if text in ("", layout.empty):
            if len(rows) > 1:
                problems.append(
                    (
                        row.line,
                        f"{where}: marks an image without objects, but the image has {len(rows) - 1} more rows",
                    )
                )
            continue
        try:
            good.append((row, read_pairs(text, pixels)))
        except DataError as error:
            problems.append((row.line, f"{where}: {error}"))
    problems += _overlaps(path, good, layout)
    if image.height is None or image.width is None:
        return []
    return layout.rles([runs for _, runs in good], image.height, image.width)


def _overlaps(
    path: Path, masks: list[tuple[Row, tuple[np.ndarray, np.ndarray]]], layout: CsvFormat
) -> list[tuple[int, str]]:
    """Return a problem for every row that shares pixels with an earlier row of the file."""
    if len(masks) < 2:
        return []
    starts = np.concatenate([runs[0] for _, runs in masks])
    ends = np.concatenate([runs[1] for _, runs in masks])
    owner = np.repeat(np.arange(len(masks)), [len(runs[0]) for _, runs in masks])
    order = np.argsort(starts, kind="stable")
    starts, ends, owner = starts[order], ends[order], owner[order]
    found: dict[int, tuple[int, int]] = {}
    # Runs that are still open where another begins; there are few, as masks hardly overlap.
    open_runs: list[tuple[int, int]] = []
    reach = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    meets = (starts < reach) | np.append(ends[:-1] > starts[1:], False)
    last = -1
    for start, end, index, touched in zip(starts.tolist(), ends.tolist(), owner.tolist(), meets.tolist(), strict=True):
        if not touched:
            continue
        if start >= last:
            open_runs = []
        open_runs = [(other_end, other) for other_end, other in open_runs if other_end > start]
        for _, other in open_runs:
            if other != index:
                later, earlier = max(index, other), min(index, other)
                found.setdefault(later, (earlier, start + 1))
        open_runs.append((end, index))
        last = max(last, end)
    return [
        (
            masks[later][0].line,
            f"{_where(path, masks[later][0], layout)}: overlaps line {masks[earlier][0].line}, for example in pixel "
            f"{pixel}; a pixel may belong to only one object",
        )
        for later, (earlier, pixel) in found.items()
    ]


def _where(path: Path, row: Row, layout: CsvFormat) -> str:
    return f"{path}: line {row.line} (image {row.values[layout.key] or '(no name)'})"


def _unknown(name: str, images: Mapping[str, SubmissionImage]) -> str:
    if not name:
        return "the image name is missing"
    bare = name.rsplit(".", 1)[0]
    return "no such image" + (f"; write {bare}, without the suffix" if bare in images else "")


def _line_of(problem: str) -> int:
    """Return the line that a problem of `parse_table` mentions."""
    number = problem.rpartition("line ")[2].split(":")[0]
    return int(number) if number.isdigit() else 0


# The competition score of a submission.


def score_submission(truth: GroundTruth, submission: Submission) -> dict[str, Any]:
    """Compute the score of both competitions, `object_ap` over all classes, for a submission read with these images.

    Returns the result of `summarize_objects`. Raises DataError for a submission with problems, which a competition
    would not score.
    """
    if submission.problems:
        raise DataError("the submission is invalid and has no score:\n" + list_problems(submission.problems))
    counts = []
    for image in truth.images:
        rles = submission.masks[competition_name(image.file_name)]
        found = Predictions(
            image.image_id,
            image.file_name,
            image.height,
            image.width,
            rle_codec.bounding_boxes(rles),
            np.ones(len(rles)),
            np.zeros(len(rles)),
            rles,
        )
        counts.append(count_objects(image, found, 0))
    return summarize_objects(counts)
