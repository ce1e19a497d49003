"""Stages in processes of their own, and on Ray: killed and continued, and nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from study_cases import study

from detseg.errors import RunError
from detseg.files.lock import try_lock
from detseg.study.plan import Plan
from detseg.study.running import Processes, RayTasks, run_stage, run_tasks, stop_file_of

TASKS = ("prepare/cells", "split/labelled", "repair/labelled")
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from study_cases import study
from detseg.study.plan import Plan
from detseg.study.running import Processes, run_tasks
plan = Plan.of(study(), Path("out"))
run_tasks(plan, ["prepare/cells"], Processes(1, lambda: False), lambda: False, print)
"""


def never() -> bool:
    return False


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return Plan.of(study(), Path("out"))


def test_a_killed_study_goes_on_and_does_nothing_twice(plan: Plan) -> None:
    """Killed while cells are made: its command ends with it, and the next study makes them, all of them."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(tests=str(Path(__file__).parent))])
    while process.poll() is None and not list(Path("out").rglob("*.png")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(Path("out/records").rglob("*.json"))
    told: list[tuple[str, str]] = []
    for runner in (Processes(2, never), Processes(1, never)):
        assert run_tasks(plan, TASKS, runner, never, lambda *one: told.append(one)) == []
        runner.close()
    assert [name for name, _ in told] == [*TASKS, *TASKS]
    assert [what for _, what in told[3:]] == ["done before"] * 3
    (plan.folder_of("repair/labelled") / "folds.json").unlink()
    with pytest.raises(RunError, match="needed but not done: repair/labelled"):
        run_tasks(plan, ["train/plain/fold0"], runner, never, print)


def test_one_machine_waits_for_the_other(plan: Plan) -> None:
    """A task whose lock is held is not begun; when its record is there, it is not done again."""
    spec = plan.spec(plan.tasks["prepare/cells"])
    path = Path(spec["paths"]["lock"])
    path.parent.mkdir(parents=True)
    lock = try_lock(path)
    result: list[list[str] | None] = []
    waiting = threading.Thread(target=lambda: result.append(run_stage(spec, {}, never)))
    waiting.start()
    Path(spec["files"][0]).mkdir(parents=True)
    Path(spec["paths"]["json"]).write_text(json.dumps({"files": spec["files"]}))  # the other one ended
    assert result == []
    assert lock is not None
    lock.release()
    waiting.join()
    assert result == [spec["files"]]
    assert not Path(spec["paths"]["log"]).exists(), "no command was started"


def test_a_command_that_fails_says_what_it_said(plan: Plan) -> None:
    spec = {**plan.spec(plan.tasks["prepare/cells"]), "words": ["split", "none.json", "--output", "out/split"]}
    with pytest.raises(RunError, match=r"prepare/cells failed \(exit status 2\): error: .*none.json"):
        run_stage(spec, {}, never)
    assert not Path(spec["paths"]["json"]).exists()


def test_who_is_asked_to_stop_begins_nothing(plan: Plan) -> None:
    told: list[str] = []
    assert run_tasks(plan, TASKS, Processes(1, lambda: True), lambda: True, lambda *one: told.append(one[0])) == []
    assert told == []
    assert not plan.folder_of("prepare/cells").exists()


def workers_of_ray(folder: Path, task: str) -> list[int]:
    """The processes of Ray that are at a task in this working folder; their names are cut at 15 letters."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_at_it = (process / "comm").read_text().strip() == f"ray::{task}"[:15]
            if is_at_it and os.readlink(process / "cwd") == str(folder):
                found.append(int(process.name))
        except OSError:  # it ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="the worker is found in /proc")
def test_on_ray_a_stage_whose_worker_is_killed_in_the_middle_is_done_once(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while its command makes cells, which ends with it: Ray starts the stage again, and no other one."""
    ray = pytest.importorskip("ray", reason='needs Ray: pip install ".[ray]"')
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's 15, a busy machine never comes to them
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    log, killed, over = plan.path(plan.tasks["prepare/cells"], ".log"), [], threading.Event()

    def kill_a_worker() -> None:
        while not killed and not over.wait(0.01):
            if log.is_file():  # the command begins
                killed.extend(workers_of_ray(tmp_path, "prepare/cells"))
        for number in killed:
            os.kill(number, signal.SIGKILL)

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    told: list[tuple[str, str]] = []
    try:
        with stop_file_of(Path("out"), never) as (stop_file, stopped):
            runner = RayTasks(1, stop_file)
            assert run_tasks(plan, TASKS[:2], runner, stopped, lambda *one: told.append(one)) == []
            assert run_tasks(plan, TASKS[:2], runner, stopped, lambda *one: told.append(one)) == []
    finally:
        over.set()
        thread.join()
        ray.shutdown()
    assert killed
    assert [name for name, _ in told] == [*TASKS[:2], *TASKS[:2]]
    assert [what for _, what in told[2:]] == ["done before"] * 2
    said = [plan.path(plan.tasks[name], ".log").read_text() for name in TASKS[:2]]
    assert [text.count(word) for text, word in zip(said, ("train  ", "written: "), strict=True)] == [1, 1], "each once"
