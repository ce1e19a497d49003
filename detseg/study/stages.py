"""The stages of a study: their commands, what they need, and their tasks per fold.

A stage is one detseg command. In its arguments `<.>` is its own output folder, `<NAME>` that of another stage, on which
it therefore depends, and `<fold>` the number of a fold. A stage with folds is one task per fold, in one folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from detseg.config.command_line import as_words
from detseg.data.folds import FOLD_PLACE, fold_name
from detseg.errors import ConfigError
from detseg.files.run_files import OUT_OF_FOLD_FILE
from detseg.study.study_file import Model, Row, Study

KINDS = ("prepare", "split", "repair", "train", "predict", "pseudo_label", "fuse", "tune", "evaluate", "submit")
OWN, FOLD = "<.>", "<fold>"
_PLACE = re.compile(r"<([a-z_]+/[^<>]+)>(/fold)?")
LABELLED, REPAIRED = "<split/labelled>/folds.json", "<repair/labelled>/folds.json"
CROSS_FITTED, SCORES, POSTPROCESS = "cross_fitted.json.gz", "scores.json", "postprocess.yaml"


@dataclass(frozen=True)
class Stage:
    """A command. name: KIND/NAME. folds: number of its tasks, or 0 for a single one without folds.

    config: configuration of a training, to whose arguments `settings` are added.
    """

    name: str
    words: tuple[str, ...]
    folds: int = 0
    config: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def all_words(self) -> tuple[str, ...]:
        """The arguments with the settings."""
        return (*self.words, *as_words(self.settings))

    @property
    def needs(self) -> list[str]:
        """The names of the stages that it depends on."""
        return list(dict.fromkeys(found[1] for word in self.all_words for found in _PLACE.finditer(word)))

    def tasks(self) -> list[Task]:
        """One task, or one per fold."""
        return [Task(self, fold) for fold in range(self.folds)] if self.folds else [Task(self)]


@dataclass(frozen=True)
class Task:
    """A stage, or one fold of a stage with folds."""

    stage: Stage
    fold: int | None = None

    @property
    def name(self) -> str:
        return self.stage.name if self.fold is None else f"{self.stage.name}/{fold_name(self.fold)}"

    def needs(self, stages: Mapping[str, Stage]) -> list[str]:
        """Return the names of the tasks it needs: for a stage with folds only the same fold, if only that is read."""
        found: dict[str, None] = {}
        for word in self.stage.all_words:
            for place in _PLACE.finditer(word):
                other = stages[place[1]]
                own_fold_only = place[2] and self.fold is not None and other.folds
                tasks = [Task(other, self.fold)] if own_fold_only else other.tasks()
                found |= dict.fromkeys(task.name for task in tasks)
        return list(found)

    def words(self, folders: Mapping[str, str]) -> list[str]:
        """Return the arguments of the command. folders: of this stage and every stage that it needs."""
        own = folders[self.stage.name]

        def fill(word: str) -> str:
            word = word.replace(OWN, own).replace(FOLD, str(self.fold))
            return _PLACE.sub(lambda found: folders[found[1]] + (found[2] or ""), word)

        return [fill(word) for word in self.stage.all_words]


def stages_of(study: Study, rows: Iterable[str] = ()) -> dict[str, Stage]:
    """Return the stages of a study by name, each after those that it needs. rows: only the stages that these need.

    Raises ConfigError if the file names a stage that does not exist.
    """
    found = _Stages(study)
    for name, words in study.prepare.items():
        found.add(f"prepare/{name}", (*words, "--output", OWN))
    found.add("split/labelled", ("split", study.labelled, "--output", OWN, *study.split))
    if study.repair:
        found.add("repair/labelled", ("repair", LABELLED, f"{OWN}/folds.json", *study.repair))
    for name in rows or study.rows:
        found.add_row(name)
    return _only_needed(found.stages)


class _Stages:
    """Stages by name. Stages with equal arguments are merged, under the name of the first."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.stages: dict[str, Stage] = {}
        self._by_words: dict[tuple[str, ...], str] = {}
        self._tuned: dict[str, str] = {}

    def add(self, name: str, words: Iterable[Any], **more: Any) -> str:
        """Add a stage, unless an equal one exists; return its output folder."""
        stage = Stage(name, tuple(map(str, words)), **more)
        own = name if stage.kind in ("evaluate", "submit") else stage.kind  # never merged: found by name
        for need in stage.needs:  # a training that the file names but no row uses
            kind, _, model = need.partition("/")
            if kind == "train" and need not in self.stages and model in self.study.models:
                self.train(model)
        key = (own, *stage.all_words)
        if key not in self._by_words:
            while stage.name in self.stages:  # the same name with other arguments, for another row
                stage = replace(stage, name=f"{stage.name}_2")
            self.stages[stage.name], self._by_words[key] = stage, stage.name
        return f"<{self._by_words[key]}>"

    def add_row(self, name: str) -> None:
        """Add the stages of a row of the table, and of its base."""
        if name in self._tuned:
            return
        row = self.study.rows[name]
        if row.base:
            self.add_row(row.base)
        files = [self.out_of_fold(model, row.view) for model in row.models]
        predictions, truth = [self.fused(name, files, row.fusion)], LABELLED
        if row.leaked:
            further, truth = self.leaked(row)
            predictions.append(further)
        words = ["tune_thresholds", "--predictions", *predictions, "--ground-truth", truth, *row.tune]
        words += ["--output", f"{OWN}/{POSTPROCESS}", "--cross-fitted", f"{OWN}/{CROSS_FITTED}"]
        tuned = self._tuned[name] = self.add(f"tune/{name}", words)
        # A leaked row is scored on other images than its base: no paired difference.
        base = ["--intervals"] if row.leaked or not row.base else ["--base", f"{self._tuned[row.base]}/{CROSS_FITTED}"]
        words = ["evaluate", "--predictions", f"{tuned}/{CROSS_FITTED}", "--ground-truth", truth, *base]
        self.add(f"evaluate/{name}", [*words, "--json", f"{OWN}/{SCORES}"])
        if row.submit:
            self.add_submission(name, row, tuned)

    def leaked(self, row: Row) -> tuple[str, str]:
        """Return the predictions of a student for the images whose pseudo-labels it was trained with, and a ground
        truth of these labels and the labelled images.
        """
        (name,), fold = row.models, fold_name(row.leaked_fold)
        pseudo = f"{self.pseudo_labels(name, self.study.models[name])}/{fold}.json"
        words = ["predict", "--run", f"{self.train(name)}/{fold}", "--raw", "--images", pseudo]
        words += [*(self.study.views[row.view] if row.view else ()), "--output", f"{OWN}/{OUT_OF_FOLD_FILE}"]
        predicted = self.add("_".join(filter(None, [f"predict/{name}", row.view, "pseudo"])), words)
        joined = ("prepare", "coco", "--annotations", LABELLED, pseudo, "--split", 1, "--output", OWN)
        return f"{predicted}/{OUT_OF_FOLD_FILE}", f"{self.add(f'pseudo_label/{name}_truth', joined)}/all.json"

    def out_of_fold(self, model: str, view: str) -> str:
        """Return the file with the predictions of all folds of a model for images that they have not seen."""
        trained = self.train(model)
        if not view:
            return f"{trained}/{OUT_OF_FOLD_FILE}"  # written by the training
        words = ("predict", "--folds", trained, *self.study.views[view], "--output", f"{OWN}/{OUT_OF_FOLD_FILE}")
        return f"{self.add(f'predict/{model}_{view}', words)}/{OUT_OF_FOLD_FILE}"

    def fused(self, name: str, files: list[str], fusion: str, folds: int = 0, output: str = OUT_OF_FOLD_FILE) -> str:
        if len(files) == 1:
            return files[0]
        words = ("fuse", "--inputs", *files, "--config", fusion, "--output", f"{OWN}/{output}")
        return f"{self.add(f'fuse/{name}', words, folds=folds)}/{output}"

    def train(self, name: str) -> str:
        """Add the training of a model, and all that it needs."""
        study, model = self.study, self.study.models[name]
        settings = {**study.settings, **model.settings}
        words = ["train_net", "--config", model.config]
        if model.folds:
            words += ["--fold", FOLD]
            data = (REPAIRED, [LABELLED]) if model.masks == "repaired" else (LABELLED, [])
            settings |= {"DATASETS.TRAIN": [data[0]], "DATASETS.TEST": data[1]}
        if model.weights:
            place = f"/fold{FOLD_PLACE}" if study.models[model.weights].folds else ""
            settings["MODEL.WEIGHTS"] = f"{self.train(model.weights)}{place}/checkpoints/best.pth"
        if model.pseudo is not None:
            settings["DATASETS.PSEUDO"] = [f"{self.pseudo_labels(name, model)}/fold{FOLD_PLACE}.json"]
        settings["OUTPUT_DIR"] = OWN
        folds = study.folds if model.folds else 0
        more = {"config": model.config, "settings": settings, "seconds": model.seconds}
        return self.add(f"train/{name}", words, folds=folds, **more)

    def pseudo_labels(self, name: str, model: Model) -> str:
        """Add the pseudo-labels of the unlabelled images, one file per fold."""
        study, teaching = self.study, model.pseudo
        assert teaching is not None
        output, files = f"fold{FOLD}.json.gz", []
        for teacher in teaching.teachers:
            view = study.views[teaching.view] if teaching.view else ()
            words = ["predict", "--run", f"{self.train(teacher)}/fold{FOLD}", "--raw", "--images", study.unlabelled]
            words += [*view, "--output", f"{OWN}/{output}"]
            folder = self.add(f"predict/{teacher}_unlabelled", words, folds=study.folds)
            files.append(f"{folder}/{output}")
        fused = self.fused(f"{name}_unlabelled", files, teaching.fusion, study.folds, output)
        known = [self.out_of_fold(teacher, teaching.view) for teacher in teaching.teachers]
        known_fused = self.fused(f"{name}_labelled", known, teaching.fusion)
        words = ["pseudo_label", "label", "--predictions", fused, "--images", study.unlabelled]
        words += ["--labelled", LABELLED, "--out-of-fold", known_fused]
        words += ["--members", *files] if len(files) > 1 else []
        words += [*teaching.label, "--fold", FOLD, *(f"{key}={value}" for key, value in teaching.gates.items())]
        return self.add(f"pseudo_label/{name}", [*words, "--output", f"{OWN}/fold{FOLD}.json"], folds=study.folds)

    def add_submission(self, name: str, row: Row, tuned: str) -> None:
        study, output, files = self.study, "test.json.gz", []
        for model in row.models:
            trained = self.train(model)
            runs = [word for fold in range(study.folds) for word in ("--run", f"{trained}/{fold_name(fold)}")]
            view = study.views[row.view] if row.view else ()
            words = ["predict", *runs, "--raw", "--images", study.test, *view, "--output", f"{OWN}/{output}"]
            files.append(f"{self.add('_'.join(filter(None, [f'predict/{model}', row.view, 'test'])), words)}/{output}")
        fused = self.fused(f"{name}_test", files, row.fusion, output=output)
        words = ["make_submission", "--predictions", fused, "--postprocess", f"{tuned}/{POSTPROCESS}"]
        words += ["--format", row.submit, "--images", study.test, "--output", f"{OWN}/submission.csv"]
        self.add(f"submit/{name}", words)


def _only_needed(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Return the stages that evaluations and submissions need, each after those that it needs."""
    ordered: dict[str, Stage] = {}

    def visit(name: str) -> None:
        if name not in ordered:
            for other in stages[name].needs:
                if other not in stages:
                    raise ConfigError(f"<{other}>: no such stage; expected one of {', '.join(stages)}")
                visit(other)
            ordered[name] = stages[name]

    for name, stage in stages.items():
        if stage.kind in ("evaluate", "submit"):
            visit(name)
    return ordered
