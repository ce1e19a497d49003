"""Choosing which anchors and proposals a loss looks at."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_labels(labels: Tensor, count: int, positive_fraction: float, background: int) -> tuple[Tensor, Tensor]:
    """Draw at random at most `count` candidates: up to `positive_fraction` of them objects, the others background.

    labels: (n,) integers: -1 is never drawn, `background` is background, everything else an object. Returns the indices
    of the objects and of the background, int64. Randomness comes from torch's default generator.
    """
    objects = torch.nonzero((labels != -1) & (labels != background)).squeeze(1)
    others = torch.nonzero(labels == background).squeeze(1)
    object_count = min(len(objects), int(count * positive_fraction))
    other_count = min(len(others), count - object_count)
    return _draw(objects, object_count), _draw(others, other_count)


def _draw(indices: Tensor, count: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]
