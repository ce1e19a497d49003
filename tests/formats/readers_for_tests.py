"""What the tests of several readers share: small images with known objects, and the masks that come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 30, 40


def labels_of(index: int = 0) -> np.ndarray:
    """A label image (H, W) uint16: a block, one that touches it, a ring with a hole, an object of two pieces."""
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    labels[2:9, 3 + index : 9 + index] = 4
    labels[2:9, 9 + index : 13 + index] = 7
    labels[12:22, 10:20] = 9
    labels[15:18, 13:16] = 0
    labels[25:28, 30:34] = labels[25:28, 36:39] = 300
    return labels


def write_image(path: Path, value: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def run(command: str, output: Path, *options: object) -> int:
    """Run a prepare command of two words; the options are made texts."""
    return main([*command.split(), "--output", str(output), *map(str, options)])


def masks_by_class(dataset: CocoDataset, index: int) -> list[tuple[str, bytes]]:
    """The class and the pixels of every object of an image, sorted."""
    rles, classes, _ = dataset.annotations(index)
    found = [
        (dataset.class_names[c], np.packbits(rle_codec.decode(r)).tobytes()) for r, c in zip(rles, classes, strict=True)
    ]
    return sorted(found)


def expected_masks(labels: np.ndarray, names: dict[int, str] | str = "cell") -> list[tuple[str, bytes]]:
    """The same of a label image. names: of the class of all its objects, or of that of each number."""
    numbers = [int(number) for number in np.unique(labels) if number]
    called = {number: names if isinstance(names, str) else names[number] for number in numbers}
    return sorted((called[number], np.packbits(labels == number).tobytes()) for number in numbers)
