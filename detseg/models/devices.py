"""The device on which a model runs."""

from __future__ import annotations

import logging
import sys

import torch

from detseg.errors import ConfigError, first_line

logger = logging.getLogger(__name__)


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
        raise ConfigError(f"the device {name!r} cannot be used here ({first_line(error)}); use auto or cpu") from None
    return device


def peak_memory(device: torch.device) -> int | None:
    """The most bytes of memory in use so far: of PyTorch on a CUDA device, of this process elsewhere.

    None where the system does not tell.
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
    """CUDA where a computation succeeds on it, else the CPU, which is warned of.

    A GPU may be there and too old for this PyTorch (a P100 for builds from 2026 on), or be taken by another process.
    """
    if not torch.cuda.is_available():
        logger.warning("there is no GPU: the CPU predicts")
        return torch.device("cpu")
    try:
        picture = torch.ones(1, 3, 16, 16, device="cuda")
        torch.nn.functional.conv2d(picture, picture).sum().item()
    except RuntimeError as error:
        name = torch.cuda.get_device_name()
        logger.warning("the GPU %s cannot be used (%s): the CPU predicts", name, first_line(error))
        return torch.device("cpu")
    return torch.device("cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left; what PyTorch keeps is then freed."""
    text = str(error)
    full = isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    full = full or isinstance(error, MemoryError)
    if full and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return full
