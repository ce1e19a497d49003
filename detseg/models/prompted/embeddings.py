"""Embeddings of windows, cached on disk: a frozen encoder computes each once, for all trainings."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from detseg.errors import DataError
from detseg.models.prompted.sam import Embedding, Sam
from detseg.models.weights.files import Weights, read_weights, write_weights


class EmbeddingCache:
    """Embeddings of a SAM in a folder, one .safetensors file per window, keyed by its pixels and the SAM's weights.

    Values are rounded to half precision, also right after they are computed, so that training does not depend on the
    state of the cache.
    """

    def __init__(self, folder: Path, sam: Sam) -> None:
        self.sam = sam
        self.folder = folder / weights_hash(sam)[:16]

    def embed(self, window: np.ndarray) -> Embedding:
        """See Promptable. Raises DataError if the folder cannot be written."""
        key = hashlib.sha256(f"{window.shape}".encode() + np.ascontiguousarray(window).tobytes()).hexdigest()
        path = self.folder / f"{key[:32]}.safetensors"
        device = next(self.sam.parameters()).device
        if path.is_file():
            state = read_weights(path).state
            found = [state[f"{number}"] for number in range(len(state))]
        else:
            found = [one.half().cpu() for one in self.sam.embed(window)]
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"{self.folder}: embeddings cannot be stored here ({error}); set MODEL.SAM.CACHE"
                ) from None
            write_weights(path, Weights({f"{number}": one for number, one in enumerate(found)}))
        return [one.to(device).float() for one in found]


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 of the image encoder: all weights except trainable ones."""
    digest = hashlib.sha256()
    for name, value in module.named_parameters():
        if not value.requires_grad:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
