"""What of a study is done: only what has the same settings, data, code, and stages before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study_cases import STUDY, study

from detseg.errors import ConfigError
from detseg.files.atomic import make_folder
from detseg.study import identity
from detseg.study.plan import Plan
from detseg.study.study_file import Study


def changed(before: Plan, after: Plan) -> set[str]:
    return {name for name in before.ids if name in after.ids and before.ids[name] != after.ids[name]}


def with_model(name: str, **settings: object) -> Study:
    models = {**STUDY["models"], name: {**STUDY["models"][name], "settings": settings}}
    return study(models=models)


def finish(plan: Plan, name: str, seconds: float = 10.0) -> None:
    """Pretend that a task is done."""
    spec = plan.spec(plan.tasks[name])
    for file in spec["files"]:
        make_folder(Path(file).parent)
        Path(file).touch()
    path = plan.path(plan.tasks[name], ".json")
    make_folder(path.parent)
    path.write_text(json.dumps({"files": spec["files"], "parts": spec["parts"], "seconds": seconds}))


def test_a_change_reaches_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    plan = Plan.of(study(), tmp_path)
    assert plan.ids == Plan.of(study(), tmp_path / "elsewhere").ids, "identities do not depend on the folder"
    taught = changed(plan, Plan.of(with_model("taught", **{"SOLVER.BASE_LR": 0.5}), tmp_path))
    leaked = {"predict/taught_pseudo", "tune/leaked", "evaluate/leaked"}
    assert taught == {"train/taught", "fuse/two", "tune/two", "evaluate/two", *leaked}
    assert not changed(plan, Plan.of(with_model("plain", **{"SOLVER.LOG_PERIOD": 7}), tmp_path)), "learns the same"
    everything = changed(plan, Plan.of(study(split=["--folds", 2, "--seed", 1]), tmp_path))
    assert everything == set(plan.ids) - {"prepare/cells"}


def test_changed_data_and_code_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.csv"
    source.write_text("a")
    own = study(prepare={"cells": ["prepare", "sartorius", "--source", str(source)]})
    plan = Plan.of(own, tmp_path)
    source.write_text("b")
    after = Plan.of(own, tmp_path)
    assert changed(plan, after) == set(plan.ids)
    finish(plan, "prepare/cells")
    assert after.state(after.tasks["prepare/cells"]) == ("changed", "other data")

    monkeypatch.setattr(identity, "code_of", lambda command: f"new {command}")
    new = Plan.of(own, tmp_path)
    assert new.ids["train/plain"] != after.ids["train/plain"]
    finish(after, "prepare/cells")
    assert new.state(new.tasks["prepare/cells"]) == ("changed", "other code")
    kept = Plan.of(own, tmp_path, ignore_code=True)
    assert kept.ids["prepare/cells"] == after.ids["prepare/cells"]


def test_images_of_a_data_set_from_outside_are_noticed_and_may_be_missing(tmp_path: Path) -> None:
    file, image = tmp_path / "cells.json", tmp_path / "a.png"
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 5}], "annotations": []}
    file.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cell"}]}))
    plans = []
    for pixels in (None, b"first", b"second"):
        if pixels is not None:
            image.write_bytes(pixels)
        plans.append(Plan.of(study(labelled=str(file)), tmp_path))
    assert len({plan.ids["split/labelled"] for plan in plans}) == 3


def test_a_command_depends_on_the_code_that_it_imports_only() -> None:
    assert identity.code_of("evaluate") != identity.code_of("train_net")
    path = identity.PACKAGE / "cli" / "train_net.py"
    _, imported = identity._read_source(path)
    assert {"detseg.engine.start", "detseg.engine", "detseg.errors"} <= set(imported), "inside of functions, too"


def test_only_chooses_by_kind_stage_fold_and_pattern(tmp_path: Path) -> None:
    plan = Plan.of(study(), tmp_path)
    assert plan.chosen(["train/plain"]) == ["train/plain/fold0", "train/plain/fold1"]
    assert plan.chosen(["*/fold1", "split"])[0] == "split/labelled"
    assert set(plan.chosen(["train"])) == {name for name in plan.tasks if name.startswith("train/")}
    assert plan.chosen([]) == list(plan.tasks)
    with pytest.raises(ConfigError, match=r"--only trian: no such stage; expected prepare, split"):
        plan.chosen(["trian"])


def test_times_are_those_measured_and_scale_with_iterations(tmp_path: Path) -> None:
    plan = Plan.of(study(), tmp_path)
    fold = plan.tasks["train/plain/fold1"]
    assert plan.estimate(fold) is None
    finish(plan, "train/plain/fold0", seconds=30.0)
    assert plan.estimate(fold) == 30.0
    longer = Plan.of(with_model("plain", **{"SOLVER.MAX_ITER": 6}), tmp_path)
    assert longer.estimate(longer.tasks["train/plain/fold1"]) == 90.0
    assert longer.state(longer.tasks["train/plain/fold1"]) == ("changed", "other configuration")


def test_what_is_gone_is_not_done(tmp_path: Path) -> None:
    plan = Plan.of(study(), tmp_path)
    finish(plan, "split/labelled")
    task = plan.tasks["split/labelled"]
    assert plan.state(task) == ("done", "")
    Path(plan.spec(task)["files"][0]).unlink()
    assert plan.record(task) is None
