"""States of torch's random generators, and sums in a fixed order: what a bit-identical continuation needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from detseg.errors import WeightsError


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
        saved: the checkpoint that is continued. A process that it does not know starts from the seed.
    """
    states = [saved["rng"], *saved.get("rng_of_others", [])] if saved else []
    if rank < len(states):
        try:
            restore_rng(states[rank])
        except Exception as error:  # torch raises whatever it meets in a damaged state
            raise WeightsError(f"the checkpoint's states of random generators are damaged ({error})") from error
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
    settings = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # a safety net for bugs that costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill
