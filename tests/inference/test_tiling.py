"""Sliding windows: with a segmenter whose answer is known, tiles give that of the whole image, every pixel of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threshold_segmenter import ThresholdSegmenter
from tiled_scenes import assert_same_objects, components, draw_disks

from detseg.coco.dataset import ImageRecord
from detseg.data.preprocess import ImagePreprocess
from detseg.errors import ConfigError
from detseg.images.pixel_source import ArraySource
from detseg.inference.detector import Detector
from detseg.inference.image_model import ImageModel
from detseg.inference.tile_predictor import TilePredictor
from detseg.inference.tiling import Tiling, make_grid

TILE, OVERLAP = 128, 40


RECORD = ImageRecord(1, "", Path(), 0, 0, {})


def tiles(tile=TILE, overlap=OVERLAP, **options) -> TilePredictor:
    model = ImageModel(ThresholdSegmenter(num_classes=1), ImagePreprocess())
    return TilePredictor(Detector([model]), Tiling("always", tile, overlap), **options)


def predict(image, **options):
    return tiles(**options).predict(RECORD, ArraySource(image, {}))


@given(st.integers(1, 900), st.integers(1, 900), st.integers(32, 300), st.floats(0, 0.5), st.floats(0.2, 4))
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_in_a_tile_and_neighbours_share_the_overlap(height, width, tile, share, scale):
    overlap = int(tile * share)
    grid = make_grid(height, width, tile=tile, overlap=overlap, scale=(scale, scale))
    seen = np.zeros((height, width), dtype=int)
    for one in grid:
        seen[one.y0 : one.y1, one.x0 : one.x1] += 1
    assert seen.min() >= 1
    assert seen.max() <= 4
    for ranges in (grid.rows, grid.columns):
        assert all(end - start <= tile for start, end in ranges)
        assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(ranges))


def test_tiles_begin_at_the_strides_of_the_network():
    grid = make_grid(4000, 4000, tile=1000, overlap=100, scale=(0.5, 0.5))
    assert {start % 64 for start, _ in grid.rows} == {0}
    odd = make_grid(4000, 4000, tile=1000, overlap=100, scale=(0.3, 0.3))
    assert all(abs(start * 0.3 / 32 - round(start * 0.3 / 32)) < 0.3 / 32 for start, _ in odd.rows)


def seam_scene() -> np.ndarray:
    """Cells across every seam at every phase, and on all corners where four tiles meet."""
    size = 420
    grid = make_grid(size, size, tile=TILE, overlap=OVERLAP)
    lines = sorted({edge for bounds in grid.rows for edge in bounds} - {0, size})
    assert len(lines) >= 6
    disks, taken = [], np.zeros((size, size), dtype=bool)
    corners = [(y, x) for y in lines for x in lines]
    middles = [(y, x) for y in lines for x in range(12, size - 12, 5)] + [
        (x, y) for y in lines for x in range(12, 408, 5)
    ]
    rng = np.random.default_rng(0)
    for y, x in corners + rng.permutation(middles).tolist():
        y, x, radius = y + rng.integers(-6, 7), x + rng.integers(-6, 7), rng.uniform(3, 9)
        around = np.s_[
            max(int(y - radius) - 2, 0) : int(y + radius) + 4, max(int(x - radius) - 2, 0) : int(x + radius) + 4
        ]
        if not taken[around].any():
            taken[around] = True
            disks.append((y, x, radius))
    assert len(disks) > 150
    return draw_disks(size, size, disks)


def test_cells_on_seams_and_corners_come_once_and_whole():
    image = seam_scene()
    assert_same_objects(predict(image), components(image))


def test_the_naive_way_doubles_and_cuts_here():
    image = seam_scene()
    grid = make_grid(*image.shape[:2], tile=TILE, overlap=OVERLAP)
    found = sum(components(image[t.y0 : t.y1, t.x0 : t.x1]).max() for t in grid)
    assert found > 1.5 * components(image).max(), "the scene tests nothing"


@given(st.integers(0, 2**32 - 1), st.integers(40, 330), st.integers(40, 330), st.integers(32, 90), st.floats(0.02, 0.5))
@settings(max_examples=40, deadline=None)
def test_any_cells_in_any_tiles(seed, height, width, tile, share):
    rng = np.random.default_rng(seed)
    taken = np.zeros((height, width), dtype=bool)
    disks = []
    for _ in range(60):
        y, x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.5, 25)
        around = np.s_[
            max(int(y - radius) - 2, 0) : int(y + radius) + 4, max(int(x - radius) - 2, 0) : int(x + radius) + 4
        ]
        if not taken[around].any():
            taken[around] = True
            disks.append((y, x, radius))
    image = draw_disks(height, width, disks)
    assert_same_objects(predict(image, tile=tile, overlap=max(int(tile * share), 2)), components(image))


def test_objects_larger_than_the_overlap_and_than_a_tile_are_put_together():
    image = np.zeros((400, 500, 1), dtype=np.uint8)
    image[20:380, 30:60] = 255  # a fibre over all rows of tiles
    image[190:215, 80:480] = 255
    image[20:160, 100:460] = 255
    image[50:130, 140:420] = 0  # a ring around several tiles
    image[80:100, 200:330] = 255  # an object inside it
    image[230:390, 90:490] = 255
    image[230:360, 120:150] = 0  # combs: one object here, several there
    image[260:390, 200:230] = 0
    image[230:360, 300:330] = 0
    assert_same_objects(predict(image), components(image))


def test_the_quality_of_an_object_is_that_of_its_best_piece(tmp_path):
    image = np.zeros((100, 240, 1), dtype=np.uint8)
    image[20:40, 20:220] = 255  # larger than a tile
    image[60:70, 5:15] = 255

    class JudgingSegmenter(ThresholdSegmenter):
        def predict(self, images, output_sizes=None, **options):
            found = super().predict(images, output_sizes, **options)
            number = sum(map(len, self.seen)) - len(images)
            return [one.with_quality(np.full(len(one), 0.5 + (number + i) / 100)) for i, one in enumerate(found)]

    for state in (None, tmp_path):
        model = ImageModel(JudgingSegmenter(num_classes=1), ImagePreprocess())
        tile_predictor = TilePredictor(Detector([model]), Tiling("always", TILE, OVERLAP), state=state)
        found = tile_predictor.predict(RECORD, ArraySource(image, {}))
        assert len(found) == 2
        np.testing.assert_allclose(found.scores, found.class_scores * found.quality, rtol=1e-6)
        last = (len(tile_predictor.grid(ArraySource(image, {}))) - 1) / 100
        # the bar's best piece is in the last tile; the spot is the second object of the first
        assert found.quality.tolist() == pytest.approx([0.5 + last, 0.5])
        assert found.class_scores.tolist() == pytest.approx([0.9, 0.8])


def test_the_last_tile_may_show_several_pieces_of_an_object():
    image = np.zeros((100, 240, 1), dtype=np.uint8)
    image[20:40, 20:220] = image[60:80, 20:220] = 255
    image[20:80, 20:30] = 255  # joins both bars, in the first tile only
    assert_same_objects(predict(image), components(image))


def test_nothing_and_everything():
    for value in (0, 255):
        image = np.full((300, 333, 1), value, dtype=np.uint8)
        assert_same_objects(predict(image), components(image))


def test_an_image_smaller_than_a_tile_is_one_tile():
    image = draw_disks(50, 60, [(25, 30, 10), (0, 0, 5)])
    assert len(tiles().grid(ArraySource(image, {}))) == 1
    assert_same_objects(predict(image), components(image))


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"workers": 2}, {"batch_size": 4, "workers": 3}])
def test_batches_and_workers_change_nothing(options):
    image = seam_scene()
    plain, other = predict(image), predict(image, **options)
    assert plain.rles == other.rles
    assert np.array_equal(plain.scores, other.scores)


def test_batches_hold_as_many_tiles_as_asked():
    predictor = tiles(batch_size=3)
    predictor.predict(RECORD, ArraySource(seam_scene(), {}))
    sizes = [len(batch) for batch in predictor.detector.models[0].segmenter.seen]
    assert max(sizes) == 3


@pytest.mark.parametrize(("tile", "overlap"), [(16, 4), (100, 60), (100, -1)])
def test_tiles_that_cannot_be_are_refused(tile, overlap):
    with pytest.raises(ConfigError):
        Tiling("always", tile, overlap)


class ImaginingSegmenter(ThresholdSegmenter):
    """Sees something at the right side of every full tile, where it knows nothing of what comes after it."""

    def predict(self, images, output_sizes=None, **options):
        changed = []
        for image in images:
            image = image.copy()
            if image.shape[1] == TILE:
                image[20::30, -6:] = 255
            changed.append(image)
        return super().predict(changed, output_sizes, **options)


def test_what_only_the_border_of_a_tile_shows_is_dropped():
    """Cells lie apart from the imagined, which two tiles of a column may even agree on."""
    image = np.zeros((300, 300, 1), dtype=np.uint8)
    image[50:60, 40:60] = image[150:170, 150:160] = 255
    model = ImageModel(ImaginingSegmenter(num_classes=1), ImagePreprocess())
    answer = TilePredictor(Detector([model]), Tiling("always", TILE, OVERLAP)).predict(RECORD, ArraySource(image, {}))
    assert_same_objects(answer, components(image))
