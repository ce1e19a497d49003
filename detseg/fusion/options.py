"""How the predictions of several members (models, flips, tiles, other programs) become one list an image.

Stored as YAML (configs/fusion/*.yaml). A setting that may differ between classes is one value, or one value a class by
name, with the names listed under `classes`:

    method: wbf
    overlap: box_iou
    classes: [shsy5y, astro, cort]
    threshold: {shsy5y: 0.5, astro: 0.6, cort: 0.5}
    masks: mean
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from detseg.errors import ConfigError, DataError
from detseg.files.atomic import written_whole

# What the settings files of this folder share: one value or one a class, YAML, messages that name file and key.

PerClass = float | int | bool | None | Mapping[str, Any]
Settings = TypeVar("Settings")


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, NaN and booleans excluded."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def checked_names(names: Any, source: str) -> tuple[str, ...]:
    """Return class names as a tuple. Raises DataError, naming `source`, where they are not different texts."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: classes: expected a list of names, not {names!r}")
    if len(set(names)) < len(names):
        raise DataError(f"{source}: classes: expected different names, not {names!r}")
    return tuple(names)


def per_class_values(setting: PerClass, classes: np.ndarray, names: Sequence[str], source: str) -> np.ndarray:
    """Return a setting for every detection of classes (N,) int64, as (N,) float64; None becomes infinity."""
    if not isinstance(setting, Mapping):
        return np.full(len(classes), math.inf if setting is None else setting, dtype=np.float64)
    if len(classes) and classes.max() >= len(names):
        raise DataError(
            f"{source}: made for {len(names)} classes ({', '.join(names)}), but a prediction has the class "
            f"{classes.max()} (counted from 0); use the file of the model that made the predictions"
        )
    table = np.array([math.inf if setting[name] is None else setting[name] for name in names], dtype=np.float64)
    return table[classes]


def from_mapping(kind: type[Settings], settings: Any, source: str) -> Settings:
    """Make a frozen dataclass of settings with a field `source` from plain values.

    Raises DataError naming `source` and the key for anything unknown; the dataclass checks the values.
    """
    if not isinstance(settings, Mapping):
        raise DataError(f"{source}: expected a mapping of settings, not {type(settings).__name__}")
    known = [item.name for item in fields(kind) if item.name != "source"]
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise DataError(f"{source}: unknown setting {unknown[0]!r}; there are: {', '.join(known)}")
    # `classes:` with nothing behind it is an empty list to whoever writes YAML.
    values = {key: value for key, value in settings.items() if not (key == "classes" and value is None)}
    return kind(source=source, **values)


def to_mapping(settings: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Return plain values of the settings named by `keys`, as YAML can hold them."""
    result = {}
    for key in keys:
        value = getattr(settings, key)
        if isinstance(value, Mapping):
            value = dict(value)
        result[key] = list(value) if isinstance(value, tuple) else value
    return result


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Read settings from words of the command line: KEY=VALUE, --KEY=VALUE or KEY VALUE; values are YAML.

    Raises ConfigError where a value is missing or no YAML; what keys there are is checked by whoever uses them.
    """
    settings = {}
    remaining = iter(words)
    for word in remaining:
        key, separator, value = word.removeprefix("--").partition("=")
        value = value if separator else next(remaining, None)
        try:
            settings[key] = yaml.safe_load(value or "")
        except yaml.YAMLError:
            value = None
        if not value:
            raise ConfigError(f"command line: {key} has no value that can be read; write {key}=VALUE")
    return settings


def read_settings(path: str | os.PathLike[str], what: str) -> Any:
    """Read YAML that holds settings; an empty file holds none. Raises DataError naming the file and `what` it is."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as {what}: {error}") from None
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    return {} if settings is None else settings


def write_settings(path: str | os.PathLike[str], settings: Mapping[str, Any], what: str) -> None:
    """Write settings as YAML, under a temporary name first."""
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    with written_whole(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8")


METHODS = ("nms", "soft_nms", "wbf")
OVERLAPS = ("box_iou", "mask_iou", "intersection_over_smaller")
SCORES = ("max", "mean", "avg", "box_and_model_avg", "absent_model_aware_avg")
CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "overlap": OVERLAPS,
    "decay": ("gaussian", "linear"),
    "scores": ("default", *SCORES),
    "masks": ("best", "vote", "mean"),
    "cluster_class": ("best", "vote"),
    "without_mask": ("drop", "rectangle"),
    "image_class": ("keep", "drop", "relabel"),
    "image_class_by": ("score", "area", "count"),
    "backend": ("detseg", "ensemble_boxes"),
}
# Settings that may differ from class to class.
PER_CLASS = ("min_score", "threshold", "min_members", "mask_threshold")


@dataclass(frozen=True)
class FusionOptions:
    """Settings of `fuse`; those of `PER_CLASS` are one value, or a mapping class name -> value (all classes named).

    method: what is done with detections of one object. "nms": the best stays (greedy non-maximum suppression).
        "soft_nms": all stay, and the scores of those that overlap a better one decay (Bodla et al., ICCV 2017). "wbf":
        they become one, with the mean box (weighted boxes fusion, Solovyev et al., Image and Vision Computing 2021).
    overlap: what decides that two detections are one object: "box_iou"; "mask_iou"; "intersection_over_smaller", of
        the masks where both have one, else of the boxes.
    threshold: an overlap greater than this is one object (of a pair, that of the better one's class counts).
    across_classes: compare detections of different classes too.
    mask_quality: scores of detections with masks are first multiplied by the mean probability of the mask's pixels to
        this power (`soft_masks.rescore`); 0 changes nothing.
    min_score: detections of a lower score are left out before anything else but that.
    decay, sigma, min_decayed_score: of soft_nms. "linear": a score is multiplied by 1 - overlap where the overlap is
        greater than `threshold`. "gaussian": by exp(-overlap^2 / sigma), whatever the overlap. What falls below
        `min_decayed_score` is dropped.
    scores: of a fused object, from the scores of its detections times the weights of their members; names and formulas
        are those of the package ensemble-boxes. "max" (the default of nms) divides by the largest weight; "mean" is the
        weighted mean; "avg" (the default of wbf) the mean, times min(detections, members) / sum of weights;
        "box_and_model_avg", "absent_model_aware_avg".
    one_per_member: of several detections of one object by one member, only the best counts in scores, boxes and masks.
        A member that sees an object several times otherwise lowers the mean score of its own best detection.
    agreement: power; scores are multiplied by (weight of the members that found the object / sum of weights)^power. 0
        changes nothing.
    min_members: objects found by fewer members than this are dropped.
    masks: of a fused object. "best": of its best detection. "vote": the pixels in masks of more than `mask_threshold`
        of its detections, by weight of the members; half is enough at 0.5. "mean": the mean of the soft masks, by
        weight x score, is at least `mask_threshold`; hard masks count where there are no soft ones.
    without_mask: what becomes of an object that only members without masks have found, where others have masks:
        "drop", or "rectangle", its box as mask.
    cluster_class: of a fused object when classes are compared across: of its "best" detection, or by "vote" (sum of
        weighted scores).
    image_class: where images hold one kind of cell. "drop" the detections of all classes but one, or "relabel" them;
        the class is that with the largest sum of scores, areas or numbers (`image_class_by`).
    weights: one a member, in the order of the members; empty for 1 each.
    backend: "detseg", or "ensemble_boxes": the box methods by that package, for members that are boxes alone.
    """

    method: str = "nms"
    overlap: str = "box_iou"
    threshold: PerClass = 0.5
    across_classes: bool = False
    mask_quality: float = 0.0
    min_score: PerClass = 0.0
    decay: str = "gaussian"
    sigma: float = 0.5
    min_decayed_score: float = 0.001
    scores: str = "default"
    one_per_member: bool = False
    agreement: float = 0.0
    min_members: PerClass = 1
    masks: str = "best"
    mask_threshold: PerClass = 0.5
    without_mask: str = "drop"
    cluster_class: str = "best"
    image_class: str = "keep"
    image_class_by: str = "score"
    weights: Sequence[float] = ()
    backend: str = "detseg"
    classes: Sequence[str] = ()
    source: str = field(default="fusion options", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", checked_names(self.classes, self.source))
        for key, choices in CHOICES.items():
            value = getattr(self, key)
            if value not in choices:
                raise DataError(f"{self.source}: {key} is {value!r}, expected one of: {', '.join(choices)}")
        for key in ("across_classes", "one_per_member"):
            if not isinstance(getattr(self, key), bool):
                raise DataError(f"{self.source}: {key} is {getattr(self, key)!r}, expected true or false")
        self._check_numbers()
        self._check_weights()
        self._check_together()

    def _check_numbers(self) -> None:
        fraction, positive = "a number from 0 to 1", "a number greater than 0"
        checks = {
            "threshold": (lambda value: 0 <= value <= 1, fraction),
            "min_score": (lambda value: 0 <= value <= 1, fraction),
            "mask_threshold": (lambda value: 0 < value <= 1, "a number greater than 0, up to 1"),
            "min_decayed_score": (lambda value: 0 <= value <= 1, fraction),
            "sigma": (lambda value: 0 < value < math.inf, positive),
            "agreement": (lambda value: 0 <= value < math.inf, "a power of 0 or more"),
            "mask_quality": (lambda value: 0 <= value < math.inf, "a power of 0 or more"),
            "min_members": (lambda value: value >= 1 and value == int(value), "a whole number from 1"),
        }
        for key, (is_valid, expected) in checks.items():
            value = getattr(self, key)
            entries = {key: value}
            if isinstance(value, Mapping) and key in PER_CLASS:
                if set(value) != set(self.classes):
                    raise DataError(
                        f"{self.source}: {key} names the classes {', '.join(map(str, value)) or '(none)'}, expected "
                        f"one value for each of: {', '.join(self.classes) or '(no classes are listed under `classes`)'}"
                    )
                entries = {f"{key} of {name}": entry for name, entry in value.items()}
            for place, entry in entries.items():
                if not is_number(entry) or math.isinf(entry) or not is_valid(entry):
                    raise DataError(f"{self.source}: {place} is {entry!r}, expected {expected}")

    def _check_weights(self) -> None:
        object.__setattr__(self, "weights", check_weights(self.weights, self.source))

    def _check_together(self) -> None:
        if self.method == "soft_nms" and self.masks != "best":
            raise DataError(
                f"{self.source}: soft_nms keeps every detection with its own mask: masks must be best, not {self.masks}"
            )
        of_groups = self.scores != "default" or self.one_per_member or self.agreement or self.min_members != 1
        if self.method == "soft_nms" and of_groups:
            raise DataError(
                f"{self.source}: soft_nms has no groups of detections, so that scores, one_per_member, agreement and "
                "min_members cannot be set; use nms or wbf"
            )
        if self.backend == "ensemble_boxes" and self.method == "soft_nms":
            raise DataError(
                f"{self.source}: the package ensemble-boxes returns scores as they were before soft-NMS; use backend: "
                "detseg"
            )
        if self.backend == "ensemble_boxes":
            own = {"overlap": "box_iou", "across_classes": False, "agreement": 0.0, "min_members": 1}
            own["one_per_member"] = False
            other = [key for key, value in own.items() if getattr(self, key) != value]
            if other or isinstance(self.threshold, Mapping):
                raise DataError(
                    f"{self.source}: the package ensemble-boxes has no {other[0] if other else 'threshold per class'}; "
                    "use backend: detseg"
                )

    @property
    def score_rule(self) -> str:
        """How scores are put together, one of `SCORES`."""
        if self.scores != "default":
            return self.scores
        return "avg" if self.method == "wbf" else "max"

    @property
    def needs_soft_masks(self) -> bool:
        """Whether members should have mask probabilities."""
        return self.masks == "mean" or self.mask_quality > 0

    def values(self, key: str, classes: np.ndarray) -> np.ndarray:
        """Return a setting for every detection of classes (N,) int64, as (N,) float64."""
        return per_class_values(getattr(self, key), classes, self.classes, self.source)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], source: str = "fusion options") -> FusionOptions:
        """Make from plain values. Raises DataError naming `source` and the key for anything unknown or ill-typed."""
        return from_mapping(cls, settings, source)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` reads."""
        return to_mapping(self, [item.name for item in fields(self) if item.name != "source"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FusionOptions:
        """Read YAML. Raises DataError naming the file."""
        return cls.from_dict(read_settings(path, "fusion options"), source=str(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write YAML, under a temporary name first."""
        write_settings(path, self.to_dict(), "the fusion options")


def check_weights(weights: Sequence[float], source: str) -> tuple[float, ...]:
    """Return the weights of members as floats. Raises DataError for what is not positive and finite."""
    try:
        values = tuple(weights)
    except TypeError:
        raise DataError(f"{source}: weights: expected one number a member, not {weights!r}") from None
    wrong = [value for value in values if not is_number(value) or not 0 < value < math.inf]
    if wrong:
        raise DataError(
            f"{source}: the weight of a member is {wrong[0]!r}, expected a number greater than 0; leave a member out "
            "instead of giving it no weight"
        )
    return tuple(float(value) for value in values)
