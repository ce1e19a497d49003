"""Pseudo-labels in rounds: a teacher, its predictions of unlabelled images, a training with these, and its evaluation.

Folds are made of labelled images only. Pseudo-labels of fold k come only from the teacher's models of fold k, which
have not seen the labelled images on which the new models of fold k are validated. A round is accepted if the
out-of-fold scores rise significantly (paired interval); its models are then the teacher of the next one.

    OUTPUT/rounds.json             the plan
    OUTPUT/steps                   record and log of every command
    OUTPUT/round0, round1, ...     models (NAME/foldK), pseudo/foldK.json with a page, oof.json.gz, score.json
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from detseg.coco.catalog import resolve_dataset
from detseg.coco.dataset import CocoDataset
from detseg.data.folds import FOLD, FOLD_PLACE, fold_name
from detseg.errors import ConfigError, RunError, list_problems
from detseg.files.atomic import make_folder, read_json, write_json, write_text
from detseg.files.run_files import CONFIG_FILE, FOLDS_RECORD, OUT_OF_FOLD_FILE
from detseg.semi_supervised.acceptance import Decision, OutOfFold, decide, score_out_of_fold
from detseg.semi_supervised.rounds_file import RoundsPlan
from detseg.semi_supervised.steps import Step, Steps

if TYPE_CHECKING:
    from detseg.data.folds import FoldedSets

logger = logging.getLogger(__name__)

RECORD = "rounds.json"
SCORE = "score.json"
GATES = "gates.yaml"


@dataclass(frozen=True)
class System:
    """A teacher: models, each a folder of folds, or a run that has seen none of the labelled images.

    name: of the round that made it. out_of_fold: its predictions of the labelled images. members: predictions of the
    members for the agreement gate, see `_members`.
    """

    name: str
    models: dict[str, Path]
    out_of_fold: Path
    members: list[Path]

    def run_of(self, model: str, fold: int) -> Path:
        """The run folder of a model that has not seen the images of this fold."""
        path = self.models[model]
        return path / fold_name(fold) if (path / FOLDS_RECORD).is_file() else path


@dataclass
class Rounds:
    """Rounds in a folder. steps: runs the commands."""

    plan: RoundsPlan
    folder: Path
    steps: Steps
    _scored: dict[Path, OutOfFold] = field(default_factory=dict)

    @cached_property
    def sets(self) -> FoldedSets:
        """The labelled images and their folds."""
        from detseg.engine.data_sets import load_folds

        return load_folds(self.plan.config(self.plan.model_names[0]))

    def run(self, finished: Callable[[str, str], None]) -> System | None:
        """Run what is not done yet; return the best system, None if stopped.

        finished: called with the name of each round and its outcome.

        Raises RunError if a command fails.
        """
        teacher = self._teacher()
        if teacher is None:
            return None
        scores = self._score(teacher)
        value, low, high = scores.scores()["all"][self.plan.metric]
        finished(teacher.name, f"{self.plan.metric} {_number(value)} ({_number(low)} to {_number(high)})")
        for number in range(1, self.plan.rounds + 1):
            name = f"round{number}"
            files = self._label(teacher, name)
            if files is None:
                return None
            empty = [str(path) for path in files if not len(CocoDataset.load(path))]
            if empty:
                finished(name, f"no sure objects in {', '.join(empty)}: {teacher.name} is kept")
                return teacher
            student = self._train(name, self.folder / name / "pseudo" / f"{FOLD}{FOLD_PLACE}.json")
            if student is None:
                return None
            decision = decide(self._score(teacher), self._score(student), self.plan.metric, self.plan.least_gain)
            self._write(student, decision)
            finished(name, str(decision))
            if not decision.accepted:
                return teacher
            teacher = student
        return teacher

    def _teacher(self) -> System | None:
        if not self.plan.teacher:
            return self._train("round0")
        models = {
            Path(path).name if len(self.plan.teacher) == 1 else f"teacher{number}": Path(path)
            for number, path in enumerate(self.plan.teacher, start=1)
        }
        return self._predict_labelled("round0", models)

    def _train(self, name: str, pseudo: Path | None = None) -> System | None:
        """Train all models and folds of a round, and predict the labelled images with those that have not seen them."""
        more = {} if pseudo is None else {**self.plan.mixing, "DATASETS.PSEUDO": [str(pseudo)]}
        steps, models = [], {}
        for model, config in self.plan.models.items():
            models[model] = folder = self.folder / name / model
            words = ["train_net", "--config", config]
            for fold in range(self.sets.count):
                own = (*words, "--fold", f"{fold}", *self.plan.words(more, {"OUTPUT_DIR": str(folder)}))
                steps.append(Step(f"{name}/train_{model}_{fold_name(fold)}", own, folder / fold_name(fold)))
        return self._predict_labelled(name, models) if self.steps.run(steps) else None

    def _predict_labelled(self, name: str, models: dict[str, Path]) -> System | None:
        """Predict the labelled images out of fold, in the same way as the unlabelled ones."""
        folder = self.folder / name
        files, views, steps = {}, [], []
        for model, path in models.items():
            is_folded = (path / FOLDS_RECORD).is_file()
            files[model] = folder / f"oof_{model}.json.gz"
            source = (
                ("--folds", str(path)) if is_folded else ("--run", str(path), "--raw", "--images", self._labelled[0])
            )
            own = self._predictions(f"{name}/predict_labelled_{model}", source, files[model])
            views += [file for file in own if file != files[model]]
            if is_folded and not self.plan.predict and (path / OUT_OF_FOLD_FILE).is_file():
                del own[files[model]]
                files[model] = path / OUT_OF_FOLD_FILE  # written by the training
            steps += own.values()
        if not self.steps.run(steps):
            return None
        fused, steps = self._fusion(name, folder / "oof.json.gz", [*files.values()])
        return System(name, models, fused, _members([*files.values()], views)) if self.steps.run(steps) else None

    def _predictions(self, name: str, source: Sequence[str], output: Path) -> dict[Path, Step]:
        """Return output file -> step: for `output`, and for each of the plan's `views` alone."""
        words = ("predict", *source, *self.plan.predict)
        steps = {output: Step(name, (*words, "--output", str(output)))}
        for number, view in enumerate(self.plan.views, start=1):
            path = output.with_name(f"{output.name.removesuffix('.json.gz')}_view{number}.json.gz")
            steps[path] = Step(f"{name}_view{number}", (*words, "--tta", view, "--output", str(path)))
        return steps

    def _fusion(self, name: str, output: Path, files: list[Path]) -> tuple[Path, list[Step]]:
        """Return the file of the fused predictions, and the step that fuses them if there are several."""
        if len(files) == 1:
            return files[0], []
        words = ("fuse", "--inputs", *map(str, files), "--config", self.plan.fusion, "--output", str(output))
        return output, [Step(f"{name}/fuse_{output.name.split('.')[0]}", words)]

    @cached_property
    def _labelled(self) -> list[str]:
        return [str(resolve_dataset(name).json) for name in self.plan.config(self.plan.model_names[0]).DATASETS.TRAIN]

    def _label(self, teacher: System, name: str) -> list[Path] | None:
        """Label the unlabelled images for every fold; return the COCO files, None if stopped."""
        cfg = self.plan.config(self.plan.model_names[0], self.plan.mixing)
        soft = ("--soft-masks",) if "pixels" in cfg.DATASETS.PSEUDO_CONFIDENCE else ()
        folder, folds = self.folder / name / "unlabelled", range(self.sets.count)
        files = {
            (fold, model): folder / f"{fold_name(fold)}_{model}.json.gz" for fold in folds for model in teacher.models
        }
        steps, views = [], {fold: [] for fold in folds}
        for (fold, model), path in files.items():
            source = ("--run", str(teacher.run_of(model, fold)), "--raw", "--images", images_of(self.plan), *soft)
            own = self._predictions(f"{name}/predict_unlabelled_{model}_{fold_name(fold)}", source, path)
            steps += own.values()
            views[fold] += [file for file in own if file != path]
        if not self.steps.run(steps):
            return None
        of_models = [[path for (of_fold, _), path in files.items() if of_fold == fold] for fold in folds]
        fusions = [self._fusion(name, folder / f"{fold_name(fold)}.json.gz", of_models[fold]) for fold in folds]
        if not self.steps.run([step for _, own in fusions for step in own]):
            return None
        steps, labels = [], []
        for fold, (fused, _) in enumerate(fusions):
            labels.append(self.folder / name / "pseudo" / f"{fold_name(fold)}.json")
            words = ["pseudo_label", "label", "--predictions", str(fused), "--images", images_of(self.plan)]
            words += ["--labelled", *self._labelled, "--fold", f"{fold}", "--out-of-fold", str(teacher.out_of_fold)]
            words += ["--folds", cfg.DATASETS.FOLDS] if cfg.DATASETS.FOLDS else []
            if members := _members(of_models[fold], views[fold]):
                words += ["--members", *map(str, members), "--out-of-fold-members", *map(str, teacher.members)]
            words += ["--gates", self._gates] if self._gates else []
            words += [*self.plan.label, "--output", str(labels[-1])]
            steps.append(Step(f"{name}/label_{fold_name(fold)}", tuple(words)))
        return labels if self.steps.run(steps) else None

    @cached_property
    def _gates(self) -> str:
        gates = self.plan.gates
        if isinstance(gates, str) or not gates:
            return str(gates or "")
        path = self.folder / GATES
        write_text(path, yaml.safe_dump(dict(gates), allow_unicode=True, sort_keys=False))
        return str(path)

    def _score(self, system: System) -> OutOfFold:
        if system.out_of_fold not in self._scored:
            scored = score_out_of_fold(system.out_of_fold, self.sets.validation, self.sets.folds)
            self._scored[system.out_of_fold] = scored
            path = self.folder / system.name / SCORE
            make_folder(path.parent)
            write_json(path, {"scores": scored.scores()})
        return self._scored[system.out_of_fold]

    def _write(self, student: System, decision: Decision) -> None:
        scores = self._score(student).scores()
        write_json(self.folder / student.name / SCORE, {"scores": scores, "decision": dataclasses.asdict(decision)})


def _members(models: list[Path], views: list[Path]) -> list[Path]:
    """Return the files for the agreement: those of several models, and of single views."""
    return (models if len(models) > 1 else []) + views


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def images_of(plan: RoundsPlan) -> str:
    """Return the folder or the COCO file of the unlabelled images. Raises DataError if it does not exist."""
    return plan.unlabelled if Path(plan.unlabelled).is_dir() else str(resolve_dataset(plan.unlabelled).json)


def check_plan(plan: RoundsPlan) -> None:
    """Refuse impossible configurations, data and teachers before anything is run.

    Raises DetsegError.
    """
    from detseg.engine.data_sets import load_folds
    from detseg.engine.validation import validate_config
    from detseg.semi_supervised.gates import Gates

    pseudo = {**plan.mixing, "DATASETS.PSEUDO": [f"{FOLD_PLACE}.json"], "DATASETS.FOLD": 0}
    for name in plan.model_names:
        validate_config(plan.config(name, pseudo))
    first, *others = (plan.config(name) for name in plan.model_names)
    for name, cfg in zip(plan.model_names[1:], others, strict=True):
        for key in ("DATASETS.TRAIN", "DATASETS.FOLDS"):
            if cfg[key] != first[key]:
                raise ConfigError(
                    f"{plan.source}: the models {plan.model_names[0]} and {name} differ in {key}: {first[key]} and "
                    f"{cfg[key]}; set it for all under `settings`"
                )
    load_folds(first)
    if not Path(unlabelled := images_of(plan)).is_dir():
        CocoDataset.load(unlabelled).check_images_exist()
    if isinstance(plan.gates, str):
        Gates.load(plan.gates)
    elif plan.gates:
        Gates.from_dict(dict(plan.gates), source=f"{plan.source}: gates")
    missing = [
        path for path in plan.teacher if not any((Path(path) / one).is_file() for one in (FOLDS_RECORD, CONFIG_FILE))
    ]
    if missing:
        raise ConfigError(
            f"{plan.source}: each teacher must be a folder of folds (train_net --fold all) or a run:\n"
            f"{list_problems(missing)}"
        )


def open_folder(plan: RoundsPlan, folder: Path, *, resume: bool) -> None:
    """Create the folder of the rounds, or check that it belongs to this plan.

    Raises RunError if it has other content, or rounds without `resume`.
    """
    record = json.loads(json.dumps(plan.to_plain()))
    path = folder / RECORD
    if not path.is_file():
        if folder.is_dir() and any(one.name != ".lock" for one in folder.iterdir()):
            raise RunError(f"--output {folder} has other content than rounds of pseudo-labels; give a new folder")
        write_json(path, record)
        return
    if not resume:
        raise RunError(f"{folder} contains rounds: give --resume to continue them, or another --output")
    before: dict[str, Any] = read_json(path)
    changed = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in record.items()
        if before.get(name) != value
    ]
    if changed:
        raise RunError(
            f"{folder} was started with other settings than {plan.source} has now; use another folder:\n"
            f"{list_problems(changed)}"
        )
