"""Reading a COCO file of 300,000 run-length masks, and sharing it among loader processes.

    python benchmarks/coco_reading.py [--annotations 300000] [--no-pycocotools]

The file is made here: round cells at random places on images of 520 x 704. Every measurement runs in a process of its
own. The memory of the loader's processes (PSS: shared pages are divided among those who share them) is told on Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from measuring import MIB, machine, verdict

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleReader
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 520, 704
CELLS, PATTERNS = 250, 20
GOAL_SECONDS, GOAL_MEMORY = 8.0, 1500.0

READ = """
import sys, time
sys.path.insert(0, {folder!r})
from measuring import MIB, peak_memory
{imported}
start, processor = time.perf_counter(), time.process_time()
{read}
print(time.perf_counter() - start, time.process_time() - processor, peak_memory() / MIB)
"""
DETSEG = ("from detseg.coco.dataset import CocoDataset", "CocoDataset.load({path!r})")
PYCOCOTOOLS = (
    "from pycocotools.coco import COCO; import os; sys.stdout = sys.stderr",
    "COCO({path!r}); sys.stdout = sys.__stdout__",
)


def write_file(path: Path, annotations: int) -> None:
    """Write a COCO file; after some images their masks come again, since the reader cannot tell."""
    patterns = [_cells(np.random.default_rng(number)) for number in range(PATTERNS)]
    count = -(-annotations // CELLS)

    def rows():  # type: ignore[no-untyped-def]
        for image in range(count):
            rles = patterns[image % PATTERNS][: annotations - image * CELLS]
            yield from annotations_of(rles, [1] * len(rles), image_id=image + 1, first_id=image * CELLS + 1)

    images = [{"id": n + 1, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(count)]
    write_coco(path, images=images, annotations=rows(), categories=[{"id": 1, "name": "cell"}])


def _cells(random: np.random.Generator) -> list[dict]:
    y, x = np.mgrid[-12:13, -12:13]
    crops = [
        (x**2 + y**2 < random.uniform(4, 12) ** 2, int(random.integers(WIDTH - 25)), int(random.integers(HEIGHT - 25)))
        for _ in range(CELLS)
    ]
    return rle_codec.encode_crops(crops, HEIGHT, WIDTH)


def measure(path: Path, imported: str, read: str) -> tuple[float, float, float]:
    """Return seconds by the clock, seconds of the processor and MiB at the most, of reading in a process of its own."""
    program = READ.format(folder=str(Path(__file__).parent), imported=imported, read=read.format(path=str(path)))
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    wall, processor, memory = map(float, result.stdout.split())
    return wall, processor, memory


def worker(connection: Connection, reader: SampleReader | None) -> None:
    """A loader's process: looks at every annotation, then tells its memory while the others still hold theirs."""
    looked = 0
    if reader is not None:
        dataset = reader.dataset
        for index in range(len(dataset)):
            looked += len(dataset.annotations(index).rles)
    connection.send(looked)
    connection.recv()
    connection.send(_rollup())
    connection.recv()


def _rollup() -> dict[str, float]:
    """Return this process's memory in MiB: Pss and what it has alone."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines}
    return {"Pss": values["Pss"], "alone": values["Private_Clean"] + values["Private_Dirty"]}


def processes_memory(reader: SampleReader | None, count: int, start: str) -> list[dict[str, float]]:
    context = multiprocessing.get_context(start)
    pipes, processes = [], []
    for _ in range(count):
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(there, reader))
        process.start()
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send(None)
    found = [pipe.recv() for pipe in pipes]
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", type=int, default=300_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--no-pycocotools", action="store_true", help="leave the comparison out")
    arguments = parser.parse_args()
    print(machine("numpy"))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "annotations.json"
        write_file(path, arguments.annotations)
        size = path.stat().st_size / MIB
        print(f"{arguments.annotations} annotations, {size:.0f} MiB of JSON")
        wall, processor, memory = measure(path, *DETSEG)
        reached = verdict(processor < GOAL_SECONDS and memory < GOAL_MEMORY)
        print(f"  read and checked     {wall:5.1f} s ({processor:.1f} s of the processor), {memory:.0f} MiB: {reached}")
        if not arguments.no_pycocotools:
            wall, processor, other = measure(path, *PYCOCOTOOLS)
            print(f"  pycocotools' COCO()  {wall:5.1f} s ({processor:.1f} s of the processor), {other:.0f} MiB")
        if Path("/proc/self/smaps_rollup").is_file():
            tell_workers(path, arguments.workers)


def tell_workers(path: Path, count: int) -> None:
    """Print what the data set costs in every one of several processes that look at all of it."""
    dataset = CocoDataset.load(path)
    text = dataset.table.text.nbytes / MIB
    print(f"  {count} loader processes that look at all annotations; the text of the file is {text:.0f} MiB:")
    for method in ("spawn", "fork"):
        empty = processes_memory(None, count, method)
        full = processes_memory(SampleReader(dataset, ImagePreprocess()), count, method)
        more = {key: (sum(one[key] for one in full) - sum(one[key] for one in empty)) / count for key in full[0]}
        print(f"    {method}: PSS {more['Pss']:.0f} MiB more a process, {more['alone']:.0f} MiB of it its own")


if __name__ == "__main__":
    main()
