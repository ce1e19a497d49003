"""What prepare commands are told of images: pixel size, planes, channels and scaling, kept in the COCO files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from detseg.cli.main import main
from detseg.coco.catalog import read_input_keys, with_input_keys
from detseg.coco.json_files import write_coco
from detseg.config import load_config
from detseg.data.preprocess import ImagePreprocess
from detseg.errors import ConfigError, DataError

LABELS = np.zeros((20, 30), np.uint8)
LABELS[2:6, 3:9], LABELS[10:15, 10:15] = 1, 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/ with a PNG, a TIFF of 0.25 micrometres and a stack of three slices, and their labels/."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.fromarray(LABELS).save(tmp_path / "images" / "a.png")
    tifffile.imwrite(tmp_path / "images" / "b.tif", LABELS, resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    for name in "ab":
        Image.fromarray(LABELS).save(tmp_path / "labels" / f"{name}.png")
    return tmp_path


def add_stack(folder: Path) -> None:
    stack = np.stack([LABELS, LABELS + 1, LABELS + 2])
    tifffile.imwrite(folder / "images" / "c.ome.tif", stack, metadata={"axes": "ZYX"}, photometric="minisblack")
    Image.fromarray(LABELS).save(folder / "labels" / "c.ome.png")


def prepare(folder: Path, *words: object) -> int:
    fixed = ["--images", folder / "images", "--labels", folder / "labels", "--output", folder / "out", "--split", "1"]
    return main(["prepare", "label_images", *map(str, [*fixed, *words])])


def images_of(path: Path) -> dict[str, dict]:
    return {image["file_name"]: image for image in json.loads(path.read_text())["images"]}


def test_pixel_sizes_come_from_the_files_and_a_given_one_goes_before(folder: Path) -> None:
    assert prepare(folder) == 0
    images = images_of(folder / "out" / "all.json")
    assert [image.get("pixel_size") for image in images.values()] == [None, pytest.approx(0.25)]
    assert "input" not in json.loads((folder / "out" / "all.json").read_text())["info"]
    assert prepare(folder, "--pixel-size", "0.5 0.4", "--overwrite") == 0
    assert [image["pixel_size"] for image in images_of(folder / "out" / "all.json").values()] == [[0.5, 0.4]] * 2


def test_pixel_sizes_of_a_table(folder: Path, capsys) -> None:
    table = folder / "sizes.csv"
    table.write_text("plate,name,um\n1,b.tif,0.5\n1,a,0.25\n", encoding="utf-8")
    words = ("--pixel-size", f"csv:{table}:um", "--key", "name")
    assert prepare(folder, *words) == 0
    assert [image["pixel_size"] for image in images_of(folder / "out" / "all.json").values()] == [0.25, 0.5]
    table.write_text("name,um\nb,0.5\n", encoding="utf-8")
    assert prepare(folder, *words, "--overwrite") == 2
    assert "a.png: " in capsys.readouterr().err
    table.write_text("name,um\nb,0.5\na,large\n", encoding="utf-8")
    assert prepare(folder, *words, "--overwrite", "--skip-bad") == 0
    assert list(images_of(folder / "out" / "all.json")) == ["b.tif"]
    assert "'large'" in (folder / "out" / "skipped.txt").read_text()
    for wrong in ("csv:um", "csv:", "wide"):
        assert prepare(folder, "--pixel-size", wrong, "--overwrite") == 2


def test_a_stack_is_refused_or_one_slice_is_kept_and_stays_chosen(folder: Path, capsys) -> None:
    add_stack(folder)
    assert prepare(folder) == 2
    assert "3 slices; choose one with --z" in capsys.readouterr().err
    # The option is for all images: those with one slice have slice 0 and no other.
    assert prepare(folder, "--z", "1") == 2
    assert "z 1 is chosen" in capsys.readouterr().err
    assert prepare(folder, "--z", "max") == 0
    assert images_of(folder / "out" / "all.json")["c.ome.tif"]["plane"] == {"z": "max"}
    # Split again, the file keeps what it says; another choice replaces it.
    words = ["prepare", "coco", "--annotations", folder / "out" / "all.json", "--split", "1"]
    assert main([*map(str, [*words, "--output", folder / "again"])]) == 0
    assert images_of(folder / "again" / "all.json") == images_of(folder / "out" / "all.json")
    assert main([*map(str, [*words, "--output", folder / "first", "--z", "0"])]) == 0
    assert images_of(folder / "first" / "all.json")["c.ome.tif"]["plane"] == {"z": 0}


def test_a_source_of_single_pictures_refuses_planes(tmp_path: Path, capsys) -> None:
    (tmp_path / "train").mkdir()
    Image.fromarray(LABELS).save(tmp_path / "train" / "a.png")
    (tmp_path / "train.csv").write_text("id,annotation,width,height,cell_type\na,1 2,30,20,astro\n")
    words = ["prepare", "sartorius", "--source", tmp_path, "--output", tmp_path / "out", "--split", "1", "--z", "0"]
    assert main([*map(str, words)]) == 2
    assert "single images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["--channels", "0"], {"INPUT.CHANNELS": [0]}),
        (["--channels", "DAPI", "2"], {"INPUT.CHANNELS": ["DAPI", 2]}),
        (
            ["--scaling", "percentile", "--scaling-percentiles", "1", "99"],
            {"INPUT.SCALING": "percentile", "INPUT.SCALING_PERCENTILES": [1.0, 99.0]},
        ),
        (
            ["--scaling", "fixed", "--scaling-range", "0", "4095"],
            {"INPUT.SCALING": "fixed", "INPUT.SCALING_RANGE": [0.0, 4095.0]},
        ),
    ],
)
def test_channels_and_scaling_are_recorded_and_survive_another_split(
    folder: Path, words: list[str], keys: dict
) -> None:
    assert prepare(folder, *words) == 0
    assert read_input_keys(folder / "out" / "all.json") == keys
    again = [
        "prepare",
        "coco",
        "--annotations",
        folder / "out" / "all.json",
        "--split",
        "1",
        "--output",
        folder / "again",
    ]
    assert main([*map(str, again)]) == 0
    assert read_input_keys(folder / "again" / "all.json") == keys


def test_a_channel_that_a_file_does_not_name_is_told_before_training(folder: Path, capsys) -> None:
    options = {"metadata": {"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP"]}}, "photometric": "minisblack"}
    tifffile.imwrite(folder / "images" / "d.ome.tif", np.stack([LABELS, LABELS]), ome=True, **options)
    Image.fromarray(LABELS).save(folder / "labels" / "d.ome.png")
    assert prepare(folder, "--channels", "GFP", "DAPI") == 0
    assert prepare(folder, "--channels", "GFP", "Actin", "--overwrite") == 2
    assert "d.ome.tif: has no channel 'Actin' (--channels); it has DAPI, GFP" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--scaling", "log"],
        ["--scaling-range", "0", "4095"],
        ["--scaling", "fixed"],
        ["--scaling", "fixed", "--scaling-range", "9", "1"],
        ["--scaling", "percentile", "--scaling-percentiles", "99", "1"],
        ["--z", "middle"],
        ["--axes", "RGB"],
    ],
)
def test_options_that_make_no_sense_write_nothing(folder: Path, words: list[str]) -> None:
    assert prepare(folder, *words) == 2
    assert not (folder / "out").exists()


def write_set(path: Path, **keys: object) -> str:
    info = {"description": "set", "input": {f"INPUT.{name}": value for name, value in keys.items()}}
    image = {"id": 1, "file_name": "a.png", "height": 5, "width": 5}
    write_coco(path, images=[image], annotations=[], categories=[{"id": 1, "name": "cell"}], info=info)
    return path.as_posix()


def config(names: list[str], *words: object):
    return load_config(None, ["DATASETS.TRAIN", str(names), "DATASETS.TEST", "[]", *map(str, words)])


def test_training_takes_what_nobody_set_and_says_where_it_differs(tmp_path: Path, caplog) -> None:
    first = write_set(tmp_path / "a.json.gz", SCALING="fixed", SCALING_RANGE=[0, 4095], CHANNELS=[1])
    taken = with_input_keys(config([first]))
    assert ImagePreprocess.from_config(taken) == ImagePreprocess(
        channels=(1,), scaling="fixed", scaling_range=(0.0, 4095.0)
    )
    assert "a.json.gz" in taken.origin("INPUT.SCALING")
    kept = with_input_keys(config([first], "INPUT.SCALING", "percentile"))
    assert kept.INPUT.SCALING == "percentile"
    assert kept.INPUT.CHANNELS == [1]
    assert "was prepared for fixed" in caplog.text
    plain = config([write_set(tmp_path / "plain.json")])
    assert with_input_keys(plain) is plain


def test_sets_that_disagree_and_what_does_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    first = write_set(tmp_path / "a.json", SCALING="percentile")
    second = write_set(tmp_path / "b.json", SCALING="fixed", SCALING_RANGE=[0, 4095])
    with pytest.raises(DataError, match=r"a\.json was prepared for INPUT\.SCALING percentile, .*b\.json for fixed"):
        with_input_keys(config([first, second]))
    four = write_set(tmp_path / "four.json", CHANNELS=[0, 1, 2, 3])
    with pytest.raises(ConfigError, match=r"INPUT\.CHANNELS.*four\.json.*PIXEL_MEAN"):
        ImagePreprocess.from_config(with_input_keys(config([four])))
    other = write_set(tmp_path / "other.json", MIN_SIZE_TRAIN=[5])
    with pytest.raises(DataError, match=r"info\.input.*expected keys among"):
        with_input_keys(config([other]))
    # Sets that are missing are told by whoever loads them.
    assert with_input_keys(config(["nowhere.json"])).INPUT.SCALING == "none"
    (tmp_path / "last.json").write_text('{"images": [], "info": {"input": {"INPUT.SCALING": "fixed"}}}')
    assert read_input_keys(tmp_path / "last.json") == {}
