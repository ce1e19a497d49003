"""Pixel embeddings as colours."""

from __future__ import annotations

import numpy as np

_PERCENTILES = (1, 99)  # of each component, mapped to 0 and 1, robust to single pixels


def principal_colours(embedding: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB: the first three principal components of embeddings (D, H, W) over the foreground.

    foreground: (H, W) in [0, 1]; components are computed over pixels with at least 0.5 (over all, if there are none),
    and it scales the brightness. The sign of each component makes its largest coefficient positive, so the colours are
    reproducible.
    """
    inside = foreground >= 0.5
    pixels = embedding[:, inside if inside.any() else np.ones_like(inside)].astype(np.float64)
    centre = pixels.mean(axis=1, keepdims=True)
    axes = np.linalg.eigh((pixels - centre) @ (pixels - centre).T)[1][:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    lowest, highest = np.percentile(axes.T @ pixels, _PERCENTILES, axis=1)
    values = np.einsum("dk,dyx->yxk", axes, embedding)
    values = ((values - lowest) / np.maximum(highest - lowest, 1e-6)).clip(0, 1)
    colours = np.zeros((*foreground.shape, 3))
    colours[..., : values.shape[-1]] = values * foreground[..., None]
    return np.rint(255 * colours).astype(np.uint8)
