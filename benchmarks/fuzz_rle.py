"""Hostile and random run-lengths: each must give the right mask or a DataError, never another exception.

    python benchmarks/fuzz_rle.py [--cases 1000000] [--seed 0]

Kinds of cases, in turn: masks (text equal to pycocotools', decoded to the same mask), their text damaged, random text,
lists of counts with what is no count among them, and sizes that are none. Whatever is accepted must have the size that
it claims, the area and the box that its mask has, and must survive being written again. Exit status 1, and the case,
where one fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from detseg.errors import DataError
from detseg.structures import rle as rle_codec

ODD_VALUES: list[Any] = [-1, -(2**40), 2**31, 2**62, 2**70, 1.5, 1e300, float("nan"), "3", "", None, True, [1], {}]


class Fuzzer:
    """Draws cases. Every method of `KINDS` returns an RLE, and the mask that it must give where that is known."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def shape(self) -> tuple[int, int]:
        height, width = self.random.integers(1, 25, 2)
        return int(height), int(width)

    def mask(self) -> np.ndarray:
        """Noise of any density, or blocks, which give long runs."""
        height, width = self.shape()
        if self.random.random() < 0.5:
            return self.random.random((height, width)) < self.random.random()
        mask = np.zeros((height, width), dtype=bool)
        for _ in range(self.random.integers(0, 4)):
            y, x = self.random.integers(0, height), self.random.integers(0, width)
            mask[y : y + self.random.integers(1, 12), x : x + self.random.integers(1, 12)] ^= True
        return mask

    def valid(self) -> tuple[Any, np.ndarray | None]:
        mask = self.mask()
        encoded = rle_codec.encode_mask(mask)
        expected = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]
        if encoded["counts"] != expected:
            raise AssertionError(f"the text is {encoded['counts']!r}, but pycocotools writes {expected!r}")
        return encoded, mask

    def damaged(self) -> tuple[Any, np.ndarray | None]:
        encoded = rle_codec.encode_mask(self.mask())
        text = bytearray(encoded["counts"])
        for _ in range(self.random.integers(1, 4)):
            position = int(self.random.integers(0, len(text) + 1))
            kind = self.random.integers(0, 3)
            if kind == 0:
                text.insert(position, int(self.random.integers(0, 256)))
            elif kind == 1:
                text[position : position + 1] = bytes([self.random.integers(40, 120)])
            else:
                del text[position : position + int(self.random.integers(1, 4))]
        return {"size": encoded["size"], "counts": bytes(text)}, None

    def noise(self) -> tuple[Any, np.ndarray | None]:
        lowest, highest = ((48, 112), (0, 256))[self.random.integers(0, 2)]
        text = self.random.integers(lowest, highest, self.random.integers(0, 20)).astype(np.uint8).tobytes()
        return {
            "size": list(self.shape()),
            "counts": text if self.random.random() < 0.5 else text.decode("latin-1"),
        }, None

    def counts(self) -> tuple[Any, np.ndarray | None]:
        height, width = self.shape()
        cuts = np.sort(self.random.integers(0, height * width + 1, self.random.integers(0, 8)))
        counts: list[Any] = np.diff(cuts, prepend=0, append=height * width).tolist()
        for _ in range(self.random.integers(0, 3)):
            counts[self.random.integers(0, len(counts))] = ODD_VALUES[self.random.integers(0, len(ODD_VALUES))]
        return {"size": [height, width], "counts": counts}, None

    def sizes(self) -> tuple[Any, np.ndarray | None]:
        encoded: dict[str, Any] = rle_codec.encode_mask(self.mask())
        size: list[Any] = list(encoded["size"])
        size[self.random.integers(0, 2)] = ODD_VALUES[self.random.integers(0, len(ODD_VALUES))]
        choices = [size, size[:1], [*size, 1], ODD_VALUES[self.random.integers(0, len(ODD_VALUES))]]
        return {**encoded, "size": choices[self.random.integers(0, len(choices))]}, None


KINDS: list[Callable[[Fuzzer], tuple[Any, np.ndarray | None]]] = [
    Fuzzer.valid,
    Fuzzer.damaged,
    Fuzzer.noise,
    Fuzzer.counts,
    Fuzzer.sizes,
]


def check(rle: Any, expected: np.ndarray | None) -> bool:
    """Decode and look at everything that was said of the mask; return whether the RLE was accepted."""
    try:
        mask = rle_codec.decode(rle)
    except DataError:
        if expected is not None:
            raise AssertionError("a valid RLE was refused") from None
        return False
    if expected is not None and not np.array_equal(mask, expected):
        raise AssertionError("decoded to another mask")
    if list(mask.shape) != [int(side) for side in rle["size"]]:
        raise AssertionError(f"decoded to {mask.shape}")
    if rle_codec.area([rle])[0] != mask.sum():
        raise AssertionError("the area is not that of the mask")
    crop, x0, y0 = rle_codec.decode_crop(rle)
    box = rle_codec.bounding_boxes([rle])[0].tolist()
    if mask.any() and box != [x0, y0, x0 + crop.shape[1], y0 + crop.shape[0]]:
        raise AssertionError("box and crop differ")
    if crop.sum() != mask.sum() or not np.array_equal(mask[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]], crop):
        raise AssertionError("the crop is not that of the mask")
    if not np.array_equal(rle_codec.decode(rle_codec.encode_crop(crop, x0, y0, *mask.shape)), mask):
        raise AssertionError("lost when written again")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default %(default)s)")
    arguments = parser.parse_args()
    fuzzer = Fuzzer(arguments.seed)
    accepted, total = Counter(), Counter()
    started = time.perf_counter()
    for number in tqdm(range(arguments.cases), unit="case", mininterval=5):
        kind = KINDS[number % len(KINDS)]
        rle: Any = "not drawn"
        try:
            rle, expected = kind(fuzzer)
            accepted[kind.__name__] += check(rle, expected)
            total[kind.__name__] += 1
        except Exception as error:
            print(f"case {number} of seed {arguments.seed} ({kind.__name__}): {rle}: {type(error).__name__}: {error}")
            return 1
    print(f"{arguments.cases} cases in {time.perf_counter() - started:.0f} s: all right or refused by DataError")
    for name in total:
        print(f"  {name:8} {total[name]:8d} cases, {accepted[name]:8d} accepted as masks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
