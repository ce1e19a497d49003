"""Whether the masks of a data set can be single objects, or something else was given as labels.

The checks look for the cause, not for specific values: one label in many distant pieces (a mask of all objects
together, whether 0/1, 0/255 or bool; labels that wrapped after 255; images given as labels), an object around all
others (the background), hundreds of objects of a few pixels, images that show only labels.

Symbols: N objects, P pieces of them, R runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from detseg.coco.dataset import CocoDataset
from detseg.coco.learnable import NOTHING
from detseg.errors import DataError, some_of
from detseg.structures import rle as rle_codec
from detseg.structures.runs import Runs, chunks_of, spread

# A piece counts if it has this fraction of the largest piece's pixels: specks next to a cell do not.
PIECE = 0.25
# An object is scattered if its box is this many times longer than the longer side of its largest piece.
SPREAD = 2.5
# Size in pixels of a small object, and their number in an image that is suspicious.
SMALL, MANY_SMALL = 4, 20
# Runs of an image that are examined: for noise given as labels nearly every pixel is one.
MOST_RUNS = 2**19
# Fraction of images from which on an object like the background is reported, since one cell can fill one image.
_OFTEN = 0.1

ONE_MASK, WRAPPED, PICTURES = "one mask", "wrapped", "pictures"
BACKGROUND, SPECKS, SAME = "background", "specks", "same"

_TEXTS = {
    ONE_MASK: "have a few masks, each of many distant pieces: masks of all objects (or of a class) together, as 0/1 or "
    "0/255. Give every object its own number; if objects do not touch, `detseg prepare label_images --split-regions` "
    "makes an object of every connected component",
    WRAPPED: "have (nearly) 255 objects, some of several distant pieces: labels that were saved in 8 bits, and were "
    "clipped or wrapped after 255. Save the label images in 16 bits",
    PICTURES: "have many objects of several distant pieces: images given as labels, or labels that are used several "
    "times. Check that the folders of images and labels are not exchanged",
    BACKGROUND: "have an object that reaches all four borders and covers half of the image or more: the background "
    "stored as an object. Set it to 0 (`detseg prepare label_images --background NUMBER`)",
    SPECKS: f"have {MANY_SMALL} or more objects of at most {SMALL} pixels, a tenth of their objects: label images that "
    "were resized with interpolation, saved lossily, or are images. Save them again from the source",
    SAME: "have images with one value in every object and another in each: label images given as images. Check that "
    "the folders of images and labels are not exchanged or the same",
}


@dataclass
class LabelCheck:
    """Findings of `add` in the images of a data set; `warnings` describes them."""

    num_images: int = 0
    num_objects: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, rles: Sequence[Mapping[str, Any]], picture_is_labels: bool = False) -> None:
        """Check the objects of one image, without its crowd regions. picture_is_labels: see `is_label_picture`."""
        self.num_images += 1
        self.num_objects += len(rles)
        for trap in [*traps_of(rle_codec.read_runs(rles)), *([SAME] if picture_is_labels else [])]:
            self.found.setdefault(trap, []).append(name)

    def warnings(self) -> list[str]:
        """Return one text for every implausibility."""
        if self.num_images and not self.num_objects:
            return [f"none of the {self.num_images} images has an object: {NOTHING}"]
        said = []
        for trap, text in _TEXTS.items():
            names = self.found.get(trap, [])
            if names and (trap != BACKGROUND or len(names) >= _OFTEN * self.num_images):
                said.append(f"{len(names)} of {self.num_images} images ({some_of(names)}) {text}.")
        return said


def check_labels(dataset: CocoDataset, most: int = 0) -> list[str]:
    """Return all implausibilities of a data set's masks, one text each. most: number of images to check, 0 for all."""
    labels = LabelCheck()
    step = max(-(-len(dataset) // most), 1) if most else 1
    for index in range(0, len(dataset), step):
        labels.add(dataset.images[index].file_name, dataset.annotations(index).objects.rles)
    return labels.warnings()


def traps_of(runs: Runs) -> Iterator[str]:
    """Yield what the masks of one image seem to be instead of single objects; nothing if they are plausible."""
    count = len(runs)
    if not count or not len(runs.starts):
        return
    areas, boxes = runs.areas(), runs.boxes()
    is_filling = (boxes == [0, 0, int(runs.widths[0]), int(runs.heights[0])]).all(axis=1)
    background = is_filling & (areas >= 0.5 * int(runs.widths[0]) * int(runs.heights[0]))
    if background.any():
        yield BACKGROUND
    # The pieces of the background say nothing.
    chosen = np.flatnonzero(~background & (areas > 0))
    if len(runs.starts) > MOST_RUNS:
        step = -(-len(runs.starts) // MOST_RUNS)
        chosen = chosen[::step]
    pieces = scattered_pieces(runs.select(chosen))
    scattered, torn = (pieces >= 3).sum(), (pieces >= 2).sum()
    if count <= 10 and (2 * scattered >= max(len(chosen), 1) or (count == 1 and torn)):
        yield ONE_MASK
    # A label that wrapped is in a few places, an intensity of an image in very many. If labels were clipped, all after
    # 254 have the last one.
    elif (250 <= count <= 255 and torn >= max(3, 0.02 * count) and np.median(pieces[pieces >= 2]) <= 8) or (
        count == 255 and torn == 1 and pieces[-1] >= 2
    ):
        yield WRAPPED
    elif count > 10 and torn >= 0.25 * len(chosen):
        yield PICTURES
    elif (small := (areas <= SMALL).sum()) >= MANY_SMALL and 10 * small >= count:
        yield SPECKS


# Limit on box pixels x pieces, summed over an image's masks, for processing piece by piece; some seconds.
_MOST_WORK = 2**29


def check_separable(rles: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse masks that are not objects, such as an image given as labels, before they are processed piece by piece.

    Raises DataError if this would take unbounded time and memory.
    """
    runs = rle_codec.read_runs(rles)
    parts, owner = split_regions(runs)
    boxes = runs.boxes()
    sizes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    work = int((sizes * np.bincount(owner, minlength=len(runs))).sum())
    if work > _MOST_WORK or PICTURES in traps_of(runs):
        raise DataError(
            f"{where}: its {len(runs)} masks have {len(parts)} pieces all over the image: they are not objects, but an "
            "image given as labels, or masks of all objects together; check that the folders of images and labels are "
            "not exchanged, or prepare the masks with --split-regions"
        )


def scattered_pieces(runs: Runs) -> np.ndarray:
    """Return the number of distant pieces of every mask, (N,) int64; 1 if it has one, or its pieces are close.

    Pieces are 8-connected; small ones do not count (`PIECE`), and together they must extend far beyond the largest
    (`SPREAD`).
    """
    count = len(runs)
    parts, owner = split_regions(runs)
    areas = parts.areas()
    largest = np.zeros(count, dtype=np.int64)
    np.maximum.at(largest, owner, areas)
    boxes = parts.boxes()
    counts = areas >= PIECE * largest[owner]
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    side = np.zeros(count, dtype=np.int64)
    np.maximum.at(side, owner, np.where(counts, sides, 0))
    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.zeros((count, 2), dtype=np.int64)
    np.minimum.at(low, owner[counts], boxes[counts, :2])
    np.maximum.at(high, owner[counts], boxes[counts, 2:])
    is_wide = (high - low).max(axis=1, initial=0) >= SPREAD * side
    return np.where(is_wide, np.bincount(owner[counts], minlength=count), 1)


def split_regions(runs: Runs) -> tuple[Runs, np.ndarray]:
    """Return the 8-connected components of N masks as separate masks, and the original mask (P,) int64 of each.

    The components of one mask are consecutive, in column-major order of their first pixels.
    """
    runs = runs.within_columns()
    number = len(runs.starts)
    if not number:
        return Runs(*(np.zeros(0, dtype=np.int64),) * 5), np.zeros(0, dtype=np.int64)
    height = np.maximum(runs.heights, 1)[runs.owners]
    top, bottom = runs.starts % height, (runs.ends - 1) % height + 1
    # Map all masks to one number line, each in its own stretch, so that a search finds only runs of the same mask.
    stretch = int((np.maximum(runs.heights, 1) * (runs.widths + 3)).max())
    starts, ends = runs.starts + runs.owners * stretch, runs.ends + runs.owners * stretch
    # The neighbours of a run in the next column end after its first pixel and start before its last one, or touch it at
    # a corner; not at the ends of the column, where the next number is a pixel of another column.
    first = np.searchsorted(ends, starts + height - (top > 0), side="right")
    last = np.searchsorted(starts, ends + height + (bottom < height), side="left")
    # Consecutive runs without a gap are connected.
    follows = np.flatnonzero((ends[:-1] == starts[1:]) & (top[1:] > 0))
    edges = [np.stack([follows, follows + 1])]
    counts = np.maximum(last - first, 0)
    for chunk in chunks_of(counts, MOST_RUNS):
        run, step = spread(counts[chunk])
        edges.append(np.stack([run + chunk.start, first[chunk][run] + step]))
    one, other = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(number, number))
    region = connected_components(graph, directed=False)[1]
    # Renumber by first runs, which are sorted by mask.
    _, first_run, region = np.unique(region, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first_run))
    region = rank[region.reshape(-1)]
    order = np.argsort(region, kind="stable")
    mask = runs.owners[np.sort(first_run)]
    return Runs(runs.starts[order], runs.ends[order], region[order], runs.heights[mask], runs.widths[mask]), mask


def is_label_picture(picture: np.ndarray, rles: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an image (H, W, C) has one value in every object and another one in each, so that it shows labels."""
    if picture.shape[2] != 1 or len(rles) < 3:
        return False
    runs = rle_codec.read_runs(rles)
    flat = picture[:, :, 0].T.reshape(-1)
    filled = np.flatnonzero(np.diff(runs.bounds))
    if len(filled) < 3:
        return False
    first = flat[runs.starts]
    # First compare the ends of runs, which differ in any real image.
    if (first != flat[runs.ends - 1]).any() or (first != first[runs.bounds[runs.owners]]).any():
        return False
    values = first[runs.bounds[filled]]
    if len(np.unique(values)) < len(values) or runs.areas().max() < SMALL:
        return False
    steps = np.concatenate([[0], np.cumsum(flat[1:] != flat[:-1])])
    return bool((steps[runs.ends - 1] == steps[runs.starts]).all())
