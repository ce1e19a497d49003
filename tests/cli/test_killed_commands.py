"""A command killed where it gives a file its name leaves whole files or none, and then works: benchmarks/kills.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import write_predictions
from detseg.files.atomic import TEMPORARY_MARK
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no SIGKILL")

# Dies before the file of that number gets its name, or as soon as it has it.
PROGRAM = """
import os, signal, sys
from detseg.cli.main import main
number, when, *words = sys.argv[1:]
left, replace = [int(number)], os.replace
def replace_or_die(*names):
    left[0] -= 1
    if left[0] or when == "after":
        replace(*names)
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace_or_die
sys.exit(main(words))
"""

FOUND = ["--predictions", "found.json"]
QUICK = ["--only", "min_area"]
COMMANDS = {
    "split": ["split", "data/train.json", "--folds", "2", "--output", "out/folds", "--coco-files"],
    "tune": ["tune_thresholds", *FOUND, "--ground-truth", "data/train.json", *QUICK, "--output", "out/t.yaml"],
    "fuse": ["fuse", "--inputs", "found.json", "found.json", "--output", "out/a.json.gz"],
    "export": ["export", "--input", "found.json", "--format", "cellpose", "--output", "out/masks"],
    "prepare": ["prepare", "coco", "--annotations", "data/train.json", "--folds", "2", "--output", "out/set"],
    "repair": ["repair", "data/train.json", "out/a.json", "--changes", "out/a.csv"],
    "submission": ["make_submission", *FOUND, "--format", "dsb2018", "--output", "out/a.csv"],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data/train.json and found.json, which finds all of it."""
    monkeypatch.chdir(tmp_path)
    sizes = ["--height", "48", "--width", "48", "--cells", "3", "5"]
    assert main(["make_synthetic", "--output", "data", "--train", "4", "--val", "1", *sizes]) == 0
    dataset = CocoDataset.load("data/train.json")
    found = []
    for index, image in enumerate(dataset.images):
        truth = dataset.annotations(index)
        boxes, scores = rle_codec.bounding_boxes(truth.rles), np.linspace(0.9, 0.5, len(truth.rles))
        shown = image.image_id, image.file_name, image.height, image.width
        found.append(Predictions(*shown, boxes, scores, truth.classes, list(truth.rles)))
    write_predictions(Path("found.json"), found, dataset.class_names)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_temporary(name: str) -> bool:
    return TEMPORARY_MARK in name


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_killed_command_leaves(here: Path, command: str) -> None:
    words = COMMANDS[command]
    assert main(words) == 0
    whole = contents(here / "out")
    assert whole
    assert not any(map(is_temporary, whole))
    shutil.rmtree(here / "out")
    for number, when in ((1, "after"), (len(whole), "before")):  # one after the other, over what the first one left
        again = [*words, "--overwrite"] if (here / "out").exists() else words
        child = subprocess.run([sys.executable, "-c", PROGRAM, str(number), when, *again], check=False)
        assert child.returncode == -signal.SIGKILL
        left = {name: data for name, data in contents(here / "out").items() if not is_temporary(name)}
        assert left.items() <= whole.items(), "a file under its final name is not whole"
    done = subprocess.run([sys.executable, "-m", "detseg", *words, "--overwrite"], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert contents(here / "out") == whole
