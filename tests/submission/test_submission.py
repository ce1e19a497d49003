"""What is written as a submission is what was predicted; what is wrong in one is told by row."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_cases import predictions_of, random_case, rectangle, truth_of

from detseg.cli.main import main
from detseg.coco.predictions_file import write_predictions
from detseg.errors import DataError
from detseg.evaluation.evaluate import evaluate
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.submission.formats import FORMATS, SubmissionImage, by_name, images_of
from detseg.submission.reading import read_submission, score_submission
from detseg.submission.writing import write_submission

SIZE = (4, 5)
A = SubmissionImage("a", *SIZE)
B = SubmissionImage("b", *SIZE)


def small(masks, name="a"):
    """Predictions of an image of 4 x 5 pixels from masks written as text, # for the object."""
    arrays = [np.array([[pixel == "#" for pixel in row] for row in mask.split()]) for mask in masks]
    return predictions_of([rle_codec.encode_mask(array) for array in arrays], image_id=name, size=SIZE)


def write(tmp_path, predictions, layout="sartorius", images=(A, B), **options):
    path = tmp_path / "submission.csv"
    written = write_submission(path, by_name(images), predictions, FORMATS[layout], **options)
    return path.read_text().splitlines(), written


def check(tmp_path, text, layout="sartorius", images=(A, B)):
    path = tmp_path / "check.csv"
    path.write_text(text)
    found = read_submission(path, by_name(images), FORMATS[layout])
    return [problem.removeprefix(f"{path}: ") for problem in found.problems]


MASKS = ["..... .##.. .#... .....", "....# ....# ..... ....."]


def test_sartorius_counts_along_the_rows_from_1(tmp_path):
    lines, written = write(tmp_path, [small(MASKS)])
    assert lines == ["id,predicted", "a,7 2 12 1", "a,5 1 10 1", "b,"]
    assert (written.images, written.objects, written.empty, written.missing) == (2, 2, 1, 1)


def test_dsb2018_counts_down_the_columns_from_1(tmp_path):
    lines, _ = write(tmp_path, [small(MASKS)], "dsb2018")
    assert lines == ["ImageId,EncodedPixels", "a,6 2 10 1", "a,17 2", "b,"]


def test_an_image_predicted_empty_has_an_empty_row_but_is_not_missing(tmp_path):
    lines, written = write(tmp_path, [small([]), small([], "b")])
    assert lines[1:] == ["a,", "b,"]
    assert (written.empty, written.missing) == (2, 0)


def test_overlaps_are_resolved_by_score_or_refused(tmp_path):
    twice = ["##### ##### ..... .....", "..... ##### ##### ##..."]
    lines, written = write(tmp_path, [small(twice)])
    assert lines[1:3] == ["a,1 10", "a,11 7"]
    assert (written.resolved, written.dropped) == (1, 0)
    assert write(tmp_path, [small([twice[0], twice[0]])])[1].dropped == 1
    with pytest.raises(DataError, match="image a: masks overlap"):
        write(tmp_path, [small(twice)], refuse_overlaps=True)


def test_names_are_those_of_the_competition(tmp_path):
    found = small(MASKS)
    found.file_name = "train\\deep/a.png"
    assert write(tmp_path, [found])[0][1].startswith("a,")


def test_run_lengths_of_other_programs_are_compared_by_their_pixels(tmp_path):
    odd = {"size": list(SIZE), "counts": [0, 2, 0, 1, 17]}
    found = Predictions("a", "a.png", *SIZE, np.array([[0, 0, 1, 3]]), np.ones(1), np.zeros(1), [odd])
    assert write(tmp_path, [found], "dsb2018")[0][1] == "a,1 3"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (lambda: [small(MASKS, "c")], "image c: it has predictions, but is not one of the images"),
        (lambda: [small(MASKS), small(MASKS)], "image a: it has predictions twice"),
        (lambda: [predictions_of([rectangle(0, 0, 2, 2)], image_id="a")], "predicted at 40 x 50 pixels"),
        (lambda: [Predictions("a", "a.png", *SIZE, np.ones((1, 4)), np.ones(1), np.zeros(1))], "have no masks"),
    ],
)
def test_what_cannot_be_submitted_is_refused_and_nothing_is_written(tmp_path, found, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path, found())
    assert not list(tmp_path.iterdir())


@given(labels=st.lists(st.integers(0, 3), min_size=20, max_size=20), layout=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory, labels, layout):
    image = np.array(labels).reshape(SIZE)
    masks = [image == number for number in range(1, 4) if (image == number).any()]
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    path = tmp_path_factory.mktemp("round") / "s.csv"
    write_submission(path, by_name([A]), [predictions_of(rles, image_id="a", size=SIZE)], FORMATS[layout])
    back = read_submission(path, by_name([A]))
    assert back.layout.name == layout
    assert [rle_codec.decode(rle).tolist() for rle in back.masks["a"]] == [mask.tolist() for mask in masks]


@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        ("a,1 2\nb,", []),
        ("a,1 2\na,2 1\nb,", ["line 3 (image a): overlaps line 2, for example in pixel 2"]),
        ("a,20 2\nb,", ["line 2 (image a): the run 20 2 exceeds the image, which has 20 pixels"]),
        ("a,1 2\na,\nb,", ["line 3 (image a): marks an image without objects, but the image has 1 more rows"]),
        ("a,\nb,\nc,", ["line 4 (image c): no such image"]),
        ("a.png,\nb,", ["line 2 (image a.png): no such image; write a, without", "image a has no row"]),
        (",1 2\na,\nb,", ["line 2 (image (no name)): the image name is missing"]),
        ("a,", ["image b has no row"]),
        ("a,1 2,3\nb,", ["line 2: has 3 fields", "image a has no row"]),
        ("", ["image a has no row", "image b has no row"]),
    ],
)
def test_every_wrong_row_is_told(tmp_path, rows, problems):
    found = check(tmp_path, f"id,predicted\n{rows}")
    assert len(found) == len(problems), found
    for text, start in zip(found, problems, strict=True):
        assert text.startswith(start)


def test_all_problems_are_told_in_the_order_of_the_rows(tmp_path):
    found = check(tmp_path, "id,predicted\na,99 1\nx,1 1\na,1 2 q\na,1 3\na,3 1\n")
    assert [problem.split(" ")[1].rstrip(":") for problem in found] == ["2", "3", "4", "6", "b"]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_overlaps_are_found_as_pixel_by_pixel(tmp_path_factory, seed):
    random = np.random.default_rng(seed)
    masks = [random.random(20) < 0.15 for _ in range(5)]
    masks = [mask for mask in masks if mask.any()]
    rles = [rle_codec.encode_mask(mask.reshape(SIZE)) for mask in masks]
    texts = FORMATS["sartorius"].texts(rles, *SIZE)
    path = tmp_path_factory.mktemp("overlaps") / "s.csv"
    path.write_text("id,predicted\n" + "\n".join(f"a,{text}" for text in texts) + "\n")
    problems = read_submission(path, by_name([A])).problems
    lines = {int(problem.split("line ")[1].split(" ")[0]) for problem in problems if "overlaps line" in problem}
    wanted = {2 + index for index in range(len(masks)) if any((masks[index] & other).any() for other in masks[:index])}
    assert lines == wanted or not masks


@pytest.mark.parametrize("header", ["id,predicted,class", "id,height,predicted", "id,predicted,"])
def test_further_columns_are_a_problem(tmp_path, header):
    path = tmp_path / "s.csv"
    row = ",".join("a" if name == "id" else "" for name in header.split(","))
    path.write_text(f"{header}\n{row}\n")
    (problem,) = read_submission(path, by_name([A])).problems
    assert "line 1: unexpected columns" in problem
    assert "expected only id,predicted" in problem


@pytest.mark.parametrize("text", ["", "x,y\n1,2\n", "id;predicted"])
def test_files_that_are_no_submission(tmp_path, text):
    path = tmp_path / "no.csv"
    path.write_text(text)
    if text == "id;predicted":
        assert len(read_submission(path, by_name([A])).problems) == 1
        return
    with pytest.raises(DataError, match=r"empty|expected one of sartorius: id,predicted; dsb2018: ImageId"):
        read_submission(path, by_name([A]))
    with pytest.raises(DataError, match="cannot be read"):
        read_submission(tmp_path / "none.csv", by_name([A]))


@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_the_score_is_the_object_ap_of_evaluate(tmp_path, layout):
    truth, predictions = random_case(3, images=4)
    disjoint = list(Postprocess(score_threshold=0.3).apply_all(predictions))
    path = tmp_path / "s.csv"
    write_submission(path, images_of(truth.images), disjoint, FORMATS[layout])
    scores = score_submission(truth, read_submission(path, images_of(truth.images)))
    assert scores["object_ap"] == pytest.approx(evaluate(truth, disjoint, coco=False)["object_ap"], abs=1e-12)


def test_the_score_of_a_known_case(tmp_path):
    # Image a: 1 hit of 2 objects at all thresholds. Image b: no object, one false alarm. Mean of 1/2 and 0.
    objects = small(MASKS).rles
    truth = GroundTruth(["cell"], [truth_of(objects, image_id="a", size=SIZE), truth_of([], image_id="b", size=SIZE)])
    path = tmp_path / "s.csv"
    path.write_text("id,predicted\na,7 2 12 1\nb,1 1\n")
    assert score_submission(truth, read_submission(path, images_of(truth.images)))["object_ap"] == pytest.approx(0.25)
    path.write_text("id,predicted\na,7 2 12 1\n")
    with pytest.raises(DataError, match="image b has no row"):
        score_submission(truth, read_submission(path, images_of(truth.images)))


def command_files(tmp_path):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros(SIZE, dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "._a.png").write_bytes(b"of macOS")
    write_predictions(tmp_path / "p.json", [small(MASKS)], [{"id": 1, "name": "cell"}], {})
    return folder


def test_the_command_writes_checks_and_scores(tmp_path, capsys):
    folder = command_files(tmp_path)
    output = tmp_path / "out" / "s.csv"
    words = ["make_submission", "--predictions", str(tmp_path / "p.json"), "--format", "dsb2018"]
    assert main([*words, "--images", str(folder), "--output", str(output)]) == 0
    assert "1 of them are not in the predictions" in capsys.readouterr().out
    assert main([*words, "--images", str(folder), "--output", str(output)]) == 2
    assert main(["make_submission", "--check", str(output), "--images", str(folder)]) == 0
    assert "valid (dsb2018), 2 images, 3 rows" in capsys.readouterr().out
    sample = tmp_path / "sample.csv"
    sample.write_text("ImageId,EncodedPixels\nb,\na,\n")
    assert main([*words, "--images", str(sample), "--output", str(output), "--overwrite"]) == 0
    assert [line.split(",")[0] for line in output.read_text().splitlines()] == ["ImageId", "b", "a", "a"]
    images = [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in ("a", "b")]
    truth = tmp_path / "gt.json"
    annotation = {"id": 1, "image_id": "a", "category_id": 1, "bbox": [0, 0, 5, 4], "iscrowd": 0, "area": 3}
    annotation["segmentation"] = {**small(MASKS).rles[0], "counts": small(MASKS).rles[0]["counts"].decode()}
    truth.write_text(
        json.dumps({"images": images, "categories": [{"id": 1, "name": "cell"}], "annotations": [annotation]})
    )
    capsys.readouterr()
    assert main(["make_submission", "--check", str(output), "--score", str(truth)]) == 0
    assert "score    0.7500" in capsys.readouterr().out
    output.write_text("ImageId,EncodedPixels\na,1 99\n")
    assert main(["make_submission", "--check", str(output), "--images", str(folder)]) == 1
    assert "2 problems" in capsys.readouterr().out


def test_the_command_refuses_what_contradicts_itself(tmp_path, capsys):
    for words in ([], ["--output", "x.csv"], ["--check", "x.csv"], ["--predictions", "p", "--output", "x.csv"]):
        assert main(["make_submission", *words]) == 2
        assert capsys.readouterr().err.startswith("error: ")
