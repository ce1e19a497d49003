"""The configuration file of pseudo-labels in rounds: which data, models and gates, how often, and what counts as help.

models:                       # name -> configuration of a training (path, or detseg's own by name)
  mask_rcnn: sartorius/mask_rcnn_R_50_FPN.yaml
settings: {DATASETS.TRAIN: [folds.json]}      # keys of every training
unlabelled: unlabelled.json   # a COCO file with images only
teacher: []                   # folders of trained folds, or runs; [] trains the models without pseudo-labels first
predict: [--tta, flips]       # words of `detseg predict`, for labelled and unlabelled images alike
views: [h, v]                 # of `predict --tta`, each predicted alone: how far they agree can be a gate
fusion: fusion/wbf.yaml       # for several models, or runs of the teacher
gates: {score: 0.7, ignore_score: 0.3}        # or a file; see `detseg pseudo_label label`
label: [--precision, 0.9]     # further words of `detseg pseudo_label label`
mixing: {DATASETS.PSEUDO_RATIO: [1, 1]}       # further keys of trainings with pseudo-labels
rounds: 2
metric: object_ap
least_gain: 0.0               # what the lower end of the gain's interval must be above
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detseg.config import Config, load_config
from detseg.config.own_files import near_own, path_or_own
from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import ConfigError, DataError, list_problems
from detseg.evaluation.intervals import NAMES
from detseg.files.reading import check_regular

# Keys that the rounds set themselves.
OWN_KEYS = ("OUTPUT_DIR", "DATASETS.PSEUDO", "DATASETS.FOLD")
# Folds are validated on their own images; with `settings`, by other annotations of them.
NO_TEST = {"DATASETS.TEST": []}


@dataclass(frozen=True)
class RoundsPlan:
    """The fields as in the file, see above; `source` is the file."""

    models: Mapping[str, str]
    unlabelled: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    teacher: tuple[str, ...] = ()
    predict: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    fusion: str = ""
    gates: str | Mapping[str, Any] = field(default_factory=dict)
    label: tuple[str, ...] = ()
    mixing: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    metric: str = "object_ap"
    least_gain: float = 0.0
    source: str = "the plan of the rounds"

    @classmethod
    def load(cls, named: str) -> RoundsPlan:
        """Read a file. Raises ConfigError with all that is wrong in it."""
        path = path_or_own(named)
        if not path.is_file():
            raise ConfigError(f"{named}: there is no such file; expected a plan of rounds{near_own(named)}")
        check_regular(path)
        try:
            content = parse_plain_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as YAML: {error}") from None
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Any, source: str = source) -> RoundsPlan:
        """Check plain values. Raises ConfigError with all problems."""
        known = {one.name: one for one in dataclasses.fields(cls) if one.name != "source"}
        if not isinstance(content, Mapping):
            raise ConfigError(f"{source}: expected settings by name: {', '.join(known)}")
        problems = [
            f"{name}: there is no such setting{_near(str(name), known)}" for name in content if name not in known
        ]
        values = {name: value for name, value in content.items() if name in known and value is not None}
        for name, (is_legal, expected) in _LEGAL.items():
            if name in values and not is_legal(values[name]):
                problems.append(f"{name} is {values[name]!r:.100}; expected {expected}")
            elif name not in values and name in ("models", "unlabelled"):
                problems.append(f"{name} is missing; expected {expected}")
        if problems:
            raise ConfigError(f"{source}: {len(problems)} problems:\n{list_problems(problems)}")
        for name in ("teacher", "predict", "views", "label"):
            values[name] = tuple(map(str, values.get(name, ())))
        plan = cls(**{**values, "source": source})
        plan._check_together()
        return plan

    def _check_together(self) -> None:
        problems = [
            f"{where} has {key}, which the rounds set themselves: leave it out"
            for where in ("settings", "mixing")
            for key in getattr(self, where)
            if key in OWN_KEYS
        ]
        if max(len(self.models), len(self.teacher)) > 1 and not self.fusion:
            problems.append("fusion is missing: several models, or runs of the teacher, are fused by its file")
        if {"--raw", "--folds", "--run", "--images", "--output"} & set(self.predict):
            problems.append("predict has words that the rounds give themselves: --raw, --run, --images, --output")
        if problems:
            raise ConfigError(f"{self.source}: {len(problems)} problems:\n{list_problems(problems)}")

    def words(self, *more: Mapping[str, Any]) -> list[str]:
        """Return `settings` and further keys as words of the command line."""
        merged = {key: value for one in (NO_TEST, self.settings, *more) for key, value in one.items()}
        return [
            word for key, value in merged.items() for word in (key, value if isinstance(value, str) else str(value))
        ]

    def config(self, name: str, *more: Mapping[str, Any]) -> Config:
        """Return the configuration of a model. Raises ConfigError where it cannot be read."""
        return load_config(self.models[name], self.words(*more))

    @property
    def model_names(self) -> list[str]:
        return list(self.models)

    def to_plain(self) -> dict[str, Any]:
        """Return what decides the result, for the record of the folder."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in ("source", "rounds")}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value)


def _is_keys(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _is_models(value: Any) -> bool:
    named = isinstance(value, Mapping) and bool(value) and all(map(_is_text, value.values()))
    return named and all(isinstance(name, str) and name.replace("_", "").replace("-", "").isalnum() for name in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_LEGAL = {
    "models": (_is_models, "one or more configurations by name: `models: {mask_rcnn: FILE.yaml}`"),
    "unlabelled": (_is_text, "a COCO file of images without labels"),
    "settings": (_is_keys, "configuration keys with their values"),
    "teacher": (_is_words, "a list of folders of `train_net --fold all`, or of runs"),
    "predict": (_is_words, "a list of words of `detseg predict`"),
    "views": (_is_words, "a list of views of `detseg predict --tta`, such as h"),
    "fusion": (_is_text, "a file of fusion options, such as fusion/wbf.yaml"),
    "gates": (lambda value: _is_text(value) or _is_keys(value), "gates, or their file"),
    "label": (_is_words, "a list of words of `detseg pseudo_label label`"),
    "mixing": (_is_keys, "configuration keys with their values"),
    "rounds": (lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0, "1 or more"),
    "metric": (lambda value: value in NAMES, f"one of {', '.join(NAMES)}"),
    "least_gain": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0"),
}


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
