"""Tiling: which images are predicted in tiles, and the grid of overlapping tiles.

All tiles of a row have the same y range, all tiles of a column the same x range. Neighbours share at least `overlap`
pixels; tiles that are not neighbours share none. If possible, tiles begin at a multiple of the network's stride, so
that its anchors and convolutions are at the same pixels with and without tiles.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detseg.errors import ConfigError, DataError
from detseg.files.atomic import written_whole
from detseg.structures.boxes import depth_in_window
from detseg.structures.predictions import Predictions

# The coarsest stride of a feature pyramid, in pixels at the network.
STRIDE = 32
# Images with more pixels at the network's input than this are tiled by default: 4096 x 4096. A network with 256
# channels at stride 4 takes about 1 GB of features for them.
LARGE = 2**24
# Context around an object that the model needs, in network pixels.
CONTEXT = 64
LEAST_TILE = 1024
MOST_OVERLAP = 512

AUTO, ALWAYS, NEVER = "auto", "always", "never"
WHEN = (AUTO, ALWAYS, NEVER)


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    when: "auto": images of more than `LARGE` pixels at the network; "always": images larger than a tile; "never". tile,
    overlap: pixels of the file; None: `network_tile`, `network_overlap` network pixels. scale: network pixels per pixel
    of the file; None: as for the whole image.

    Raises:
        ConfigError: invalid sizes or an invalid scale.
    """

    when: str = AUTO
    tile: int | None = None
    overlap: int | None = None
    scale: float | None = None
    network_tile: int = LEAST_TILE
    network_overlap: int = 128 + CONTEXT

    def __post_init__(self) -> None:
        if self.when not in WHEN:
            raise ConfigError(f"tiling is {self.when!r}; expected one of {', '.join(WHEN)}")
        if self.tile is not None and self.tile < 32:
            raise ConfigError(f"tiles of {self.tile} pixels are too small; expected 32 or more, several objects wide")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"the overlap of tiles is {self.overlap}; expected 0 or more pixels")
        if self.tile is not None and self.overlap is not None and self.overlap > self.tile // 2:
            raise ConfigError(
                f"tiles of {self.tile} pixels cannot share {self.overlap} with each neighbour; expected at most half"
            )
        if self.scale is not None and not 0.01 <= self.scale <= 100:
            raise ConfigError(f"the scale of tiles is {self.scale}; expected 0.01 to 100")

    @classmethod
    def for_objects(cls, largest: float) -> Tiling:
        """Return tiles whose overlap fits the largest objects (network pixels) and some context."""
        return cls._sharing(int(largest) + CONTEXT)

    @classmethod
    def for_reach(cls, reach: int) -> Tiling:
        """Return tiles whose overlap makes blended maps equal to those of the whole image; see MapSegmenter.reach."""
        return cls._sharing(2 * reach + STRIDE)

    @classmethod
    def _sharing(cls, pixels: int) -> Tiling:
        overlap = min(pixels, MOST_OVERLAP)
        return cls(network_tile=max(LEAST_TILE, 4 * overlap), network_overlap=overlap)

    def sizes(self, scale: tuple[float, float]) -> tuple[int, int]:
        """Return tile size and overlap in pixels of a file that the network sees at `scale` (y, x)."""
        factor = min(scale)
        tile = self.tile or max(round(self.network_tile / factor), 32)
        overlap = round(self.network_overlap / factor) if self.overlap is None else self.overlap
        return tile, min(overlap, tile // 2)

    def applies(self, height: int, width: int, scale: tuple[float, float]) -> bool:
        """Whether an image of height x width that the network sees at `scale` (y, x) is cut into tiles."""
        if self.when == ALWAYS:
            return max(height, width) > self.sizes(scale)[0]
        return self.when == AUTO and height * scale[0] * width * scale[1] > LARGE


@dataclass(frozen=True)
class Tile:
    """Pixels y0 <= y < y1, x0 <= x < x1 of the image. index: in row-major order. row, column: in the grid."""

    index: int
    row: int
    column: int
    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclass(frozen=True)
class TileGrid:
    """Tiles of an image of height x width.

    rows, columns: the (start, end) of each. tile, overlap: image pixels. scale: network pixels per image pixel (y, x).
    """

    height: int
    width: int
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    tile: int
    overlap: int
    scale: tuple[float, float]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, len(self.columns))
        (y0, y1), (x0, x1) = self.rows[row], self.columns[column]
        return Tile(index, row, column, y0, x0, y1, x1)

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def later_neighbours(self, tile: Tile) -> list[Tile]:
        """Return the tiles with a greater index that share pixels with this one."""
        places = [(0, 1), (1, -1), (1, 0), (1, 1)]
        inside = [
            (tile.row + down, tile.column + right)
            for down, right in places
            if tile.row + down < len(self.rows) and 0 <= tile.column + right < len(self.columns)
        ]
        return [self[row * len(self.columns) + column] for row, column in inside]

    def depth(self, tile: Tile, boxes: np.ndarray) -> np.ndarray:
        """Return `boxes.depth_in_window` of boxes (N, 4) XYXY in a tile."""
        return depth_in_window(boxes, (tile.x0, tile.y0, tile.x1, tile.y1), self.height, self.width)


def make_grid(height: int, width: int, *, tile: int, overlap: int, scale: tuple[float, float] = (1.0, 1.0)) -> TileGrid:
    """Cut an image of height x width into tiles of at most tile x tile pixels.

    scale: (y, x) network pixels per image pixel; tiles are aligned to the network's strides where possible.

    Raises:
        ConfigError: the tile is too small, or tiles would share more than half.
    """
    if tile < 2 or not 0 <= overlap <= tile // 2:
        raise ConfigError(
            f"tiles of {tile} pixels that share {overlap}: expected at least 2 pixels, and at most half of them shared"
        )
    return TileGrid(
        height,
        width,
        _ranges(height, tile, overlap, STRIDE / scale[0]),
        _ranges(width, tile, overlap, STRIDE / scale[1]),
        tile,
        overlap,
        scale,
    )


def _ranges(length: int, tile: int, overlap: int, unit: float) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of the tiles along one edge. unit: image pixels per stride of the network."""
    if unit == int(unit) and tile < length:
        # Aligned also when strides are counted from the image's end, as in a mirrored view.
        shorter = tile - (tile - length) % int(unit)
        if overlap <= shorter // 2 and _aligned_step(shorter, overlap, unit) is not None:
            tile = shorter
    steps = _aligned_step(tile, overlap, unit) or tile - overlap
    ranges = []
    number = 0
    while True:
        start = round(number * steps)
        ranges.append((start, min(start + tile, length)))
        if start + tile >= length:
            return tuple(ranges)
        number += 1


def _aligned_step(tile: int, overlap: int, unit: float) -> float | None:
    """Return the step between tiles in whole strides; None if tiles would share more than half."""
    step = int((tile - overlap - 1) // unit) * unit
    # Rounding may bring starts closer together by at most one pixel, never below half a tile.
    return step if step - 1 >= tile / 2 else None


# The predictions of the tiles of an image, one file per tile, until they are combined.
#
# An interrupted command continues with them, and several processes share the tiles of one image.


class TileFolder:
    """A folder of the predictions of tiles, used like a dictionary by the tile's index.

    computed: plain values that identify the computation: each has its own folder below `folder`.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], computed: Mapping[str, Any]) -> None:
        text = json.dumps(computed, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: the tiles that are done cannot be kept here ({error})") from None

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def __contains__(self, index: int) -> bool:
        return self._path(index).is_file()

    def __setitem__(self, index: int, predictions: Predictions) -> None:
        """Write the predictions of a tile. Raises DataError if they cannot be written."""
        with written_whole(self._path(index), "a tile") as temporary, open(temporary, "wb") as file:
            np.savez(file, **_to_arrays(predictions))

    def __getitem__(self, index: int) -> Predictions:
        """Read the predictions of a tile. Raises DataError if the file is damaged."""
        path = self._path(index)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return _from_arrays(stored)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and predict again") from None


def _to_arrays(predictions: Predictions) -> dict[str, np.ndarray]:
    arrays = {
        "size": np.array([predictions.height, predictions.width]),
        "boxes": predictions.boxes,
        "scores": predictions.scores,
        "classes": predictions.classes,
        "quality": predictions.quality,
    }
    if predictions.rles is not None:
        counts = [rle["counts"] for rle in predictions.rles]
        texts = [text if isinstance(text, bytes) else text.encode() for text in counts]
        arrays["rle_lengths"] = np.array([len(text) for text in texts], dtype=np.int64)
        arrays["rle_text"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
    if predictions.soft_masks is not None:
        arrays["soft_sizes"] = np.array([mask.shape for mask in predictions.soft_masks], dtype=np.int64).reshape(-1, 2)
        arrays["soft"] = np.concatenate([np.zeros(0, np.uint8), *(mask.ravel() for mask in predictions.soft_masks)])
    return arrays


def _from_arrays(stored: Mapping[str, np.ndarray]) -> Predictions:
    height, width = (int(edge) for edge in stored["size"])
    rles = soft = None
    if "rle_text" in stored:
        text = stored["rle_text"].tobytes()
        ends = np.cumsum(stored["rle_lengths"]).tolist()
        rles = [
            {"size": [height, width], "counts": text[start:end]}
            for start, end in zip([0, *ends][: len(ends)], ends, strict=True)
        ]
    if "soft" in stored:
        sizes = stored["soft_sizes"]
        parts = np.split(stored["soft"], np.cumsum(sizes.prod(axis=1))[:-1]) if len(sizes) else []
        soft = [part.reshape(*size) for part, size in zip(parts, sizes.tolist(), strict=True)]
    columns = (stored[name] for name in ("boxes", "scores", "classes"))
    return Predictions(0, "", height, width, *columns, rles, soft, quality=stored["quality"])
