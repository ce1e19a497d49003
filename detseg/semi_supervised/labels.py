"""From predictions of unlabelled images to a COCO file of pseudo-labels, with the decision on every object.

Steps: determine which images may be used (leaks.py), read the predictions (teacher.py), choose the score limits unless
given (limits.py), apply the gates to every object and then to every image (gates.py), write the rest as a data set.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.pairing import content_key
from detseg.coco.predictions_file import read_predictions
from detseg.coco.pseudo_labels import DECISIONS, label_rows, pseudo_image
from detseg.coco.records import AnnotationTable, Category, ImageRecord
from detseg.data.trained_images import FIELD, TrainedImages
from detseg.errors import ConfigError, DataError, list_problems
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.matches import match_image
from detseg.fusion.postprocess import Postprocess
from detseg.progress import ProgressBar
from detseg.semi_supervised.gates import COUNTS, KEEP, MAJORITY, PRECISION, Candidates, Gates, image_problem, judge
from detseg.semi_supervised.leaks import LeakRules, Reason, leaking_images, refuse_leaking_models
from detseg.semi_supervised.limits import Pool, ScoreLimits, fixed_limits, limits_by_counts, limits_by_precision
from detseg.semi_supervised.teacher import Teacher, classes_by_field
from detseg.structures.predictions import IN_TRAINING

logger = logging.getLogger(__name__)

FilePath = str | os.PathLike[str]


@dataclass(frozen=True)
class LabelInputs:
    """Inputs of pseudo-labels.

    predictions: a Predictions file of unlabelled images. images: these images. members: Predictions files of the same
    images by other models, folds or views, for the agreement; for example those that `predictions` was fused from.
    labelled: the labelled images, for counts, classes and their ids; without those of `validation`.
    out_of_fold: predictions of these by models that were not trained with them; out_of_fold_members: like `members`.
    validation: images on which a training with the pseudo-labels will be validated; None: there are none, and nothing
    is checked. postprocess: applied to the candidates before the gates, without its score threshold.
    """

    predictions: FilePath
    images: CocoDataset
    members: Sequence[FilePath] = ()
    labelled: CocoDataset | None = None
    out_of_fold: FilePath | None = None
    out_of_fold_members: Sequence[FilePath] = ()
    validation: CocoDataset | None = None
    postprocess: Postprocess = field(default_factory=Postprocess)


@dataclass(frozen=True)
class PseudoLabels:
    """dataset: the images that are used, with kept and ignored objects.

    `dataset.info["pseudo_labels"]` records how they were made, with limits and counts; `dataset.further` lists the
    `dropped` objects and the images that were `left_out`.
    """

    dataset: CocoDataset

    @property
    def about(self) -> dict[str, Any]:
        return self.dataset.info["pseudo_labels"]

    def summary(self) -> str:
        """Return a summary as text."""
        images, objects = self.about["images"], self.about["objects"]
        lines = [
            f"images   {images['used']} used, {images['left_out']} left out",
            f"objects  {objects['kept']} kept, {objects['ignored']} ignored, {objects['dropped']} dropped",
        ]
        for row in self.about["limits"]:
            if row.get("wanted_per_image") == 0 and row["ignore_from"] is None:
                continue  # a class that this group lacks
            name = " ".join(str(row[key]) for key in ("group", "class") if row.get(key))
            sure, low = ("none" if row[key] is None else f"{row[key]:.3g}" for key in ("sure_from", "ignore_from"))
            line = f"limits   {name}: sure from {sure}, ignored from {low}"
            if row.get("precision") is not None:
                ends = row["precision_low"], row["precision_high"]
                interval = "" if None in ends else f" ({ends[0]:.3f} to {ends[1]:.3f})"
                line += f"; precision {row['precision']:.3f}{interval}, recall {row['recall']:.3f}"
                line += f", missed {row['missed']:.3f}"
            if "wanted_per_image" in row:
                line += f"; {row['reached_per_image']:.1f} of the desired {row['wanted_per_image']:.1f} per image"
            lines.append(line)
        kinds = Counter(row["kind"] for row in self.dataset.further["left_out"])
        return "\n".join([*lines, *(f"left out {count}: {kind}" for kind, count in kinds.most_common())])


def label_images(inputs: LabelInputs, gates: Gates, rules: LeakRules | None = None) -> PseudoLabels:
    """Make pseudo-labels. Predictions are read image by image; the labels are held in memory, as text.

    Raises:
        DataError: a model has seen an image of `inputs.validation`, or does not record its training images; files have
            other images or classes, or no masks. ConfigError: the gates need inputs that are not given.
    """
    rules = rules or LeakRules()
    categories = _categories(inputs)
    names = [category.name for category in categories]
    gates = gates.for_classes(names)
    _check_gates(gates, inputs)
    labelled = _without(inputs.labelled, inputs.validation)
    class_of = {} if gates.image_class in (KEEP, MAJORITY) else classes_by_field(gates.image_class, names, labelled)
    options = (categories, inputs.postprocess, gates.image_class, class_of)
    teacher = Teacher([inputs.predictions, *inputs.members], inputs.images, *options)
    if unknown := teacher.unknown():
        raise DataError(
            f"{inputs.predictions}: has {len(unknown)} images that are not in {inputs.images.name}:\n"
            f"{list_problems(unknown, 5)}"
        )
    seen, left_out = None, {}
    if inputs.validation is not None:
        seen = refuse_leaking_models(teacher.infos, inputs.validation)
        left_out = leaking_images(inputs.images, inputs.validation, rules)
    used = np.array([index not in left_out for index in range(len(inputs.images))], dtype=bool)
    groups = _Groups(gates.group_by, inputs.images.images)
    if gates.choose == COUNTS:
        pool = _pool(teacher, used, gates, groups.of_image)
        images = np.bincount(groups.of_image[used], minlength=len(groups.names))
        limits = limits_by_counts(pool, images, groups.rates(labelled), gates, names, groups.names)
    elif gates.choose == PRECISION:
        oof = Teacher([inputs.out_of_fold, *inputs.out_of_fold_members], labelled, *options)
        limits = _limits_on(oof, gates, names)
    else:
        limits = fixed_limits(gates, names)
    labels = _Labels(inputs.images, categories)
    bar = ProgressBar(teacher.candidates(), total=len(inputs.images), desc="labelling", unit="image")
    for index, candidates in bar:
        if used[index]:
            labels.add(index, candidates, gates, limits, int(groups.of_image[index]))
    for index in np.flatnonzero(used).tolist():
        if index not in labels.seen:
            left_out[index] = Reason("not predicted", f"not in {inputs.predictions}")
    labels.left_out |= left_out
    about = {
        "predictions": str(inputs.predictions),
        "members": [str(path) for path in inputs.members],
        "validation": None if inputs.validation is None else inputs.validation.name,
        "gates": gates.to_dict(),
        "leak_rules": {"similar": rules.similar, "apart": None if rules.apart is None else list(rules.apart)},
        "limits": limits.rows,
        "counts": _counts(labels, groups, labelled, names),
    }
    return PseudoLabels(labels.dataset(about, seen))


def _categories(inputs: LabelInputs) -> list[Category]:
    """Return the classes of the labelled images, or else of the predictions."""
    if inputs.labelled is not None:
        return inputs.labelled.categories
    rows = read_predictions(inputs.predictions).categories
    return [Category(row["id"], str(row["name"]), position=number) for number, row in enumerate(rows)]


def _check_gates(gates: Gates, inputs: LabelInputs) -> None:
    lacking = {
        "agreement needs the predictions of other members of the same images": gates.asks_for_agreement
        and not inputs.members,
        f"choose: {gates.choose} needs the labelled images": gates.choose in (COUNTS, PRECISION)
        and inputs.labelled is None,
        "choose: precision needs predictions of the labelled images by models that were not trained with them": (
            gates.choose == PRECISION and inputs.out_of_fold is None
        ),
    }
    for message, is_lacking in lacking.items():
        if is_lacking:
            raise ConfigError(f"{gates.source}: {message}")
    if gates.asks_for_agreement and gates.choose == PRECISION and not inputs.out_of_fold_members:
        logger.warning(
            "the precision is measured without the agreement gate, because there are no other predictions of the "
            "labelled images: with the gate there will be fewer and more precise pseudo-labels"
        )


def _without(labelled: CocoDataset | None, validation: CocoDataset | None) -> CocoDataset | None:
    """Return the labelled images without those of the validation, which must not even influence a threshold."""
    if labelled is None or validation is None:
        return labelled
    held_out = {content_key(record) for record in validation.images}
    rest = [index for index, record in enumerate(labelled.images) if content_key(record) not in held_out]
    return labelled.select(rest)


class _Groups:
    """The groups of the unlabelled images. names: of the groups. of_image: (I,) int64, group of every image."""

    def __init__(self, field: str, images: Sequence[ImageRecord]) -> None:
        self._field = field
        values = [self._value(record) for record in images]
        self.names = sorted(set(values)) or [""]
        self.of_image = np.array([self.names.index(value) for value in values], dtype=np.int64)

    def _value(self, record: ImageRecord) -> str:
        return str(record.metadata.get(self._field, "")) if self._field else ""

    def labelled(self, labelled: CocoDataset, group: int) -> np.ndarray:
        """Return the indices of the labelled images of a group."""
        values = [self._value(record) for record in labelled.images]
        return np.flatnonzero(np.array(values, dtype=object) == self.names[group])

    def rates(self, labelled: CocoDataset) -> np.ndarray:
        """Return (G, K) float64, the mean number of objects per labelled image of every group; for a group without
        labelled images, the mean over all.
        """
        if not len(labelled):
            raise DataError(f"{labelled.name}: no labelled images are left to count objects in")
        counts, rates = labelled.objects_per_image(), []
        for group, name in enumerate(self.names):
            own = self.labelled(labelled, group)
            if not len(own):
                logger.warning(
                    "no labelled image is in the group %r: using the mean number of objects of all labelled images",
                    name,
                )
            rates.append(counts[own].mean(axis=0) if len(own) else counts.mean(axis=0))
        return np.array(rates)


def _pool(teacher: Teacher, used: np.ndarray, gates: Gates, groups: np.ndarray) -> Pool:
    parts = []
    for index, candidates in teacher.candidates():
        if used[index]:
            verdict, found = judge(candidates, gates), candidates.predictions
            about = {"images": index, "groups": groups[index], "classes": found.classes}
            scores = found.scores.astype(np.float64)
            parts.append({**about, "scores": scores, "sure": verdict.sure, "refused": verdict.refused})
    return Pool.join(parts)


def _limits_on(teacher: Teacher, gates: Gates, names: Sequence[str]) -> ScoreLimits:
    """Return the limits by precision on labelled images, none of which the teacher has seen."""
    truth = GroundTruth.from_coco(teacher.images)
    parts, unknown, folds = [], 0, [None] * len(truth.images)
    for index, candidates in teacher.candidates():
        found = candidates.predictions
        if found.provenance.get(IN_TRAINING):
            raise DataError(
                f"{next(iter(teacher.infos))}: its model was trained with {found.file_name}, so it is better on this "
                "image than on others; give out-of-fold predictions (predict --folds, or oof.json.gz of the folds)"
            )
        unknown += IN_TRAINING not in found.provenance
        folds[index] = found.provenance.get("fold")
        matches, verdict = match_image(truth.images[index], found, gates.iou), judge(candidates, gates)
        hits = matches.is_hit.copy()
        hits[hits] = matches.object_classes[matches.object_of[hits]] == found.classes[hits]
        counted = ~matches.left_out
        part = {"classes": found.classes, "scores": found.scores.astype(np.float64), "hits": hits}
        part |= {"sure": verdict.sure, "refused": verdict.refused}
        parts.append({"images": index, "groups": 0, **{name: values[counted] for name, values in part.items()}})
    if unknown:
        logger.warning(
            "%d labelled images have no record of whether the model was trained with them: if it was, the precision is "
            "lower than it seems",
            unknown,
        )
    if not parts:
        raise DataError(f"{next(iter(teacher.infos))}: has none of the images of {teacher.images.name}")
    pool = Pool.join(parts)
    objects = teacher.images.objects_per_image().sum(axis=0)
    return limits_by_precision(pool, objects, folds, gates, names)


class _Labels:
    """Collects the labels of images. seen: indices of the images so far. left_out: index -> reason.

    totals: (I, 3, K) int64, number of objects per image by decision and class.
    """

    def __init__(self, images: CocoDataset, categories: Sequence[Category]) -> None:
        self.images, self.categories = images, categories
        self.seen: set[int] = set()
        self.left_out: dict[int, Reason] = {}
        self.totals = np.zeros((len(images), len(DECISIONS), len(categories)), dtype=np.int64)
        self._rows: dict[int, list[dict[str, Any]]] = {}
        self._dropped: list[dict[str, Any]] = []
        self._sizes: dict[int, tuple[int, int]] = {}

    def add(self, index: int, candidates: Candidates, gates: Gates, limits: ScoreLimits, group: int) -> None:
        found = candidates.predictions
        scores = found.scores.astype(np.float64)
        decisions, doubts = judge(candidates, gates).decide(scores, *limits.of(group, found.classes))
        self.seen.add(index)
        np.add.at(self.totals[index], (decisions, found.classes), 1)
        if (problem := image_problem(decisions, scores, gates)) is not None:
            self.left_out[index] = Reason("too few sure objects", problem)
            return
        facts = {"why": doubts}
        if candidates.agreement is not None:
            facts["agreement"] = candidates.agreement.round(4).tolist()
        ids = [category.id for category in self.categories]
        self._rows[index], dropped = label_rows(found, decisions, ids, first_id=1, facts=facts)
        self._dropped += dropped
        self._sizes[index] = found.height, found.width

    def dataset(self, about: dict[str, Any], seen: TrainedImages | None) -> CocoDataset:
        """Return the labels as a data set. about, seen: for its info."""
        used = sorted(self._rows)
        first_id = 1
        for index in used:
            for row in self._rows[index]:
                row["id"] = first_id
                first_id += 1
        totals = self.totals[used].sum(axis=(0, 2)) if used else np.zeros(len(DECISIONS), dtype=np.int64)
        if seen is not None:  # so that no training with these labels is validated on images that the teachers have seen
            about[FIELD] = seen.to_plain()
        about["images"] = {"used": len(used), "left_out": len(self.left_out)}
        about["objects"] = dict(zip(DECISIONS, totals.tolist(), strict=True))
        records = [pseudo_image(self.images.images[index], *self._sizes[index]) for index in used]
        left_out = [
            {"file_name": self.images.images[index].file_name, "kind": reason.kind, "why": reason.text}
            for index, reason in sorted(self.left_out.items())
        ]
        class_of = {category.id: index for index, category in enumerate(self.categories)}
        return CocoDataset(
            images=records,
            categories=list(self.categories),
            table=AnnotationTable.from_rows((self._rows[index] for index in used), class_of),
            name=f"pseudo-labels of {self.images.name}",
            info={"description": "pseudo-labels", "pseudo_labels": about},
            further={"dropped": self._dropped, "left_out": left_out},
        )


def _counts(
    labels: _Labels, groups: _Groups, labelled: CocoDataset | None, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the objects per image of every group and class, next to those of the labelled images."""
    rows = []
    for group, group_name in enumerate(groups.names):
        used = [index for index in np.flatnonzero(groups.of_image == group) if index not in labels.left_out]
        means = labels.totals[used].mean(axis=0) if used else np.zeros(labels.totals.shape[1:])
        own = None if labelled is None else labelled.objects_per_image()[groups.labelled(labelled, group)]
        for index, name in enumerate(names):
            rows.append(
                {
                    "group": group_name,
                    "class": name,
                    "images": len(used),
                    **{decision: float(means[number, index]) for number, decision in enumerate(DECISIONS)},
                    "labelled_images": 0 if own is None else len(own),
                    "labelled": None if own is None or not len(own) else float(own[:, index].mean()),
                }
            )
    return rows
