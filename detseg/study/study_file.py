"""The file of a study: data, models and rows of the table. Its stages (`stages.py`) follow from it.

prepare:                      # name -> a command that makes data in its own folder
  cells: [make_synthetic, --train, 24]
labelled: <prepare/cells>/train.json       # a COCO file; <STAGE> is the output folder of a stage
unlabelled: <prepare/cells>/val.json       # for pseudo-labels
test: <prepare/cells>/test.json            # images of the submission: a COCO file or a folder
split: [--folds, 5]           # arguments of `detseg split`
repair: [--rules, holes=all]  # arguments of `detseg repair`: the training masks of models with `masks: repaired`
settings: {SEED: 1}           # configuration keys of every training
views:                        # name -> arguments of `detseg predict`
  flips: [--tta, flips]
models:                       # name -> a training of all folds
  plain: {config: quickstart/mask_rcnn.yaml, settings: {SOLVER.MAX_ITER: 400}, masks: repaired}
  tuned_further: {config: quickstart/mask_rcnn.yaml, weights: plain}      # starts from the weights of another
  pretrained: {config: livecell/mask_rcnn_R_50_FPN.yaml, folds: False}    # on the data of its own configuration
  taught: {config: quickstart/mask_rcnn.yaml, pseudo: {teachers: [plain], gates: {score: 0.7}}}
rows:                         # name -> a row of the table
  baseline: {models: [plain], tune: [--only, score_threshold, --shared]}
  flips: {models: [plain], view: flips, base: baseline, submit: sartorius}
  two: {models: [plain, taught], fusion: fusion/nms.yaml, base: baseline}
  illusion: {models: [taught], leaked_fold: 0, base: baseline}          # also scored on its teacher's labels
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detseg.files.plain_yaml import load_plan, near_name, parse_plan

MASKS = ("original", "repaired")
# One score threshold for all classes, the minimal tuning of every row.
ONE_THRESHOLD = ("--only", "score_threshold", "--shared")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Teaching:
    """Pseudo-labels of the unlabelled images, made for every fold by models that have not seen that fold."""

    teachers: tuple[str, ...]
    view: str = ""
    fusion: str = ""
    gates: Mapping[str, Any] = field(default_factory=dict)
    label: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A training. weights: the model whose weights it starts from. seconds: per iteration, measured elsewhere, for
    estimates before a training has run here."""

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    masks: str = "original"
    weights: str = ""
    folds: bool = True
    pseudo: Teaching | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """A row of the table. base: the row that it is compared with. tune: arguments of `detseg tune_thresholds`.

    submit: format of the submission, "" for none. original: scores of the original work that is reproduced, by column.
    leaked_fold: the pseudo-labels with which its single model was trained in this fold are part of its ground truth, in
    addition to the labelled images. Such a row is marked as an illusion; it is no base of others and is not submitted.
    -1 for none.
    """

    models: tuple[str, ...]
    title: str = ""
    view: str = ""
    fusion: str = ""
    tune: tuple[str, ...] = ONE_THRESHOLD
    base: str = ""
    submit: str = ""
    leaked_fold: int = -1
    original: Mapping[str, float] = field(default_factory=dict)

    @property
    def leaked(self) -> bool:
        return self.leaked_fold >= 0


@dataclass(frozen=True)
class Study:
    """The fields of the file, see above; `name` is the file name without its suffix."""

    name: str
    labelled: str
    models: Mapping[str, Model]
    rows: Mapping[str, Row]
    prepare: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unlabelled: str = ""
    test: str = ""
    split: tuple[str, ...] = ("--folds", "5")
    repair: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cost_per_hour: float = 0.0
    currency: str = ""

    @property
    def folds(self) -> int:
        """The number of folds that `split` makes."""
        given = dict(zip(self.split, self.split[1:], strict=False)).get("--folds", "5")
        return int(given) if given.isdecimal() else 0

    @classmethod
    def load(cls, named: str) -> Study:
        """Read a file. Raises DetsegError with all problems."""
        return load_plan(cls, named, "a study", {"name": Path(named).stem})

    @classmethod
    def from_dict(cls, content: Any, name: str, source: str = "the study") -> Study:
        """Parse plain values. Raises ConfigError with all problems."""
        return parse_plan(cls, content, source, {"name": name})

    def problems(self) -> list[str]:
        """Return all inconsistencies."""
        names = {"models": self.models, "rows": self.rows, "views": self.views, "prepare": self.prepare}
        found = [
            f"{part}.{name}: expected a name of letters, digits and _ - ."
            for part, known in names.items()
            for name in known
            if not NAME.fullmatch(name)
        ]
        found += [f"{part}: expected one or more {part} by name" for part in ("models", "rows") if not names[part]]
        if self.folds < 2:
            found.append(f"split is {list(self.split)}; expected --folds and 2 or more")
        before: list[str] = []
        for name, model in self.models.items():
            found += self._problems_of_model(f"models.{name}", model, before)
            before.append(name)
        before = []
        for name, row in self.rows.items():
            found += self._problems_of_row(f"rows.{name}", row, before)
            before.append(name)
        return found

    def _problems_of_row(self, where: str, row: Row, before: Sequence[str]) -> list[str]:
        found = self._problems_of_members(where, "models", row.models, self.models, row.fusion)
        found += _unknown(f"{where}.view", [row.view], self.views)
        found += _unknown(f"{where}.base", [row.base], before)
        if row.base in before and self.rows[row.base].leaked:
            found.append(f"{where}.base: {row.base} is leaked, an illusion that nothing may be compared with")
        if row.leaked_fold not in range(-1, self.folds):
            found.append(
                f"{where}.leaked_fold is {row.leaked_fold}; expected a fold, 0 to {self.folds - 1}, or -1 for none"
            )
        if row.submit and not self.test:
            found.append(f"{where}: submit needs `test`, the images of the submission")
        if row.leaked and row.submit:
            found.append(f"{where}: a leaked row is an illusion; submit its model by another row")
        if row.leaked and [self.models[one].pseudo is not None for one in row.models if one in self.models] != [True]:
            found.append(
                f"{where}: leaked_fold is for one model with `pseudo`, whose labels become a part of the truth"
            )
        return found

    def _problems_of_model(self, where: str, model: Model, before: Sequence[str]) -> list[str]:
        found = [] if model.masks in MASKS else [f"{where}.masks is {model.masks!r}; expected {' or '.join(MASKS)}"]
        if model.masks == "repaired" and not self.repair:
            found.append(f"{where}: masks: repaired needs `repair`, the arguments of the repair")
        found += _unknown(f"{where}.weights", [model.weights], before)
        if model.weights in self.models and self.models[model.weights].folds and not model.folds:
            found.append(
                f"{where}: a training without folds cannot start from the weights of {model.weights}, which has folds"
            )
        if model.pseudo is not None:
            where, teaching = f"{where}.pseudo", model.pseudo
            found += self._problems_of_members(where, "teachers", teaching.teachers, before, teaching.fusion)
            found += _unknown(f"{where}.view", [teaching.view], self.views)
            if not self.unlabelled:
                found.append(f"{where}: `unlabelled` is missing, the images for pseudo-labels")
        return found

    def _problems_of_members(
        self, where: str, part: str, members: Sequence[str], known: Mapping[str, Model] | Sequence[str], fusion: str
    ) -> list[str]:
        """Return what is wrong with models that predict out of fold, and are fused if there are several."""
        found = _unknown(f"{where}.{part}", members, known)
        found += [
            f"{where}: {one} is not trained in folds"
            for one in members
            if one in self.models and not self.models[one].folds
        ]
        if not members:
            found.append(f"{where}.{part}: expected one or more models")
        if len(members) > 1 and not fusion:
            found.append(f"{where}: fusion is missing, the settings file for several {part}")
        return found


def _unknown(where: str, names: Iterable[str], known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return the unknown names. known: a mapping, or a list of names earlier in the file. Empty names are skipped."""
    where = where if isinstance(known, Mapping) else f"{where}, before it"
    return [f"{where}: unknown {name}{near_name(name, known)}" for name in names if name and name not in known]
