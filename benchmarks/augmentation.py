"""How fast training samples are made, beside Albumentations with one mask an object in the same run.

    python benchmarks/augmentation.py [--data sartorius_train] [--group shsy5y] [--samples 20]

The full policy, configs/_base_/augment_phase_contrast.yaml with copy-paste in every sample, to 512 x 512; what the
sample cache gains; the loader's processes beside one. Times are processor time of one thread, except where processes
are counted. The data is one that is prepared (datasets/README.md); --group takes the images of one `group`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from albumentations_twin import MaskPolicy
from measuring import MIB, Timing, machine, take_turns, verdict

from detseg.coco.catalog import load_dataset
from detseg.coco.dataset import CocoDataset
from detseg.config import Config, load_config
from detseg.curation.synthetic import make_missing_sets
from detseg.data.loader import LoaderOptions, TrainingStream, TrainLoader
from detseg.data.sample_cache import SampleCache, SampleReader

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
GOAL_RATIO, GOAL_RATE = 10, 40
FREE_PASTE = [
    "INPUT.COPY_PASTE.PROBABILITY=1.0",
    "INPUT.COPY_PASTE.SOFT_EDGE=1.0",
    "INPUT.COPY_PASTE.MAX_OBJECTS=50",
]


def configuration(folder: Path, *overrides: str) -> Config:
    """The R50-FPN of the competition with the preset and copy-paste."""
    path = folder / "benchmark.yaml"
    path.write_text(
        f"_BASE_: ['{(CONFIGS / 'sartorius' / 'mask_rcnn_R_50_FPN.yaml').as_posix()}', "
        f"'{(CONFIGS / '_base_' / 'augment_phase_contrast.yaml').as_posix()}']\n"
    )
    return load_config(path, [*FREE_PASTE, *overrides])


class Decoded:
    """Reads samples that are decoded already, as `SampleReader`."""

    def __init__(self, reader: SampleReader) -> None:
        self.dataset = reader.dataset
        self._samples = [reader.read(index) for index in range(len(self.dataset))]

    def read(self, index: int) -> Any:
        return self._samples[index]


def decoded_stream(cfg: Config, dataset: CocoDataset) -> TrainingStream:
    """The training stream over decoded samples."""
    stream = TrainingStream.build(LoaderOptions.from_config(cfg), dataset, 1)
    stream.reader = Decoded(stream.reader)
    for source in stream.pasting.sources if stream.pasting else []:
        source.reader = stream.reader
    return stream


def compare_policies(cfg: Config, dataset: CocoDataset, rounds: int) -> None:
    """Samples a second of both, from decoded images and masks."""
    stream = decoded_stream(cfg, dataset)
    policy = mask_policy(cfg)
    samples = [stream.reader.read(index) for index in range(len(dataset))]
    rng = np.random.default_rng(0)
    number = iter(range(10**9))
    counts: dict[str, list[int]] = {"detseg": [], "Albumentations": []}
    memory = {}

    def with_layers() -> None:
        counts["detseg"].append(len(stream[next(number)].layers))

    def with_masks() -> None:
        # A sample at a time: the masks of all images together would be gigabytes.
        target, source = (masks_of(samples[index]) for index in rng.integers(len(samples), size=2))
        start = time.process_time()
        counts["Albumentations"].append(len(policy(target, source)[1]))
        seconds.append(time.process_time() - start)

    seconds: list[float] = []
    ours = take_turns({"detseg": with_layers, "_": with_masks}, rounds, clock=time.process_time)
    theirs = seconds[-rounds:]
    for name, make in (("detseg", with_layers), ("Albumentations", with_masks)):
        tracemalloc.start()
        make()
        memory[name] = tracemalloc.get_traced_memory()[1] / MIB
        tracemalloc.stop()
    timing = Timing({"detseg": ours.seconds["detseg"], "Albumentations": theirs})
    print("\nFull policy with copy-paste to 512 x 512, decoded samples")
    for name in timing.seconds:
        rate = 1 / statistics.mean(timing.seconds[name])
        print(
            f"  {name:15} {1000 / rate:8.1f} ms a sample, {rate:6.1f} a second; "
            f"peak of arrays {memory[name]:.0f} MiB, {statistics.mean(counts[name]):.0f} objects a sample"
        )
    ratio = statistics.mean(theirs) / statistics.mean(timing.seconds["detseg"])
    rate = 1 / statistics.mean(timing.seconds["detseg"])
    print(f"  {ratio:.1f} x (goal {GOAL_RATIO}: {verdict(ratio >= GOAL_RATIO)})", end="; ")
    print(f"goal {GOAL_RATE} a second on one core: {verdict(rate >= GOAL_RATE)}")


def mask_policy(cfg: Config) -> MaskPolicy:
    keys = cfg.INPUT.COPY_PASTE
    return MaskPolicy(
        cfg.INPUT.ALBUMENTATIONS,
        short_edge=cfg.INPUT.MIN_SIZE_TRAIN[0],
        size=cfg.INPUT.CROP.SIZE[0],
        max_objects=keys.MAX_OBJECTS,
        max_overlap=keys.MAX_OVERLAP,
        min_visible=keys.MIN_VISIBLE,
        seed=1,
    )


def masks_of(sample: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A decoded sample with one mask an object."""
    return np.rint(sample.image).astype(np.uint8), sample.layers.masks().astype(np.uint8), sample.classes


def time_parts(cfg: Config, dataset: CocoDataset, rounds: int) -> None:
    """Where the time of a sample goes."""
    stream = decoded_stream(cfg, dataset)
    plain = SampleReader(dataset, stream.preprocess)
    policy, paste = stream.policy, stream.pasting.how
    number = iter(range(10**9))
    state: dict[str, Any] = {}

    def generator() -> np.random.Generator:
        return np.random.default_rng(next(number))

    def step(name: str, work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            state[name] = work()

        return run

    state["rng"] = np.random.default_rng(0)
    index = np.random.default_rng(3)
    parts = {
        "read": step("read", lambda: plain.read(int(index.integers(len(dataset))))),
        "source": step(
            "source", lambda: policy.geometry(stream.reader.read(int(index.integers(len(dataset)))), generator())
        ),
        "geometry": step("target", lambda: policy.geometry(state["read"], generator())),
        "paste": step("pasted", lambda: paste.paste(state["target"], state["source"], generator())),
        "intensities": step("done", lambda: policy.photometry(state["pasted"], generator(), (0.0, 255.0))),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds + 1):
        for name, work in parts.items():
            start = time.process_time()
            work()
            seconds[name].append(time.process_time() - start)
    print("\nParts of a sample, mean: ", end="")
    print(", ".join(f"{name} {1000 * statistics.mean(seconds[name][1:]):.1f} ms" for name in parts if name != "source"))


def compare_caches(cfg: Config, dataset: CocoDataset, folder: Path, rounds: int) -> None:
    """What keeping decoded samples gains, for reading and for whole samples."""
    preprocess = TrainingStream.build(LoaderOptions.from_config(cfg), dataset, 1).preprocess
    limit = 4 * 10**9
    readers = {
        "from files": SampleReader(dataset, preprocess),
        "memory": SampleReader(dataset, preprocess, SampleCache.in_memory(limit)),
        "disk": SampleReader(dataset, preprocess, SampleCache(folder / "samples", limit)),
    }
    for reader in readers.values():
        for index in range(len(dataset)):
            reader.read(index)
    pick = np.random.default_rng(0)

    def read(reader: SampleReader) -> Callable[[], Any]:
        return lambda: reader.read(int(pick.integers(len(dataset))))

    reading = take_turns({name: read(r) for name, r in readers.items()}, rounds, clock=time.process_time)
    keys = {name: f"DATALOADER.CACHE={value}" for name, value in zip(readers, ("none", "memory", "disk"), strict=True)}
    place = f"DATALOADER.CACHE_FOLDER={(folder / 'samples').as_posix()}"
    streams = {
        name: TrainingStream.build(LoaderOptions.from_config(configuration(folder, key, place)), dataset, 1)
        for name, key in keys.items()
    }
    for stream in streams.values():
        for index in range(len(dataset)):
            stream.reader.read(index)
    number = {name: iter(range(10**9)) for name in streams}
    whole = take_turns(
        {name: (lambda name=name: streams[name][next(number[name])]) for name in streams},
        rounds,
        clock=time.process_time,
    )
    print("\nDecoded samples kept (DATALOADER.CACHE), second time that an image comes")
    for name in readers:
        text = [f"  {name:12}"]
        for what, timing in (("reading", reading), ("whole sample", whole)):
            mean = statistics.mean(timing.seconds[name])
            gain = statistics.mean(timing.seconds["from files"]) / mean
            text.append(f"{what} {1000 * mean:6.1f} ms ({gain:.1f} x)")
        print(", ".join(text))


def compare_loaders(cfg: Config, dataset: CocoDataset, workers: tuple[int, ...], batches: int) -> None:
    """Samples a second of the loader's processes, by the clock on the wall."""
    stream = TrainingStream.build(LoaderOptions.from_config(cfg), dataset, 1)
    print(f"\nLoader, {batches} batches of 4 by the clock, without their start")
    single = None
    for count in (0, *workers):
        loader = iter(
            TrainLoader(stream, batch_size=4, start_position=0, total=4 * (batches + 2 * count + 2), workers=count)
        )
        for _ in range(2 * count + 2):  # what was prefetched does not count
            next(loader)
        start = time.perf_counter()
        for _ in range(batches):
            next(loader)
        rate = 4 * batches / (time.perf_counter() - start)
        del loader
        single = single or rate
        name = "in this process" if not count else f"{count} process{'es' if count > 1 else ''}"
        print(f"  {name:16} {rate:6.1f} samples a second, {rate / single:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sartorius_train", help="a prepared data set, by name or COCO file")
    parser.add_argument("--group", default="shsy5y", help="images of this group only; empty for all")
    parser.add_argument("--samples", type=int, default=20, help="samples of each side")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="processes of the loader")
    parser.add_argument("--only", choices=("policy", "parts", "cache", "loader"))
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    make_missing_sets([arguments.data])
    dataset = load_dataset(arguments.data)
    if arguments.group:
        members = [n for n, record in enumerate(dataset.images) if record.metadata.get("group") == arguments.group]
        dataset = dataset.select(members)
    objects = dataset.num_objects / len(dataset)
    print(machine("numpy", "opencv-python-headless", "albumentations"))
    print(f"{len(dataset)} images of {dataset.name}, {objects:.0f} objects each")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cfg = configuration(folder)
        if arguments.only in (None, "policy"):
            compare_policies(cfg, dataset, arguments.samples)
        if arguments.only in (None, "parts"):
            time_parts(cfg, dataset, arguments.samples)
        if arguments.only in (None, "cache"):
            compare_caches(cfg, dataset, folder, arguments.samples)
        if arguments.only in (None, "loader"):
            compare_loaders(cfg, dataset, tuple(arguments.workers), arguments.samples)


if __name__ == "__main__":
    main()
