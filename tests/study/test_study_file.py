"""A study's file says all that is wrong with it at once, and what it asks for becomes stages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from study_cases import STUDY, content, study

from detseg.errors import ConfigError, DataError
from detseg.study.plan import Plan
from detseg.study.stages import Task, stages_of
from detseg.study.study_file import Study

OWN = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml")
    if "\nrows:" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": {}}, "model: there is no such setting; did you mean models?"),
        ({"labelled": None}, "labelled is missing"),
        ({"models": {}}, "expected one or more models by name"),
        ({"models": {1: {"config": "a.yaml"}}}, "models is {1: {'config': 'a.yaml'}}; expected values by name"),
        ({"rows": {"a": {"models": []}}}, "rows.a.models: expected one or more models"),
        ({"models": {"a": {}}, "rows": {"a": {"models": ["a"]}}}, "models.a.config is missing"),
        (
            {"rows": {"a": {"models": ["plane"]}}},
            "small.yaml: 1 problem:\n  - rows.a.models: unknown plane; did you mean plain?",
        ),
        ({"rows": {"a": {"models": ["plain"], "base": "b"}}}, "rows.a.base, before it: unknown b"),
        ({"rows": {"a": {"models": ["plain", "taught"]}}}, "fusion is missing"),
        ({"rows": {"a": {"models": ["plain"], "view": "turns"}}}, "unknown turns"),
        ({"rows": {"../a": {"models": ["plain"]}}}, "expected a name of letters"),
        ({"split": ["--folds", 1]}, "expected --folds and 2 or more"),
        ({"repair": None}, "masks: repaired needs `repair`"),
        ({"unlabelled": None}, "`unlabelled` is missing"),
        ({"test": None}, "submit needs `test`"),
        (
            {"rows": {"a": {"models": ["taught"], "leaked_fold": 1}, "b": {"models": ["plain"], "base": "a"}}},
            "rows.b.base: a is leaked",
        ),
        (
            {"rows": {"a": {"models": ["plain"], "leaked_fold": 1}}},
            "rows.a: leaked_fold is for one model with `pseudo`",
        ),
        (
            {"rows": {"a": {"models": ["taught"], "leaked_fold": 1, "submit": "sartorius"}}},
            "submit its model by another row",
        ),
        ({"rows": {"a": {"models": ["taught"], "leaked_fold": 2}}}, "expected a fold, 0 to 1, or -1 for none"),
        ({"cost_per_hour": "much"}, "expected a number from 0"),
    ],
)
def test_what_is_wrong_is_said(change: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        Study.from_dict(content(**change), "small", "small.yaml")
    assert expected in str(error.value)
    assert str(error.value).startswith("small.yaml")


def test_a_file_that_is_not_there_names_those_like_it() -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        Study.load("studies/quickstrat.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "study.yaml")
    with pytest.raises(DataError, match="is a pipe"):
        Study.load(str(tmp_path / "study.yaml"))


def test_a_place_that_no_stage_makes_is_refused() -> None:
    with pytest.raises(ConfigError, match="<prepare/cell>: no such stage"):
        stages_of(study(labelled="<prepare/cell>/train.json"))


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_our_studies_have_stages_for_every_row_and_models_that_can_be_trained(path: Path, tmp_path: Path) -> None:
    own = Study.load(str(path))
    plan = Plan.of(own, tmp_path)
    plan.check()
    assert {f"evaluate/{name}" for name in own.rows} <= set(plan.stages)


def test_rows_become_stages_each_once_and_after_what_they_need() -> None:
    stages = stages_of(study())
    names = list(stages)
    assert names.count("train/plain") == 1
    assert all(names.index(need) < names.index(name) for name in names for need in stages[name].needs)
    assert stages["evaluate/flips"].needs == ["tune/flips", "split/labelled", "tune/baseline"]
    assert stages["train/plain"].settings["DATASETS.TRAIN"] == ["<repair/labelled>/folds.json"]
    assert stages["train/plain"].settings["DATASETS.TEST"] == ["<split/labelled>/folds.json"]
    assert "submit/flips" in names
    assert "submit/baseline" not in names
    assert "train/taught" not in stages_of(study(), ["flips"])
    assert "tune/baseline" in stages_of(study(), ["flips"]), "a row needs its base"


def test_a_fold_waits_for_its_own_fold_only_where_it_reads_nothing_else() -> None:
    stages = stages_of(study())
    assert Task(stages["train/further"], 1).needs(stages).count("train/plain/fold0") == 0
    assert "train/plain/fold1" in Task(stages["train/further"], 1).needs(stages)
    # what all folds have predicted chooses the limits of the labels
    assert {"train/plain/fold0", "train/plain/fold1"} <= set(Task(stages["pseudo_label/taught"], 1).needs(stages))
    assert {"train/plain/fold0", "train/plain/fold1"} <= set(Task(stages["tune/baseline"]).needs(stages))


def test_a_leaked_row_is_scored_on_what_its_model_has_learned_and_on_no_draws_of_its_base() -> None:
    stages = stages_of(study())
    words = stages["tune/leaked"].words
    assert words[1:6] == (
        "--predictions",
        "<train/taught>/oof.json.gz",
        "<predict/taught_pseudo>/oof.json.gz",
        "--ground-truth",
        "<pseudo_label/taught_truth>/all.json",
    )
    joined = stages["pseudo_label/taught_truth"].words
    assert joined[2:5] == ("--annotations", "<split/labelled>/folds.json", "<pseudo_label/taught>/fold0.json")
    assert stages["evaluate/leaked"].needs == ["tune/leaked", "pseudo_label/taught_truth"]
    assert "evaluate/baseline" in stages_of(study(), ["leaked"]), "beside which it is shown"
    rows = {**STUDY["rows"], "leaked": {**STUDY["rows"]["leaked"], "leaked_fold": 1}}
    words = stages_of(study(rows=rows))["predict/taught_pseudo"].words
    assert words[1:5] == ("--run", "<train/taught>/fold1", "--raw", "--images")
    assert words[5] == "<pseudo_label/taught>/fold1.json"


def test_rows_that_do_the_same_share_their_stages() -> None:
    rows = {**STUDY["rows"], "again": {"models": ["plain"], "base": "baseline"}}
    stages = stages_of(study(rows=rows))
    assert "tune/again" not in stages
    assert "tune/baseline" in stages["evaluate/again"].needs
