"""What predicting many small images costs: the network, the shards, gathering them; by processes and on a Ray cluster.

    python benchmarks/bulk_prediction.py --images 2000

A tiny untrained Mask R-CNN over synthetic 128 x 128 images. Processor time an image, in this process with one thread:
predicted and written at once; made in shards; gathered from them. Then the commands, from their start to the written
file, in seconds of the clock, which depend on what else the machine does; outputs are compared with the first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detseg.cli.predict_job import find_job_images, load_job
from detseg.cli.predict_shards import Shards
from detseg.coco.predictions_file import write_predictions
from detseg.config import load_config
from detseg.curation.synthetic import KINDS, make_image
from detseg.engines.build import build_model
from detseg.progress import ProgressBar
from detseg.runs.checkpoint import save_checkpoint

TINY = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 12),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 40, "MODEL.DEVICE", "cpu"),
]


def make_inputs(folder: Path, count: int) -> list[str]:
    """Write images and weights; return the words of `predict`."""
    (folder / "images").mkdir()
    pictures = [np.ascontiguousarray(make_image((1, index), 128, 128, 8)[0]) for index in range(50)]
    for index in range(count):
        cv2.imwrite(str(folder / "images" / f"{index:06d}.png"), pictures[index % len(pictures)])
    cfg = load_config("_base_/mask_rcnn_small_fpn.yaml", TINY)
    torch.manual_seed(0)
    state = {"model": build_model(cfg).state_dict(), "config": cfg.flatten(), "classes": list(KINDS)}
    save_checkpoint(folder / "weights.pth", {**state, "engine": "native", "iteration": 0})
    words = ["--weights", str(folder / "weights.pth"), "--images", str(folder / "images")]
    return [*words, "--device", "cpu", "--precision", "float32", "--no-summary", "--num-threads", "1"]


def processor_seconds(action: Callable[[], Any]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, metavar="N")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    count = parser.parse_args().images
    processes = str(parser.parse_args().processes)
    os.environ.setdefault("RAY_worker_niceness", "0")  # as the other processes
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = make_inputs(folder, count)
        arguments = _parsed([*words, "--output", str(folder / "here.json")])
        job = load_job(arguments, find_job_images(arguments))
        shards = Shards(job, folder / "shards")
        direct = folder / "direct.json"
        rows = {
            "predicted and written at once": lambda: write_predictions(
                direct, job.predict(job.images.records, []), job.predictor.classes
            ),
            "made in shards": lambda: shards.work(0, 1),
            "gathered": lambda: write_predictions(
                folder / "gathered.json", shards.gather([], ProgressBar(disable=True)), job.predictor.classes
            ),
        }
        print(f"{count} images, {len(shards)} shards; processor milliseconds an image:")
        for title, action in rows.items():
            print(f"  {title:30} {1000 * processor_seconds(action) / count:.2f}", flush=True)
        assert direct.read_bytes() == (folder / "gathered.json").read_bytes()
        print(f"  {direct.stat().st_size / count / 1000:.1f} kB an image are written\nimages a second, by the clock:")
        first = None
        for title, further in {
            "one process": [],
            f"--processes {processes}": ["--processes", processes],
            f"--ray local --processes {processes}": ["--ray", "local", "--processes", processes],
        }.items():
            output = folder / "p.json"
            output.unlink(missing_ok=True)
            started = time.perf_counter()
            command = [sys.executable, "-m", "detseg", "predict", *words, "--output", str(output), *further]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
            first = first or output.read_bytes()
            same = "the same bytes" if output.read_bytes() == first else "OTHER BYTES"
            print(f"  {title:30} {count / seconds:.1f} ({seconds:.0f} s, {same})", flush=True)


def _parsed(words: list[str]) -> argparse.Namespace:
    from detseg.cli import predict
    from detseg.cli.main import parse_words

    return parse_words(predict, words, None)


if __name__ == "__main__":
    main()
