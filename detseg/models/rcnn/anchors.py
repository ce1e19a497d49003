"""Anchors: boxes of fixed sizes and shapes at every position of every feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one feature map: cell_anchors (A, 4), moved by stride * (column + offset, row + offset).

    start: position of its first anchor among those of all levels. They are ordered by row, column and cell anchor.
    """

    cell_anchors: Tensor
    stride: int
    offset: float
    height: int
    width: int
    start: int

    @property
    def count(self) -> int:
        return self.height * self.width * len(self.cell_anchors)


@dataclass(frozen=True)
class AnchorGrid:
    """All anchors of images of one size: boxes (R, 4) of all levels behind each other, and how they lie."""

    levels: tuple[AnchorLevel, ...]
    boxes: Tensor


class AnchorGenerator(nn.Module):
    """Detectron2's DefaultAnchorGenerator.

    sizes: per level, the square roots of the areas in pixels. aspect_ratios: per level, height / width. Either may be
    given once for all levels. strides: of the levels. offset: of the centres, in strides. Anchors are not rounded.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.offset = offset
        sizes = _one_per_level(sizes, len(self.strides), "sizes")
        aspect_ratios = _one_per_level(aspect_ratios, len(self.strides), "aspect ratios")
        self.cell_anchors = nn.Module()
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, aspect_ratios, strict=True)):
            # Derived from the configuration: not stored, as in Detectron2.
            self.cell_anchors.register_buffer(
                str(level), make_cell_anchors(level_sizes, level_ratios), persistent=False
            )

    @property
    def anchors_per_position(self) -> list[int]:
        """A of every level."""
        return [len(anchors) for anchors in self.cell_anchors.buffers()]

    def forward(self, sizes: Sequence[tuple[int, int]]) -> AnchorGrid:
        """Return the anchors of feature maps of the given (height, width), one per level."""
        levels, boxes, start = [], [], 0
        cells = self.cell_anchors.buffers()
        for cell_anchors, stride, (height, width) in zip(cells, self.strides, sizes, strict=True):
            level = AnchorLevel(cell_anchors.float(), stride, self.offset, height, width, start)
            levels.append(level)
            boxes.append(_place(level))
            start += level.count
        return AnchorGrid(tuple(levels), torch.cat(boxes))


def make_cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Return anchors (len(sizes) * len(aspect_ratios), 4) about the origin, ratios running fastest."""
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors, dtype=torch.float32)


def _place(level: AnchorLevel) -> Tensor:
    device = level.cell_anchors.device
    start = level.offset * level.stride
    x = torch.arange(level.width, dtype=torch.float32, device=device) * level.stride + start
    y = torch.arange(level.height, dtype=torch.float32, device=device) * level.stride + start
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts + level.cell_anchors).reshape(-1, 4)


def _one_per_level(values: Sequence[Sequence[float]], count: int, what: str) -> Sequence[Sequence[float]]:
    if len(values) == 1:
        return list(values) * count
    if len(values) != count:
        raise ValueError(f"anchor {what} for {len(values)} levels, but the RPN has {count}")
    return values
