"""What goes wrong around a training ends in one message with the remedy, exit status 2, and nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_train_command import ROOT, config_of, train_net
from tiny_segmenter import write_disks

from detseg.files.atomic import TEMPORARY_MARK
from detseg.runs.checkpoint import load_checkpoint

SHORT = ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "[]", "OUTPUT_DIR", "run"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A working folder with data and a configuration; one thread."""
    write_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_all(folder: Path) -> None:
    (folder / "disks.yaml").write_text(config_of(write_disks(folder / "data", count=4)))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command, which must end with one message; return that."""
    capsys.readouterr()
    assert train_net("--config", "disks.yaml", *words) == 2
    said = capsys.readouterr().err
    messages = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, said
    assert "Traceback" not in said
    return messages[0]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can be written beyond `size` bytes: for a program it is as if the disk were full."""
    resource = pytest.importorskip("resource", reason="this system has no limits on files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_leaves_the_last_checkpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_net("--config", "disks.yaml", *SHORT) == 0
    last = here / "run" / "checkpoints" / "last.pth"
    before, size = load_checkpoint(last, for_training=True), last.stat().st_size
    on = ["--resume", "OUTPUT_DIR", "run", "SOLVER.MAX_ITER"]
    with file_size_limit(size // 2):
        message = refusal(capsys, *on, "6")
    assert "last.pth cannot be written: " in message
    assert "make room" in message
    assert "--resume" in message
    after = load_checkpoint(last, for_training=True)
    assert after["iteration"] == before["iteration"] == 2
    for name, tensor in before["model"].items():
        assert torch.equal(tensor, after["model"][name]), name
    assert not list(last.parent.glob(f"*{TEMPORARY_MARK}*"))
    assert json.loads((here / "run" / "run.json").read_text())["status"] == "failed"

    with file_size_limit(200):  # not even the record can be written
        assert "run.json cannot be written" in (message := refusal(capsys, *on, "6")) or "config.yaml" in message
    assert json.loads((here / "run" / "run.json").read_text())["seed"] == 5
    assert train_net("--config", "disks.yaml", *on, "3") == 0
    assert load_checkpoint(last)["iteration"] == 3


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A working folder with data, a configuration and a folder `closed` that this user cannot write."""
    if sys.platform == "win32":
        pytest.skip("folders of Windows have no such permission")
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), Path.cwd()
        write_all(folder)
        (folder / "closed").mkdir()
        for path in (folder, folder / "closed"):
            path.chmod(0o555)
        user = os.geteuid()
        os.chdir(folder)
        if user == 0:  # whom no permission stops
            os.seteuid(65534)
        try:
            if os.access(folder / "closed", os.W_OK, effective_ids=True) or not os.access(ROOT, os.X_OK):
                pytest.skip("this user can write everywhere, or cannot read the checkout without being root")
            yield folder
        finally:
            os.seteuid(user)
            os.chdir(before)
            folder.chmod(0o755)


@pytest.mark.parametrize("words", [["OUTPUT_DIR=closed"], ["OUTPUT_DIR=closed/deeper"], []])
def test_a_folder_that_cannot_be_written(read_only: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    message = refusal(capsys, *words)
    assert "cannot be written: Permission denied" in message
    assert "name a folder that can be written (--output, or OUTPUT_DIR of a training)" in message
    assert (words[0].partition("=")[2] if words else "runs") in message
    assert sorted(path.name for path in read_only.iterdir()) == ["closed", "data", "disks.yaml"]


def test_a_second_process_in_the_same_run_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run").mkdir()
    program = "import pathlib, time; from detseg.files.lock import FolderLock\n"
    program += "lock = FolderLock(pathlib.Path('run')); print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        for words in ([], ["--resume"], ["--overwrite"]):
            message = refusal(capsys, *words, "OUTPUT_DIR", "run")
            assert "run is in use by another process" in message
            assert "name another OUTPUT_DIR" in message
        other.kill()
    assert [path.name for path in (here / "run").iterdir()] == [".lock"]
    assert train_net("--config", "disks.yaml", *SHORT) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_worker_process(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kill_a_worker() -> None:
        last = here / "run" / "checkpoints" / "last.pth"
        while not ended.wait(0.02):
            workers = [worker for worker in multiprocessing.active_children() if worker not in others]
            if workers and last.exists():
                os.kill(workers[0].pid, signal.SIGKILL)
                return

    others = multiprocessing.active_children()  # which another test may have left
    ended = threading.Event()
    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    try:
        message = refusal(
            capsys, *SHORT, "SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "1", "DATALOADER.NUM_WORKERS", "1"
        )
    finally:
        ended.set()
        killer.join()
    assert "a worker process of the data loader died" in message
    assert "DATALOADER.NUM_WORKERS" in message
    assert load_checkpoint(here / "run" / "checkpoints" / "last.pth", for_training=True)["iteration"] >= 1
    assert json.loads((here / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list children")
def test_workers_of_a_killed_training_end(here: Path) -> None:
    words = ["--config", "disks.yaml", *SHORT, "SOLVER.MAX_ITER", "100000", "DATALOADER.NUM_WORKERS", "2"]
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), *words]
    with open(here / "out", "w") as output, subprocess.Popen(command, stdout=output, stderr=output) as training:
        children = Path(f"/proc/{training.pid}/task/{training.pid}/children")
        wait_until(lambda: (here / "run" / "metrics.jsonl").exists() and len(children.read_text().split()) >= 2)
        workers = [Path("/proc") / child for child in children.read_text().split()]
        training.kill()
    wait_until(lambda: not any(is_running(worker) for worker in workers), seconds=10)


def is_running(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resume_that_is_refused_changes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_net("--config", "disks.yaml", *SHORT) == 0
    before = everything(here / "run")
    for words, said in (
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "has 1 classes"),
        (["MODEL.ROI_MASK_HEAD.CONV_DIM", "4"], "belongs to another model"),
        (["DATASETS.TRAIN", "[gone.json]"], "gone.json"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH"),
    ):
        assert said in refusal(capsys, "--resume", "OUTPUT_DIR", "run", *words)
        after = everything(here / "run")
        del after["log.txt"]
        assert after == {name: content for name, content in before.items() if name != "log.txt"}, words
    assert train_net("--resume", "OUTPUT_DIR", "run", "SOLVER.MAX_ITER", "3") == 0


def test_a_batch_norm_with_one_value_is_told_with_the_remedies(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[32, 32]"]
    words += ["INPUT.MIN_SIZE_TRAIN", "[0]", "MODEL.RESNETS.NORM", "BN", "SOLVER.IMS_PER_BATCH", "1"]
    message = refusal(capsys, *SHORT, *words)
    assert "one value per channel" in message
    assert "SOLVER.IMS_PER_BATCH" in message
    assert not (here / "run").exists()


def test_a_start_that_fails_leaves_no_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = here / "data" / "0.png"
    good = picture.read_bytes()
    picture.write_bytes(good[:60])  # found in the first batches
    for words in (["OUTPUT_DIR", "run"], ["OUTPUT_DIR", "runs/disks/001"]):
        assert "0.png" in refusal(capsys, *SHORT, "SOLVER.IMS_PER_BATCH", "4", *words)
        assert not Path(words[1]).exists()
    picture.write_bytes(good)
    assert train_net("--config", "disks.yaml", *SHORT) == 0
    before = everything(here / "run")
    assert "gone.json" in refusal(capsys, *SHORT, "--overwrite", "DATASETS.TRAIN", "[gone.json]")
    assert everything(here / "run") == before, "the run that was to be replaced is still there"


def test_data_without_objects(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "data" / "disks.json"
    data = json.loads(path.read_text())
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(data))
    message = refusal(capsys, *SHORT)
    assert "nothing to learn" in message
    assert not (here / "run").exists()


def test_a_loss_that_is_not_finite(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SHORT, "SOLVER.MAX_ITER", "50", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.BASE_LR", "1e20"]
    message = refusal(capsys, *words)
    assert "is not finite in iteration" in message
    assert ".png" in message
    assert "lower SOLVER.BASE_LR" in message
    (dump,) = (here / "run" / "non_finite").iterdir()
    assert str(dump.relative_to(here)) in message
    last = load_checkpoint(here / "run" / "checkpoints" / "last.pth", for_training=True)
    assert last["iteration"] == int(dump.name.removeprefix("iteration_")) - 1


def test_a_file_where_the_run_folder_should_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "run").write_text("notes")
    assert "run is a file; name a folder" in refusal(capsys, "OUTPUT_DIR", "run")
    assert "runs" in refusal(capsys, "OUTPUT_DIR", "run/deeper/runs")
    assert (here / "run").read_text() == "notes"
