"""Large images through the predictor: files read by parts, resume, intensities of the whole, blocks of thresholds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tifffile
from threshold_segmenter import ThresholdSegmenter
from tiled_scenes import assert_same_objects, components, draw_disks

from detseg.coco.dataset import ImageRecord
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.errors import DataError
from detseg.formats.label_images import TOP, to_label_image, write_tiled
from detseg.formats.objects import ImageObjects
from detseg.fusion.postprocess import Postprocess
from detseg.inference.blocks import apply_in_blocks
from detseg.inference.image_model import ImageModel
from detseg.inference.predictor import Predictor
from detseg.inference.tile_predictor import TilePredictor
from detseg.inference.tiling import TileFolder, Tiling
from detseg.inference.tta import TestTimeAugmentation
from detseg.inference.views import parse_views
from detseg.structures.predictions import Predictions
from detseg.structures.rle import bounding_boxes, encode_mask

TILES = Tiling("always", 96, 40)
SHRUNK = TestSizeOptions(min_size=40, max_size=4000)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    rng = np.random.default_rng(3)
    places = [
        (y + rng.uniform(-4, 4), x + rng.uniform(-4, 4), rng.uniform(3, 12))
        for y in range(15, 300, 34)
        for x in range(15, 400, 34)
    ]
    return draw_disks(310, 410, places)


def predictor(**options) -> Predictor:
    of_model = {name: options.pop(name) for name in ("size", "preprocess") if name in options}
    model = ImageModel(ThresholdSegmenter(num_classes=1), **{"preprocess": ImagePreprocess(), **of_model})
    return Predictor(model, ["cell"], **{"tiling": TILES, **options})


def write_zarr(path, image, version, chunks=(64, 64)):
    zarr = pytest.importorskip("zarr", minversion="3")
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    array = group.create_array("0", shape=(1, *image.shape[:2]), chunks=(1, *chunks), dtype=image.dtype)
    array[0] = image[:, :, 0]
    axes = [{"name": "c"}, *({"name": name, "type": "space", "unit": "micrometer"} for name in "yx")]
    scale = {"type": "scale", "scale": [1, 0.5, 0.25]}
    multiscales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    group.attrs.update({"multiscales": multiscales} if version == 2 else {"ome": {"multiscales": multiscales}})


@pytest.mark.parametrize("kind", ["plain", "tiles", "strips", "ome", "zarr2", "zarr3", "npy"])
def test_every_kind_of_file_gives_the_answer_of_the_array(kind, scene, tmp_path):
    path = tmp_path / {"ome": "a.ome.tif", "npy": "a.npy"}.get(kind, "a.zarr" if "zarr" in kind else "a.tif")
    pixels = scene[:, :, 0]
    if kind == "plain":
        tifffile.imwrite(path, pixels)
    elif kind == "tiles":
        tifffile.imwrite(path, pixels, tile=(64, 48), compression="zlib", bigtiff=True)
    elif kind == "strips":
        tifffile.imwrite(path, pixels, rowsperstrip=19, compression="zlib")
    elif kind == "ome":
        tifffile.imwrite(path, pixels[None], metadata={"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5})
    elif kind == "npy":
        np.save(path, pixels)
    else:
        write_zarr(path, scene, int(kind[-1]))
    answer = predictor()(path)
    assert_same_objects(answer, components(scene))
    assert answer.rles == predictor()(scene).rles
    assert answer.provenance["tiles"] == {"tile": 96, "overlap": 40}
    if kind in ("ome", "zarr2", "zarr3"):
        assert answer.pixel_size == (0.5, 0.25)


def test_intensities_are_those_of_the_whole_image(tmp_path):
    """Half of the image is dim: percentiles of a tile alone would make its noise bright."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 40, (200, 260, 1)).astype(np.uint16)
    image[:, :90] = draw_disks(200, 90, [(40, 40, 20), (120, 50, 25)]).astype(np.uint16) * 200
    scaled = ImagePreprocess(scaling="percentile", percentiles=(0.5, 99.5), invert="auto")
    whole = predictor(preprocess=scaled, tiling=Tiling("never"))(image)
    assert 0 < len(whole) < 10
    assert predictor(preprocess=scaled)(image).rles == whole.rles


def test_pixel_size_and_shorter_edge_are_those_of_the_whole_image(scene):
    for options, facts in (
        ({"pixel_size": 0.25}, {"pixel_size": 0.5}),
        ({"min_size": 620, "max_size": 2000}, {}),
    ):
        tiled = predictor(size=TestSizeOptions(**options))
        tiled(scene, facts=facts)
        heights = {shape[0] for batch in tiled.model.seen for shape, _ in batch}
        assert max(heights) == 192, "a tile of 96 pixels at twice the size"


def test_shrinking_cells_away_is_refused(scene):
    with pytest.raises(Exception, match="--tile-scale"):
        predictor(size=SHRUNK)(scene)
    answer = predictor(size=SHRUNK, tiling=dataclasses.replace(TILES, scale=1.0))(scene)
    assert_same_objects(answer, components(scene))


def test_a_small_image_is_shrunk_as_the_model_says_where_no_tiles_are_asked_for(scene):
    predictor(size=SHRUNK, tiling=Tiling())(scene)


@pytest.mark.parametrize("mode", ["fuse"])
def test_several_views_of_tiles(mode, scene):
    views = TestTimeAugmentation(parse_views(["flips"]), mode)
    answer = predictor(tta=views)(scene)
    assert_same_objects(answer, components(scene))
    assert answer.provenance["tta"]


def tiles(tmp_path, **options) -> TilePredictor:
    return predictor().tile_predictor(state=tmp_path / "state", **options)


def test_resume_after_an_interruption_gives_the_same_and_repeats_nothing(scene, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", scene[:, :, 0])
    record = ImageRecord(1, "a.tif", tmp_path / "a.tif", 0, 0, {})
    one = predictor()
    (uninterrupted,) = one.predict_records([record])

    class StopError(Exception):
        pass

    def progress(name, done, total):
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        list(one.predict_records([record], tiles=tiles(tmp_path, progress=progress)))
    again = predictor()
    (answer,) = again.predict_records([record], tiles=again.tile_predictor(state=tmp_path / "state"))
    assert answer.rles == uninterrupted.rles
    assert np.array_equal(answer.scores, uninterrupted.scores)
    assert len(again.model.seen) == len(one.tile_predictor().grid(_source(scene))) - 5
    # another image under the same name begins anew
    tifffile.imwrite(tmp_path / "a.tif", 255 - scene[:, :, 0])
    (other,) = again.predict_records([record], tiles=again.tile_predictor(state=tmp_path / "state"))
    assert_same_objects(other, components(255 - scene))


def _source(image):
    from detseg.images.pixel_source import ArraySource

    return ArraySource(image, {})


def test_shares_of_several_processes_make_one_answer(scene, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", scene[:, :, 0])
    record = ImageRecord(1, "a.tif", tmp_path / "a.tif", 0, 0, {})
    for rank in range(3):
        own = tiles(tmp_path)
        with own.open(record) as source:
            own.predict_share(record, source, (rank, 3))
    last = predictor()
    (answer,) = last.predict_records([record], tiles=last.tile_predictor(state=tmp_path / "state"))
    assert not last.model.seen, "all tiles were there"
    assert answer.rles == predictor()(scene).rles


def test_a_broken_tile_leaves_the_image_out(scene, tmp_path):
    noisy = np.random.default_rng(0).integers(0, 255, (300, 300)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noisy, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].dataoffsets[12]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[place : place + 40] = bytes(40)
    (tmp_path / "a.tif").write_bytes(data)
    tifffile.imwrite(tmp_path / "b.tif", scene[:, :, 0])
    records = [ImageRecord(n, name, tmp_path / name, 0, 0, {}) for n, name in ((1, "a.tif"), (2, "b.tif"))]
    skipped = []
    found = list(predictor().predict_records(records, skipped=skipped))
    assert [answer.file_name for answer in found] == ["b.tif"]
    assert "a.tif" in skipped[0].reason


@pytest.mark.parametrize("break_file", [lambda data: data[:200], lambda data: b"", lambda data: b"PK" + data[2:-9]])
def test_a_broken_file_of_a_tile_is_named(scene, tmp_path, break_file):
    folder = TileFolder(tmp_path, {"tile": 96})
    folder[3] = predictor()(scene)
    (path,) = folder.folder.iterdir()
    path.write_bytes(break_file(path.read_bytes()))
    with pytest.raises(DataError, match=path.name):
        folder[3]


def test_given_boxes_get_masks_in_their_order(scene):
    from brightness_segmenter import BrightnessSegmenter

    model = ImageModel(BrightnessSegmenter(), ImagePreprocess())
    whole, tiled = (Predictor(model, ["cell"], tiling=tiling) for tiling in (Tiling("never"), TILES))
    boxes = whole(scene).select(np.random.default_rng(0).permutation(len(whole(scene))))
    large_box = np.float32([[5, 5, 300, 280]])
    boxes.boxes[0] = large_box
    expected, answer = whole(scene, boxes=boxes), tiled(scene, boxes=boxes)
    assert np.array_equal(answer.boxes, expected.boxes)
    assert answer.rles == expected.rles


def test_thresholds_in_blocks_are_those_of_the_whole(scene):
    rng = np.random.default_rng(5)
    places = [(*rng.uniform(0, 400, 2), rng.uniform(4, 12)) for _ in range(400)]
    masks = [draw_disks(400, 400, [place])[:, :, 0] > 0 for place in places]
    rles = [encode_mask(mask) for mask in masks]
    scores = np.sort(rng.uniform(0, 1, 400))[::-1]
    crowded = Predictions(1, "a", 400, 400, bounding_boxes(rles), scores, np.zeros(400), rles)
    post = Postprocess(classes=["cell"], score_threshold=0.2, min_area=30, min_visible_fraction=0.4)
    whole, parts = post.apply(crowded), apply_in_blocks(post, crowded, block=150, halo=100)
    assert parts.rles == whole.rles
    assert np.array_equal(parts.scores, whole.scores)
    assert np.array_equal(parts.boxes, whole.boxes)


def test_a_tiled_label_image_is_the_plain_one(scene, tmp_path):
    objects = ImageObjects.from_predictions(predictor()(scene))
    write_tiled(tmp_path / "l.tif", objects, tile=64)
    with tifffile.TiffFile(tmp_path / "l.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].is_tiled
        assert np.array_equal(file.asarray(), to_label_image(objects, TOP))


def test_blocks_do_not_choose_classes_of_their_own():
    boxes = np.array([[x, y, x + 8, y + 8] for y in range(0, 380, 20) for x in range(0, 380, 20)], dtype=np.float32)
    classes = (boxes[:, 0] > 150).astype(np.int64)  # on the left all are of the class of the fewer
    masks = [np.pad(np.ones((8, 8), bool), ((y, 392 - y), (x, 392 - x))) for x, y in boxes[:, :2].astype(int)]
    rles = [encode_mask(mask) for mask in masks]
    scores = np.linspace(0.9, 0.1, len(boxes))
    found = Predictions(1, "a", 400, 400, boxes, scores, classes, rles)
    post = Postprocess(classes=["a", "b"], score_threshold={"a": 0.8, "b": 0.3}, image_class="relabel")
    whole, parts = post.apply(found), apply_in_blocks(post, found, block=100, halo=20)
    assert set(parts.classes.tolist()) == {1}
    assert parts.rles == whole.rles
