"""Train the tiny model in processes that kill themselves where they are told; run by test_resume.py.

    python train_and_die.py DATA.json RUN_FOLDER WORKERS WHEN [WHEN ...]

One process after the other continues the run and dies: WHEN is "iteration N" (in the middle of iteration N, counted
from its own start), "half-written" (half of the next checkpoint's bytes are on the disk) or "written" (all are, but
under its temporary name). They are forked from one that has imported everything but computed nothing. Prints a line of
JSON for each: its exit status, and the names in checkpoints/; last.pth is kept as RUN_FOLDER/after_I.pth.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from tiny_segmenter import TinySegmenter

from detseg.config import Config, get_default_config
from detseg.engine.train import train
from detseg.files import atomic as files
from detseg.runs.run_folder import open_run


def tiny_config(data: Path, folder: Path, workers: int = 0) -> Config:
    cfg = get_default_config()
    values = {
        "MODEL.ENGINE": "native",
        "DATASETS.TRAIN": [str(data)],
        "DATASETS.TEST": [str(data)],
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.DEVICE": "cpu",
        "INPUT.MIN_SIZE_TRAIN": [0],
        "INPUT.MIN_SIZE_TEST": 0,
        "INPUT.RANDOM_FLIP": "both",
        "INPUT.RANDOM_BRIGHTNESS": 0.2,
        "DATALOADER.NUM_WORKERS": workers,
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 14,
        "SOLVER.STEPS": [9],
        "SOLVER.WARMUP_ITERS": 3,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.CHECKPOINT_PERIOD": 4,
        "SOLVER.LOG_PERIOD": 3,
        "SOLVER.EMA.ENABLED": True,
        "TEST.EVAL_PERIOD": 6,
        "TEST.OVERLAYS": 0,
        "OUTPUT_DIR": str(folder),
        "SEED": 11,
    }
    for key, value in values.items():
        cfg.set(key, value)
    return cfg.freeze()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingSegmenter(TinySegmenter):
    """Dies in the middle of its N-th training pass."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.passes = passes

    def forward(self, samples):
        self.passes -= 1
        if self.passes == 0:
            die()
        return super().forward(samples)


def die_while_writing() -> None:
    """Let the next checkpoint die with half of its bytes written."""
    save = torch.save

    def save_half(value, file) -> None:
        whole = io.BytesIO()
        save(value, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        die()

    torch.save = save_half


def die_before_renaming() -> None:
    """Let the next checkpoint die when it is on the disk under its temporary name."""
    replace = os.replace

    def replace_or_die(source, target) -> None:
        if str(target).endswith(".pth"):
            die()
        replace(source, target)

    files.os.replace = replace_or_die


def continue_and_die(data: Path, folder: Path, workers: int, when: str) -> None:
    torch.set_num_threads(1)
    passes = int(when.split()[1]) if when.startswith("iteration") else 0
    if when == "half-written":
        die_while_writing()
    elif when == "written":
        die_before_renaming()
    cfg = tiny_config(data, folder, workers)
    with open_run(cfg, resume=True) as run:
        train(cfg, run, resume=True, build=lambda cfg: DyingSegmenter(passes))


def main() -> None:
    data, folder, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    for index, when in enumerate(sys.argv[4:]):
        child = os.fork()
        if child == 0:
            continue_and_die(data, folder, workers, when)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        checkpoints = folder / "checkpoints"
        if (checkpoints / "last.pth").exists():
            shutil.copy(checkpoints / "last.pth", folder / f"after_{index}.pth")
        names = sorted(path.name for path in checkpoints.glob("*"))
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "names": names}), flush=True)


if __name__ == "__main__":
    main()
