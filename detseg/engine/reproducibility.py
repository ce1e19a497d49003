"""Seeds, states of random generators, and what else a run must have in common with its continuation."""

from __future__ import annotations

import json
import logging
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import detseg
from detseg.errors import RunError
from detseg.files.atomic import write_atomically, write_text
from detseg.runs.checkpoint import save_checkpoint
from detseg.runs.trackers import finite
from detseg.structures.sample import Sample

logger = logging.getLogger(__name__)


def choose_seed(seed: int) -> int:
    """The seed itself, or for a negative one a seed drawn from the operating system, in [0, 2**31)."""
    return seed if seed >= 0 else secrets.randbelow(2**31)


def environment() -> dict[str, Any]:
    """Versions and settings that decide the last bits of the weights, as plain values."""
    import torchvision

    return {
        "detseg": detseg.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def warn_about_differences(recorded: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Warn of each value that differs from what the run was trained with; return their names."""
    different = [name for name, value in recorded.items() if current.get(name) != value]
    for name in different:
        logger.warning(
            "resumed with another %s: %s, was %s; the result will be as good, but not bit-identical",
            name,
            current.get(name),
            recorded[name],
        )
    return different


def capture_rng() -> dict[str, Any]:
    """States of torch's generators: (5056,) uint8 for the CPU, and one for each CUDA device of this process."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "cuda": []}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [torch.cuda.get_rng_state(device) for device in _cuda_devices()]
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put torch's generators into a captured state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == len(_cuda_devices()):
        for device, generator in zip(_cuda_devices(), state["cuda"], strict=True):
            torch.cuda.set_rng_state(generator, device)


def begin_rng(seed: int, rank: int, saved: dict[str, Any] | None) -> None:
    """Bring torch's generators to where the training of process `rank` begins, or goes on.

    Args:
        seed: the run's.
        rank: of this process; each draws numbers of its own.
        saved: the checkpoint that is continued. A process that was not there when it was written begins anew.
    """
    states = [saved["rng"], *saved.get("rng_of_others", [])] if saved else []
    if rank < len(states):
        restore_rng(states[rank])
    elif rank == 0:
        torch.manual_seed(seed + 1)
    else:
        drawn = np.random.SeedSequence((seed, rank, saved["iteration"] if saved else 0)).generate_state(1, np.uint64)
        torch.manual_seed(int(drawn[0] >> np.uint64(1)))


def _cuda_devices() -> list[int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return [torch.cuda.current_device()]  # looking at the others' would take memory there
    return list(range(torch.cuda.device_count()))


@contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Whatever is drawn inside (by an evaluation) does not change what training draws afterwards."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, sum gradients in a fixed order also where several threads add to the same place.

    CUDA is left as it is: some of its operators have no deterministic form.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings = getattr(torch.utils, "deterministic", SimpleNamespace(fill_uninitialized_memory=False))  # torch >= 2.2
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # a safety net for bugs that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


# What happens when a loss or gradient is not a finite number: stop, say where, and leave everything to look at.


def stop_not_finite(
    what: str,
    *,
    iteration: int,
    samples: Sequence[Sample],
    losses: Mapping[str, float],
    model: torch.nn.Module,
    folder: Path,
    learning_rate: float,
    rank: int = 0,
) -> None:
    """Dump the batch and the model, and end the training.

    The folder gets one NPZ a sample (image, layers, classes, ignore as in Sample), `report.json` and `model.pth`, the
    state in which the batch was seen.

    Args:
        what: "loss" or "gradient", for the message.
        iteration: the one in which it happened, from 1.
        samples: the batch.
        losses: by name, as they were.
        model: with the weights that gave them.
        folder: where dumps go; each gets a folder of its own.
        learning_rate: of that iteration.
        rank: of this process among several: each dumps its own images.

    Raises:
        RunError: always; it names the images.
    """
    place = folder / (f"iteration_{iteration:07d}" + (f"_process_{rank}" if rank else ""))
    for index, sample in enumerate(samples):
        write_atomically(place / f"sample_{index}.npz", lambda file, sample=sample: _write_sample(file, sample))
    report = {
        "what": what,
        "iteration": iteration,
        "learning_rate": learning_rate,
        "losses": finite({name: float(value) for name, value in losses.items()}),
        "not_finite": [name for name, value in losses.items() if not np.isfinite(value)],
        "images": [{"image_id": s.image_id, "file_name": s.file_name, "objects": len(s.classes)} for s in samples],
    }
    write_text(place / "report.json", json.dumps(report, indent=2, default=str) + "\n")
    save_checkpoint(place / "model.pth", {"model": dict(model.state_dict()), "iteration": iteration - 1})
    named = ", ".join(str(sample.file_name or sample.image_id) for sample in samples)
    parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise RunError(
        f"the {what} is not finite in iteration {iteration} (learning rate {learning_rate:.3g}; {parts}). "
        f"Images of this batch: {named}. The batch and the model lie in {place}. Look at the images; if they are "
        "right, lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True"
    )


def _write_sample(file: Any, sample: Sample) -> None:
    arrays: dict[str, np.ndarray] = {"image": sample.image, "classes": sample.classes}
    if sample.layers is not None:
        arrays["layers"] = sample.layers.layers
    if sample.ignore is not None:
        arrays["ignore"] = sample.ignore
    np.savez_compressed(file, **arrays)
