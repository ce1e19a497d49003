"""Mixed precision: the dtype of the forward pass, and the loss scaling that float16 needs."""

from __future__ import annotations

import copy
import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key
from detseg.errors import ConfigError, RunError, first_line

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PrecisionOptions(Options):
    """Whether training uses mixed precision, and which dtype."""

    section = "SOLVER.AMP"

    enabled: bool = key("ENABLED")
    dtype: str = key("DTYPE", choices=("auto", *DTYPES))

    def check(self, problems: Problems) -> None:
        if self.enabled and self.dtype == "float16" and problems.cfg.MODEL.DEVICE == "cpu":
            problems.add("SOLVER.AMP.DTYPE", "float16 training needs CUDA; on the CPU use bfloat16 or auto")


class Precision:
    """The dtype of the forward pass and the loss scaling of the backward pass.

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
        """Return the scaled loss for the backward pass."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Unscale gradients, before they are measured or clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer. With float16, the step is skipped and the scale lowered if gradients overflow."""
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
    """Build the precision of a training on `device`; the choice of "auto" is logged.

    Raises:
        ConfigError: float16 without CUDA.
    """
    if not options.enabled:
        return Precision(device)
    if options.dtype == "auto":
        dtype = automatic_dtype(device)
        logger.info("mixed precision: %s", "no gain on this device, using float32" if dtype is None else dtype)
        return Precision(device, dtype)
    if options.dtype == "float16" and device.type != "cuda":
        raise ConfigError(f"SOLVER.AMP.DTYPE float16 needs CUDA, the model is on {device}: set it to auto or bfloat16")
    return Precision(device, DTYPES[options.dtype])


def automatic_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that is faster on this device without loss of accuracy, None for float32."""
    if device.type == "cuda":
        # Below compute capability 8.0 bfloat16 is emulated, which is slower than float32.
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


# torch.compile of a model's backbone for training (MODEL.COMPILE), only if it computes the same.

Features = Callable[[Tensor], Mapping[str, Tensor]]

# Relative to the largest value of a feature map, or of all gradients; fused kernels sum in another order.
TOLERANCE = 1e-3


def compile_backbone(model: nn.Module, channels: int, compile: Callable[[Features], Features] = torch.compile) -> None:
    """Train the backbone of a model through torch.compile; its parameter names and its evaluation are unchanged.

    A network is compiled for one input size, which suits crops of one size. Evaluation, with images of any size, runs
    the original one.

    Args:
        model: on its device, with its weights.
        channels: of its input.
        compile: returns a faster version of the backbone's function.

    Raises:
        RunError: the model has no backbone, it cannot be compiled, or then computes something else.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise RunError(f"{type(model).__name__} has no backbone to compile: set MODEL.COMPILE to False")
    plain, compiled = backbone.forward, compile(backbone.forward)
    logger.info("compiling the backbone: the first iterations take minutes")
    before, training = copy.deepcopy(backbone.state_dict()), backbone.training
    results = []
    try:
        for function in (plain, compiled):
            results.append(_training_pass(backbone.train(), function, channels))
            backbone.load_state_dict(before)  # the pass has updated the statistics of BatchNorm
    except Exception as error:  # anything raised by a compiler or its absence
        raise RunError(f"the backbone cannot be compiled ({first_line(error)}): set MODEL.COMPILE to False") from error
    backbone.train(training)
    differences = [(a - b).abs().max() / a.abs().max().clamp(min=1e-30) for a, b in zip(*results, strict=True)]
    difference = float(torch.stack(differences).max())  # NaN if any is
    if not difference <= TOLERANCE:
        raise RunError(
            f"the compiled backbone gives different results, by {difference:.1e} (rounding is at most "
            f"{TOLERANCE:.0e}): set MODEL.COMPILE to False"
        )
    logger.info("the compiled backbone gives the same results within %.1e", difference)

    def forward(x: Tensor) -> Mapping[str, Tensor]:
        return compiled(x) if backbone.training and torch.is_grad_enabled() else plain(x)

    backbone.forward = forward


def _training_pass(backbone: nn.Module, function: Features, channels: int) -> list[Tensor]:
    """Return the feature maps of an example, and the gradients of all trained parameters as one vector."""
    images = torch.randn((2, channels, 128, 160), generator=torch.Generator().manual_seed(0))
    device = next(backbone.parameters()).device
    features = function(images.to(device, memory_format=torch.channels_last))
    results = [features[name].detach().float() for name in sorted(features)]
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if trained:
        loss = sum(feature.square().mean() for feature in features.values())
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        results.append(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]))
    return results
