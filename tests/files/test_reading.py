"""Files made to exhaust memory or time are refused before they do, with the file's name."""

import gzip
import json
import os
import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions
from detseg.config.loading import load_config
from detseg.data.folds import read_index
from detseg.errors import ConfigError, DataError
from detseg.files.table import read_table
from detseg.formats.file_sets import open_files
from detseg.formats.imagej import read_roi_file
from detseg.formats.objects import open_objects
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.images.reading import read_image, reads_parts


@pytest.fixture(autouse=True)
def bounded():
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**21  # kilobytes: 2 GB


def coco(**changes: object) -> dict[str, object]:
    square = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 96, "width": 96}], "annotations": [square]}
    return {**content, "categories": [{"id": 1, "name": "cell"}], **changes}


@pytest.mark.parametrize("read", [CocoDataset.load, read_predictions, open_objects])
def test_a_gzip_bomb(tmp_path: Path, read) -> None:
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb", compresslevel=6) as file:
        for _ in range(300):
            file.write(b" " * 2**20)
    with pytest.raises(DataError, match=r"bomb\.json\.gz: unpacks to more than 50 times its size"):
        read(path)


def test_a_zip_bomb_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"id,fold\n" + b"0" * 2**28)
    with pytest.raises(DataError, match="unpacks to"):
        read_table(path, ["id"])


NUMBERS = {
    "nesting": "a: " + "[" * 100_000,
    "a date": "seed: 2018-99-99",
    "5,000 digits": "seed: " + "7" * 5000,
    "base 60": "seed: 1" + ":59" * 300_000,
    "merges": "a: &a {k: 1}\nb: &b {<<: [*a, *a, *a, *a, *a]}\n",
    "aliases": "a: &a [1, 2]\nb: [*a, *a]\n",
    "a tag": "!!python/object/apply:os.getcwd []",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_yaml_of_settings_is_bounded_as_configuration_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(NUMBERS[name])
    for read in (Postprocess.load, FusionOptions.load, read_index):
        with pytest.raises(DataError, match=r"a\.yaml"):
            read(path)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        load_config(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".json", ".json.gz", ".csv", ".yaml"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    assert not reads_parts(path)
    readers = {
        ".json": (CocoDataset.load, read_predictions, open_objects),
        ".csv": (read_index,),
        ".yaml": (Postprocess.load, load_config, read_index),
    }
    for read in readers.get(suffix.removesuffix(".gz"), (read_image,)):
        with pytest.raises((DataError, ConfigError), match=r"pipe.*is a pipe"):
            read(path)


def test_a_tiff_whose_pages_come_back(tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "loop.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.uint8), metadata=None)
    data = bytearray(path.read_bytes())
    entries = int.from_bytes(data[8:10], "little")
    end = 10 + entries * 12
    data[end : end + 4] = (8).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="is circular"):
        read_image(path)


def test_many_categories_take_no_quadratic_time(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco(categories=[{"id": n, "name": f"c{n}"} for n in range(20_000)])))
    assert len(CocoDataset.load(path).class_names) == 20_000


def test_polygons_that_no_object_has(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rng = np.random.default_rng(0)
    annotation = {"id": 1, "image_id": 1, "category_id": 1}
    for points in (rng.integers(0, 96, 1_000_000).tolist(), [10**400, 1, 2, 3, 4, 5]):
        path.write_text("{}")
        text = json.dumps(points[1:]) if len(points) == 6 else json.dumps(points)
        text = text if len(points) > 6 else "[1" + "0" * 400 + ", " + text[1:]
        holder = json.dumps(coco(annotations=[{**annotation, "segmentation": "HERE"}]))
        path.write_text(holder.replace('"HERE"', f"[{text}]"))
        with pytest.raises(DataError, match=r"a length of|not finite"):
            CocoDataset.load(path)


ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1}


def test_a_polygon_of_five_million_points(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco(annotations=[{**ANNOTATION, "segmentation": "HERE"}])))
    points = ",".join(["1,1,9,1,9,9,1,9"] * 1_250_000)
    path.write_text(path.read_text().replace('"HERE"', f"[[{points}]]"))
    with pytest.raises(DataError, match="has 5000000 points and a length of 39999992 pixels"):
        CocoDataset.load(path)


@pytest.mark.parametrize("name", ["a.png", "masks.zip", "a.roi"])
def test_members_of_archives_that_unpack_to_more_than_they_can_hold(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"Iout" + b"\0" * 2**28)
    with pytest.raises(DataError, match=f"bomb.zip: {name}: claims 268435460 bytes"):
        open_files(path).read(name)
    with pytest.raises(DataError, match=r"bomb\.zip: (is neither|contains)"):
        read_roi_file(path.read_bytes(), "bomb.zip", 96, 96)


def test_a_member_without_a_name_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.png", "b.png", "folder/"):
            archive.writestr(name, b"")
    path.write_bytes(path.read_bytes().replace(b"a.png", b"\0.png"))  # names end at the first NUL
    assert open_files(path).names == ["b.png"]


def test_many_regions_of_an_archive_count_together(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(10):
            archive.writestr(f"{number}.roi", b"Iout" + b"\0" * 2**23)
    with pytest.raises(DataError, match="claim more bytes than an archive of this size can hold"):
        read_roi_file(path.read_bytes(), "bomb.zip", 96, 96)


def test_a_zarr_chunk_that_unpacks_to_more_than_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr = pytest.importorskip("zarr")
    monkeypatch.setenv("DETSEG_MAX_PIXELS", "10000")
    array = zarr.create_array(store=str(tmp_path / "a.zarr"), shape=(1000, 1000), chunks=(1000, 1000), dtype="uint8")
    array[:10] = 1
    with pytest.raises(DataError, match="its chunks of"):
        read_image(tmp_path / "a.zarr")
