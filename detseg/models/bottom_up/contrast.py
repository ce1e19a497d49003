"""Losses that make embeddings of pixels alike within an object and different between objects.

Symbols: B images of H x W pixels, D numbers an embedding, of length 1; P sampled pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detseg.config.options import Options, Problems, key

CONTRASTIVE, BINARY = "contrastive", "binary"
UNIFORM, WINDOWED = "uniform", "windowed"


@dataclass(frozen=True)
class ContrastOptions(Options):
    """loss: how pairs of pixels are judged. sampling: from where the pixels are drawn. samples: an image. windows: an
    image. window: pixels along a side. temperature: of the cosines. similarity: cosine from which on two pixels are of
    one object.
    """

    section = "MODEL.EMBEDDING"

    loss: str = key("LOSS", choices=(CONTRASTIVE, BINARY))
    sampling: str = key("SAMPLING", choices=(UNIFORM, WINDOWED))
    samples: int = key("SAMPLES", at_least=2, at_most=16384)
    windows: int = key("WINDOWS", at_least=1)
    window: int = key("WINDOW", at_least=2)
    temperature: float = key("TEMPERATURE", above=0)
    similarity: float = key("SIMILARITY", above=0, below=1)

    def check(self, problems: Problems) -> None:
        if self.sampling == WINDOWED and self.samples < 2 * self.windows:
            problems.add("MODEL.EMBEDDING.SAMPLES", f"expected at least two for each of {self.windows} WINDOWS")


def embedding_loss(embedding: Tensor, labels: Tensor, share: Tensor, options: ContrastOptions) -> Tensor:
    """Return the mean loss of the sampled pixels, 0 where there are no pairs.

    embedding: (B, D, H, W) of length 1. labels: (B, H, W) int64, 0 for the background, which takes no part. share:
    (B, H, W) float32, the factor on the loss of every pixel; those of 0 are not drawn.
    """
    judge = contrastive if options.loss == CONTRASTIVE else binary
    total, count = embedding.sum() * 0, 0
    for vectors, numbers, weights in zip(embedding, labels, share, strict=True):
        for ys, xs in sampled_pixels((numbers > 0) & (weights > 0), options):
            losses = judge(vectors[:, ys, xs].T, numbers[ys, xs], options)
            total = total + (losses * weights[ys, xs]).sum()
            count += len(ys)
    return total / max(count, 1)


def sampled_pixels(usable: Tensor, options: ContrastOptions) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ys, xs (P,) of pixels drawn without repetition from usable ones (H, W) bool, of which all pairs are judged.

    Uniform: from the whole image. Windowed: from windows around pixels that are drawn first, so that most pairs are of
    neighbours.
    """
    ys, xs = usable.nonzero(as_tuple=True)
    if not len(ys):
        return
    if options.sampling == UNIFORM:
        chosen = _drawn(len(ys), options.samples).to(ys.device)
        yield ys[chosen], xs[chosen]
        return
    for centre in _drawn(len(ys), options.windows).tolist():
        # its pixel is anywhere in the window, so that pixels at the border of objects are not rarer
        top, left = (int(line[centre]) - int(torch.randint(options.window, ())) for line in (ys, xs))
        y0, x0 = max(top, 0), max(left, 0)
        inside = usable[y0 : top + options.window, x0 : left + options.window].nonzero()
        chosen = inside[_drawn(len(inside), options.samples // options.windows).to(ys.device)]
        yield chosen[:, 0] + y0, chosen[:, 1] + x0


def _drawn(count: int, samples: int) -> Tensor:
    # by the processor's generator, whose state a checkpoint keeps, on every device alike
    return torch.randperm(count)[:samples]


def contrastive(vectors: Tensor, numbers: Tensor, options: ContrastOptions) -> Tensor:
    """Return for each of P pixels the mean over the others of its object of -log(e+ / (e+ + sum of e-)), with
    e = exp(cosine / temperature), + for that pixel and - for those of other objects (Wang et al., Exploring
    Cross-Image Pixel Contrast, ICCV 2021). 0 for a pixel without another of its object, or without any of others.
    """
    cosines = vectors.float() @ vectors.float().T / options.temperature
    same = numbers[:, None] == numbers
    # nearly nothing, but finite: the gradient of a logarithm of zero is not a number
    others = cosines.masked_fill(same, -1e4).logsumexp(dim=1, keepdim=True)
    pairs = same & ~torch.eye(len(numbers), dtype=torch.bool, device=same.device)
    return _mean(F.softplus(others - cosines), pairs)


def binary(vectors: Tensor, numbers: Tensor, options: ContrastOptions) -> Tensor:
    """Return for each of P pixels the cross-entropy of whether each of the others is of its object, whose probability
    is sigmoid((cosine - similarity) / temperature); pairs of one object and of two count a half each.
    """
    cosines = vectors.float() @ vectors.float().T
    logits = (cosines - options.similarity) / options.temperature
    same = numbers[:, None] == numbers
    pairs = same & ~torch.eye(len(numbers), dtype=torch.bool, device=same.device)
    return (_mean(F.softplus(-logits), pairs) + _mean(F.softplus(logits), ~same)) / 2


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """The mean of each row over what counts, 0 where nothing does."""
    return torch.where(counts, values, 0).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
