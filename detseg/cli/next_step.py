"""The last lines of a command's output: the commands that come next, ready to be copied into a shell."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from detseg.files.names import json_stem

# Commands whose scripts are in datasets/ instead of tools/.
_OF_DATASETS = ("prepare", "download", "make_synthetic")

Word = str | os.PathLike[str]


def command_line(command: str, *words: Word) -> str:
    """Return a command line, quoted for the shell.

    It calls a script if this process was started as one, because a checkout need not be installed.
    """
    return shlex.join([*program(command), *map(os.fspath, words)])


def program(command: str) -> list[str]:
    """Return the beginning of the command line of a command, in the form in which this process was started."""
    started = sys.argv[0]
    folder, name = os.path.split(started)
    if name == "__main__.py" and os.path.basename(folder) == "detseg":
        return ["python", "-m", "detseg", command]
    if not name.endswith(".py") or os.path.basename(os.path.abspath(folder)) not in ("tools", "datasets"):
        return ["detseg", command]
    scripts = "datasets" if command in _OF_DATASETS else "tools"
    return ["python", os.path.normpath(os.path.join(folder, "..", scripts, f"{command}.py"))]


def inspection(folder: Path, *data: Word, fold: bool = False) -> tuple[str, str]:
    """Return the commands that inspect data, and that train with the suggestions. fold: in all folds of `data`."""
    suggested = beside(folder / "suggested", ".yaml")
    words = ["--data", *data, "--output", beside(folder / "inspection", ""), "--suggest", suggested]
    folds = ["--fold", "all", "DATASETS.TRAIN", *data] if fold else []
    return command_line("inspect_data", *words), command_line("train_net", "--config", suggested, *folds)


_silent = ContextVar("silent", default=False)


@contextmanager
def as_part() -> Iterator[None]:
    """Print no next commands during the context, because another command runs this one and continues."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def print_next(*commands: str, then: Iterable[str] = ()) -> None:
    """Print the alternatives for the next command, and the commands after it."""
    if _silent.get():
        return
    for number, command in enumerate(commands):
        print(f"{'or:' if number else 'next:':6}{command}")
    for command in then:
        print(f"{'then:':6}{command}")


def beside(path: Word, ending: str) -> str:
    """Return an unused name beside a file, from its name without .json or .json.gz, for output of the next command.

    ending: "_pictures", "_tuned.yaml", ...
    """
    path = Path(path)
    stem = json_stem(path.name)
    middle, dot, suffix = ending.partition(".")
    number, name = 1, f"{stem}{ending}"
    while path.with_name(name).exists():
        number += 1
        name = f"{stem}{middle}{number}{dot}{suffix}"
    return str(path.with_name(name))
