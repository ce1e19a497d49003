"""Losses that make pixel embeddings similar within an object and different between objects.

Symbols: B images of H x W pixels, embeddings of D dimensions and length 1; P sampled pixels.
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
    """loss: for pairs of pixels. sampling: from where pixels are drawn. samples: per image. windows: per image. window:
    side in pixels. temperature: of the cosines. similarity: cosine above which two pixels are of one object.
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
    """Return the mean loss over the sampled pixels, 0 without pairs.

    embedding: (B, D, H, W) of length 1. labels: (B, H, W) int64, 0 for background, which is ignored. share: (B, H, W)
    float32, the weight of every pixel in the loss; pixels with weight 0 are not sampled.
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
    """Yield ys, xs (P,) of pixels drawn without replacement from usable ones (H, W) bool; all their pairs are used.

    Uniform: from the whole image. Windowed: from windows around pixels that are drawn first, so that most pairs are
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
        # the pixel is anywhere in its window, so that pixels at object borders are not sampled less often
        top, left = (int(line[centre]) - int(torch.randint(options.window, ())) for line in (ys, xs))
        y0, x0 = max(top, 0), max(left, 0)
        inside = usable[y0 : top + options.window, x0 : left + options.window].nonzero()
        chosen = inside[_drawn(len(inside), options.samples // options.windows).to(ys.device)]
        yield chosen[:, 0] + y0, chosen[:, 1] + x0


def _drawn(count: int, samples: int) -> Tensor:
    # with the CPU's generator, whose state is in checkpoints, on all devices
    return torch.randperm(count)[:samples]


def contrastive(vectors: Tensor, numbers: Tensor, options: ContrastOptions) -> Tensor:
    """Return for each of P pixels the mean over the others of its object of -log(e+ / (e+ + sum of e-)), with
    e = exp(cosine / temperature), + for that pixel and - for those of other objects (Wang et al., Exploring
    Cross-Image Pixel Contrast, ICCV 2021). 0 for a pixel without another one of its object, or of other objects.
    """
    cosines = vectors.float() @ vectors.float().T / options.temperature
    same = numbers[:, None] == numbers
    # negligible but finite: the gradient of log(0) would be NaN
    others = cosines.masked_fill(same, -1e4).logsumexp(dim=1, keepdim=True)
    pairs = same & ~torch.eye(len(numbers), dtype=torch.bool, device=same.device)
    return _mean(F.softplus(others - cosines), pairs)


def binary(vectors: Tensor, numbers: Tensor, options: ContrastOptions) -> Tensor:
    """Return for each of P pixels the cross-entropy of whether each of the others is of its object, with probability
    sigmoid((cosine - similarity) / temperature); pairs within and between objects have half of the weight each.
    """
    cosines = vectors.float() @ vectors.float().T
    logits = (cosines - options.similarity) / options.temperature
    same = numbers[:, None] == numbers
    pairs = same & ~torch.eye(len(numbers), dtype=torch.bool, device=same.device)
    return (_mean(F.softplus(-logits), pairs) + _mean(F.softplus(logits), ~same)) / 2


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of each row over what counts, 0 if nothing does."""
    return torch.where(counts, values, 0).sum(dim=1) / counts.sum(dim=1).clamp(min=1)
