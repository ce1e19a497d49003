"""Write predictions as a submission, at once or image by image."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detseg.errors import DataError, RunError, list_problems
from detseg.files.atomic import written_whole
from detseg.formats.run_lengths import competition_name
from detseg.fusion.overlaps import resolve_overlaps
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.overlaps import are_disjoint
from detseg.submission.formats import CsvFormat, SubmissionImage
from detseg.submission.reading import read_submission

# When overlaps are resolved, an object with less than this fraction left is a duplicate of a better one.
MIN_VISIBLE_FRACTION = 0.5


@dataclass(frozen=True)
class Written:
    """Numbers of a written submission. empty: images without objects; missing: those of them without predictions;
    resolved: images whose masks overlapped; dropped: objects that were removed there.
    """

    images: int
    objects: int
    empty: int
    missing: int
    resolved: int
    dropped: int


class SubmissionTable:
    """The masks of a submission's images, which are added image by image and can be written at any time.

    images: all images of the submission, in order; those without predictions so far have no objects.
    """

    def __init__(self, images: Mapping[str, SubmissionImage], layout: CsvFormat) -> None:
        self.images = dict(images)
        self.layout = layout
        self.resolved = self.dropped = 0
        self._masks: dict[str, list[dict[str, Any]]] = {}

    def add(self, found: Predictions, *, refuse_overlaps: bool = False) -> Predictions:
        """Add the predictions of an image; return those that are in the submission.

        Overlapping masks are resolved by score, or refused. Raises DataError for predictions of other images or sizes,
        an image that was added before, boxes without masks, and refused overlaps.
        """
        name = competition_name(found.file_name or str(found.image_id))
        problem = self._problem(found, name)
        if problem:
            raise DataError(f"image {name}: {problem}")
        whole = kept = found.select(rle_codec.area(found.rles or []) > 0) if len(found) else found
        if len(whole) and overlap(whole):
            if refuse_overlaps:
                raise DataError(f"image {name}: masks overlap; apply a postprocess with resolve_overlaps")
            kept = resolve_overlaps(whole, min_visible_fraction=MIN_VISIBLE_FRACTION)
            self.resolved, self.dropped = self.resolved + 1, self.dropped + len(whole) - len(kept)
        self._masks[name] = list(kept.rles or [])
        self.images[name] = SubmissionImage(name, found.height, found.width)
        return kept

    def write(self, path: str | Path, *, compare: bool = True) -> Written:
        """Write the CSV atomically, after reading it back and comparing.

        Raises DataError if it cannot be written, RunError if the comparison fails.
        """
        with written_whole(path, "the submission") as temporary:
            self._write(temporary)
            if compare:
                self._compare(temporary)
        return Written(
            images=len(self.images),
            objects=sum(map(len, self._masks.values())),
            empty=sum(not self._masks.get(name) for name in self.images),
            missing=sum(name not in self._masks for name in self.images),
            resolved=self.resolved,
            dropped=self.dropped,
        )

    def _problem(self, found: Predictions, name: str) -> str | None:
        """Return why the predictions of an image cannot be submitted, or None."""
        image = self.images.get(name)
        if image is None:
            return "it has predictions, but is not one of the images to submit"
        if name in self._masks:
            return "it has predictions twice; fuse them"
        if found.rles is None and len(found):
            return "its predictions have no masks"
        if image.height is not None and (image.height, image.width) != (found.height, found.width):
            return (
                f"predicted at {found.height} x {found.width} pixels (height x width), but the image has "
                f"{image.height} x {image.width}; predict at the original size"
            )
        return None

    def _write(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([self.layout.key, self.layout.runs])
            for name, image in self.images.items():
                masks = self._masks.get(name)
                texts = self.layout.texts(masks, image.height, image.width) if masks else [self.layout.empty]
                writer.writerows([name, text] for text in texts)

    def _compare(self, path: Path) -> None:
        """Read the written file; raise RunError if it differs from the masks."""
        back = read_submission(path, self.images, self.layout)
        if back.problems:
            raise RunError("the written submission is invalid:\n" + list_problems(back.problems))
        for name, rles in self._masks.items():
            # Run-lengths of other programs may encode a mask differently; those read back are detseg's.
            meant = rle_codec.encode_runs(rle_codec.read_runs(rles))
            if [rle["counts"] for rle in meant] != [rle["counts"] for rle in back.masks[name]]:
                raise RunError(
                    f"the written submission does not contain the masks of image {name}; please report this bug"
                )


def write_submission(
    path: str | Path,
    images: Mapping[str, SubmissionImage],
    predictions: Iterable[Predictions],
    layout: CsvFormat,
    *,
    refuse_overlaps: bool = False,
) -> Written:
    """Write a CSV with all images in their order, read it back and compare; an existing file is replaced.

    Raises DataError with all images whose predictions `SubmissionTable.add` refuses.
    """
    table = SubmissionTable(images, layout)
    problems: list[str] = []
    for found in predictions:
        try:
            table.add(found, refuse_overlaps=refuse_overlaps)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("the predictions cannot be submitted:\n" + list_problems(problems))
    return table.write(path)


def overlap(predictions: Predictions) -> bool:
    """Whether any pixel lies in two masks of the image."""
    return not are_disjoint(rle_codec.read_runs(predictions.rles))
