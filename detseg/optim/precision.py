"""Mixed precision: which number format the forward pass uses, and the loss scaling that float16 needs."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detseg.errors import ConfigError, RunError
from detseg.models.base import Segmenter

if TYPE_CHECKING:
    from detseg.config import Config


logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision:
    """The forward pass's number format and the backward pass's loss scaling.

    Args:
        device: where the model is.
        dtype: torch.bfloat16, torch.float16 (CUDA) or None for plain float32.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        self.device = device
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager:
        """The context of the forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

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


def build_precision(cfg: Config, device: torch.device) -> Precision:
    """The precision that SOLVER.AMP asks for on `device`; what "auto" chose is logged.

    Raises:
        ConfigError: an unknown format, or float16 where there is no CUDA.
    """
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return Precision(device, None)
    if amp.DTYPE == "auto":
        dtype = automatic_dtype(device)
        logger.info("mixed precision: %s", "not worth it on this device, float32" if dtype is None else dtype)
        return Precision(device, dtype)
    if amp.DTYPE not in DTYPES:
        raise ConfigError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}; expected auto, bfloat16 or float16")
    if amp.DTYPE == "float16" and device.type != "cuda":
        raise ConfigError(f"SOLVER.AMP.DTYPE float16 needs CUDA, the model is on {device}: set it to auto or bfloat16")
    return Precision(device, DTYPES[amp.DTYPE])


def automatic_dtype(device: torch.device) -> torch.dtype | None:
    """The format that is faster on this device without loss of accuracy, None for float32."""
    if device.type == "cuda":
        # Before compute capability 8.0 bfloat16 is emulated, which is slower than float32.
        native_bfloat16 = torch.cuda.get_device_capability(device)[0] >= 8 or torch.version.hip is not None
        return torch.bfloat16 if native_bfloat16 else torch.float16
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return None


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively (AVX-512 BF16, AMX); others only emulate it, slowly."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if probe is not None:
        return bool(probe())
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return False
    flags = information.read_text(errors="replace")
    return "avx512_bf16" in flags or "amx_bf16" in flags


# torch.compile of a model's backbone for training, kept only if it computes what the model computes without it.

Compile = Callable[[Callable[[Tensor], Mapping[str, Tensor]]], Callable[[Tensor], Mapping[str, Tensor]]]

# Of the largest value of a feature map or of all gradients; fused kernels add up in another order.
TOLERANCE = 1e-3
_EXAMPLE = (2, 128, 160)


def compile_backbone(model: Segmenter, channels: int, compile: Compile = torch.compile) -> None:
    """Let the backbone of a model train through torch.compile; its names and its evaluation stay what they are.

    A compiled network is made for one size of input: crops of one size suit it. Evaluation sees images of any size, and
    runs as before.

    Args:
        model: on its device, with its weights.
        channels: of its input.
        compile: makes a faster function of the backbone's.

    Raises:
        RunError: the model has no backbone, it cannot be compiled here, or computes something else then.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise RunError(f"{type(model).__name__} has no backbone to compile: set MODEL.COMPILE to False")
    plain = backbone.forward
    compiled = compile(plain)
    logger.info("compiling the backbone: the first iterations take minutes")
    try:
        difference = _difference(backbone, plain, compiled, channels)
    except Exception as error:  # whatever a compiler, or its absence, raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"the backbone cannot be compiled here ({reason}): set MODEL.COMPILE to False") from error
    if not difference <= TOLERANCE:
        raise RunError(
            f"the compiled backbone computes something else, {difference:.1e} off (at most {TOLERANCE:.0e} is "
            "rounding): set MODEL.COMPILE to False"
        )
    logger.info("the compiled backbone computes the same within %.1e", difference)

    def forward(x: Tensor) -> Mapping[str, Tensor]:
        return compiled(x) if backbone.training and torch.is_grad_enabled() else plain(x)

    backbone.forward = forward


def _difference(
    backbone: nn.Module,
    plain: Callable[[Tensor], Mapping[str, Tensor]],
    compiled: Callable[[Tensor], Mapping[str, Tensor]],
    channels: int,
) -> float:
    """How far feature maps and gradients of both differ in training, relative to the largest value."""
    place = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((_EXAMPLE[0], channels, *_EXAMPLE[1:]), generator=generator).to(place.device)
    images = images.to(memory_format=torch.channels_last)
    # A training pass moves the statistics of BatchNorm.
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    training = backbone.training
    results = []
    for function in (plain, compiled):
        backbone.train()
        results.append(_pass(backbone, function, images))
        with torch.no_grad():
            for name, buffer in backbone.named_buffers():
                buffer.copy_(before[name])
    backbone.train(training)
    largest = 0.0
    for expected, found in zip(*results, strict=True):
        scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
        error = float((expected - found).abs().max()) / scale
        largest = max(largest, error) if error == error else float("nan")
    return largest


def _pass(
    backbone: nn.Module, function: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor
) -> tuple[Tensor, ...]:
    """Feature maps, and the gradients of all trained parameters as one vector."""
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    features = function(images)
    maps = tuple(features[name].detach().float() for name in sorted(features))
    if not parameters:
        return maps
    loss = sum(feature.square().mean() for feature in features.values())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return (*maps, torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]))
