"""The file of a study: which data, models and rows of the table. Stages (`stages.py`) follow from it.

prepare:                      # name -> a command that makes data in a folder of its own
  cells: [make_synthetic, --train, 24]
labelled: <prepare/cells>/train.json       # a COCO file; <STAGE> is the folder of what a stage has made
unlabelled: <prepare/cells>/val.json       # for pseudo-labels
test: <prepare/cells>/test.json            # what is submitted: a COCO file or a folder of images
split: [--folds, 5]           # words of `detseg split`
repair: [--rules, holes=all]  # words of `detseg repair`: the masks that models with `masks: repaired` learn
settings: {SEED: 1}           # keys of every training
views:                        # name -> words of `detseg predict`
  flips: [--tta, flips]
models:                       # name -> a training of all folds
  plain: {config: quickstart/mask_rcnn.yaml, settings: {SOLVER.MAX_ITER: 400}, masks: repaired}
  tuned_further: {config: quickstart/mask_rcnn.yaml, weights: plain}      # begins with the weights of another
  pretrained: {config: livecell/mask_rcnn_R_50_FPN.yaml, folds: False}    # on the data of its own configuration
  taught: {config: quickstart/mask_rcnn.yaml, pseudo: {teachers: [plain], gates: {score: 0.7}}}
rows:                         # name -> a row of the table
  baseline: {models: [plain], tune: [--only, score_threshold, --shared]}
  flips: {models: [plain], view: flips, base: baseline, submit: sartorius}
  two: {models: [plain, taught], fusion: fusion/nms.yaml, base: baseline}
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from detseg.config.own_files import near_own, path_or_own
from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import ConfigError, DataError, list_problems
from detseg.files.reading import check_regular

MASKS = ("original", "repaired")
# One threshold of the score for all classes, which every row has at least.
ONE_THRESHOLD = ("--only", "score_threshold", "--shared")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Teaching:
    """Pseudo-labels of the unlabelled images, made for every fold by models that have not seen it."""

    teachers: tuple[str, ...]
    view: str = ""
    fusion: str = ""
    gates: Mapping[str, Any] = field(default_factory=dict)
    label: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A training. weights: the model whose weights it begins with. seconds: an iteration's, measured elsewhere, for
    estimates before one has run here."""

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    masks: str = "original"
    weights: str = ""
    folds: bool = True
    pseudo: Teaching | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """What is compared. base: the row that it is compared with. tune: words of `detseg tune_thresholds`.

    submit: the format of the submission, "" for none. original: figures of the work that is repeated, by column.
    """

    models: tuple[str, ...]
    title: str = ""
    view: str = ""
    fusion: str = ""
    tune: tuple[str, ...] = ONE_THRESHOLD
    base: str = ""
    submit: str = ""
    original: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """The fields as in the file, see above; `name` is that of the file, without its ending."""

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
        """How many folds `split` makes."""
        given = dict(zip(self.split, self.split[1:], strict=False)).get("--folds", "5")
        return int(given) if given.isdecimal() else 0

    @classmethod
    def load(cls, named: str) -> Study:
        """Read a file. Raises ConfigError with all that is wrong in it."""
        path = path_or_own(named)
        if not path.is_file():
            raise ConfigError(f"{named}: there is no such file; expected a study{near_own(named)}")
        check_regular(path)
        try:
            content = parse_plain_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as YAML: {error}") from None
        return cls.from_dict(content, Path(path).stem, str(path))

    @classmethod
    def from_dict(cls, content: Any, name: str, source: str = "the study") -> Study:
        """Check plain values. Raises ConfigError with all problems."""
        problems: list[str] = []
        study = _read(cls, content, "", problems, name=name)
        if study is not None and not problems:
            problems = study._problems()
        if problems or study is None:
            raise ConfigError(f"{source}: {len(problems)} problems:\n{list_problems(problems)}")
        return study

    def _problems(self) -> list[str]:
        """What does not fit together."""
        names = [("models", self.models), ("rows", self.rows), ("views", self.views), ("prepare", self.prepare)]
        found = [
            f"{part}.{name}: expected a name of letters, digits, _ - ."
            for part, known in names
            for name in known
            if not NAME.fullmatch(name)
        ]
        if self.folds < 2:
            found.append(f"split is {list(self.split)}; expected --folds and 2 or more")
        before: list[str] = []
        for name, model in self.models.items():
            found += self._problems_of_model(f"models.{name}", model, before)
            before.append(name)
        before = []
        for name, row in self.rows.items():
            where = f"rows.{name}"
            found += _unknown(f"{where}.models", row.models, self.models)
            found += [f"{where}: {one} is not trained in folds" for one in row.models if not self._is_folded(one)]
            found += _unknown(f"{where}.view", [row.view] if row.view else [], self.views)
            found += _unknown(f"{where}.base", [row.base] if row.base else [], before)
            if len(row.models) > 1 and not row.fusion:
                found.append(f"{where}: fusion is missing, the file by which several models are fused")
            if row.submit and not self.test:
                found.append(f"{where}: submit needs `test`, the images to predict")
            before.append(name)
        return found

    def _problems_of_model(self, where: str, model: Model, before: Sequence[str]) -> list[str]:
        found = [] if model.masks in MASKS else [f"{where}.masks is {model.masks!r}; expected {' or '.join(MASKS)}"]
        if model.masks == "repaired" and not self.repair:
            found.append(f"{where}: masks are to be repaired, and `repair` does not say how")
        found += _unknown(f"{where}.weights", [model.weights] if model.weights else [], before)
        if model.weights and self._is_folded(model.weights) and not model.folds:
            found.append(f"{where}: without folds it cannot begin with the weights of the folds of {model.weights}")
        teaching = model.pseudo
        if teaching is not None:
            found += _unknown(f"{where}.pseudo.teachers", teaching.teachers, before)
            found += _unknown(f"{where}.pseudo.view", [teaching.view] if teaching.view else [], self.views)
            if not self.unlabelled:
                found.append(f"{where}.pseudo: `unlabelled` is missing, the images that get labels")
            if len(teaching.teachers) > 1 and not teaching.fusion:
                found.append(f"{where}.pseudo: fusion is missing, the file by which several teachers are fused")
            found += [
                f"{where}.pseudo: {one} is not trained in folds"
                for one in teaching.teachers
                if not self._is_folded(one)
            ]
        return found

    def _is_folded(self, name: str) -> bool:
        return name not in self.models or self.models[name].folds


_Read = TypeVar("_Read")


def _read(kind: type[_Read], content: Any, where: str, problems: list[str], **given: Any) -> _Read | None:
    """Return an object of the plain values of its fields; what is wrong is added to `problems`."""
    fields = {one.name: one for one in dataclasses.fields(kind) if one.name not in given}  # type: ignore[arg-type]
    if not isinstance(content, Mapping):
        problems.append(f"{where or 'the file'}: expected settings by name: {', '.join(fields)}")
        return None
    before = len(problems)
    prefix = f"{where}." if where else ""
    problems += [
        f"{prefix}{name}: there is no such setting{_near(str(name), fields)}" for name in content if name not in fields
    ]
    values: dict[str, Any] = dict(given)
    for name, one in fields.items():
        value = content.get(name)
        if value is None:
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
                problems.append(f"{prefix}{name} is missing")
            continue
        values[name] = _value(str(one.type), value, f"{prefix}{name}", problems)
    return kind(**values) if len(problems) == before else None


# Fields that are objects by name.
_PARTS = {"Mapping[str, Model]": Model, "Mapping[str, Row]": Row}


def _value(kind: str, value: Any, where: str, problems: list[str]) -> Any:
    """Return a field's value as its type has it."""
    if kind in _PARTS and isinstance(value, Mapping) and value:
        return {name: _read(_PARTS[kind], own, f"{where}.{name}", problems) for name, own in value.items()}
    if kind == "Teaching | None":
        return _read(Teaching, value, where, problems)
    if kind == "tuple[str, ...]" and _is_words(value):
        return tuple(map(str, value))
    if kind == "Mapping[str, tuple[str, ...]]" and isinstance(value, Mapping) and all(map(_is_words, value.values())):
        return {str(name): tuple(map(str, own)) for name, own in value.items()}
    if kind == "Mapping[str, float]" and isinstance(value, Mapping) and all(map(_is_number, value.values())):
        return {str(name): float(own) for name, own in value.items()}
    if kind == "Mapping[str, Any]" and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return dict(value)
    if kind == "float" and _is_number(value) and value >= 0:
        return float(value)
    if (kind == "str" and isinstance(value, str)) or (kind == "bool" and isinstance(value, bool)):
        return value
    problems.append(f"{where} is {value!r:.100}; expected {_EXPECTED[kind]}")
    return None


_EXPECTED = {
    "Mapping[str, Model]": "one or more models by name",
    "Mapping[str, Row]": "one or more rows by name",
    "tuple[str, ...]": "a list of words",
    "Mapping[str, tuple[str, ...]]": "lists of words by name",
    "Mapping[str, float]": "numbers by name",
    "Mapping[str, Any]": "values by name",
    "float": "a number from 0",
    "str": "a text",
    "bool": "True or False",
}


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, (str, int, float)) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _unknown(where: str, names: Sequence[str], known: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """A mapping is known as a whole, of a list what stands before in the file."""
    where = where if isinstance(known, Mapping) else f"{where}, before it"
    return [f"{where}: there is no {name}{_near(name, known)}" for name in names if name not in known]


def _near(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known) or 'none'}"
