"""`detseg export`: every form from annotations and predictions; what cannot be written is refused in advance."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.errors import DataError
from detseg.formats.export import image_targets
from detseg.formats.imagej import write_rois
from detseg.formats.objects import ImageObjects, open_objects
from detseg.formats.run_lengths import read_pairs, to_rles, to_texts
from detseg.formats.table import WRITERS
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

CATEGORIES = [{"id": 3, "name": "astro"}, {"id": 8, "name": "cort"}]


def masks(overlap: bool = False) -> np.ndarray:
    found = np.zeros((3, 12, 15), bool)
    found[0, 1:5, 2:8] = found[1, 6:11, 3:9] = found[2, 8, 12] = True
    found[1, 8, 5] = False
    if overlap:
        found[2, 1:3, 2:4] = True
    return found


def rles(overlap: bool = False) -> list[dict]:
    return [rle_codec.encode_mask(mask) for mask in masks(overlap)]


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Two images, one without objects; the last annotation is a region to be ignored."""
    path = tmp_path / "coco.json"
    images = [
        {"id": 1, "file_name": "sub/a.png", "height": 12, "width": 15, "pixel_size": 0.5, "plate_time": "11h"},
        {"id": 2, "file_name": "b.png", "height": 12, "width": 15},
    ]
    made = annotations_of(rles(), [3, 8, 3], image_id=1, first_id=1, crowd=[False, False, True])
    write_coco(path, images=images, annotations=made, categories=CATEGORIES)
    return path


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """One image whose first and last prediction overlap."""
    return write_found(tmp_path / "p.json.gz", rles(overlap=True), pixel_size=(0.5, 0.25))


def write_found(path: Path, found: list[dict], scores: Sequence[float] = (0.9, 0.8, 0.3), **more: Any) -> Path:
    """Write the Predictions file of one image, `a.tif`."""
    boxes = rle_codec.bounding_boxes(found)
    write_predictions(path, [Predictions(5, "a.tif", 12, 15, boxes, scores, [0, 1, 0], rles=found, **more)], CATEGORIES)
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def export(source: Path, form: str, *words: object) -> int:
    return main(["export", "--input", str(source), "--format", form, *map(str, words)])


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_is_written_once_and_not_replaced_unasked(
    annotations: Path, tmp_path: Path, form: str, capsys
) -> None:
    assert export(annotations, form, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "2 objects of 2 images" in printed
    assert "1 ignored regions are left out" in printed
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(written) == (1 if WRITERS[form].is_table else 2 if WRITERS[form].has_classes else 3)
    assert not any(path.name.startswith(".") for path in written)
    assert export(annotations, form, "--output", tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert export(annotations, form, "--output", tmp_path / "out", "--overwrite") == 0
    assert {path: path.read_bytes() for path in written} == written, "the same objects give the same bytes"


def test_predictions_keep_score_class_and_pixel_size(predictions: Path, tmp_path: Path) -> None:
    assert export(predictions, "geojson", "--output", tmp_path) == 0
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert [feature["properties"]["measurements"] for feature in features] == [{"score": s} for s in (0.9, 0.8, 0.3)]
    assert [feature["properties"]["objectType"] for feature in features] == ["detection"] * 3
    assert [feature["properties"]["classification"]["name"] for feature in features] == ["astro", "cort", "astro"]
    assert [feature["geometry"]["type"] for feature in features] == ["Polygon", "Polygon", "MultiPolygon"]
    assert export(predictions, "csv", "--output", tmp_path, "--score-threshold", 0.8) == 0
    rows = rows_of(tmp_path / "measurements.csv")
    assert [(row["class"], row["score"], row["area_px"], row["area_um2"]) for row in rows] == [
        ("astro", "0.9", "24", "3"),
        ("cort", "0.8", "29", "3.625"),
    ]
    assert export(predictions, "csv", "--output", tmp_path, "--pixel-size", "2", "--overwrite") == 0
    assert rows_of(tmp_path / "measurements.csv")[0]["area_um2"] == "96"


@pytest.mark.parametrize("form", ["labels", "npy", "cellpose", "cellpose_masks"])
def test_overlaps_are_refused_before_a_file_is_written(predictions: Path, tmp_path: Path, form: str, capsys) -> None:
    assert export(predictions, form, "--output", tmp_path / "out") == 2
    assert "--overlaps top" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert export(predictions, form, "--output", tmp_path / "out", "--overlaps", "top") == 0
    assert tuple(rows_of(tmp_path / "out" / "objects.csv")[1].values()) == ("a.tif", "2", "cort", "0.8")
    status = export(predictions, form, "--output", tmp_path / "layers", "--overlaps", "layers")
    assert status == (2 if form.startswith("cellpose") else 0)
    assert export(predictions, form, "--output", tmp_path / "out", "--overlaps", "bottom") == 2


def test_cellpose_counts_its_labels_without_gaps(tmp_path: Path) -> None:
    hidden = rles(overlap=True)
    hidden[2] = rle_codec.encode_crop(np.ones((2, 2), bool), 2, 1, 12, 15)
    source = write_found(tmp_path / "hidden.json", hidden, [0.2, 0.3, 0.1])
    assert export(source, "cellpose", "--output", tmp_path, "--overlaps", "top") == 0
    content = np.load(tmp_path / "a_seg.npy", allow_pickle=True).item()
    assert np.unique(content["masks"]).tolist() == [0, 1, 2]
    assert content["ismanual"].shape == (2,)
    # The outline is the pixels with a neighbour of another label: of 4 x 6 all but 2 x 4.
    assert (content["outlines"] == 1).sum() == 24 - 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "png"], "there is no form 'png'; there are: labels"),
        (["--format", "csv", "--score-threshold", "2"], "expected 0 to 1"),
        (["--format", "labels", "--images", "."], "only --format csv"),
        (["--format", "csv", "--pixel-size", "0"], "--pixel-size: the pixel size"),
        (["--format", "csv", "--image-root", "."], "--images COCO.json"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    annotations: Path, tmp_path: Path, words: list[str], message: str, capsys
) -> None:
    assert main(["export", "--input", str(annotations), "--output", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err


def test_an_export_that_fails_leaves_no_folder(annotations: Path, tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"other {number}.png")
    words = ("--output", tmp_path / "new" / "out", "--images", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert export(annotations, "csv", *words) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_coco_file_is_refused(tmp_path: Path, capsys) -> None:
    for name, content in (("none.json", None), ("a.json", '{"images": ['), ("list.json", "[1]"), ("b.json.gz", "x")):
        if content is not None:
            (tmp_path / name).write_text(content)
        assert export(tmp_path / name, "csv", "--output", tmp_path / "out") == 2
        assert f"error: {tmp_path / name}: " in capsys.readouterr().err


def test_results_without_names_of_images_are_refused(tmp_path: Path) -> None:
    found = rles()[0]
    result = {
        "image_id": 1,
        "category_id": 3,
        "score": 0.5,
        "segmentation": {**found, "counts": found["counts"].decode()},
    }
    (tmp_path / "results.json").write_text(json.dumps([result]))
    with pytest.raises(DataError, match="does not name its images"):
        open_objects(tmp_path / "results.json")


def test_a_folder_in_place_of_a_file_is_named_as_one(tmp_path: Path) -> None:
    for read in (open_objects, read_predictions, CocoDataset.load):
        with pytest.raises(DataError, match=r"is a folder.*prepare label_images"):
            read(tmp_path)


def test_paths_keep_subfolders_and_refuse_collisions_and_ways_out(tmp_path: Path) -> None:
    paths = image_targets(tmp_path, ["plate.1/a.b.png", "c.tif"], ".tif")
    assert paths == {"plate.1/a.b.png": tmp_path / "plate.1" / "a.b.tif", "c.tif": tmp_path / "c.tif"}
    paths = image_targets(tmp_path, ["a.png", "a.jpg", "b.png"], ".tif")
    assert [path.name for path in paths.values()] == ["a.png.tif", "a.jpg.tif", "b.tif"]
    with pytest.raises(DataError, match=r"a\.png and a\.png\.jpg"):
        image_targets(tmp_path, ["a.png", "a.jpg", "a.png.jpg"], ".tif")
    for name in ("../a.png", "/etc/a.png", "sub/../../a.png", "..\\a.png", "C:\\a.png", ""):
        with pytest.raises(DataError, match="leads out"):
            image_targets(tmp_path, [name], ".tif")


@given(st.integers(0, 10_000), st.booleans())
def test_run_lengths_of_competitions_are_read_again(seed: int, full_rows: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 9)) < (0.95 if full_rows else 0.4)
    mask[3, 4] = True
    for by_rows in (True, False):
        texts = to_texts([rle_codec.encode_mask(mask)], 7, 9, by_rows=by_rows)
        runs = [read_pairs(text, mask.size) for text in texts]
        assert np.array_equal(rle_codec.decode(to_rles(runs, 7, 9, by_rows=by_rows)[0]), mask)
        # The shortest form: no run begins where another ends.
        starts, ends = runs[0]
        assert (starts[1:] > ends[:-1]).all()


def test_the_sartorius_table(annotations: Path, tmp_path: Path) -> None:
    assert export(annotations, "sartorius", "--output", tmp_path) == 0
    rows = rows_of(tmp_path / "train.csv")
    assert [row["id"] for row in rows] == ["a", "a"]
    assert rows[0]["annotation"] == "18 6 33 6 48 6 63 6"
    assert [(row["width"], row["height"], row["cell_type"], row["plate_time"]) for row in rows] == [
        ("15", "12", "astro", "11h"),
        ("15", "12", "cort", "11h"),
    ]


@pytest.mark.parametrize("form", WRITERS)
def test_a_mask_without_a_pixel_is_left_out_and_moves_no_other_number(tmp_path: Path, form: str, capsys) -> None:
    found = rles()
    found[1] = rle_codec.encode_mask(np.zeros((12, 15), bool))
    assert export(write_found(tmp_path / "p.json", found), form, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "2 objects of 1 images" in printed
    assert "1 masks without a pixel are left out" in printed
    if form == "csv":
        assert [row["id"] for row in rows_of(tmp_path / "out" / "measurements.csv")] == ["1", "3"]
    if form == "sartorius":
        assert len(rows_of(tmp_path / "out" / "train.csv")) == 2


def test_names_that_the_tables_cannot_tell_apart_are_refused(tmp_path: Path, capsys) -> None:
    images = [{"id": n, "file_name": f"{n}/a.png", "height": 12, "width": 15} for n in (1, 2)]
    write_coco(tmp_path / "two.json", images=images, annotations=[], categories=CATEGORIES)
    assert export(tmp_path / "two.json", "sartorius", "--output", tmp_path / "out") == 2
    assert "1/a.png and 2/a.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.csv").exists()


def test_regions_of_imagej_are_named_grouped_and_end_at_32767(tmp_path: Path) -> None:
    objects = ImageObjects(1, "a.png", 12, 15, rles(), np.array([0, 1, 0]))
    write_rois(tmp_path / "a.zip", objects, ["astro", "µ/cort"])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["0001-astro.roi", "0002-__cort.roi", "0003-astro.roi"]
    huge = ImageObjects(1, "huge.png", 40_000, 10, [], np.zeros(0, np.int64))
    with pytest.raises(DataError, match=r"huge\.png: has 40000 x 10 pixels.*32767"):
        write_rois(tmp_path / "huge.zip", huge, ["cell"])


def test_real_annotations_come_back_from_the_competitions_table(shared_data, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data("sartorius_sim.zip")) as archive:
        name = min((name for name in archive.namelist() if name.endswith("train.csv")), key=len)
        rows = list(csv.DictReader(archive.read(name).decode().splitlines()))
        chosen = sorted({row["id"] for row in rows})[:12]
        rows = [row for row in rows if row["id"] in chosen]
        for image in chosen:
            archive.extract(name.replace("train.csv", f"train/{image}.png"), tmp_path / "source")
    folder = (tmp_path / "source" / name).parent
    with open(folder / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert (
        main(["prepare", "sartorius", "--source", str(folder), "--output", str(tmp_path / "coco"), "--split", "1"]) == 0
    )
    assert export(tmp_path / "coco" / "all.json", "sartorius", "--output", tmp_path / "again") == 0
    again = rows_of(tmp_path / "again" / "train.csv")
    key = ("id", "annotation", "width", "height", "cell_type", "plate_time", "sample_date", "sample_id")
    assert sorted(tuple(row[k] for k in key) for row in again) == sorted(tuple(row[k] for k in key) for row in rows)


def test_intensities_of_a_stack_are_those_of_the_slice_that_is_chosen(tmp_path: Path, capsys) -> None:
    stack = np.stack([np.full((20, 30), value, np.uint8) for value in (3, 9)])
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX"}, photometric="minisblack")
    mask = np.zeros((20, 30), bool)
    mask[2:5, 3:9] = True
    image = {"id": 1, "file_name": "a.ome.tif", "height": 20, "width": 30}
    annotations = annotations_of([rle_codec.encode_mask(mask)], [1], image_id=1, first_id=1)
    categories = [{"id": 1, "name": "cell"}]
    write_coco(tmp_path / "a.json", images=[image], annotations=annotations, categories=categories, info={})
    words = ["export", "--input", tmp_path / "a.json", "--format", "csv", "--output", tmp_path / "out"]
    assert main([*map(str, words), "--z", "max"]) == 2
    assert "give --images" in capsys.readouterr().err
    words += ["--images", tmp_path / "a.ome.tif"]
    assert main([*map(str, words)]) == 2
    assert "the file has 2 slices" in capsys.readouterr().err
    for choice, value in (("0", "3"), ("max", "9")):
        assert main([*map(str, words), "--z", choice, "--overwrite"]) == 0
        assert [row["intensity_mean"] for row in rows_of(tmp_path / "out" / "measurements.csv")] == [value]
