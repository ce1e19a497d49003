"""detseg: instance segmentation for microscopy with Mask R-CNN, from masks to scored and submitted results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detseg.version import __version__

if TYPE_CHECKING:
    from detseg.inference.predictor import Predictor

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on use: `import detseg` stays free of PyTorch and fast.
    if name == "Predictor":
        from detseg.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'detseg' has no attribute {name!r}")
