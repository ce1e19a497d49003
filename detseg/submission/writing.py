"""Write predictions as a submission."""

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

# What less is left of than this, when overlaps are resolved, repeats a better object.
MIN_VISIBLE_FRACTION = 0.5


@dataclass(frozen=True)
class Written:
    """How many images and objects a submission has; empty: images without objects; missing: those of them that the
    predictions do not have; resolved: images whose masks overlapped; dropped: objects that fell away there.
    """

    images: int
    objects: int
    empty: int
    missing: int
    resolved: int
    dropped: int


def write_submission(
    path: str | Path,
    images: Mapping[str, SubmissionImage],
    predictions: Iterable[Predictions],
    layout: CsvFormat,
    *,
    refuse_overlaps: bool = False,
) -> Written:
    """Write a CSV with all images in their order, read it back and compare; an existing file is replaced.

    Masks that overlap are resolved by score, as the postprocess does, or refused.

    Raises DataError for predictions of other images or sizes, boxes alone, and overlaps where these are refused.
    """
    masks: dict[str, list[dict[str, Any]]] = {}
    sizes: dict[str, SubmissionImage] = dict(images)
    problems: list[str] = []
    resolved = dropped = 0
    for found in predictions:
        name = competition_name(found.file_name or str(found.image_id))
        problem = _problem(found, name, images, masks)
        if problem:
            problems.append(problem)
            continue
        whole = found.select(rle_codec.area(found.rles or []) > 0) if len(found) else found
        kept = whole
        if len(whole) and overlap(whole):
            if refuse_overlaps:
                problems.append(f"image {name}: masks overlap; apply a postprocess with resolve_overlaps")
            kept = resolve_overlaps(whole, min_visible_fraction=MIN_VISIBLE_FRACTION)
            resolved, dropped = resolved + 1, dropped + len(whole) - len(kept)
        masks[name] = list(kept.rles or [])
        sizes[name] = SubmissionImage(name, found.height, found.width)
    if problems:
        raise DataError("the predictions cannot be submitted:\n" + list_problems(problems))
    with written_whole(path, "the submission") as temporary:
        _write(temporary, sizes, masks, layout)
        _compare(temporary, sizes, masks, layout)
    return Written(
        images=len(images),
        objects=sum(map(len, masks.values())),
        empty=sum(not masks.get(name) for name in images),
        missing=sum(name not in masks for name in images),
        resolved=resolved,
        dropped=dropped,
    )


def overlap(predictions: Predictions) -> bool:
    """Whether any pixel lies in two masks of the image."""
    return not are_disjoint(rle_codec.read_runs(predictions.rles))


def _problem(
    found: Predictions, name: str, images: Mapping[str, SubmissionImage], seen: Mapping[str, Any]
) -> str | None:
    """Say why the predictions of an image cannot be submitted."""
    image = images.get(name)
    if image is None:
        return f"image {name}: is predicted, but is none of the images to submit"
    if name in seen:
        return f"image {name}: has predictions twice; fuse them"
    if found.rles is None and len(found):
        return f"image {name}: its predictions are boxes without masks"
    if image.height is not None and (image.height, image.width) != (found.height, found.width):
        return (
            f"image {name}: predicted at {found.height} x {found.width} pixels (height x width), but the image has "
            f"{image.height} x {image.width}; predict at the original size"
        )
    return None


def _write(
    path: Path, images: Mapping[str, SubmissionImage], masks: Mapping[str, list[dict[str, Any]]], layout: CsvFormat
) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([layout.key, layout.runs])
        for name, image in images.items():
            texts = layout.texts(masks[name], image.height, image.width) if masks.get(name) else [""]
            writer.writerows([name, text] for text in texts)


def _compare(
    path: Path, images: Mapping[str, SubmissionImage], masks: Mapping[str, list[dict[str, Any]]], layout: CsvFormat
) -> None:
    """Read what was written; raise RunError where it is not what was meant."""
    back = read_submission(path, images, layout)
    if back.problems:
        raise RunError("the written submission is not valid:\n" + list_problems(back.problems))
    for name, rles in masks.items():
        # Other programs' run-lengths may say the same in another way; those that were read are as detseg writes them.
        meant = rle_codec.encode_runs(rle_codec.read_runs(rles))
        if [rle["counts"] for rle in meant] != [rle["counts"] for rle in back.masks[name]]:
            raise RunError(f"the written submission does not hold the masks of image {name}; report this as a fault")
