"""The device on which a model runs."""

from __future__ import annotations

import sys

import torch

from detseg.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: it does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"the device {name!r} cannot be used here ({reason}); use auto or cpu") from None
    return device


def peak_memory(device: torch.device) -> float | None:
    """The most memory in use so far, in GB (1e9 bytes): of PyTorch on a CUDA device, of this process elsewhere.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
