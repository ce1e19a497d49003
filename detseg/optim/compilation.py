"""torch.compile of a model's backbone for training (MODEL.COMPILE), only where it computes the same."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from detseg.errors import RunError

logger = logging.getLogger(__name__)

Features = Callable[[Tensor], Mapping[str, Tensor]]

# Of the largest value of a feature map, or of all gradients; fused kernels add up in another order.
TOLERANCE = 1e-3


def compile_backbone(model: nn.Module, channels: int, compile: Callable[[Features], Features] = torch.compile) -> None:
    """Let the backbone of a model train through torch.compile; its names and its evaluation stay what they are.

    A compiled network is made for one size of input: crops of one size suit it. Evaluation, of images of any size, runs
    the plain one.

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
    plain, compiled = backbone.forward, compile(backbone.forward)
    logger.info("compiling the backbone: the first iterations take minutes")
    before, training = copy.deepcopy(backbone.state_dict()), backbone.training
    results = []
    try:
        for function in (plain, compiled):
            results.append(_training_pass(backbone.train(), function, channels))
            backbone.load_state_dict(before)  # the pass moved the statistics of BatchNorm
    except Exception as error:  # whatever a compiler, or its absence, raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"the backbone cannot be compiled here ({reason}): set MODEL.COMPILE to False") from error
    backbone.train(training)
    differences = [(a - b).abs().max() / a.abs().max().clamp(min=1e-30) for a, b in zip(*results, strict=True)]
    difference = float(torch.stack(differences).max())  # NaN where one is
    if not difference <= TOLERANCE:
        raise RunError(
            f"the compiled backbone computes something else, {difference:.1e} off (at most {TOLERANCE:.0e} is "
            "rounding): set MODEL.COMPILE to False"
        )
    logger.info("the compiled backbone computes the same within %.1e", difference)

    def forward(x: Tensor) -> Mapping[str, Tensor]:
        return compiled(x) if backbone.training and torch.is_grad_enabled() else plain(x)

    backbone.forward = forward


def _training_pass(backbone: nn.Module, function: Features, channels: int) -> list[Tensor]:
    """The feature maps of an example, and the gradients of all trained parameters as one vector."""
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
