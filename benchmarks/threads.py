"""Prediction with the default number of threads and with fixed ones, alone and beside a process that keeps a core busy.

    python benchmarks/threads.py [--seconds 12] [--rounds 2]

The R50-FPN of rcnn_speed.py predicts one image of 256 x 320 again and again, as `predict` does: by default with as many
threads as cores are free, looked at every two seconds. Each setting runs in a process of its own, by itself: beside
another setting it would see that one's load. Goal: beside a busy process by default at most 1.5 x the time of one
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from detseg.runs.threads import BEFORE_TORCH, choose_threads, follow_load

GOAL = 1.5
SETTINGS = {"default": None, "--num-threads 1": 1, "--num-threads 2": 2}
BUSY = "import torch; torch.set_num_threads(1); x = torch.randn(512, 512)\nwhile True: x @ x"


def serve(setting: str, seconds: float) -> None:
    """Print the median time of an image, its processor time, and the last number of threads."""
    choose_threads(SETTINGS[setting])
    import torch
    from native_rcnn import NativeTwin, Settings
    from rcnn_speed import make_samples

    twin = NativeTwin(Settings(1000, 300, 100), make_samples(256, 320, 1, 60), torch.device("cpu"))
    twin.model.eval().prefer_speed()
    times, start = [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        follow_load()
        began, used = time.perf_counter(), time.process_time()
        twin.infer()
        times.append((time.perf_counter() - began, time.process_time() - used))
    # The first half warms up, and is where the default notices a load.
    wall, processor = (statistics.median(column) for column in zip(*times[len(times) // 2 :], strict=True))
    print(json.dumps({"wall": wall, "processor": processor, "threads": torch.get_num_threads()}))


def measure(setting: str, seconds: float) -> dict[str, float]:
    """What `serve` prints, from a process of its own."""
    own = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    command = [sys.executable, __file__, "--serve", setting, "--seconds", str(seconds)]
    answer = subprocess.run(command, env=BEFORE_TORCH | own, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", choices=list(SETTINGS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.seconds)
        return
    from measuring import machine, verdict

    print(machine("torch"))
    print("| | setting | an image | processor time | threads at the end | to one thread |\n|---|---|---|---|---|---|")
    for situation in ("alone", "beside a busy process"):
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if situation != "alone" else None
        try:
            rounds = [{name: measure(name, arguments.seconds) for name in SETTINGS} for _ in range(arguments.rounds)]
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        for name in SETTINGS:
            wall, processor, threads = (
                statistics.median(one[name][what] for one in rounds) for what in ("wall", "processor", "threads")
            )
            ratio = statistics.median(one[name]["wall"] / one["--num-threads 1"]["wall"] for one in rounds)
            goal = f", goal {GOAL}: {verdict(ratio <= GOAL)}" if busy is not None and name == "default" else ""
            print(f"| {situation} | {name} | {wall:.2f} s | {processor:.2f} s | {threads:.0f} | {ratio:.2f}{goal} |")


if __name__ == "__main__":
    main()
