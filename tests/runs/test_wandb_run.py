"""W&B's runs where W&B, its server or its login fail. Nothing here reaches a network."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from detseg.errors import RunError
from detseg.runs import wandb_run
from detseg.runs.wandb_file import read_history, read_records, run_files
from detseg.runs.wandb_run import Identity, WandbRun, chosen_mode, has_login

pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT", 2.0)


class Failing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(500)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(params=["refuses", "hangs", "fails"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of W&B with a key for it: it takes no connection, takes it and says nothing, or answers with errors."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        if request.param == "hangs":
            listening.listen(50)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        if request.param != "fails":
            yield
            return
    with ThreadingHTTPServer(("127.0.0.1", port), Failing) as failing:
        threading.Thread(target=failing.serve_forever, daemon=True).start()
        yield
        failing.shutdown()


def rows_of(folder: Path) -> list[tuple[int, float]]:
    return [(row["_step"], row["loss"]) for path in run_files(folder, "abcd1234") for row in read_history(path)]


def log_three(folder: Path, mode: str = "auto") -> WandbRun:
    run = WandbRun(Identity("abcd1234", "cells", folder), mode=mode)
    for step in (1, 2, 3):
        run.do(lambda logged, step=step: logged.log({"loss": step / 2}, step=step))
    return run


def test_a_server_that_does_not_answer_costs_one_warning_and_nothing_that_was_logged(
    server: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = time.monotonic()
    run = log_three(tmp_path, "online")
    assert time.monotonic() - before < 1.0, "the owner waited for the server"
    assert run.finish()
    assert rows_of(tmp_path) == [(1, 0.5), (2, 1.0), (3, 1.5)]
    warnings = [record.message for record in caplog.records if record.name == "detseg.runs.wandb_run"]
    warnings = [message for message in warnings if not message.startswith("W&B: offline")]
    assert len(warnings) == 1
    assert "W&B cannot be reached; the run is offline" in warnings[0]
    assert run.to_sync == str(run.path)
    assert run.path.name.startswith("offline-run-")


def test_online_without_a_login_asks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = log_three(tmp_path, "online")
    assert run.finish()
    assert "W&B has no login here" in caplog.text
    assert rows_of(tmp_path) == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_what_fails_is_left_out_and_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = WandbRun(Identity("abcd1234", "cells", tmp_path))
    run.do(lambda logged: logged.log("no row"))
    run.do(lambda logged: 1 / 0)
    run.do(lambda logged: logged.log({"loss": 4.0}, step=4))
    assert run.finish()
    assert rows_of(tmp_path) == [(4, 4.0)]
    assert sum("W&B did not accept some data" in record.message for record in caplog.records) == 1


def test_the_end_of_wandbs_own_process_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is killed as the system does where memory is short."""
    run = WandbRun(Identity("abcd1234", "cells", tmp_path))
    ready = threading.Event()

    def kill(logged: object) -> None:
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        for child in [int(word) for path in children for word in path.read_text().split()]:
            if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(child, signal.SIGKILL)
        ready.set()

    run.do(kill)
    assert ready.wait(60)
    run.do(lambda logged: logged.log({"loss": 1.0}, step=1))
    run.finish()
    again = log_three(tmp_path / "again")
    assert again.finish()
    assert "W&B did not accept some data" in caplog.text


def test_a_thread_that_hangs_is_left_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "_MOST_WAITING", 3)
    monkeypatch.setattr(wandb_run, "END_TIMEOUT", 0.1)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "0.1")
    goes_on = threading.Event()
    run = WandbRun(Identity("abcd1234", "cells", tmp_path))
    begun = threading.Event()
    run.do(lambda logged: (begun.set(), goes_on.wait(60)))
    assert begun.wait(60)
    for _ in range(5):
        run.do(lambda logged: None)
    assert not run.finish()
    assert caplog.text.count("W&B does not respond") == 1
    goes_on.set()
    monkeypatch.setattr(wandb_run, "END_TIMEOUT", 60.0)
    assert run.finish(), "it ends when W&B goes on"


def test_environment_and_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert chosen_mode("auto") == "auto"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert chosen_mode("online") == "offline"
    assert not has_login("https://api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password " + "b" * 40 + "\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert has_login("https://api.wandb.ai")
    assert not has_login("https://wandb.example.org")


def test_a_file_of_something_else_is_refused_and_one_that_was_cut_off_is_read(tmp_path: Path) -> None:
    run = log_three(tmp_path)
    assert run.finish()
    (path,) = run_files(tmp_path, "abcd1234")
    data = path.read_bytes()
    whole = len(list(read_records(path)))
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        assert len(list(read_records(path))) <= whole
    path.write_bytes(b"something else")
    with pytest.raises(RunError, match="not the file of a W&B run"):
        list(read_records(path))
