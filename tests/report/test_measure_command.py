"""`detseg measure`: tables by object, image and condition, with the experimental unit that was named."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from detseg.cli.main import main
from detseg.coco.predictions_file import write_predictions
from detseg.report.sizes import size_percentiles
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

SIZE = (40, 50)


def image_of(name: str, sides: list[int], scores: list[float] | None = None, **fields: object) -> Predictions:
    """Return squares with these sides, one beside the other."""
    crops = [(np.ones((side, side), dtype=bool), 12 * place, 0) for place, side in enumerate(sides)]
    boxes = np.array([(x, 0, x + len(mask), len(mask)) for mask, x, _ in crops], dtype=np.float32).reshape(-1, 4)
    rles = rle_codec.encode_crops(crops, *SIZE)
    scores = np.array([1.0] * len(sides) if scores is None else scores, dtype=np.float32)
    image = Predictions(name, name, *SIZE, boxes, scores, np.zeros(len(sides), dtype=np.int64), rles)
    image.metadata.update(fields)
    return image


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four wells of two images: squares of 2 and 4 pixels in the control, of 8 with the drug; one image is empty."""
    images = [
        image_of("control/a.png", [2, 4], group="control", well="1"),
        image_of("control/b.png", [2], [0.9], group="control", well="1"),
        image_of("control/c.png", [4], group="control", well="2"),
        image_of("control/d.png", [], group="control", well="2"),
        image_of("drug/e.png", [8, 8, 8], [0.9, 0.9, 0.3], group="drug", well="3"),
        image_of("drug/f.png", [8], group="drug", well="3"),
        image_of("drug/g.png", [8, 8], group="drug", well="4"),
        image_of("drug/h.png", [8, 8], group="drug", well="4"),
    ]
    write_predictions(tmp_path / "p.json", images, ["cell"])
    return tmp_path / "p.json"


def test_counts_and_sizes_by_image_and_condition(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out"
    words = ["measure", "--input", str(file), "--group-by", "group", "--score-threshold", "0.5", "--output", str(out)]
    assert main([*words, "--pixel-size", "0.5"]) == 0
    assert len(rows_of(out / "objects.csv")) == 11
    assert {row["condition"] for row in rows_of(out / "objects.csv")} == {"control", "drug"}
    images = {row["image"]: row for row in rows_of(out / "images.csv")}
    assert images["control/a.png"]["area_um2"] == "2.5", "the median of 1 and 4"
    assert (images["control/d.png"]["objects"], images["control/d.png"]["area_um2"]) == ("0", "")
    assert float(images["control/a.png"]["density_per_mm2"]) == pytest.approx(2 / (40 * 50 * 0.25) * 1e6)
    control, drug = rows_of(out / "conditions.csv")
    assert (control["units"], control["objects"], drug["objects"]) == ("4", "4", "7")
    assert float(drug["diameter_um_D50"]) == pytest.approx(2 * (16 / np.pi) ** 0.5)
    counts, areas = rows_of(out / "tests.csv")
    assert (counts["measure"], areas["measure"]) == ("objects_per_image", "area_um2")
    assert float(areas["units_first"]) == 3, "an image without objects has no area, but a count"
    assert float(areas["p_mann_whitney"]) == pytest.approx(2 / 35)
    assert float(areas["p_holm"]) == pytest.approx(4 / 35)
    assert (out / "sizes.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Objects are not units" in printed
    assert "name it with --unit" in printed


def test_a_unit_of_several_images_counts_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out"
    assert main(["measure", "--input", str(file), "--group-by", "folder", "--unit", "well", "--output", str(out)]) == 0
    counts, _ = rows_of(out / "tests.csv")
    assert (counts["units_first"], counts["units_second"]) == ("2", "2")
    assert (counts["median_first"], counts["median_second"]) == ("1", "2"), "means of the images of each well"
    assert counts["low_95"] == ""
    assert "so few units cannot give a p below 0.33" in capsys.readouterr().out


def test_conditions_from_a_table(file: Path) -> None:
    table, out = file.parent / "plates.csv", file.parent / "out"
    table.write_text("image,dose\n" + "".join(f"{name},{name < 'e'}\n" for name in "abcdefgh"))
    words = ["measure", "--input", str(file), "--output", str(out), "--group-by", f"csv:{table}:dose"]
    assert main([*words, "--measures", "density", "circularity"]) == 0
    assert [row["condition"] for row in rows_of(out / "conditions.csv")] == ["False", "True"]
    assert [row["measure"] for row in rows_of(out / "tests.csv")] == ["density_per_megapixel", "circularity"]


def test_a_condition_that_is_a_number_is_printed_as_it_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = file.parent / "doses.csv"
    table.write_text(
        "image,dose\n" + "".join(f"{name},{'0.000125' if name < 'e' else '123456'}\n" for name in "abcdefgh")
    )
    words = ["measure", "--input", str(file), "--output", str(file.parent / "out"), "--group-by", f"csv:{table}:dose"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["0.000125", "123456"]


def test_wrong_input_ends_in_one_message_and_writes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out"
    words = ["measure", "--input", str(file), "--output", str(out)]
    for further, told in (
        (["--group-by", "grup"], "their fields: group, well"),
        (["--measures", "size"], "there are: objects_per_image"),
        (["--score-threshold", "2"], "expected 0 to 1"),
        (["--group-by", "csv:x"], "csv:FILE:COLUMN"),
        (["--pixel-size", "0"], "above 0"),
    ):
        assert main([*words, *further]) == 2
        assert told in capsys.readouterr().err, further
        assert not out.exists()
    assert main(words) == 0
    assert not (out / "tests.csv").exists(), "there are no conditions"
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_file_without_any_object(tmp_path: Path) -> None:
    write_predictions(
        tmp_path / "p.json", [image_of("a.png", [], group="x"), image_of("b.png", [], group="y")], ["cell"]
    )
    words = ["measure", "--input", str(tmp_path / "p.json"), "--group-by", "group", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert [row["objects_per_image_median"] for row in rows_of(tmp_path / "out" / "conditions.csv")] == ["0", "0"]
    assert rows_of(tmp_path / "out" / "tests.csv")[1]["p_mann_whitney"] == "", "no object has an area"


def test_percentiles_of_sizes() -> None:
    assert size_percentiles(np.arange(101.0)) == {"D10": 10, "D50": 50, "D90": 90}
    assert np.isnan(size_percentiles(np.zeros(0))["D50"])
