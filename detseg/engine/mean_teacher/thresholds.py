"""Score thresholds per class for the teacher's labels: fixed, or adapted to the density of the labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detseg.structures.sample import Sample

# Number of equal intervals in which scores are counted.
_BINS = 100
# Decay of the counts per batch: they cover about the last 200 batches.
_KEPT = 0.995
# Thresholds keep their initial values for this many batches.
_LEAST_BATCHES = 20


class ClassThresholds:
    """A score threshold per class: `values`, (K,) float64.

    With `adapts` the thresholds are adjusted within `bounds` so that labels are as dense (objects per pixel), in every
    class, as the objects of the labelled samples. Both densities are measured over the recent batches.
    """

    def __init__(self, values: Sequence[float], *, adapts: bool = False, bounds: tuple[float, float] = (0, 1)) -> None:
        self.values = np.array(values, dtype=np.float64)
        self.adapts = adapts
        self.bounds = bounds
        classes = len(self.values)
        # Objects and pixels of the labelled samples; detections by class and score, and pixels of the teacher's views.
        self._counts = {
            "objects": np.zeros(classes),
            "labeled_pixels": np.zeros(1),
            "scores": np.zeros((classes, _BINS)),
            "pixels": np.zeros(1),
            "batches": np.zeros(1),
        }

    def observe(
        self,
        labeled: Iterable[Sample],
        found: Iterable[tuple[np.ndarray, np.ndarray]],
        sizes: Iterable[tuple[int, int]],
    ) -> None:
        """Count a batch: labelled samples, and the teacher's scores (D,) and classes (D,) in views of these sizes."""
        if not self.adapts:
            return
        counts = self._counts
        for name in ("objects", "labeled_pixels", "scores", "pixels"):
            counts[name] *= _KEPT
        counts["batches"] += 1
        for sample in labeled:
            counts["objects"] += np.bincount(sample.classes, minlength=len(self.values))
            counts["labeled_pixels"] += sample.height * sample.width
        for (scores, classes), (height, width) in zip(found, sizes, strict=True):
            intervals = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
            np.add.at(counts["scores"], (classes, intervals), 1)
            counts["pixels"] += height * width
        if counts["batches"] >= _LEAST_BATCHES and counts["labeled_pixels"] > 0:
            self._adapt()

    def _adapt(self) -> None:
        counts = self._counts
        wanted = counts["objects"] / counts["labeled_pixels"] * counts["pixels"]
        # Detections with at least the lower bound of each interval; the highest bound with enough of them is chosen.
        at_least = counts["scores"][:, ::-1].cumsum(axis=1)[:, ::-1]
        enough = at_least >= wanted[:, None] * (1 - 1e-9)  # not missed by rounding
        highest = np.where(enough.any(axis=1), _BINS - 1 - enough[:, ::-1].argmax(axis=1), 0) / _BINS
        self.values = np.clip(highest, *self.bounds)

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore adapted thresholds and their counts from a checkpoint; fixed ones come from the configuration."""
        if self.adapts and state:
            for name, array in self._arrays().items():
                array[...] = state[name].numpy()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"values": self.values, **self._counts} if self.adapts else {}
