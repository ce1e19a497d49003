"""Overlays as pictures and files, and the images that they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scoring_cases import predictions_of, random_case, rectangle, truth_of, without_masks

from detseg.cli.main import run_command
from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.coco.predictions_file import write_predictions
from detseg.coco.records import ImageRecord
from detseg.errors import DataError
from detseg.report.layout import LegendEntry, Panel, compose
from detseg.report.numbers import write_numbers
from detseg.report.overlays import Overlay, draw_overlay, overlay_names, side_by_side, write_png
from detseg.structures import rle as rle_codec

GRAY = np.tile(np.arange(50, dtype=np.uint8) * 5, (40, 1))


@pytest.fixture
def project(tmp_path):
    """A folder with three images, their ground truth and predictions for two of them."""
    ground_truth, predictions = random_case(3, images=3)
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for truth in ground_truth.images:
        Image.fromarray(GRAY).save(tmp_path / "images" / truth.file_name)
        images.append({"id": truth.image_id, "file_name": f"images/{truth.file_name}", "height": 40, "width": 50})
        annotations += annotations_of(
            truth.rles, np.array([1, 2])[truth.classes], image_id=truth.image_id, first_id=len(annotations) + 1
        )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(ground_truth.class_names)]
    write_coco(tmp_path / "gt.json", images=images, annotations=annotations, categories=categories)
    for image in predictions:
        image.file_name = f"images/{image.file_name}"
    write_predictions(tmp_path / "p.json.gz", predictions[:2], ground_truth.class_names)
    return tmp_path


def test_panels_and_sizes():
    truth, found = truth_of([rectangle(5, 5, 20, 20)]), predictions_of([rectangle(5, 5, 20, 20)] * 2)
    alone = side_by_side(GRAY)
    one = side_by_side(GRAY, truth=truth)
    both = side_by_side(GRAY, truth=truth, predictions=found, class_names=["a", "b"], caption="x.png")
    assert alone.dtype == np.uint8
    assert alone.shape[1] < one.shape[1] < both.shape[1]
    assert both.shape[0] > one.shape[0], "legend and caption need room"


def test_numbers_are_those_of_the_table():
    """Without fonts to read: a picture with the number 2 in the second object is that of the second object's row."""
    rles = [rectangle(2, 2, 18, 18), rectangle(22, 2, 48, 18), rectangle(2, 22, 18, 38)]
    plain = np.zeros((400, 500, 3), np.uint8)
    numbered, count = write_numbers(plain, rles, [1, 2, 3], 10)
    assert count == 3
    for index, rle in enumerate(rles):
        alone, _ = write_numbers(plain, [rle], [index + 1], 10)
        x0, y0, x1, y1 = (10 * rle_codec.bounding_boxes([rle])[0]).astype(int)
        assert np.array_equal(numbered[y0:y1, x0:x1], alone[y0:y1, x0:x1])
        assert alone[y0:y1, x0:x1].any()
        other, _ = write_numbers(plain, [rle], [index + 2], 10)
        assert not np.array_equal(alone, other)
    assert np.array_equal(write_numbers(plain, rles, [1, 2, 3], 10, "none")[0], plain)


def test_numbers_are_left_out_where_they_do_not_fit_or_cover_another():
    plain = np.zeros((400, 500, 3), np.uint8)
    assert write_numbers(plain, [rectangle(5, 5, 9, 9)], [1234], 1)[1] == 0
    assert write_numbers(plain, [rectangle(5, 5, 9, 9)], [1234], 1, "all")[1] == 1
    twice = [rectangle(5, 5, 35, 35), rectangle(6, 6, 34, 34)]
    picture, count = write_numbers(plain, twice, [1, 2], 10)
    assert count == 1
    assert np.array_equal(picture, write_numbers(plain, twice[:1], [1], 10)[0]), "the larger one has it"
    empty = rle_codec.encode_mask(np.zeros((40, 50), bool))
    assert write_numbers(plain, [empty], [1], 10, "all")[1] == 0
    hollow = np.zeros((40, 50), bool)
    hollow[5:35, 5:35] = True
    hollow[6:34, 9:35] = False
    picture, _ = write_numbers(plain, [rle_codec.encode_mask(hollow)], [7], 10)
    columns = np.flatnonzero(picture.any(axis=(0, 2)))
    assert columns.max() < 100, "it stands in the mask, not in the hollow that it encloses"


def test_pictures_have_numbers_of_objects_alone_and_say_how_many():
    boxes = [rectangle(2, 2, 18, 18), rectangle(22, 2, 48, 18)]
    crowd = truth_of(boxes, crowd=[True, False])
    numbered = side_by_side(GRAY, truth=crowd, numbers="auto")
    assert not np.array_equal(numbered, side_by_side(GRAY, truth=crowd))


@pytest.mark.parametrize("objects", [0, 1])
def test_any_number_of_objects_and_boxes_alone(objects):
    rles = [rectangle(5, 5, 20, 20)] * objects
    found = predictions_of(rles)
    side_by_side(GRAY, truth=truth_of(rles), predictions=found, class_names=["a"])
    with_boxes = side_by_side(GRAY, predictions=without_masks(found))
    assert np.array_equal(with_boxes, side_by_side(GRAY, predictions=found)), "a box is drawn as a rectangle"


def test_crowds_are_drawn_but_not_counted():
    truth = truth_of([rectangle(5, 5, 20, 20), rectangle(25, 5, 45, 30)], crowd=[False, True])
    plain = truth_of([rectangle(5, 5, 20, 20)])
    assert not np.array_equal(side_by_side(GRAY, truth=truth), side_by_side(GRAY, truth=plain))


def test_long_names_and_many_classes_fit():
    panel = np.zeros((60, 200, 3), dtype=np.uint8)
    legend = [LegendEntry(f"a class with a long name {number}", (9, 9, 9)) for number in range(12)]
    few, many = (compose([Panel(panel, "T" * 99, "note")], "n" * 500, part) for part in (legend[:1], legend))
    assert few.shape[1] == many.shape[1]
    assert many.shape[0] > few.shape[0] + 10 * 20
    assert (many[:, -8:] == 255).all(), "text runs into the margin"
    compose([Panel(panel[:, :3], "title", "note")], "footer", legend[:1])


def names_of(*names: str, image_id: int = 1) -> list[str]:
    return overlay_names(ImageRecord(image_id, name, Path(name), 8, 8, {}) for name in names)


def test_images_whose_paths_make_one_word_get_pictures_of_their_own():
    names = names_of("a/x.png", "a_x.png", "a/x.tif", "A_X.png", "a_x_2.png", "b.png")
    assert names == ["a_x.png", "a_x_2.png", "a_x_3.png", "A_X_4.png", "a_x_2_2.png", "b.png"]


def test_names_of_overlays():
    def overlay_name(name: str, image_id: int) -> str:
        return names_of(name, image_id=image_id)[0]

    assert overlay_name("a/b/c d.tif", 1) == "a_b_c_d.png"
    assert overlay_name("a\\b.png", 1) == "a_b.png"
    assert overlay_name("../../etc/passwd", 1) == "_.._etc_passwd.png"
    assert overlay_name("", 17) == "17.png"
    assert overlay_name("...", 1) == "image.png"
    assert len(overlay_name("x" * 500 + ".png", 1)) < 200


def test_a_data_set_is_drawn(project):
    dataset = CocoDataset.load(project / "gt.json")
    overlay = Overlay(dataset.images[1], 1, None)
    path = project / "new" / "folder" / "images_2.png"
    draw_overlay(overlay, path, dataset.class_names, truth=dataset, note="hello")
    assert Image.open(path).size[0] > 600
    assert list(path.parent.iterdir()) == [path]


def test_pictures_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_png(tmp_path / "file" / "x.png", np.zeros((3, 3, 3), dtype=np.uint8))


def visualize(project, *words):
    return run_command("visualize", [*map(str, words), "--output", str(project / "out")], prog="visualize")


def test_command_with_everything(project, capsys):
    files = {"--ground-truth": project / "gt.json", "--predictions": project / "p.json.gz"}
    words = [word for pair in files.items() for word in pair]
    assert visualize(project, *words) == 0
    assert sorted(path.name for path in (project / "out").iterdir()) == ["images_1.png", "images_2.png"]
    assert visualize(project, *words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert visualize(project, *words, "--overwrite", "--score-threshold", "0.5", "--limit", "1") == 0


def test_command_with_images_and_one_side(project):
    assert visualize(project, "--images", project / "images", "--predictions", project / "p.json.gz") == 0
    assert len(list((project / "out").iterdir())) == 2
    assert visualize(project, "--ground-truth", project / "gt.json", "--overwrite") == 0
    assert len(list((project / "out").iterdir())) == 5, "the names of a folder's images have no folder"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--predictions FILE"),
        (["--predictions", "p.json.gz"], "--images"),
        (["--ground-truth", "gt.json", "--score-threshold", "2"], "0 to 1"),
        (["--ground-truth", "gt.json", "--limit", "-1"], "--limit"),
        (["--ground-truth", "missing.json"], "missing.json"),
        (["--ground-truth", "gt.json", "--postprocess", "missing.yaml"], "missing.yaml"),
    ],
)
def test_command_refuses(project, capsys, monkeypatch, words, message):
    monkeypatch.chdir(project)
    assert visualize(project, *words) == 2
    assert message in capsys.readouterr().err


def test_command_tells_when_images_do_not_belong(project, capsys):
    (project / "others").mkdir()
    Image.fromarray(GRAY).save(project / "others" / "other.png")
    assert visualize(project, "--images", project / "others", "--predictions", project / "p.json.gz") == 2
    assert "not in --images, which has other.png:" in capsys.readouterr().err
    Image.fromarray(GRAY[:30]).save(project / "others" / "2.png")
    assert visualize(project, "--images", project / "others", "--predictions", project / "p.json.gz") == 2
    assert "has 30 x 50 pixels" in capsys.readouterr().err
