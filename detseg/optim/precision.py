"""Mixed precision: which number format the forward pass uses, and the loss scaling that float16 needs."""

from __future__ import annotations

import logging
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detseg.config.options import Options, key
from detseg.config.problems import Problems
from detseg.errors import ConfigError

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PrecisionOptions(Options):
    """Whether training computes in mixed precision, and in which format."""

    section = "SOLVER.AMP"

    enabled: bool = key("ENABLED")
    dtype: str = key("DTYPE", choices=("auto", *DTYPES))

    def check(self, problems: Problems) -> None:
        if self.enabled and self.dtype == "float16" and problems.cfg.MODEL.DEVICE == "cpu":
            problems.add("SOLVER.AMP.DTYPE", "float16 training needs CUDA; on the CPU take bfloat16 or auto")


class Precision:
    """The forward pass's number format and the backward pass's loss scaling.

    Args:
        device: where the model is.
        dtype: torch.bfloat16, torch.float16 (CUDA) or None for plain float32.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.device = device
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager:
        """The context of the forward pass."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of which the backward pass is taken."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring gradients back to their true size: before they are measured or clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer. With float16, gradients that overflowed skip the step and lower the scale."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def build_precision(options: PrecisionOptions, device: torch.device) -> Precision:
    """The precision of a training on `device`; what "auto" chose is logged.

    Raises:
        ConfigError: float16 where there is no CUDA.
    """
    if not options.enabled:
        return Precision(device)
    if options.dtype == "auto":
        dtype = automatic_dtype(device)
        logger.info("mixed precision: %s", "not worth it on this device, float32" if dtype is None else dtype)
        return Precision(device, dtype)
    if options.dtype == "float16" and device.type != "cuda":
        raise ConfigError(f"SOLVER.AMP.DTYPE float16 needs CUDA, the model is on {device}: set it to auto or bfloat16")
    return Precision(device, DTYPES[options.dtype])


def automatic_dtype(device: torch.device) -> torch.dtype | None:
    """The format that is faster on this device without loss of accuracy, None for float32."""
    if device.type == "cuda":
        # Before compute capability 8.0 bfloat16 is emulated, which is slower than float32.
        native_bfloat16 = torch.cuda.get_device_capability(device)[0] >= 8 or torch.version.hip is not None
        return torch.bfloat16 if native_bfloat16 else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else None


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX-512 BF16, AMX); others only emulate it, slowly."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if probe is not None:
        return bool(probe())
    information = Path("/proc/cpuinfo")
    flags = information.read_text(errors="replace") if information.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
