"""Commands that write, killed (SIGKILL) at random moments: nothing partial stays, and the same command then works.

    python benchmarks/kills.py [--kills 66] [--commands predict train ...] [--seed 0] [--folder FOLDER]

Every kill takes a command, starts it, and kills its process group or, every second time, only the process itself: after
a random part of the time that it takes, or as soon as a random one of its files appears. Then:

- every file under a final name is byte for byte that of an undisturbed run; of a training, it is readable;
- no process of it and no shared memory is there after 10 seconds;
- the command, given again, ends well (with --overwrite where a file is there already) with the same files;
- no temporary file is left then.

The commands run in processes forked from this one, which has imported everything: Linux. What other programs put into
shared memory meanwhile counts as left behind.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

import torch
import yaml

from detseg.cli.main import main as detseg
from detseg.errors import DetsegError
from detseg.files.atomic import TEMPORARY_MARK
from detseg.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "[0]", "INPUT.MIN_SIZE_TEST", "0", "DATALOADER.NUM_WORKERS", "2", "MODEL.DEVICE", "cpu"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3"),
]
DATA = [
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.WEIGHTS", ""),
    *("DATASETS.TRAIN", "[data/train.json]", "DATASETS.TEST", "[data/val.json]"),
]
TRAIN = ["train_net", "--config", str(ROOT / "configs" / "_base_" / "mask_rcnn_small_fpn.yaml"), *SMALL, *DATA]
FOLDS = ["--fold", "all", "DATASETS.TRAIN", "[folds/folds.json]", "DATASETS.TEST", "[folds/folds.json]"]
PREDICT = ["predict", "--run", "run", "--images", "data/val", "--score-threshold", "0"]

FOUND, RUN = ["--predictions", "found.json"], ["OUTPUT_DIR", "out/run"]

# In a working folder with `data`, `run`, `cv`, a cross-validation, and `found.json`; what they write is `out` or in it.
COMMANDS: dict[str, list[str]] = {
    "predict": [*PREDICT, "--output", "out/a.json.gz", "--label-images", "out/labels", "--soft-masks"],
    "tiles": [*PREDICT, "--output", "out/a.json", "--tile", "32"],
    "processes": [*PREDICT, "--output", "out/a.json", "--tile", "48", "--processes", "2"],
    "folds": ["predict", "--folds", "cv", "--tta", "flips", "--soft-masks", "--output", "out/oof.json.gz"],
    "split": ["split", "data/train.json", "--folds", "3", "--output", "out/folds", "--coco-files"],
    "tune": [
        "tune_thresholds",
        "--predictions",
        "found.json",
        "--ground-truth",
        "data/val.json",
        "--output",
        "out/t.yaml",
    ],
    "fuse": ["fuse", "--inputs", "found.json", "found.json", "--output", "out/a.json.gz"],
    "export": ["export", "--input", "found.json", "--format", "cellpose", "--output", "out/masks"],
    "prepare": [
        "prepare",
        "coco",
        "--annotations",
        "data/train.json",
        "--folds",
        "2",
        "--repair",
        "--output",
        "out/set",
    ],
    "repair": ["repair", "data/train.json", "out/a.json", "--changes", "out/a.csv"],
    "submission": ["make_submission", *FOUND, "--format", "dsb2018", "--output", "out/a.csv"],
    "train": [*TRAIN, "OUTPUT_DIR", "out/run", "--resume"],
    "fit": ["fit", "--images", "data", "--labels", "data/train.json", "--output", "out/fit", *SMALL],
    "cache": [
        *TRAIN,
        "OUTPUT_DIR",
        "out/run",
        "--resume",
        "DATALOADER.CACHE",
        "disk",
        "DATALOADER.CACHE_FOLDER",
        "out/cache",
    ],
}
TRAININGS = ("train", "cache", "fit")
SIZES = ["--height", "64", "--width", "64", "--cells", "4", "8"]


# What a training may have written in part: lines of its log, of which the last may be cut off.
LOGS = (".jsonl", ".log", ".lock")


def start(words: list[str]) -> int:
    """Run a command in a session of its own, its output in the file `log`; return its process."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        status = detseg(words)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(words: list[str]) -> None:
    _, status = os.waitpid(start(words), 0)
    if status:
        raise AssertionError(f"exit status {os.waitstatus_to_exitcode(status)}: {Path('log').read_text()[-600:]}")


def written(folder: Path) -> dict[str, Path]:
    """The files below a folder, without those that are temporary by their names."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not is_temporary(path))
    return {path.relative_to(folder).as_posix(): path for path in files}


def is_temporary(path: Path) -> bool:
    return TEMPORARY_MARK in path.name or any(part.startswith(".") or part.endswith(".parts") for part in path.parts)


def check_whole(path: Path, undisturbed: Path, is_training: bool) -> None:
    """Raise AssertionError for a file that a kill left in part."""
    data = path.read_bytes()
    if not is_training:
        assert undisturbed.is_file(), f"{path} is none that the command writes"
        assert data == undisturbed.read_bytes(), f"{path} differs from that of an undisturbed run"
    elif path.suffix == ".pth":
        load_checkpoint(path, for_training=path.name == "last.pth")
    elif path.name.endswith((".json", ".json.gz")):
        json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    elif path.suffix == ".yaml":
        assert yaml.safe_load(data), f"{path} is empty"
    else:
        assert path.suffix in LOGS or data, f"{path} is empty"


def wait_and_kill(child: int, whole_group: bool, seconds: float, at_file: int) -> bool:
    """Kill the command after a time, or when that many files are there; return whether it still ran."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (not at_file or sum(len(names) for _, _, names in os.walk("out")) < at_file):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    (os.killpg if whole_group else os.kill)(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def left_behind(session: int, shared_before: set[str]) -> str:
    """What is left of a command after 10 seconds: processes of its session, shared memory; "" for nothing."""
    deadline = time.monotonic() + 10
    while True:
        left = [f"process {path.parent.name}" for path in Path("/proc").glob("[0-9]*/stat") if is_of(path, session)]
        left += [f"/dev/shm/{name}" for name in set(os.listdir("/dev/shm")) - shared_before]
        if not left or time.monotonic() > deadline:
            return ", ".join(left)
        time.sleep(0.05)


def is_of(stat: Path, session: int) -> bool:
    try:
        state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
    except OSError:  # it has ended
        return False
    return int(of) == session and state != "Z"


def kill_once(name: str, seconds: float, random: Random, number: int) -> str:
    """Kill a command, check what is there, run it again, check; return what was killed. Raises AssertionError."""
    words, is_training = COMMANDS[name], name in TRAININGS
    shutil.rmtree("out", ignore_errors=True)
    shared = set(os.listdir("/dev/shm"))
    files = len([path for path in Path(f"whole_{name}").rglob("*") if path.is_file()])
    at_file = random.randint(1, files + 1) if random.random() < 0.5 else 0
    child = start(words)
    was_running = wait_and_kill(child, number % 2 == 0, seconds if at_file else random.uniform(0, seconds), at_file)
    left = left_behind(child, shared)
    assert not left, f"still there 10 seconds later: {left}"
    for relative, path in written(Path("out")).items():
        check_whole(path, Path(f"whole_{name}") / relative, is_training)
    if not is_training and written(Path("out")):
        words = [*words, "--overwrite"]
    run(words)
    again = written(Path("out"))
    missing = set(written(Path(f"whole_{name}"))) - set(again)
    assert is_training or not missing, f"missing after the second run: {missing}"
    for relative, path in again.items():
        check_whole(path, Path(f"whole_{name}") / relative, is_training)
    left = ", ".join(str(path) for path in Path("out").rglob("*") if TEMPORARY_MARK in path.name)
    assert not left, f"temporary after the second run: {left}"
    return "killed" if was_running else "ended before"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6 * len(COMMANDS), help="of all commands (default %(default)s)")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="empty working folder, which is kept; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import detseg.engine.train
    import detseg.inference.predictor  # noqa: F401

    random, failures, counts = Random(arguments.seed), 0, Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        run(["make_synthetic", "--output", "data", "--train", "6", "--val", "3", *SIZES])
        run([*TRAIN, "OUTPUT_DIR", "run"])
        run([*PREDICT, "--output", "found.json"])
        run(["split", "data/train.json", "--folds", "2", "--output", "folds"])
        run([*TRAIN, *FOLDS, "OUTPUT_DIR", "cv"])
        seconds = {}
        for name in arguments.commands:
            started = time.monotonic()
            run(COMMANDS[name])
            seconds[name] = time.monotonic() - started
            Path("out").rename(f"whole_{name}")
        for number in range(arguments.kills):
            name = arguments.commands[number % len(arguments.commands)]
            try:
                outcome = kill_once(name, seconds[name], random, number)
            except (AssertionError, DetsegError, ValueError) as error:
                outcome, failures = "failed", failures + 1
                print(f"{name}, kill {number}: {error}", flush=True)
            counts[name, outcome] += 1
    for (name, outcome), count in sorted(counts.items()):
        print(f"  {name:12} {count:3} {outcome}")
    print(f"{arguments.kills} kills, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
