from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from detseg.config import Config, get_default_config, load_config
from detseg.errors import RunError
from detseg.runs.run_folder import RunFolder, find_run, next_number, open_run, read_record


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    return tmp_path


def config_file(here: Path) -> Config:
    path = here / "small.yaml"
    path.write_text("SEED: 1\n")
    return load_config(path)


def named(path: Path) -> Config:
    cfg = get_default_config()
    cfg.OUTPUT_DIR = str(path)
    return cfg


def test_default_folders_are_numbered(here: Path) -> None:
    cfg = config_file(here)
    for number in ("001", "002"):
        with open_run(cfg) as run:
            run.record.write_text("{}")
            assert run.path == Path("runs/small") / number
            assert run.new


def test_resume_takes_the_last_folder_that_holds_a_run(here: Path) -> None:
    cfg = config_file(here)
    for _ in range(2):
        with open_run(cfg) as run:
            run.record.write_text("{}")
    next_number(Path("runs/small"))  # an empty one: killed before anything was written
    assert find_run(cfg) == Path("runs/small/002")
    with open_run(cfg, resume=True) as run:
        assert run.path == Path("runs/small/002")
        assert not run.new


def test_resume_of_nothing_starts_and_says_so(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(config_file(here), resume=True) as run:
        assert run.path == Path("runs/small/001")
        assert run.new
    assert "a new one starts" in caplog.text


def test_a_named_folder_with_another_run_is_refused(here: Path) -> None:
    with open_run(named(here / "a")) as run:
        run.record.write_text("{}")
    with pytest.raises(RunError, match="--resume continues it, --overwrite removes it"):
        open_run(named(here / "a"))
    with pytest.raises(RunError, match="give one of them"):
        open_run(named(here / "a"), resume=True, overwrite=True)


@pytest.mark.parametrize("text", ["", "[1]", "null", "[" * 100_000])
def test_a_record_that_is_damaged_is_told(tmp_path: Path, text: str) -> None:
    assert read_record(tmp_path) is None
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        read_record(tmp_path)


def write_run(run: RunFolder, text: str) -> None:
    run.record.write_text(text)
    run.checkpoints.mkdir()
    run.last.write_text(text)
    (run.path / "log.txt").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(here: Path) -> None:
    with open_run(named(here / "a")) as run:
        write_run(run, "{}")
        (run.path / "notes.txt").write_text("mine")
    with open_run(named(here / "a"), overwrite=True) as run:
        assert run.new
        assert not run.record.exists()
        assert not run.checkpoints.exists()
        run.replace()
        assert names(run.path) == [".lock", "notes.txt"]


def test_overwriting_with_a_run_that_does_not_begin_leaves_the_former_one(here: Path) -> None:
    with open_run(named(here / "a")) as run:
        write_run(run, "old")
    before = names(run.path)
    with open_run(named(here / "a"), overwrite=True) as run:
        (run.path / "log.txt").write_text("a start that fails")
    assert names(run.path) == before
    assert run.record.read_text() == run.last.read_text() == "old"
    killed = open_run(named(here / "a"), overwrite=True)
    killed._lock.release()
    with pytest.raises(RunError, match="holds another run"):
        open_run(named(here / "a"))
    with open_run(named(here / "a"), resume=True) as run:
        assert not run.new
        assert run.last.read_text() == "old"
    assert names(run.path) == before


def test_a_file_in_place_of_the_folder_is_refused(here: Path) -> None:
    (here / "a").write_text("")
    with pytest.raises(RunError, match="is a file"):
        open_run(named(here / "a"))


def test_two_runs_in_one_folder_are_refused_within_a_process(here: Path) -> None:
    with open_run(named(here / "a")), pytest.raises(RunError, match="in use"):
        open_run(named(here / "a"))
    open_run(named(here / "a")).close()


def test_two_processes_are_kept_apart_and_a_killed_one_frees_the_folder(here: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from detseg.runs.run_folder import RunFolder\n"
        "run = RunFolder(Path('a'), new=True); print('locked', flush=True); time.sleep(60)"
    )
    (here / "a").mkdir()
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=f"process {other.pid}" if sys.platform != "win32" else "in use"):
            open_run(named(here / "a"))
    finally:
        other.kill()
        other.wait()
    open_run(named(here / "a")).close()


def test_log_messages_go_to_the_file_too(here: Path) -> None:
    with open_run(named(here / "a")) as run:
        with run.logging():
            logging.getLogger("detseg.somewhere").info("hello")
        logging.getLogger("detseg.somewhere").info("afterwards")
        text = (run.path / "log.txt").read_text()
    assert "INFO hello" in text
    assert "afterwards" not in text


def test_a_sweep_agent_names_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    with open_run(config_file(here)) as run:
        assert run.path == Path("runs/small/abc123")
