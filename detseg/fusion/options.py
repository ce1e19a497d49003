"""Settings of the fusion of several predictions (of models, views, tiles, other programs) into one list per image.

Stored as YAML (configs/fusion/*.yaml). A setting that may differ between classes is one value for all, or a mapping
from class name to value, with the names listed under `classes`:

    method: wbf
    overlap: box_iou
    classes: [shsy5y, astro, cort]
    threshold: {shsy5y: 0.5, astro: 0.6, cort: 0.5}
    masks: mean
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import yaml
from typing_extensions import Self

from detseg.config.own_files import near_own, path_or_own
from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import ConfigError, DataError
from detseg.files.atomic import write_output
from detseg.files.plain_yaml import read_yaml

# Base of settings that are read from YAML. A subclass of `Settings` is a frozen dataclass whose fields are made by
# `setting`, with the rule for legal values; errors name the file and the key.

PerClass = float | int | bool | None | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Legal values of a setting: a test, its description, and the `choices` if they can be listed."""

    test: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: value in choices, f"one of: {', '.join(choices)}", choices)


def number(
    expected: str, at_least: float = 0, at_most: float = sys.float_info.max, *, above: float = -1, or_none: bool = False
) -> Rule:
    """A number within bounds, infinity only if `at_most` is infinite; None is legal with `or_none`."""

    def test(value: Any) -> bool:
        return (or_none and value is None) or (is_number(value) and at_least <= value <= at_most and value > above)

    return Rule(test, expected)


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float; not NaN, not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


SWITCH = Rule(lambda value: isinstance(value, bool), "true or false")
FRACTION = number("a number from 0 to 1", 0, 1)
POWER = number("a power of 0 or more")


def setting(default: Any, rule: Rule, *, per_class: bool = False) -> Any:
    """Declare a field. per_class: a mapping from class name to value, with all classes, is legal too."""
    return dataclasses.field(default=default, metadata={"rule": rule, "per_class": per_class})


class Settings:
    """Base of all settings. A subclass has the fields `classes` (names in order) and `source` (for errors)."""

    kind: ClassVar[str]
    classes: Sequence[str]
    source: str

    def __post_init__(self) -> None:
        names = self.classes
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.source}: classes: expected a list of names, not {names!r}")
        if len(set(names)) < len(names):
            raise DataError(f"{self.source}: classes: expected different names, not {names!r}")
        object.__setattr__(self, "classes", tuple(names))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            rule = item.metadata.get("rule")
            if rule is None:
                continue
            value = getattr(self, item.name)
            values = {item.name: value}
            if item.metadata["per_class"] and isinstance(value, Mapping):
                if set(value) != set(self.classes):
                    raise DataError(
                        f"{self.source}: {item.name} names the classes {', '.join(map(str, value)) or '(none)'}, "
                        "expected one value for each of: "
                        f"{', '.join(self.classes) or '(no classes are listed under `classes`)'}"
                    )
                values = {f"{item.name} of {name}": entry for name, entry in value.items()}
            for place, entry in values.items():
                if not rule.test(entry):
                    raise DataError(f"{self.source}: {place} is {entry!r}, expected {rule.expected}")

    @classmethod
    def choices(cls, key: str) -> tuple[str, ...]:
        """Return the legal values of a setting that has a list of them."""
        return cls.__dataclass_fields__[key].metadata["rule"].choices  # type: ignore[attr-defined]

    @classmethod
    def per_class_keys(cls) -> tuple[str, ...]:
        """Return the settings that may differ between classes."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("per_class"))  # type: ignore[arg-type]

    def values(self, key: str, classes: np.ndarray) -> np.ndarray:
        """Return a setting for every detection of classes (N,), as (N,) float64; None becomes infinity."""
        value = getattr(self, key)
        if not isinstance(value, Mapping):
            return np.full(len(classes), math.inf if value is None else value, dtype=np.float64)
        self._check_class(int(classes.max(initial=0)))
        table = [math.inf if value[name] is None else value[name] for name in self.classes]
        return np.array(table, dtype=np.float64)[classes]

    def of_class(self, index: int) -> Self:
        """Return settings in which every class has the values of class `index`."""
        values = {key: getattr(self, key) for key in self.per_class_keys()}
        differing = {key: value for key, value in values.items() if isinstance(value, Mapping)}
        if not differing:
            return self
        self._check_class(index)
        own = {key: value[self.classes[index]] for key, value in differing.items()}
        return dataclasses.replace(self, **own)  # type: ignore[type-var]

    def _check_class(self, index: int) -> None:
        if index >= len(self.classes):
            raise DataError(
                f"{self.source}: made for {len(self.classes)} classes ({', '.join(self.classes)}), but a prediction "
                f"has the class {index} (counted from 0); use the file of the model that made the predictions"
            )

    def for_classes(self, names: Sequence[str]) -> Self:
        """Return the settings for predictions with these class names, in their order; values are matched by name.

        Raises ConfigError if the settings are for other classes.
        """
        if not self.classes or list(self.classes) == list(names):
            return self
        if sorted(self.classes) != sorted(names):
            raise ConfigError(
                f"{self.source}: made for the classes {', '.join(self.classes)}, but the predictions have "
                f"{', '.join(names)}; use settings for these"
            )
        return dataclasses.replace(self, classes=tuple(names))  # type: ignore[type-var]

    @classmethod
    def from_dict(cls, settings: Any, source: str | None = None) -> Self:
        """Create from plain values. DataError names `source` and any unknown key or illegal value."""
        source = source or cls.kind
        if not isinstance(settings, Mapping):
            raise DataError(f"{source}: expected a mapping of settings, not {type(settings).__name__}")
        known = [field.name for field in dataclasses.fields(cls) if field.name != "source"]  # type: ignore[arg-type]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise DataError(f"{source}: unknown setting {unknown[0]!r}; there are: {', '.join(known)}")
        # `classes:` without a value, None in YAML, is meant as an empty list.
        values = {key: value for key, value in settings.items() if not (key == "classes" and value is None)}
        return cls(source=source, **values)  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML, as `from_dict` reads them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        del values["source"]
        return {
            key: dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a YAML file, or one that comes with detseg (`fusion/wbf.yaml`); an empty file gives the defaults.

        Raises DataError naming the file.
        """
        path = path_or_own(path)
        if not os.path.exists(path):
            raise DataError(f"{path}: there is no such file of {cls.kind}{near_own(path)}")
        settings = read_yaml(path)
        return cls.from_dict({} if settings is None else settings, source=str(path))

    def save(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write a YAML file atomically, headed by `comment` (lines without `#`)."""
        text = "".join(f"# {line}\n" for line in comment.splitlines())
        text += yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        write_output(path, text, f"the {self.kind}")


def parse_words(words: Sequence[str]) -> dict[str, Any]:
    """Parse settings from command-line arguments: KEY=VALUE, --KEY=VALUE or KEY VALUE; values are YAML.

    Raises ConfigError if a value is missing or not YAML. `Settings.from_dict` checks the keys.
    """
    settings = {}
    remaining = iter(words)
    for word in remaining:
        key, separator, value = word.removeprefix("--").partition("=")
        value = value if separator else next(remaining, None)
        try:
            settings[key] = parse_plain_yaml(value or "", "command line")
        except DataError:
            value = None
        if not value:
            raise ConfigError(f"command line: {key} has no valid value; write {key}=VALUE")
    return settings


SCORE_RULES = ("max", "mean", "avg", "box_and_model_avg", "absent_model_aware_avg")
_ABOVE_ZERO = number("a number greater than 0", above=0)
_MASK_THRESHOLD = number("a number greater than 0, up to 1", 0, 1, above=0)
_COUNT = Rule(lambda value: is_number(value) and value >= 1 and float(value).is_integer(), "a whole number from 1")


@dataclass(frozen=True)
class FusionOptions(Settings):
    """Settings of `fuse`; thresholds and `min_members` may be a mapping from class name to value.

    method: how detections of one object are combined. "nms": the best is kept (greedy non-maximum suppression).
        "soft_nms": all are kept, and the scores of those that overlap a better one decay (Bodla et al., ICCV 2017).
        "wbf": they become one, with the mean box (weighted boxes fusion, Solovyev et al., Image and Vision Computing
        2021).
    overlap: measure by which two detections are one object: "box_iou"; "mask_iou"; "intersection_over_smaller", of
        the masks if both have one, else of the boxes.
    threshold: two detections with a greater overlap are one object; that of the better one's class applies.
    across_classes: compare detections of different classes too.
    mask_quality: scores of detections with masks are first multiplied by the mean probability of the mask's pixels to
        this power (`soft_masks.rescore`); 0 changes nothing.
    min_score: detections with lower scores are removed after `mask_quality` and before all other steps.
    decay, sigma, min_decayed_score: of soft_nms. "linear": a score is multiplied by 1 - overlap where the overlap is
        greater than `threshold`. "gaussian": by exp(-overlap^2 / sigma), for any overlap. Detections that fall below
        `min_decayed_score` are dropped.
    scores: the score of a fused object, from its detections' scores times the weights of their members; names and
        formulas are those of the package ensemble-boxes. "max" (the default of nms) divides by the largest weight;
        "mean" is the weighted mean; "avg" (default of wbf) the mean, times min(detections, members) / sum of weights;
        "box_and_model_avg", "absent_model_aware_avg".
    one_per_member: of several detections of one object by one member, only the best counts in scores, boxes and masks.
        Otherwise a member that finds an object several times lowers the mean score of its own best detection.
    agreement: power; scores are multiplied by (weight of the members that found the object / sum of weights)^power. 0
        changes nothing.
    min_members: objects found by fewer members than this are dropped.
    masks: the mask of a fused object. "best": that of its best detection. "vote": pixels in masks of more than
        `mask_threshold` of its detections, by weight of the members; half is enough at 0.5. "mean": the mean of the
        soft masks, by weight x score, is at least `mask_threshold`; hard masks count where there are no soft ones. The
        quality of the fused object is that of its best detection too, or the mean with the weights of the masks.
    without_mask: what happens to an object that only members without masks have found, if others have masks:
        "drop", or "rectangle", its box as mask.
    cluster_class: the class of a fused object with `across_classes`: that of its "best" detection, or a "vote" (sum of
        weighted scores).
    image_class: for images with one kind of cell. "drop" the detections of all classes but one, or "relabel" them;
        the class is the one with the largest sum of scores, areas x scores, or numbers (`image_class_by`).
    weights: one per member, in the order of the members; empty for 1 each.
    backend: "detseg", or "ensemble_boxes": the box methods by that package, for members without masks.
    """

    kind: ClassVar[str] = "fusion options"

    method: str = setting("nms", one_of("nms", "soft_nms", "wbf"))
    overlap: str = setting("box_iou", one_of("box_iou", "mask_iou", "intersection_over_smaller"))
    threshold: PerClass = setting(0.5, FRACTION, per_class=True)
    across_classes: bool = setting(False, SWITCH)
    mask_quality: float = setting(0.0, POWER)
    min_score: PerClass = setting(0.0, FRACTION, per_class=True)
    decay: str = setting("gaussian", one_of("gaussian", "linear"))
    sigma: float = setting(0.5, _ABOVE_ZERO)
    min_decayed_score: float = setting(0.001, FRACTION)
    scores: str = setting("default", one_of("default", *SCORE_RULES))
    one_per_member: bool = setting(False, SWITCH)
    agreement: float = setting(0.0, POWER)
    min_members: PerClass = setting(1, _COUNT, per_class=True)
    masks: str = setting("best", one_of("best", "vote", "mean"))
    mask_threshold: PerClass = setting(0.5, _MASK_THRESHOLD, per_class=True)
    without_mask: str = setting("drop", one_of("drop", "rectangle"))
    cluster_class: str = setting("best", one_of("best", "vote"))
    image_class: str = setting("keep", one_of("keep", "drop", "relabel"))
    image_class_by: str = setting("score", one_of("score", "area", "count"))
    weights: Sequence[float] = ()
    backend: str = setting("detseg", one_of("detseg", "ensemble_boxes"))
    classes: Sequence[str] = ()
    source: str = field(default=kind, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", check_weights(self.weights, self.source))
        if self.method == "soft_nms":
            if self.masks != "best":
                raise DataError(
                    f"{self.source}: soft_nms keeps every detection with its own mask: masks must be best, not "
                    f"{self.masks}"
                )
            if self.scores != "default" or self.one_per_member or self.agreement or self.min_members != 1:
                raise DataError(
                    f"{self.source}: soft_nms has no groups of detections, so that scores, one_per_member, agreement "
                    "and min_members cannot be set; use nms or wbf"
                )
        if self.backend == "ensemble_boxes":
            if self.method == "soft_nms":
                raise DataError(
                    f"{self.source}: the package ensemble-boxes returns scores as they were before soft-NMS; use "
                    "backend: detseg"
                )
            own = {"overlap": "box_iou", "across_classes": False, "agreement": 0.0, "min_members": 1}
            own["one_per_member"] = False
            other = [key for key, value in own.items() if getattr(self, key) != value]
            if other or isinstance(self.threshold, Mapping):
                raise DataError(
                    f"{self.source}: the package ensemble-boxes has no {other[0] if other else 'threshold per class'}; "
                    "use backend: detseg"
                )

    def of_members(self, count: int) -> FusionOptions:
        """Return settings for `count` members, with `min_members` limited to it."""
        least = self.min_members
        if isinstance(least, Mapping):
            least = {name: min(number, count) for name, number in least.items()}
        else:
            least = min(least, count)
        return dataclasses.replace(self, min_members=least, weights=())

    @property
    def score_rule(self) -> str:
        """The rule for scores, one of `SCORE_RULES`, with the default of the method filled in."""
        if self.scores != "default":
            return self.scores
        return "avg" if self.method == "wbf" else "max"

    @property
    def needs_soft_masks(self) -> bool:
        """Whether mask probabilities of the members are used."""
        return self.masks == "mean" or self.mask_quality > 0


def check_weights(weights: Sequence[float], source: str) -> tuple[float, ...]:
    """Return the weights of members as floats. Raises DataError unless all are positive and finite."""
    try:
        values = tuple(weights)
    except TypeError:
        raise DataError(f"{source}: weights: expected one number per member, not {weights!r}") from None
    wrong = [value for value in values if not is_number(value) or not 0 < value < math.inf]
    if wrong:
        raise DataError(
            f"{source}: the weight of a member is {wrong[0]!r}, expected a number greater than 0; remove the member "
            "to ignore it"
        )
    return tuple(float(value) for value in values)
