"""torchvision's compiled operators, imported only here.

torchvision's operators are compiled for one build of PyTorch; with another they are missing, and torchvision suggests
no remedy. Here that becomes a message with both versions and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from detseg.errors import DetsegError, first_line


def require_operators() -> None:
    """Raise DetsegError unless torchvision's operators load and run on the CPU."""
    _operators()


def _explained(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Report an operator that was not compiled for a device like `require_operators`."""

    @wraps(function)
    def explained(*args: Any, **options: Any) -> Tensor:
        try:
            return function(*args, **options)
        except NotImplementedError as error:
            raise DetsegError(_mismatch_message(error)) from error

    return explained


@_explained
def roi_align(features: Tensor, boxes: Tensor, output_size: int, spatial_scale: float, sampling_ratio: int) -> Tensor:
    """Return (M, C, output_size, output_size): ROIAlign with aligned=True.

    features: (B, C, H, W). boxes: (M, 5), the index of the image and XYXY. sampling_ratio: samples along one side of a
    bin; 0 uses ceil(side of the box / output_size).
    """
    return _operators().roi_align(features, boxes, output_size, spatial_scale, sampling_ratio, aligned=True)


@_explained
def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (n,) int64 of the boxes that are kept, best first; boxes of different groups are independent.

    boxes: (n, 4) XYXY. scores: (n,). groups: (n,) int64. All are converted to float32: half precision cannot represent
    the offsets by which torchvision separates groups.
    """
    return _operators().boxes.batched_nms(boxes.float(), scores.float(), groups, iou_threshold)


@_explained
def deform_conv2d(
    x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *, mask: Tensor | None, **geometry: tuple[int, ...]
) -> Tensor:
    """Return the deformable convolution (Dai et al. 2017) of x (B, C, H, W), float32; all tensors are taken as such.

    offset: (B, 2 * G * kernel area, H', W') pixels, y before x, for G groups of channels. mask: (B, G * kernel area,
    H', W') factors of the samples (Zhu et al. 2019), or None for ones. geometry: stride, padding and dilation.
    """
    with torch.autocast(x.device.type, enabled=False):
        tensors = [None if tensor is None else tensor.float() for tensor in (x, offset, weight, bias, mask)]
        return _operators().deform_conv2d(*tensors[:4], mask=tensors[4], **geometry)


@cache
def _operators() -> Any:
    """Import torchvision.ops and try one operator, once."""
    try:
        from torchvision import ops

        # On the CPU, whatever the default device: models are also built on "meta", where nms cannot run.
        cpu = torch.device("cpu")
        ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=cpu), torch.tensor([1.0], device=cpu), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise DetsegError(_mismatch_message(error)) from error
    return ops


def _mismatch_message(error: BaseException) -> str:
    try:
        torchvision_version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        torchvision_version = "none"
    return (
        f"torchvision's compiled operators (nms, roi_align) do not load: torch {torch.__version__}, torchvision "
        f"{torchvision_version} ({first_line(error)}). The two must come from the same release and the same build "
        "(CPU or CUDA version). Reinstall both together, as by: pip uninstall -y torch torchvision && pip install "
        "torch torchvision (add the same --index-url https://download.pytorch.org/whl/... for both, if you use one)"
    )
