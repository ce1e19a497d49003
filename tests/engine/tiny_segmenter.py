"""A real Segmenter small enough to train in milliseconds, and data for it: bright disks on a dark ground."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detseg.models.base import Segmenter
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers
from detseg.structures.predictions import Predictions
from detseg.structures.sample import Sample

SIZE = 24


class TinySegmenter(Segmenter):
    """Foreground probability of every pixel; its one prediction an image is the bounding box of the foreground.

    BatchNorm (buffers) and dropout (torch's generator) are in it, because a resumed training must continue both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.25)
        self.last = nn.Conv2d(4, 1, 1)

    def logits(self, images: Sequence[np.ndarray]) -> Tensor:
        batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
        batch = batch.float().to(self.device) / 255.0
        return self.last(self.drop(torch.relu(self.norm(self.first(batch)))))[:, 0]

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        logits = self.logits([sample.image for sample in samples])
        truth = torch.stack([torch.from_numpy((sample.layers.layers > 0).any(axis=0)) for sample in samples])
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), truth.float().to(logits.device))
        return {"loss_mask": loss, "loss_size": 0.01 * logits.float().square().mean()}

    @torch.no_grad()
    def predict(self, images, output_sizes=None, *, soft_masks=False):
        answers = []
        for image in images:
            mask = (self.logits([image])[0].sigmoid() > 0.5).cpu().numpy()
            height, width = mask.shape
            if not mask.any():
                answers.append(Predictions.empty("", "", height, width))
                continue
            ys, xs = np.nonzero(mask)
            box = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], dtype=np.float32)
            rle = rle_codec.encode_mask(mask)
            answers.append(Predictions("", "", height, width, box, np.ones(1), np.zeros(1), rles=[rle]))
        return answers


def disk_image(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(SIZE, SIZE, 3) uint8 and its label image (SIZE, SIZE) int32 with one disk."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    cy, cx = rng.integers(8, 16, 2)
    labels = ((y - cy) ** 2 + (x - cx) ** 2 < 36).astype(np.int32)
    image = np.clip(labels * 120 + rng.normal(60, 20, (SIZE, SIZE)), 0, 255).astype(np.uint8)
    return np.repeat(image[:, :, None], 3, axis=2), labels


def disk_sample(seed: int) -> Sample:
    image, labels = disk_image(seed)
    return Sample(image, LabelLayers.from_label_image(labels), np.zeros(1, dtype=np.int64), None, seed, f"{seed}.png")


def disk_batches(start: int = 0, batch: int = 2) -> Iterator[list[Sample]]:
    """Endless batches; the stream's position decides a sample."""
    position = start
    while True:
        yield [disk_sample((position + k) % 8) for k in range(batch)]
        position += batch


def write_disks(folder: Path, count: int = 6) -> Path:
    """Write a COCO data set of disks; return its JSON."""
    import json

    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for seed in range(count):
        image, labels = disk_image(seed)
        Image.fromarray(image).save(folder / f"{seed}.png")
        images.append({"id": seed + 1, "file_name": f"{seed}.png", "height": SIZE, "width": SIZE})
        rle = rle_codec.encode_mask(labels > 0)
        counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode("ascii")
        annotations.append(
            {
                "id": seed + 1,
                "image_id": seed + 1,
                "category_id": 1,
                "segmentation": {"size": rle["size"], "counts": counts},
                "iscrowd": 0,
            }
        )
    path = folder / "disks.json"
    categories = [{"id": 1, "name": "disk"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path
