"""What a person reads: bars, messages and errors, in a terminal and in a log file."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.coco.predictions_file import write_predictions
from detseg.structures import Predictions

# A command with a bar that is open when something is said, or goes wrong.
COMMAND = """
import argparse, logging, sys, time, warnings
from detseg.cli.main import leave, run_parsed
from detseg.errors import DataError
from detseg.progress import ProgressBar

class Module:
    @staticmethod
    def run(arguments):
        for number in ProgressBar(range(9), desc="working"):
            time.sleep(0.02)
            if number == 2:
                logging.getLogger("detseg.test").warning("a WARNING of detseg")
                warnings.warn("a WARNING of Python")
            if number == 6:
                if sys.argv[1] == "wait":
                    print("waiting", flush=True)
                    time.sleep(60)
                raise {"data": DataError("bad data"), "os": OSError(28, "No space left", "f.png")}[sys.argv[1]]

leave(run_parsed(Module, argparse.Namespace(debug=False)))
"""


def in_terminal(words: list[str], cwd: Path, when: str = "", act: Callable[[int], None] | None = None) -> str:
    """Return what a terminal of 100 columns got; `act` is called with the process id once it has shown `when`."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        words,
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # shells start what runs in the background with Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    text, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                text += os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
        if act is not None and when.encode() in text:
            act(process.pid)
            act = None
    os.close(ours)
    process.wait(timeout=10)
    return text.decode()


def shown(text: str) -> list[str]:
    """The lines that a terminal shows in the end: what follows a carriage return is written over what was there."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        screen = ""
        for part in line.split("\r"):
            screen = part + screen[len(part) :]
        lines.append(screen.rstrip())
    return lines


@pytest.mark.parametrize(("kind", "message"), [("data", "error: bad data"), ("os", "error: f.png: cannot be used")])
def test_an_error_stands_below_the_bar_and_messages_above_it(kind: str, message: str, tmp_path: Path):
    lines = shown(in_terminal([sys.executable, "-c", COMMAND, kind], tmp_path))
    assert any(line.startswith(message) for line in lines), lines
    assert "a WARNING of detseg" in lines
    assert any(re.match(r"\S+:\d+: UserWarning: a WARNING of Python", line) for line in lines), lines
    bars = [number for number, line in enumerate(lines) if "working:" in line]
    assert len(bars) == 1, f"one bar is left, whole: {lines}"
    assert lines[bars[0]].startswith("working:"), lines
    assert lines.index("a WARNING of detseg") < bars[0]
    assert lines[bars[0] + 1].startswith(message)


def test_ctrl_c_ends_below_the_bar(tmp_path: Path):
    words = [sys.executable, "-c", COMMAND, "wait"]
    lines = shown(in_terminal(words, tmp_path, "waiting", lambda pid: os.kill(pid, signal.SIGINT)))
    assert "interrupted" in lines


def test_a_log_file_holds_no_bar(tmp_path: Path):
    words = [sys.executable, "-c", COMMAND, "data"]
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False).stderr
    lines = said.splitlines()
    assert lines[0] == "a WARNING of detseg"
    assert lines[-1] == "error: bad data"
    assert not re.search(r"working|\r|%\|", said), said


@pytest.mark.parametrize(
    ("work", "line"),
    [
        ("range(50)", r"working: \d+ of 50, \d\d:\d\d gone, \d\d:\d\d left"),
        ("iter(range(50))", r"working: \d+, \d\d:\d\d gone"),  # nobody knows how many there are
    ],
)
def test_a_log_file_gets_a_line_a_minute(work: str, line: str, tmp_path: Path):
    code = (
        "import time, detseg.progress as progress; progress.LINE_PERIOD = 0.2\n"
        f"for _ in progress.ProgressBar({work}, desc='working', unit='image'): time.sleep(0.02)"
    )
    words = [sys.executable, "-c", code]
    lines = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False).stderr.splitlines()
    assert 2 <= len(lines) <= 5, lines
    assert all(re.fullmatch(line, one) for one in lines), lines


def test_a_broken_image_in_the_middle_of_a_real_command(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    found = [Predictions.empty(number, f"{name}.png", 40, 40) for number, name in enumerate("ab", start=1)]
    write_predictions(tmp_path / "p.json", found, ["cell"])
    words = [sys.executable, "-m", "detseg", "visualize", "--images", "images/a.png", "images/b.png"]
    lines = shown(in_terminal([*words, "--predictions", "p.json", "--output", "drawn"], tmp_path))
    (error,) = [number for number, line in enumerate(lines) if "error:" in line]
    assert lines[error].startswith("error: "), lines
    assert lines[error - 1].startswith("drawing:"), lines
