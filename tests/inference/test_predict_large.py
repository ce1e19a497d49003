"""`predict` over lists, stacks, Zarr and by several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions
from detseg.curation.synthetic import make_image
from detseg.errors import DataError
from detseg.images.reading import read_image
from detseg.inference.image_list import expand_stacks, find_images


def predict(*words) -> int:
    return main(["predict", "--device", "cpu", *map(str, words)])


def test_processes_write_the_bytes_of_one(small_run, image_folder, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes((image_folder / f"{name}.png").read_bytes())
    (folder / "broken.png").write_bytes(b"nothing")
    image = make_image((4, 4), 150, 170, 12)[0]
    tifffile.imwrite(folder / "large.tif", image, tile=(64, 64), compression="zlib")
    words = ["--run", small_run, "--images", folder, "--tile", 100, "--overlap", 40]
    assert predict(*words, "--output", tmp_path / "one.json") == 1
    assert (
        predict(*words, "--output", tmp_path / "two.json", "--processes", 2, "--label-images", tmp_path / "labels") == 1
    )
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert capsys.readouterr().out.count("broken.png") == 2
    assert not list(tmp_path.glob("*.parts")), "state is removed at the end"
    summaries = [(tmp_path / f"{name}_summary.csv").read_text() for name in ("one", "two")]
    assert summaries[0] == summaries[1]
    assert "large.tif" in summaries[0]
    names = [predictions.file_name for predictions in read_predictions(tmp_path / "two.json")]
    assert names == ["a.png", "b.png", "c.png", "large.tif"]
    assert (tmp_path / "labels" / "large.tif").is_file()


# Dies before a file gets a name with that in it, of those of tiles the second one.
PROGRAM = """
import os, signal, sys
from detseg.cli.main import main
name, *words = sys.argv[1:]
left, replace = [2 if "parts" in name else 1], os.replace
def replace_or_die(source, target):
    left[0] -= name in str(target)
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
sys.exit(main(words))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no SIGKILL")
def test_the_summary_of_a_prediction_that_was_killed_is_whole(small_run, image_folder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes((image_folder / "a.png").read_bytes())
    tifffile.imwrite(folder / "large.tif", make_image((4, 4), 150, 170, 12)[0], tile=(64, 64))
    words = ["--run", small_run, "--images", folder, "--tile", 100, "--overlap", 40]
    assert predict(*words, "--output", tmp_path / "whole.json") == 0
    for name, again in (("p.json.parts", []), ("p_summary.csv", ["--overwrite"])):
        whole = ["predict", "--device", "cpu", *words, "--output", tmp_path / "p.json", *again]
        child = subprocess.run([sys.executable, "-c", PROGRAM, name, *map(str, whole)], check=False)
        assert child.returncode == -signal.SIGKILL
        assert predict(*words, "--output", tmp_path / "p.json", "--overwrite") == 0
        for ending in (".json", "_summary.csv"):
            assert (tmp_path / f"p{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes(), name


def test_every_slice_of_a_stack_is_an_image(small_run, tmp_path):
    stack = np.stack([make_image((1, z), 64, 64, 5)[0][:, :, 0] for z in range(4)])
    tifffile.imwrite(tmp_path / "s.ome.tif", stack, metadata={"axes": "ZYX"})
    words = ["--run", small_run, "--images", tmp_path / "s.ome.tif"]
    assert predict(*words, "--z", "all", "--output", tmp_path / "all.json") == 0
    assert predict(*words, "--z", "1-2", "--output", tmp_path / "some.json") == 0
    assert predict(*words, "--z", "2", "--output", tmp_path / "two.json") == 0
    every, some = list(read_predictions(tmp_path / "all.json")), list(read_predictions(tmp_path / "some.json"))
    assert [one.file_name for one in every] == [f"s.ome_z00{z}.tif" for z in range(4)]
    assert [one.image_id for one in every] == [1, 2, 3, 4]
    assert [one.file_name for one in some] == ["s.ome_z001.tif", "s.ome_z002.tif"]
    (two,) = read_predictions(tmp_path / "two.json")
    assert every[2].rles == some[1].rles == two.rles


def test_a_list_names_images_relative_to_itself(image_folder, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes((image_folder / "b.png").read_bytes())
    text = f"# chosen\nsub/b.png\n\n{image_folder / 'a.png'}\nsub/gone.png\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    source = find_images([str(tmp_path / "list.txt")])
    assert [record.path.name for record in source.records] == ["b.png", "a.png", "gone.png"]


def test_stacks_keep_files_that_hold_one_picture_and_those_that_are_broken(image_folder, tmp_path):
    (tmp_path / "x.tif").write_bytes(b"II*\x00broken")
    tifffile.imwrite(tmp_path / "y.tif", np.zeros((4, 9, 9), np.uint8), photometric="minisblack", metadata=None)
    source = find_images([str(image_folder / "a.png"), str(tmp_path / "x.tif"), str(tmp_path / "y.tif")])
    expanded = expand_stacks(source, z=range(9), t=None)
    assert [record.path.name for record in expanded.records] == ["a.png", "x.tif", "y.tif"]
    assert expanded.records[0].metadata == {}
    with pytest.raises(DataError, match=r"y\.tif: .* its 4 pages .*--axes ZYX"):  # and not read as four channels
        read_image(expanded.records[2].path, expanded.records[2].metadata)


@pytest.mark.parametrize(
    "words",
    [
        ["--tile", "big"],
        ["--tile", "8"],
        ["--workers", "-1"],
        ["--tile", "100", "--overlap", "80"],
        ["--tile", "off", "--overlap", "20"],
    ],
)
def test_impossible_tiles_are_refused(words, small_run, image_folder, tmp_path, capsys):
    assert predict("--run", small_run, "--images", image_folder, "--output", tmp_path / "p.json", *words) == 2
    assert "Traceback" not in capsys.readouterr().err
