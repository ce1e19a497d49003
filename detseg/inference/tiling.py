"""Which images are predicted in tiles, and in which."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.errors import ConfigError, DataError
from detseg.files.atomic import written_whole
from detseg.structures.predictions import Predictions

if TYPE_CHECKING:
    from detseg.config import Config


# How a large image is cut into tiles that overlap.
#
# Tiles form a grid: every row of tiles has the same y range, every column the same x range. Neighbours share at least
# `overlap` pixels; tiles that are no neighbours share none. All tiles begin where a stride of the network begins in the
# whole image, so that its anchors and convolutions lie on the same pixels with and without tiles.

# The coarsest stride of a feature pyramid, in pixels at the network.
STRIDE = 32


@dataclass(frozen=True)
class Tile:
    """Pixels y0 <= y < y1, x0 <= x < x1 of the image. index: row by row. row, column: in the grid."""

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
    """Tiles of an image height x width. rows, columns: the (start, end) of each."""

    height: int
    width: int
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

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
        """Tiles with a greater index that share pixels with this one."""
        places = [(0, 1), (1, -1), (1, 0), (1, 1)]
        inside = [
            (tile.row + down, tile.column + right)
            for down, right in places
            if tile.row + down < len(self.rows) and 0 <= tile.column + right < len(self.columns)
        ]
        return [self[row * len(self.columns) + column] for row, column in inside]

    def depth(self, tile: Tile, boxes: np.ndarray) -> np.ndarray:
        """How far boxes (N, 4) XYXY are from the sides of a tile that cut the image: (N,), negative beyond them.

        Sides on the border of the image cut nothing: a tile that is the whole image is infinitely deep.
        """
        gaps = np.full((4, len(boxes)), np.inf)
        for number, (is_cut, distance) in enumerate(
            [
                (tile.x0 > 0, boxes[:, 0] - tile.x0),
                (tile.y0 > 0, boxes[:, 1] - tile.y0),
                (tile.x1 < self.width, tile.x1 - boxes[:, 2]),
                (tile.y1 < self.height, tile.y1 - boxes[:, 3]),
            ]
        ):
            if is_cut:
                gaps[number] = distance
        return gaps.min(axis=0)


def make_grid(height: int, width: int, *, tile: int, overlap: int, scale: tuple[float, float] = (1.0, 1.0)) -> TileGrid:
    """Cut an image height x width into tiles of at most tile x tile pixels.

    scale: (y, x) pixels at the network per pixel of the image, to whose strides tiles are aligned where there is room.

    Raises:
        ConfigError: no tile has so few pixels; tiles share more than half.
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
    )


def _ranges(length: int, tile: int, overlap: int, unit: float) -> tuple[tuple[int, int], ...]:
    """(start, end) of the tiles along one edge. unit: pixels of the image in a stride of the network."""
    step = tile - overlap
    # Rounding may bring starts nearer together by one pixel at most, never below half a tile.
    steps = int((step - 1) // unit) * unit if unit <= step - 1 else step
    if steps - 1 < tile / 2:
        steps = step
    ranges = []
    number = 0
    while True:
        start = round(number * steps)
        ranges.append((start, min(start + tile, length)))
        if start + tile >= length:
            return tuple(ranges)
        number += 1


# Pixels at the network from which an image is cut into tiles unless something else is said: 4096 x 4096. A network with
# 256 channels at stride 4 holds about 1 GB of features for them.
LARGE = 2**24
# Pixels at the network around an object that tell the model what it is.
CONTEXT = 64
LEAST_TILE = 1024
MOST_OVERLAP = 512

AUTO, ALWAYS, NEVER = "auto", "always", "never"
WHEN = (AUTO, ALWAYS, NEVER)


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    when: "auto": images of more than `LARGE` pixels at the network; "always": those that are larger than a tile;
    "never". tile, overlap: pixels of the file; None: `network_tile`, `network_overlap` pixels at the network. scale:
    pixels at the network per pixel of the file; None: as the model sees the whole image.

    Raises:
        ConfigError: sizes or a scale that make no sense.
    """

    when: str = AUTO
    tile: int | None = None
    overlap: int | None = None
    scale: float | None = None
    network_tile: int = LEAST_TILE
    network_overlap: int = 128 + CONTEXT

    def __post_init__(self) -> None:
        if self.when not in WHEN:
            raise ConfigError(f"tiles are asked for {self.when!r}; expected one of {', '.join(WHEN)}")
        if self.tile is not None and self.tile < 32:
            raise ConfigError(f"tiles of {self.tile} pixels are too small; expected 32 or more, several objects wide")
        if self.overlap is not None and self.overlap < 0:
            raise ConfigError(f"the overlap of tiles is {self.overlap}; expected pixels, from 0 on")
        if self.tile is not None and self.overlap is not None and self.overlap > self.tile // 2:
            raise ConfigError(
                f"tiles of {self.tile} pixels cannot share {self.overlap} with each neighbour; expected at most half"
            )
        if self.scale is not None and not 0.01 <= self.scale <= 100:
            raise ConfigError(f"the scale of tiles is {self.scale}; expected 0.01 to 100")

    @classmethod
    def from_config(cls, cfg: Config) -> Tiling:
        """Tiles for a model: they share as much as its largest objects and some context need.

        The largest objects are those of the largest anchors, or those that fit into the crops of the training.
        """
        largest = max(_numbers(cfg.MODEL.ANCHOR_GENERATOR.SIZES), default=128)
        if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute":
            largest = min(largest, *cfg.INPUT.CROP.SIZE)
        overlap = min(int(largest) + CONTEXT, MOST_OVERLAP)
        return cls(network_tile=max(LEAST_TILE, 4 * overlap), network_overlap=overlap)

    def sizes(self, scale: tuple[float, float]) -> tuple[int, int]:
        """Return tile and overlap in pixels of a file that the network sees at `scale` (y, x)."""
        factor = min(scale)
        tile = self.tile or max(round(self.network_tile / factor), 32)
        overlap = round(self.network_overlap / factor) if self.overlap is None else self.overlap
        return tile, min(overlap, tile // 2)

    def applies(self, height: int, width: int, scale: tuple[float, float]) -> bool:
        """Whether an image height x width that the network sees at `scale` (y, x) is cut into tiles."""
        if self.when == NEVER:
            return False
        if self.when == ALWAYS:
            return max(height, width) > self.sizes(scale)[0]
        return height * scale[0] * width * scale[1] > LARGE

    def describe(self, tile: int, overlap: int) -> dict[str, Any]:
        """What provenance says of an answer that was put together."""
        return {"tile": tile, "overlap": overlap, **({} if self.scale is None else {"scale": self.scale})}


def _numbers(nested: Any) -> list[float]:
    if isinstance(nested, (int, float)):
        return [nested]
    return [number for one in nested for number in _numbers(one)]


# What a detector says about the tiles of an image, kept until they are put together: in memory, or in a folder.
#
# In a folder every tile is a file, so that work that was interrupted goes on, and several processes share it.


class TileAnswers(ABC):
    """The answer of every tile, by its index; in pixels of the tile."""

    @abstractmethod
    def __contains__(self, index: int) -> bool: ...

    @abstractmethod
    def put(self, index: int, answer: Predictions) -> None: ...

    @abstractmethod
    def get(self, index: int) -> Predictions: ...


class AnswersInMemory(TileAnswers):
    """For an image whose objects fit into memory twice."""

    def __init__(self) -> None:
        self._answers: dict[int, Predictions] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._answers

    def put(self, index: int, answer: Predictions) -> None:
        self._answers[index] = answer

    def get(self, index: int) -> Predictions:
        return self._answers[index]


class AnswersInFolder(TileAnswers):
    """One file a tile. what: plain values that say what is computed: each gets a folder of its own below `folder`.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], what: Mapping[str, Any]) -> None:
        text = json.dumps(what, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: the tiles that are done cannot be kept here ({error})") from None

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def __contains__(self, index: int) -> bool:
        return self._path(index).is_file()

    def put(self, index: int, answer: Predictions) -> None:
        """Write an answer, whole or not at all. Raises DataError where it cannot be written."""
        with written_whole(self._path(index), "a tile") as temporary, open(temporary, "wb") as file:
            np.savez(file, **_to_arrays(answer))

    def get(self, index: int) -> Predictions:
        """Read an answer. Raises DataError where the file is broken."""
        path = self._path(index)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return _from_arrays(stored)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); delete it and predict again") from None


def _to_arrays(answer: Predictions) -> dict[str, np.ndarray]:
    arrays = {
        "size": np.array([answer.height, answer.width]),
        "boxes": answer.boxes,
        "scores": answer.scores,
        "classes": answer.classes,
    }
    if answer.rles is not None:
        texts = [rle["counts"] if isinstance(rle["counts"], bytes) else rle["counts"].encode() for rle in answer.rles]
        arrays["rle_lengths"] = np.array([len(text) for text in texts], dtype=np.int64)
        arrays["rle_text"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
    if answer.soft_masks is not None:
        arrays["soft_sizes"] = np.array([mask.shape for mask in answer.soft_masks], dtype=np.int64).reshape(-1, 2)
        arrays["soft"] = np.concatenate([np.zeros(0, np.uint8), *(mask.ravel() for mask in answer.soft_masks)])
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
    return Predictions(0, "", height, width, stored["boxes"], stored["scores"], stored["classes"], rles, soft)
