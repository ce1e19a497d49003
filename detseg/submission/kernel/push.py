"""The commands that upload a kernel to Kaggle and submit it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from detseg.errors import DataError, RunError
from detseg.files.atomic import json_object
from detseg.submission.kernel.bundle import DATA, MODEL, NOTEBOOK

_TOKEN = "KAGGLE_API_TOKEN"
_TOKEN_FILES = ("access_token", "kaggle.json")
_PATIENCE = 600  # seconds to wait for a new data set to become ready
_PAUSE = 10.0  # seconds between polls


def push_commands(folder: Path, message: str | None = None) -> list[list[str]]:
    """Return the commands that upload data and notebook; message: of a new version of data that exist on Kaggle.

    Raises DataError for a folder that is no kernel.
    """
    metadata = read_metadata(folder)
    data = str(folder / DATA)
    if metadata["dataset_sources"]:
        new = ["kaggle", "datasets", "create", "-p", data]
        sent = [new if message is None else ["kaggle", "datasets", "version", "-p", data, "-m", message]]
        sent.append(["kaggle", "datasets", "status", metadata["dataset_sources"][0]])
    elif message is None:
        sent = [["kaggle", "models", "create", "-p", str(folder / MODEL)]]
        sent.append(["kaggle", "models", "instances", "create", "-p", data])
    else:
        instance = metadata["model_sources"][0].rpartition("/")[0]
        sent = [["kaggle", "models", "instances", "versions", "create", instance, "-p", data, "-n", message]]
    return [*sent, ["kaggle", "kernels", "push", "-p", str(folder / NOTEBOOK)]]


def submit_command(folder: Path, version: str = "VERSION", message: str = "detseg") -> list[str]:
    """Return the command that submits a version of the notebook that has run. Raises DataError like `push_commands`."""
    metadata = read_metadata(folder)
    words = ["kaggle", "competitions", "submit", metadata["competition_sources"][0], "-k", metadata["id"]]
    return [*words, "-v", version, "-f", "submission.csv", "-m", message]


def read_metadata(folder: Path) -> dict:
    """Read kernel-metadata.json of a kernel, as written by `build_kernel`."""
    path = folder / NOTEBOOK / "kernel-metadata.json"
    try:
        metadata = {"dataset_sources": [], "model_sources": [], **json_object(path)}
        weights = metadata["dataset_sources"] or metadata["model_sources"]
        if not (weights and metadata.get("competition_sources") and metadata.get("id")):
            raise ValueError("no id, no competition or no weights")
        return metadata
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a folder written by build_kernel") from None


def run_commands(commands: list[list[str]]) -> None:
    """Run commands in order, and wait until a new data set is ready.

    Raises RunError if the program `kaggle` or its token is missing, or a command fails.
    """
    if shutil.which("kaggle") is None:
        raise RunError("the command kaggle is not installed: pip install 'detseg[kaggle]'")
    home = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    if not os.environ.get(_TOKEN) and not any((home / name).is_file() for name in _TOKEN_FILES):
        raise RunError(f"Kaggle needs a token: set {_TOKEN}, or write it to {home / _TOKEN_FILES[0]}")
    for words in commands:
        until = time.monotonic() + _PATIENCE
        while True:
            print("$", " ".join(words), flush=True)
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            print(done.stdout, end="", flush=True)
            if words[1:3] != ["datasets", "status"] or "ready" in done.stdout:
                break
            if time.monotonic() > until:
                raise RunError(f"{words[-1]} is not ready yet; check it on Kaggle, then push the notebook")
            time.sleep(_PAUSE)
        if done.returncode:
            raise RunError(
                f"{' '.join(words)} ended with status {done.returncode}; see above. The commands after it were not run"
            )
