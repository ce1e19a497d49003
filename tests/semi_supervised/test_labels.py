"""Predictions become a COCO file that says what was decided on every object and image."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from pseudo_cases import NAMES, predicted, square, write_file, write_images

from detseg.coco.dataset import CocoDataset
from detseg.data.trained_images import FIELD, TrainedImages
from detseg.errors import ConfigError, DataError
from detseg.semi_supervised import Gates, LabelInputs, label_images

ROUND, LONG = 0, 1


@pytest.fixture
def sets(tmp_path):
    """Labelled images (two), one that is validated on, and three unlabelled ones."""
    train = {"t1.png": [(square(0), ROUND), (square(1), ROUND)], "t2.png": [(square(0), ROUND), (square(3), LONG)]}
    validation = {"v1.png": [(square(n), LONG) for n in range(6)]}
    unlabelled = {f"u{n}.png": [] for n in range(3)}
    named = zip(("train", "val", "unlabelled"), (train, validation, unlabelled), strict=True)
    return [write_images(tmp_path / name, f"{name}.json", own, seed=n) for n, (name, own) in enumerate(named)]


@pytest.fixture
def predictions(tmp_path, sets):
    images = [
        predicted("u0.png", [square(n) for n in range(4)], [0.9, 0.8, 0.5, 0.1], [ROUND, LONG, ROUND, ROUND], 1),
        predicted("u1.png", [square(0), square(1)], [0.6, 0.5], image_id=2),
    ]
    return write_file(tmp_path / "p.json.gz", images, saw=sets[0])


def test_kept_are_objects_ignored_are_regions_dropped_are_listed(tmp_path, sets, predictions) -> None:
    train, validation, unlabelled = sets
    labels = label_images(LabelInputs(predictions, unlabelled, labelled=train, validation=validation), Gates())
    labels.dataset.save(tmp_path / "pseudo.json")
    loaded = CocoDataset.load(tmp_path / "pseudo.json")
    assert [record.file_name for record in loaded.images] == ["u0.png"]
    assert loaded.images[0].path == unlabelled.images[0].path
    assert loaded.images[0].metadata["label_source"] == "pseudo"
    rles, classes, crowd = loaded.annotations(0)
    assert [rle["counts"] for rle in rles] == [square(n)["counts"] for n in (0, 1, 2)]
    assert classes.tolist() == [ROUND, LONG, ROUND]
    assert crowd.tolist() == [False, False, True]
    sample = loaded.read_sample(0)
    assert sample.ignore.sum() == 64
    rows = json.loads((tmp_path / "pseudo.json").read_text())
    assert [(row["decision"], row["score"], row.get("why")) for row in rows["annotations"]] == [
        ("kept", 0.9, None),
        ("kept", 0.8, None),
        ("ignored", 0.5, "score"),
    ]
    assert [(row["decision"], row["score"], row["bbox"]) for row in rows["dropped"]] == [
        ("dropped", 0.1, [32, 2, 8, 8])
    ]
    assert {row["file_name"]: row["kind"] for row in rows["left_out"]} == {
        "u1.png": "too few sure objects",
        "u2.png": "not predicted",
    }
    assert (
        TrainedImages.from_plain(rows["info"]["pseudo_labels"][FIELD]).keys.tolist()
        == TrainedImages.of_records(train.images).keys.tolist()
    )
    assert "objects  2 kept, 1 ignored, 1 dropped" in labels.summary()


def test_agreement_of_members_is_in_the_file(tmp_path, sets, predictions) -> None:
    member = [
        predicted("u0.png", [square(0), square(1, shift=2)], [0.3, 0.3], [ROUND, LONG], 1),
        predicted("u1.png", [], [], image_id=2),
    ]
    path = write_file(tmp_path / "m.json", member, saw=sets[0])
    gates = Gates(agreement=0.7, ignore_agreement=0.3, score=0.5)
    labels = label_images(LabelInputs(predictions, sets[2], [path], validation=sets[1]), gates)
    rows = labels.dataset.table.decode(0)
    assert [(row["agreement"], row["decision"]) for row in rows] == [(1, "kept"), (0.6, "ignored")]
    assert [row["why"] for row in labels.dataset.further["dropped"]] == ["agreement", "score, agreement"]


def test_what_is_validated_on_does_not_even_choose_a_limit(tmp_path, sets, predictions) -> None:
    """Folds keep validation images in the file of the labelled ones: six long cells of v1 must not count."""
    train, validation, unlabelled = sets
    both = CocoDataset.concatenate([train, validation])
    images = [dataclasses.replace(record, image_id=n) for n, record in enumerate(both.images)]
    both = dataclasses.replace(both, images=images)
    inputs = LabelInputs(predictions, unlabelled, labelled=both, validation=validation)
    rows = label_images(inputs, Gates(choose="counts")).about["limits"]
    assert {row["class"]: row["wanted_per_image"] for row in rows} == {"round": 1.5, "long": 0.5}


def test_limits_by_precision_are_those_of_predictions_out_of_fold(tmp_path, sets, predictions) -> None:
    train, validation, unlabelled = sets
    found = [
        predicted("t1.png", [square(0), square(1), square(2)], [0.9, 0.7, 0.6], None, 1, in_training=False, fold=0),
        predicted("t2.png", [square(0), square(3)], [0.8, 0.9], [ROUND, ROUND], 2, in_training=False, fold=1),
    ]
    path = write_file(tmp_path / "oof.json", found)
    inputs = LabelInputs(predictions, unlabelled, labelled=train, validation=validation, out_of_fold=path)
    limits = {
        row["class"]: row for row in label_images(inputs, Gates(choose="precision", precision=0.7)).about["limits"]
    }
    # By score: true, a long cell called round (false), true, true, nothing there: 3 of 4 are right down to 0.7.
    assert 0.6 < limits["round"]["sure_from"] <= 0.7
    assert limits["round"]["recall"] == 1
    assert limits["long"]["sure_from"] is None
    found[0].provenance["in_training"] = True
    write_file(path, found)
    with pytest.raises(DataError, match=r"was trained with t1\.png"):
        label_images(inputs, Gates(choose="precision"))


def test_the_class_is_that_of_the_image_by_majority_name_or_plate(sets, predictions) -> None:
    train, _, unlabelled = sets

    def classes(field: str, value: str | None = None) -> list[int]:
        images = [dataclasses.replace(record, metadata={field: value}) for record in unlabelled.images]
        inputs = LabelInputs(predictions, dataclasses.replace(unlabelled, images=images), labelled=labelled)
        found = label_images(inputs, Gates(image_class=field)).dataset
        return found.annotations(0).classes.tolist()

    plates = [dataclasses.replace(r, metadata={"plate": f"P{n}"}) for n, r in enumerate(train.images)]
    labelled = dataclasses.replace(train, images=plates)
    assert classes("majority") == [ROUND] * 3
    assert classes("cell_type", "long") == [LONG] * 3
    assert classes("plate", "P0") == [ROUND] * 3
    with pytest.raises(DataError, match="its field plate is 'P1', which determines no class"):
        classes("plate", "P1")  # t2 has both


def test_soft_masks_stay_beside_the_labels(tmp_path, sets) -> None:
    image = predicted("u0.png", [square(0)], [0.9])
    image.soft_masks = [np.arange(64, dtype=np.uint8).reshape(8, 8)]
    path = write_file(tmp_path / "soft.json", [image], saw=sets[0])
    (row,) = label_images(LabelInputs(path, sets[2]), Gates()).dataset.table.decode(0)
    assert row["soft_mask"]["size"] == [8, 8]
    assert row["soft_mask"]["at"] == [2, 2]


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (Gates(agreement=0.5), "agreement needs the predictions of other members"),
        (Gates(choose="counts"), "counts needs the labelled images"),
        (Gates(choose="precision"), "precision needs the labelled images"),
    ],
)
def test_gates_without_what_they_need_are_refused(gates, message, sets, predictions) -> None:
    with pytest.raises(ConfigError, match=message):
        label_images(LabelInputs(predictions, sets[2]), gates)


def test_predictions_of_other_images_and_classes_are_refused(tmp_path, sets, predictions) -> None:
    with pytest.raises(DataError, match=r"has 2 images that are not in(.|\n)*u0\.png"):
        label_images(LabelInputs(predictions, sets[1]), Gates())
    other = sets[0].with_classes(["round"], drop=True)
    with pytest.raises(DataError, match=f"predicts the class '{NAMES[1]}'"):
        label_images(LabelInputs(predictions, sets[2], labelled=other), Gates())


def test_the_same_inputs_give_the_same_file(tmp_path, sets, predictions) -> None:
    inputs = LabelInputs(predictions, sets[2], labelled=sets[0], validation=sets[1])
    for name in ("a", "b"):
        label_images(inputs, Gates(choose="counts")).dataset.save(tmp_path / f"{name}.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
