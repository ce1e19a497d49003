"""Anchors: boxes of fixed sizes and shapes at every position of every feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detseg.config.options import Options, Problems, key

Rows = tuple[tuple[float, ...], ...]


def _has_empty_row(value: list) -> str | None:
    return None if all(row != [] for row in value) else "expected positive numbers for every level"


def _rows(values: Rows | tuple[float, ...]) -> Rows:
    return values if isinstance(values[0], tuple) else (values,)


@dataclass(frozen=True)
class AnchorShapes(Options):
    """Sizes and aspect ratios of anchors: a list for each level, or one list for all."""

    section = "MODEL.ANCHOR_GENERATOR"

    sizes: Rows = key("SIZES", not_empty=True, above=0, test=_has_empty_row, convert=_rows)
    aspect_ratios: Rows = key("ASPECT_RATIOS", not_empty=True, above=0, test=_has_empty_row, convert=_rows)

    def check_levels(self, problems: Problems, levels: int, levels_name: str) -> None:
        """Report shapes that do not match the number of levels, or give them different numbers of anchors."""
        rows = {"SIZES": self.sizes, "ASPECT_RATIOS": self.aspect_ratios}
        for name, of_levels in rows.items():
            if len(of_levels) not in (1, levels):
                expected = f"expected one list for all levels, or one for each of the {levels} {levels_name}"
                problems.add(f"{self.section}.{name}", expected)
                return
        # The head is shared by all levels.
        sizes, ratios = ([len(row) for row in of_levels] * (levels // len(of_levels)) for of_levels in rows.values())
        if len({size * ratio for size, ratio in zip(sizes, ratios, strict=True)}) > 1:
            problems.add(f"{self.section}.SIZES", "every level must have the same number of anchors per position")


@dataclass(frozen=True)
class AnchorOptions(AnchorShapes):
    """offset: of the centres of anchors, in strides."""

    name: str = key("NAME", choices=("DefaultAnchorGenerator",), registry=True)
    offset: float = key("OFFSET", at_least=0, below=1)


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one feature map: cell_anchors (A, 4), moved by stride * (column + offset, row + offset).

    start: index of its first anchor among those of all levels. They are ordered by row, column and cell anchor.
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
    """All anchors of images of one size: boxes (R, 4) of all levels concatenated, and the grid of each level."""

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
        self.largest_size = float(max(max(level_sizes) for level_sizes in sizes))
        aspect_ratios = _one_per_level(aspect_ratios, len(self.strides), "aspect ratios")
        self.cell_anchors = nn.Module()
        for level, (level_sizes, level_ratios) in enumerate(zip(sizes, aspect_ratios, strict=True)):
            # Derived from the configuration, so not stored, as in Detectron2.
            self.cell_anchors.register_buffer(
                str(level), make_cell_anchors(level_sizes, level_ratios), persistent=False
            )

    @property
    def anchors_per_position(self) -> list[int]:
        """A of every level."""
        return [len(anchors) for anchors in self.cell_anchors.buffers()]

    def forward(self, sizes: Sequence[tuple[int, int]]) -> AnchorGrid:
        """Return the anchors of feature maps of the given (height, width), one per level."""
        levels, boxes, first = [], [], 0
        for cells, stride, (height, width) in zip(self.cell_anchors.buffers(), self.strides, sizes, strict=True):
            level = AnchorLevel(cells.float(), stride, self.offset, height, width, first)
            start = self.offset * stride
            x = torch.arange(width, dtype=torch.float32, device=cells.device) * stride + start
            y = torch.arange(height, dtype=torch.float32, device=cells.device) * stride + start
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            boxes.append((shifts + level.cell_anchors).reshape(-1, 4))
            levels.append(level)
            first += level.count
        return AnchorGrid(tuple(levels), torch.cat(boxes))


def make_cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Return anchors (len(sizes) * len(aspect_ratios), 4) centred at the origin, ratios varying fastest."""
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors, dtype=torch.float32)


def _one_per_level(values: Sequence[Sequence[float]], count: int, what: str) -> Sequence[Sequence[float]]:
    if len(values) == 1:
        return list(values) * count
    if len(values) != count:
        raise ValueError(f"anchor {what} for {len(values)} levels, but the RPN has {count}")
    return values
