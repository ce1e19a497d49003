"""The command: inputs of any origin, matched by image and class names; what does not fit is refused with the remedy."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import tifffile
from fusion_cases import random_members

from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers

NAMES = ["cell", "dot"]


def members_of(images: int = 3, members: int = 2, **settings) -> list[list[Predictions]]:
    """members x images."""
    cases = [random_members(seed, members=members, **settings) for seed in range(images)]
    return [
        [dataclasses.replace(case[member], image_id=f"i{n}", file_name=f"set/{n}.png") for n, case in enumerate(cases)]
        for member in range(members)
    ]


def run(*words) -> int:
    return main(["fuse", *map(str, words)])


def test_a_fused_file_is_what_fuse_gives_image_by_image(tmp_path):
    first, second = members_of()
    write_predictions(tmp_path / "a.json.gz", first, NAMES, {"run": 1})
    write_predictions(tmp_path / "b.json", second, NAMES)
    settings = tmp_path / "wbf.yaml"
    settings.write_text("method: wbf\nmasks: mean\n")
    Postprocess(min_area=20).save(tmp_path / "post.yaml")
    inputs = [tmp_path / "a.json.gz", tmp_path / "b.json"]
    common = ["--config", settings, "--weights", 2, 1, "--postprocess", tmp_path / "post.yaml"]
    output = tmp_path / "new" / "f.json.gz"
    assert run("--inputs", *inputs, *common, "--output", output, "threshold=0.6") == 0
    found = read_predictions(output)
    options = FusionOptions(method="wbf", masks="mean", threshold=0.6)
    for image, *members in zip(found, first, second, strict=True):
        expected = Postprocess(min_area=20).apply(fuse(members, options, [2, 1]))
        assert image.rles == expected.rles
        assert image.scores.tolist() == expected.scores.tolist()
        assert image.provenance["fused"]["members"] == 2
    told = found.info["fused"]
    assert (told["weights"], told["options"]["threshold"], found.class_names) == ([2.0, 1.0], 0.6, NAMES)
    assert [item["info"].get("run") for item in told["inputs"]] == [1, None]
    before = output.read_bytes()
    assert run("--inputs", *inputs, *common, "--output", output) == 2, "an output was replaced unasked"
    assert run("--inputs", *inputs, *common, "--output", output, "threshold=0.6", "--overwrite") == 0
    assert output.read_bytes() == before


def test_images_and_classes_are_matched_by_name(tmp_path):
    first, second = members_of()
    write_predictions(tmp_path / "a.json", first, NAMES)
    # Another order of images and classes, other ids, no folder before the names.
    other = [
        dataclasses.replace(image, image_id=number, file_name=image.file_name, classes=1 - image.classes)
        for number, image in enumerate(reversed(second))
    ]
    write_predictions(tmp_path / "b.json", other, [{"id": 5, "name": "dot"}, {"id": 2, "name": "Cell"}])
    words = ["--inputs", tmp_path / "a.json", tmp_path / "b.json", "--output", tmp_path / "f.json"]
    assert run(*words, "--rename", "Cell=cell") == 0
    for image, *members in zip(read_predictions(tmp_path / "f.json"), first, second, strict=True):
        expected = fuse(members, FusionOptions())
        assert (image.image_id, image.file_name, image.rles) == (
            members[0].image_id,
            members[0].file_name,
            expected.rles,
        )
        assert image.classes.tolist() == expected.classes.tolist()


def test_image_level_fields_are_those_of_all_inputs(tmp_path):
    first, second = members_of(images=2)
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        one.metadata, other.metadata = {"group": f"g{number}"}, {"group": "other", "fold": number}
    write_predictions(tmp_path / "a.json", first, NAMES)
    write_predictions(tmp_path / "b.json", second, NAMES)
    Postprocess(score_threshold=1.0).save(tmp_path / "post.yaml")
    words = ["--inputs", tmp_path / "a.json", tmp_path / "b.json", "--postprocess", tmp_path / "post.yaml"]
    assert run(*words, "--output", tmp_path / "f.json") == 0
    fields = [image.metadata for image in read_predictions(tmp_path / "f.json")]
    assert fields == [{"group": "g0", "fold": 0}, {"group": "g1", "fold": 1}]


def test_label_folders_are_inputs(tmp_path):
    first, _ = members_of(classes=1)
    write_predictions(tmp_path / "a.json", first, ["cell"])
    (tmp_path / "labels" / "set").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    labelled = []
    for number, image in enumerate(first):
        labels = np.zeros((60, 70), dtype=np.uint16)
        labels[5:15, 5 : 20 + number], labels[30:40, 30:50] = 7, 3
        tifffile.imwrite(tmp_path / "labels" / "set" / f"{number}.tif", labels)
        tifffile.imwrite(tmp_path / "flat" / f"{number}_cp_masks.tif", labels)
        layers = LabelLayers.from_label_image(labels)
        labelled.append(
            dataclasses.replace(
                image,
                boxes=layers.boxes(),
                scores=np.full(2, 0.7),
                classes=np.zeros(2),
                rles=layers.to_rles(),
                soft_masks=None,
                quality=None,
            )
        )
    words = ["--label-score", 0.7, "--output", tmp_path / "f.json", "--overwrite"]
    for folder in ("labels", "flat"):
        assert run("--inputs", tmp_path / "a.json", tmp_path / folder, *words) == 0
        for image, *members in zip(read_predictions(tmp_path / "f.json"), first, labelled, strict=True):
            assert image.rles == fuse(members, FusionOptions()).rles
    # Label folders alone need to know the images.
    assert run("--inputs", tmp_path / "labels", *words) == 2
    truth = {
        "images": [{"id": n, "file_name": f"set/{n}.png", "height": 60, "width": 70} for n in range(3)],
        "categories": [{"id": 9, "name": "cell"}],
        "annotations": [],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    assert run("--inputs", tmp_path / "labels", "--ground-truth", tmp_path / "gt.json", *words) == 0
    assert [len(image) for image in read_predictions(tmp_path / "f.json")] == [2, 2, 2]


def test_lists_of_coco_results_are_inputs(tmp_path):
    first, second = members_of(classes=1)
    write_predictions(tmp_path / "a.json", first, ["cell"])
    results = [
        {"image_id": image.image_id, "category_id": 1, "score": float(score), "bbox": [0, 0, 5, 5]}
        | {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
        for image in second[:2]
        for score, rle in zip(image.scores, image.rles, strict=True)
    ]
    (tmp_path / "b.json").write_text(json.dumps(results))
    truth = {
        "images": [{"id": f"i{n}", "file_name": f"set/{n}.png", "height": 60, "width": 70} for n in range(3)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [],
    }
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    words = ["--inputs", tmp_path / "a.json", tmp_path / "b.json", "--output", tmp_path / "f.json", "overlap=mask_iou"]
    assert run(*words, "--ground-truth", tmp_path / "gt.json") == 0
    found = list(read_predictions(tmp_path / "f.json"))
    options = FusionOptions(overlap="mask_iou")
    assert sorted(found[0].scores) == sorted(fuse([first[0], second[0]], options).scores)
    assert sorted(found[2].scores) == sorted(fuse([first[2]], options).scores), "the list has nothing for this image"


def test_a_class_that_the_truth_lacks_is_told_of_and_kept_as_evaluate_does(tmp_path, caplog):
    first, second = members_of(images=1)
    write_predictions(tmp_path / "a.json", first, NAMES)
    write_predictions(tmp_path / "b.json", second, ["cell", "point"])
    image = {"id": "i0", "file_name": "set/0.png", "height": 60, "width": 70}
    truth = {"images": [image], "categories": [{"id": 7, "name": "cell"}], "annotations": []}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    words = ["--inputs", tmp_path / "a.json", tmp_path / "b.json", "--ground-truth", tmp_path / "gt.json"]
    assert run(*words, "--rename", "point=dot", "--output", tmp_path / "f.json") == 0
    assert "has no class dot" in caplog.text
    assert "point" not in caplog.text, "the renamed class was told of by its old name"
    assert read_predictions(tmp_path / "f.json").class_names == NAMES


def test_missing_images_are_refused_or_treated_as_asked(tmp_path, capsys):
    first, second = members_of()
    write_predictions(tmp_path / "a.json", first, NAMES)
    write_predictions(tmp_path / "b.json", second[1:], NAMES)
    words = ["--inputs", tmp_path / "a.json", tmp_path / "b.json", "--output", tmp_path / "f.json", "method=wbf"]
    assert run(*words) == 2
    assert "b.json: lacks the image set/0.png" in capsys.readouterr().err
    assert not (tmp_path / "f.json").exists()
    options = FusionOptions(method="wbf")
    nothing = Predictions.empty("i0", "set/0.png", 60, 70)
    for choice, expected in (("leave-out", [first[0]]), ("empty", [first[0], nothing])):
        assert run(*words, "--missing", choice, "--overwrite") == 0
        image = next(iter(read_predictions(tmp_path / "f.json")))
        np.testing.assert_allclose(image.scores, fuse(expected, options).scores)


def test_what_does_not_fit_is_refused_with_the_remedy(tmp_path, capsys):
    first, second = members_of(images=1)
    write_predictions(tmp_path / "a.json", first, NAMES)
    write_predictions(tmp_path / "other.json", second, ["nucleus", "spot"])
    larger = Predictions.empty("i0", "set/0.png", 61, 70)
    write_predictions(tmp_path / "larger.json", [larger], NAMES)
    (tmp_path / "labels").mkdir()
    tifffile.imwrite(tmp_path / "labels" / "0.tif", np.ones((5, 5), dtype=np.uint16))
    (tmp_path / "none").mkdir()
    a, output = tmp_path / "a.json", ["--output", tmp_path / "f.json"]
    for words, message in (
        ([tmp_path / "other.json"], "has the classes nucleus, spot, the others cell, dot"),
        ([tmp_path / "larger.json"], "elsewhere 61 x 70"),
        ([tmp_path / "labels"], "give --label-class"),
        ([tmp_path / "labels", "--label-class", "c"], "there is no such class"),
        ([tmp_path / "labels", "--label-class", "cell"], "has 5 x 5 pixels"),
        ([tmp_path / "none", "--label-class", "cell"], "there are no label images"),
        ([tmp_path / "gone.json"], "gone.json"),
        ([a, "--weights", "1"], "1 weights for 2 inputs"),
        ([a, "--weights", "1", "nan"], "weight of a member is nan"),
        ([a, "--rename", "cell"], "expected OLD=NEW"),
        ([a, *output, "thresold=1"], "unknown setting 'thresold'"),
        ([a, *output, "classes=[a, b]", "threshold={a: 0.1, b: 0.2}"], "made for the classes a, b"),
    ):
        assert run("--inputs", a, *words, *output) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "f.json").exists()


def test_boxes_alone_stay_boxes(tmp_path):
    first, second = members_of(bare=(0, 1))
    write_predictions(tmp_path / "a.json", first, NAMES)
    write_predictions(tmp_path / "b.json", second, NAMES)
    assert run("--inputs", tmp_path / "a.json", tmp_path / "b.json", "--output", tmp_path / "f.json", "method=wbf") == 0
    assert all(image.rles is None for image in read_predictions(tmp_path / "f.json"))


def test_one_input_may_be_fused_with_itself(tmp_path):
    first, _ = members_of(images=1)
    write_predictions(tmp_path / "a.json", first, NAMES)
    words = ["--inputs", tmp_path / "a.json", tmp_path / "a.json", "--output", tmp_path / "f.json", "overlap=mask_iou"]
    assert run(*words) == 0
    image = next(iter(read_predictions(tmp_path / "f.json")))
    assert rle_codec.area(image.rles).sum() > 0
