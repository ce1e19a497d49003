"""torch.compile of a model's backbone for training, kept only if it computes what the model computes without it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from detseg.errors import RunError
from detseg.models.base import Segmenter

logger = logging.getLogger(__name__)

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
