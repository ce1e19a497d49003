"""The plan of rounds of pseudo-labels: data, models, gates, number of rounds, and the criterion of acceptance.

models:                       # name -> configuration of a training (path, or name of one in detseg)
  mask_rcnn: sartorius/mask_rcnn_R_50_FPN.yaml
settings: {DATASETS.TRAIN: [folds.json]}      # keys of every training
unlabelled: unlabelled.json   # a COCO file with images only
teacher: []                   # folders of trained folds, or runs; [] first trains the models without pseudo-labels
predict: [--tta, flips]       # arguments of `detseg predict`, for labelled and unlabelled images alike
views: [h, v]                 # of `predict --tta`, each predicted alone, for the agreement gate
fusion: fusion/wbf.yaml       # for several models, or runs of the teacher
gates: {score: 0.7, ignore_score: 0.3}        # or a file; see `detseg pseudo_label label`
label: [--precision, 0.9]     # further arguments of `detseg pseudo_label label`
mixing: {DATASETS.PSEUDO_RATIO: [1, 1]}       # further keys of trainings with pseudo-labels
rounds: 2
metric: object_ap
least_gain: 0.0               # bound on the lower end of the gain's interval
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from detseg.config import Config, load_config
from detseg.config.command_line import as_words
from detseg.evaluation.intervals import NAMES
from detseg.files.plain_yaml import load_plan, parse_plan

# Keys that the rounds set themselves.
OWN_KEYS = ("OUTPUT_DIR", "DATASETS.PSEUDO", "DATASETS.FOLD")
# Arguments of `detseg predict` that the rounds set themselves.
OWN_WORDS = ("--raw", "--folds", "--run", "--images", "--output")
# Folds are validated on their own images; `settings` can set other annotations of them.
NO_TEST = {"DATASETS.TEST": []}
_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class RoundsPlan:
    """The fields of the file, see above; `source` is the file."""

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
        """Read a file. Raises DetsegError with all problems."""
        return load_plan(cls, named, "a plan of rounds", {"source": named})

    @classmethod
    def from_dict(cls, content: Any, source: str = source) -> RoundsPlan:
        """Parse plain values. Raises ConfigError with all problems."""
        return parse_plan(cls, content, source, {"source": source})

    def problems(self) -> list[str]:
        """Return all invalid values and inconsistencies."""
        found = []
        if not self.models or not all(map(_NAME.fullmatch, self.models)):
            names = "by names of letters, digits, _ -: `models: {mask_rcnn: FILE.yaml}`"
            found.append(f"models is {dict(self.models)}; expected one or more configurations {names}")
        if self.rounds < 1:
            found.append(f"rounds is {self.rounds}; expected 1 or more")
        if self.metric not in NAMES:
            found.append(f"metric is {self.metric!r}; expected one of {', '.join(NAMES)}")
        if self.least_gain >= 1:
            found.append(f"least_gain is {self.least_gain}; expected less than 1")
        found += [
            f"{where} has {key}, which the rounds set themselves: remove it"
            for where in ("settings", "mixing")
            for key in getattr(self, where)
            if key in OWN_KEYS
        ]
        if max(len(self.models), len(self.teacher)) > 1 and not self.fusion:
            found.append("fusion is missing, the settings file for several models or runs of the teacher")
        if own := [word for word in self.predict if word in OWN_WORDS]:
            found.append(f"predict has arguments that the rounds set themselves: {', '.join(own)}")
        return found

    def words(self, *more: Mapping[str, Any]) -> list[str]:
        """Return `settings` and further keys as command-line arguments."""
        return as_words({key: value for one in (NO_TEST, self.settings, *more) for key, value in one.items()})

    def config(self, name: str, *more: Mapping[str, Any]) -> Config:
        """Return the configuration of a model. Raises ConfigError if it is invalid."""
        return load_config(self.models[name], self.words(*more))

    @property
    def model_names(self) -> list[str]:
        return list(self.models)

    def to_plain(self) -> dict[str, Any]:
        """Return what determines the result, for the record in the folder."""
        content = dataclasses.asdict(self)
        return {name: value for name, value in content.items() if name not in ("source", "rounds")}
