"""Tables of a report: scores with intervals, differences between runs, changed keys, data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detseg.coco.pairing import ImageIndex
from detseg.config import get_default_config, load_config
from detseg.errors import DetsegError
from detseg.evaluation.intervals import NAMES, ImageScores, image_scores, intervals, paired_intervals
from detseg.report.run.results import RunResults, ScoredSet, data_of, inside, working_folders

TITLES = dict(
    zip(NAMES, ("object AP", "AP50", "AP75", "mean F1", "precision", "recall", "foreground IoU"), strict=True)
)
COCO_TITLES = {"coco_segm_ap": "COCO mask AP", "coco_bbox_ap": "COCO box AP"}
# Keys without influence on the training, or different in every run.
_OWN_KEYS = ("OUTPUT_DIR", "VERSION", "MODEL.ENGINE")
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class ScoreRow:
    """Scores of all objects, of a class or of a group; name: title of the row, "all" of the first.

    values: (R,) as NAMES; ends: (R, 2) of their 95 % intervals; NaN if undefined. coco: by key of COCO_TITLES.
    """

    name: str
    values: np.ndarray
    ends: np.ndarray
    images: int
    objects: int
    predictions: int
    coco: Mapping[str, float | None]


def rows_of(scored: ScoredSet) -> list[tuple[str, np.ndarray, int]]:
    """Return the subsets that are scored: name, images (I,) bool, and row of the counts."""
    every = np.ones(len(scored.truth.images), dtype=bool)
    names = scored.truth.class_names
    rows = [("all", every, 0)]
    if len(names) > 1:
        rows += [(name, every, 1 + index) for index, name in enumerate(names)]
    return rows + [(name, images, 0) for name, images in scored.groups()]


def score_rows(scored: ScoredSet) -> list[ScoreRow]:
    """Return the scores of all objects, of every class and of every group; [] for boxes without masks."""
    if scored.counts is None:
        return []
    rows = []
    for name, images, row in rows_of(scored):
        scores = image_scores(scored.counts, row).of_images(images)
        used = [count for count, is_used in zip(scored.counts, images, strict=True) if is_used and count.occurs()[row]]
        own = scored.scores if name == "all" else scored.scores.get("per_class", {}).get(name, {}) if row else {}
        rows.append(
            ScoreRow(
                name=name,
                values=scores.values,
                ends=intervals(scores),
                images=len(used),
                objects=int(sum(count.objects[row] for count in used)),
                predictions=int(sum(count.predictions[row] for count in used)),
                coco={key: own.get(key) for key in COCO_TITLES},
            )
        )
    return rows


@dataclass(frozen=True)
class Comparison:
    """The same rows of two runs on their common images; differences are other minus base.

    rows: name, base's scores (R,), the other's, differences (R,) and their intervals (R, 2). base_images, other_images:
    (C,) int64, indices of the common images in either set.
    """

    rows: list[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    base_images: np.ndarray
    other_images: np.ndarray


def compare(base: ScoredSet, other: ScoredSet) -> Comparison | None:
    """Compare two sets of predictions on their common images; None without common images, or without masks."""
    if base.counts is None or other.counts is None:
        return None
    index = ImageIndex(base.truth.images, base.name)
    place = {image.image_id: number for number, image in enumerate(base.truth.images)}
    pairs = []
    for number, image in enumerate(other.truth.images):
        found = index.find(image)
        if found is not None and (found.height, found.width) == (image.height, image.width):
            pairs.append((place[found.image_id], number))
    if not pairs:
        return None
    own, others = np.array(pairs).T
    rows_of_other = {name: row for name, _, row in rows_of(other)}
    rows = []
    for name, images, row in rows_of(base):
        if name not in rows_of_other:
            continue
        chosen = images[own]
        if not chosen.any():
            continue
        first = image_scores(base.counts, row).of_images(own[chosen])
        second = image_scores(other.counts, rows_of_other[name]).of_images(others[chosen])
        rows.append((name, first.values, second.values, *paired_intervals(first, second)))
    return Comparison(rows, own, others)


def per_image(scored: ScoredSet) -> np.ndarray:
    """Return object AP (I,) float64 of every image."""
    scores: ImageScores = image_scores(scored.counts or [])
    return scores.above[0]


def changed_keys(run: RunResults) -> list[tuple[str, Any, Any, str]]:
    """Return the keys with other values than the default: name, value, default, and its origin, "" if unknown.

    Keys from the command line come first, then those of the configuration file, then of the files in its `_BASE_`.
    """
    if run.config is None:
        return []
    defaults, values = get_default_config().flatten(), run.config.flatten()
    given, own_file = None, run.record.get("config")
    for folder in working_folders(run) if own_file else ():
        try:
            with inside(folder):
                given = load_config(own_file)
            break
        except DetsegError:  # the file was moved, or needs code of the user
            continue
    rows, known = [], {} if given is None else given.flatten()
    for key, value in values.items():
        default, was_given = defaults.get(key), known.get(key)
        if key.startswith(_OWN_KEYS) or (value == default and (given is None or was_given == value)):
            continue
        origin = ""
        if given is not None:
            origin = given.origin(key) if was_given == value else COMMAND_LINE
            origin = "drawn" if key == "SEED" and given.SEED < 0 else origin
        rows.append((key, value, default, origin))

    def place(row: tuple[str, Any, Any, str]) -> tuple[Any, ...]:
        file, _, line = row[3].rpartition(":")
        return is_inherited(run, row[3]), bool(file), file, int(line) if line.isdecimal() else 0, row[0]

    rows.sort(key=place)
    return rows


def is_inherited(run: RunResults, origin: str) -> bool:
    """Whether a key with this origin was set by a file in `_BASE_`, not by the configuration itself."""
    return ":" in origin and origin.rpartition(":")[0] != str(run.record.get("config"))


def different_keys(runs: Sequence[RunResults]) -> list[tuple[str, list[Any]]]:
    """Return the keys in which runs differ, with the value of each run."""
    flat = [run.config.flatten() if run.config is not None else {} for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if not key.startswith(_OWN_KEYS)]
    rows = [(key, [one.get(key) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values[1:])]


def data_rows(run: RunResults) -> list[tuple[str, str, str, str, str, str]]:
    """Return the data sets of a training: name, role, images, objects, objects by class, and hashes that identify them.

    From run.json, as at the start of the training; for runs without that, from the present files.
    """
    recorded = (run.record or (run.parts[0].record if run.parts else {})).get("data")
    if not recorded:
        recorded = {}
        for role, name, dataset in data_of(run):
            if dataset is not None:
                counts = dataset.objects_per_image().sum(axis=0).tolist()
                recorded[f"{role} {name}, now"] = {
                    "name": dataset.name,
                    "images": len(dataset),
                    "objects": dict(zip(dataset.class_names, counts, strict=True)),
                    "annotations_hash": dataset.annotations_hash(),
                }
    rows = []
    for role, one in recorded.items():
        classes = ", ".join(f"{name} {count:,}" for name, count in one["objects"].items())
        named = {what: one.get(f"{what}_hash") for what in ("annotations", "images")}
        hashes = ", ".join(f"{what} {value}" for what, value in named.items() if value)
        rows.append((one["name"], role, f"{one['images']:,}", f"{sum(one['objects'].values()):,}", classes, hashes))
    return rows
