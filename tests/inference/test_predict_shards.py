"""`predict` in shards: interrupted, killed, by processes and on Ray, it ends with the bytes of one process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detseg.cli.main import main
from detseg.curation.synthetic import make_image
from detseg.runs.ray_cluster import cores_of_workers

COUNT = 24


def predict(*words) -> int:
    return main(["predict", "--device", "cpu", *map(str, words)])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for index in range(COUNT):
        cv2.imwrite(str(folder / f"{index:02d}.png"), np.ascontiguousarray(make_image((7, index), 48, 48, 3)[0]))
    (folder / "05.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def whole(small_run, images, tmp_path_factory) -> bytes:
    """What one process writes that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole") / "p.json"
    assert predict("--run", small_run, "--images", images, "--output", output) == 1
    return output.read_bytes()


def written_shards(monkeypatch: pytest.MonkeyPatch, stop_after: int = COUNT + 1) -> list[str]:
    """The shards that get their names from now on; Ctrl-C after some of them."""
    names, replace = [], os.replace

    def note(source, target):
        replace(source, target)
        if Path(target).name.startswith("shard") and str(target).endswith(".json"):
            names.append(Path(target).name)
            if len(names) == stop_after:
                raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", note)
    return names


def test_an_interrupted_prediction_goes_on_with_what_is_missing(
    small_run, images, whole, tmp_path, monkeypatch, caplog
):
    words = ["--run", small_run, "--images", images, "--output", tmp_path / "p.json"]
    with monkeypatch.context() as patch:
        first = written_shards(patch, stop_after=9)
        assert predict(*words) == 130
    assert f"kept in {tmp_path / 'p.json.parts'}: run the same command again to continue" in caplog.text
    assert not (tmp_path / "p.json").exists()
    second = written_shards(monkeypatch)
    assert predict(*words) == 1
    assert len(first) == 9
    assert len({*first, *second}) == len(first) + len(second) == COUNT, "none is made twice"
    assert (tmp_path / "p.json").read_bytes() == whole
    assert not list(tmp_path.glob("*.parts"))


def test_what_depends_on_changed_images_or_settings_is_made_again(small_run, images, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("00.png", "01.png", "02.png"):
        (folder / name).write_bytes((images / name).read_bytes())
    words = ["--run", small_run, "--images", folder]
    with monkeypatch.context() as patch:
        written_shards(patch, stop_after=2)
        assert predict(*words, "--output", tmp_path / "p.json") == 130
    (folder / "00.png").write_bytes((images / "09.png").read_bytes())
    with monkeypatch.context() as patch:
        again = written_shards(patch)
        assert predict(*words, "--output", tmp_path / "p.json", "--no-summary") == 0
    assert [name[:11] for name in again] == ["shard000000", "shard000002"]
    with monkeypatch.context() as patch:
        written_shards(patch, stop_after=2)
        assert predict(*words, "--output", tmp_path / "q.json") == 130
    again = written_shards(monkeypatch)
    assert predict(*words, "--output", tmp_path / "q.json", "--score-threshold", "0.5") == 0
    assert len(again) == 3, "other settings, other predictions"


def kill_when_a_shard_is_there(folder: Path, find: Callable[[], list[int]]) -> threading.Thread:
    """Kill one of the processes that `find` finds, as soon as the folder has a shard."""

    def kill() -> None:
        found: list[int] = []
        for _ in range(60_000):
            found = found or find()
            if found and list(folder.glob("shard*.json")):
                os.kill(found[0], signal.SIGKILL)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no SIGKILL")
def test_a_killed_process_is_replaced_and_its_shard_made_again(small_run, images, whole, tmp_path, caplog):
    output = tmp_path / "p.json"
    killer = kill_when_a_shard_is_there(
        tmp_path / "p.json.parts", lambda: [child.pid for child in multiprocessing.active_children()]
    )
    assert predict("--run", small_run, "--images", images, "--output", output, "--processes", 2) == 1
    killer.join()
    assert "was killed by signal 9" in caplog.text
    assert output.read_bytes() == whole


def workers_of_ray(folder: Path) -> list[int]:
    """The processes that predict on Ray with this working folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text().startswith("ray::_predict") and os.readlink(process / "cwd") == str(
                folder
            ):
                found.append(int(process.name))
        except OSError:  # it ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="processes are found in /proc")
def test_workers_of_ray_write_the_bytes_of_one_process(small_run, images, whole, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at Ray's 15, a busy machine never comes to them
    monkeypatch.chdir(tmp_path)
    found: list[int] = []

    def find() -> list[int]:
        found[:] = workers_of_ray(tmp_path)
        return found

    killer = kill_when_a_shard_is_there(tmp_path / "p.json.parts", find)
    words = ["--run", small_run, "--images", images, "--output", "p.json"]
    assert predict(*words, "--ray", "local", "--processes", 2) == 1
    killer.join()
    assert found, "one was killed"
    assert Path("p.json").read_bytes() == whole
    assert predict(*words, "--ray", "local", "--processes", 10_000, "--overwrite") == 2


@pytest.mark.parametrize(
    ("cores", "workers", "each"), [([8], 2, 4), ([3, 3], 2, 3), ([3, 3], 3, 1), ([3, 3], 7, 0), ([], 1, 0), ([2], 2, 1)]
)
def test_workers_of_ray_fit_on_their_machines(cores, workers, each):
    assert cores_of_workers(cores, workers) == each
