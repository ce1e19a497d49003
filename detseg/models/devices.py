"""The device on which a model runs."""

from __future__ import annotations

import logging
import sys

import torch

from detseg.errors import ConfigError, first_line

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """Return the device with this name; "auto" is CUDA if available, else the CPU.

    Raises:
        ConfigError: it is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"the device {name!r} cannot be used ({first_line(error)}); use auto or cpu") from None
    return device


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes so far: of PyTorch on a CUDA device, else of this process.

    None if the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def usable_device() -> torch.device:
    """Return CUDA if a computation succeeds on it, else the CPU, with a warning.

    A GPU may be too old for this PyTorch (a P100 for builds from 2026 on), or in use by another process.
    """
    if not torch.cuda.is_available():
        logger.warning("no GPU found: predicting on the CPU")
        return torch.device("cpu")
    try:
        picture = torch.ones(1, 3, 16, 16, device="cuda")
        torch.nn.functional.conv2d(picture, picture).sum().item()
    except RuntimeError as error:
        name = torch.cuda.get_device_name()
        logger.warning("the GPU %s cannot be used (%s): predicting on the CPU", name, first_line(error))
        return torch.device("cpu")
    return torch.device("cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, is out of memory; PyTorch's cache is then freed."""
    text = str(error)
    full = isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    full = full or isinstance(error, MemoryError)
    if full and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return full
