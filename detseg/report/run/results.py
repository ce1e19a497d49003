"""Read a run folder for its report, even of a training that is running, was killed, or has no test data.

Whatever cannot be read is listed in `problems`, and the rest is used: a report is most needed if something went wrong.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.catalog import load_dataset, set_names
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions, with_classes_of
from detseg.config import Config, load_config
from detseg.config.loading import Imports
from detseg.data.folds import FOLD, Folds, fold_name, pseudo_names
from detseg.errors import DetsegError, RunError
from detseg.evaluation.evaluate import align, count_all
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.matches import ImageMatches, match_image
from detseg.evaluation.object_ap import ObjectCounts
from detseg.files.atomic import read_json
from detseg.files.run_files import (
    CONFIG_FILE,
    FOLDS_RECORD,
    METRIC_LINES,
    METRICS_FILE,
    OUT_OF_FOLD_FILE,
    OUT_OF_FOLD_TRUTH,
    POSTPROCESS_FILE,
    PREDICTIONS_FOLDER,
    RECORD,
    advise_run,
    read_metrics,
)
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.tuning.score_curves import ClassCurves, score_curves

# Default if the training balanced by no field of the images.
USUAL_GROUP = "group"
# Fields with more values are not groups: an identifier of every image is none.
MOST_GROUPS = 30


@dataclass
class ScoredSet:
    """A data set, all its predictions (`raw`), and those that the run's thresholds keep (`kept`).

    raw, kept: one Predictions per image, in the order of the truth. scores: from final_metrics.json, or {}.
    group_fields: image fields whose values are scored separately.
    """

    name: str
    dataset: CocoDataset
    truth: GroundTruth
    raw: list[Predictions]
    postprocess: Postprocess
    scores: Mapping[str, Any]
    group_fields: list[str]

    @cached_property
    def kept(self) -> list[Predictions]:
        return [self.postprocess.apply(image) for image in self.raw]

    @cached_property
    def counts(self) -> list[ObjectCounts] | None:
        """Hits and misses of every image; None for boxes without masks."""
        return count_all(self.truth, self.kept)

    @cached_property
    def matches(self) -> list[ImageMatches] | None:
        """Matches of every image; None for boxes without masks."""
        if self.counts is None:
            return None
        return [match_image(truth, found) for truth, found in zip(self.truth.images, self.kept, strict=True)]

    @cached_property
    def curves(self) -> list[ClassCurves]:
        """Score curves; [] for boxes without masks."""
        return [] if self.counts is None else score_curves(self.truth, self.raw, self.postprocess)

    def groups(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every value of the group fields with its images, (I,) bool; nothing if there is only one."""
        for name in self.group_fields:
            values = np.array([str(image.metadata.get(name, "")) for image in self.truth.images])
            known = sorted(set(values))
            if 1 < len(known) <= MOST_GROUPS:
                yield from ((f"{name} {value or 'unknown'}", values == value) for value in known)


@dataclass
class RunResults:
    """A run, or the folds of one.

    lines: of metrics.jsonl. parts: the runs of the folds. final: final_metrics.json, or {}. problems: missing or
    unreadable parts, as text.
    """

    path: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    config: Config | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    final: Mapping[str, Any] = field(default_factory=dict)
    sets: list[ScoredSet] = field(default_factory=list)
    parts: list[RunResults] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder, with its parent if needed for identification: `mask_rcnn/001`."""
        path = Path(os.path.abspath(self.path))
        return f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name

    @property
    def status(self) -> str:
        """The recorded status; a killed process may still be "running"."""
        if self.parts and not self.record.get("status"):
            unfinished = [part for part in self.parts if part.status != "finished"]
            return "unfinished" if unfinished or not self.final else "finished"
        return str(self.record.get("status", "unknown"))

    @property
    def scores(self) -> Mapping[str, Any]:
        """Final scores, else those of the last evaluation during the training, or {}."""
        return self.final or next(iter(self.of_kind("evaluation")[-1:]), {})

    def load_set(self, name: str) -> CocoDataset:
        """Load a data set of the run's configuration."""
        return load_dataset(name, self.config.DATASETS.IMAGE_ROOT, boxes=not self.config.MODEL.MASK_ON)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line.get("kind") == kind]


def read_run(path: Path, imports: Imports | None = None) -> RunResults:
    """Read a run folder, the folder of a training with folds, or the newest run in a folder.

    imports: as in `load_config`, for configurations with MODEL.IMPORTS.

    Raises RunError if there is no run.
    """
    path = _find(path)
    run = RunResults(path)
    for name, file, read in (
        ("record", RECORD, read_json),
        ("config", CONFIG_FILE, partial(load_config, imports=imports)),
        ("lines", METRIC_LINES, read_metrics),
        ("final", METRICS_FILE, read_json),
    ):
        if (path / file).is_file():
            with _noted(run):
                setattr(run, name, read(path / file))
    run.lines = [line for line in run.lines if isinstance(line, dict)]
    if (path / FOLDS_RECORD).is_file():
        _read_folds(run, imports)
    elif run.config is not None:
        _read_sets(run)
    return run


def _find(path: Path) -> Path:
    signs = (RECORD, CONFIG_FILE, METRIC_LINES, FOLDS_RECORD)
    numbered = [one for one in path.iterdir() if one.name.isdigit() and one.is_dir()] if path.is_dir() else []
    for candidate in (path, *sorted(numbered, key=lambda one: -int(one.name))):
        if any((candidate / name).is_file() for name in signs):
            return candidate
    reason = f"contains no run: it has none of {', '.join(signs)}" if path.is_dir() else "is not a folder"
    raise RunError(f"--run {path} {reason}; {advise_run(path)}")


def _read_folds(run: RunResults, imports: Imports | None) -> None:
    with _noted(run):
        count = int(read_json(run.path / FOLDS_RECORD)["folds"])
        for fold in range(count):
            folder = run.path / fold_name(fold)
            try:
                run.parts.append(read_run(folder, imports))
            except RunError:
                run.problems.append(f"{fold_name(fold)} of {count} has not started")
    run.config = next((part.config for part in run.parts if part.config is not None), None)
    if not (run.path / OUT_OF_FOLD_FILE).is_file():
        run.problems.append("not all folds are finished, so there are no scores over all images yet")
        run.sets = [one for part in run.parts for one in part.sets]
        return
    with _noted(run):
        dataset = CocoDataset.load(run.path / OUT_OF_FOLD_TRUTH)
        run.sets.append(_scored(run, "out of fold", dataset, run.path / OUT_OF_FOLD_FILE, run.final))


def _read_sets(run: RunResults) -> None:
    cfg, folder = run.config, run.path / PREDICTIONS_FOLDER
    names = [fold_name(cfg.DATASETS.FOLD)] if cfg.DATASETS.FOLD >= 0 else set_names(cfg.DATASETS.TEST)
    if not names:
        run.problems.append("the training has no test data (DATASETS.TEST), so there are no scores")
    elif not folder.is_dir():
        run.problems.append("there was no final evaluation: scores are from earlier evaluations")
    for index, name in enumerate(names):
        found = folder / f"{name}.json.gz"
        if not found.is_file():
            continue
        with _noted(run):
            dataset = _load_set(run, index)
            known = run.record.get("data", {}).get(f"test/{name}", {}).get("annotations_hash")
            if known not in (None, dataset.annotations_hash()):
                run.problems.append(
                    f"the annotations of {name} have changed since the training: scores are for the new ones"
                )
            scores = run.final.get("datasets", {}).get(name, run.final if index == 0 else {})
            run.sets.append(_scored(run, name, dataset, found, scores))


def _load_set(run: RunResults, index: int) -> CocoDataset:
    """Return a data set of the run; its path is relative to the working folder, else to that of the training."""
    cfg, load, failure = run.config, run.load_set, None
    for folder in working_folders(run):
        try:
            with inside(folder):
                folds = Folds.from_config(cfg)
                if not folds.in_use:
                    dataset = CocoDataset.match_classes([load(cfg.DATASETS.TEST[index])], cfg.DATASETS.CLASSES)[0]
                else:
                    train = CocoDataset.match_classes([load(name) for name in cfg.DATASETS.TRAIN], cfg.DATASETS.CLASSES)
                    test = [load(name).with_classes(train[0].class_names) for name in cfg.DATASETS.TEST]
                    dataset = folds.of_sets(train, test).validation_part(folds.fold)
                images = [dataclasses.replace(record, path=record.path.absolute()) for record in dataset.images]
                return dataclasses.replace(dataset, images=images)
        except DetsegError as error:
            failure = failure or error
    raise failure


def working_folders(run: RunResults) -> list[str]:
    """Return the folders to which the names of data sets may be relative."""
    recorded = run.record.get("folder")
    return ["."] + ([recorded] if recorded and os.path.isdir(recorded) else [])


@contextmanager
def inside(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _scored(run: RunResults, name: str, dataset: CocoDataset, found: Path, scores: Mapping[str, Any]) -> ScoredSet:
    dataset = with_classes_of(found, dataset)
    truth = GroundTruth.from_coco(dataset)
    raw = align(truth, read_predictions(found, dataset))
    file = run.path / POSTPROCESS_FILE
    postprocess = Postprocess.load(file).for_classes(truth.class_names) if file.is_file() else Postprocess()
    balanced_by = run.config.DATALOADER.BALANCE_BY if run.config is not None else ""
    wanted = dict.fromkeys((balanced_by or USUAL_GROUP, USUAL_GROUP, *([FOLD] if run.parts else [])))
    known = {key for image in truth.images for key in image.metadata}
    return ScoredSet(name, dataset, truth, raw, postprocess, scores, [key for key in wanted if key in known])


@contextmanager
def _noted(run: RunResults) -> Iterator[None]:
    """Record anything that cannot be read, and continue."""
    try:
        yield
    except (DetsegError, OSError, ValueError, KeyError) as error:
        said = str(error) if isinstance(error, (DetsegError, OSError)) else f"{type(error).__name__}: {error}"
        run.problems.append(said)


def data_of(run: RunResults) -> list[tuple[str, str, CocoDataset | None]]:
    """Return the data sets of a run's configurationwith key and name; None if one cannot be read."""
    if run.config is None:
        return []
    found = []
    for key in ("TRAIN", "EXTRA_TRAIN", "PSEUDO", "TEST"):
        for name in pseudo_names(run.config) if key == "PSEUDO" else run.config.DATASETS[key]:
            dataset = None
            for folder in working_folders(run):
                with suppress(DetsegError), inside(folder):
                    dataset = run.load_set(name)
                    break
            found.append((f"DATASETS.{key}", name, dataset))
    return found
