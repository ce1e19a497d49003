from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.errors import RunError, WeightsError
from detseg.files.atomic import remove_temporaries, write_atomically, written_whole
from detseg.runs.checkpoint import keep_numbered, load_checkpoint, save_checkpoint


def test_round_trip_of_tensors_and_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pth"
    save_checkpoint(path, {"model": {"w": torch.arange(3.0)}, "config": {"A": (1, 2.5, None, "x")}, "n": np.int64(4)})
    state = load_checkpoint(path)
    assert torch.equal(state["model"]["w"], torch.arange(3.0))
    assert state["config"] == {"A": [1, 2.5, None, "x"]}
    assert type(state["n"]) is int
    assert [file.name for file in path.parent.iterdir()] == ["a.pth"]
    assert torch.load(path, weights_only=True)["format"] == 1


def test_what_could_not_be_read_back_safely_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        save_checkpoint(tmp_path / "a.pth", {"model": {}, "x": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"new, but not all of it")
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(RunError, match="a cannot be written: disk full; make room"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    program = "import os, pathlib, signal, sys; from detseg.files.atomic import written_whole\n"
    program += "with written_whole(pathlib.Path(sys.argv[1]), 'it') as path:\n"
    program += "    path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "last.pth")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    program = program.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "next.pth")], check=False)
    assert [file.name for file in tmp_path.iterdir()] == ["next.pth"], "whoever writes there next removes it"
    (tmp_path / "next.pth").unlink()
    (tmp_path / ".half.tmp-000000-0").write_text("half")
    os.utime(tmp_path / ".half.tmp-000000-0", (1, 1))
    (tmp_path / "last.pth").write_bytes(b"whole")
    with written_whole(tmp_path / "other", "it") as own:
        own.write_text("at work")
        remove_temporaries(tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {"last.pth", own.name}
    foreign = tmp_path / ".last.pth.tmp-000000-7"
    foreign.write_text("of another machine")
    remove_temporaries(tmp_path)
    assert foreign.exists(), "it may still be written"
    os.utime(foreign, (1, 1))
    remove_temporaries(tmp_path)
    assert not foreign.exists()
    (tmp_path / "mine.tmp-old").touch()
    os.utime(tmp_path / "mine.tmp-old", (1, 1))
    remove_temporaries(tmp_path)
    assert (tmp_path / "mine.tmp-old").exists(), "another program's"
    foreign.write_text("in a folder that one process has for itself")
    remove_temporaries(tmp_path, all_of_them=True)
    assert {file.name for file in tmp_path.iterdir()} == {"last.pth", "other"}


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("made_by_a_checkpoint",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth.*mkdir.*was not run"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "made_by_a_checkpoint").exists()


@pytest.mark.parametrize("length", [0, 10, 500])
def test_a_cut_off_checkpoint_is_refused_by_name(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"model": {"w": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match=r"a\.pth"):
        load_checkpoint(path)


def test_missing_files_and_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none.pth")
    save_checkpoint(tmp_path / "a.pth", {"model": {}})
    with pytest.raises(WeightsError, match="iteration, optimizer"):
        load_checkpoint(tmp_path / "a.pth", for_training=True)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="model"):
        load_checkpoint(tmp_path / "list.pth")


def test_numbered_copies_are_the_newest_ones_and_stay_as_they_were(tmp_path: Path) -> None:
    last = tmp_path / "last.pth"
    for iteration in (10, 20, 30):
        save_checkpoint(last, {"model": {}, "iteration": iteration})
        keep_numbered(last, iteration, keep=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "iteration_0000020.pth",
        "iteration_0000030.pth",
        "last.pth",
    ]
    assert load_checkpoint(tmp_path / "iteration_0000020.pth")["iteration"] == 20
