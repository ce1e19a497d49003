"""What is validated on has no part in pseudo-labels: by models that saw it, by look-alikes, by one plate."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image
from pseudo_cases import square, write_images

from detseg.data.trained_images import FIELD, TrainedImages
from detseg.errors import DataError
from detseg.semi_supervised.leaks import LeakRules, leaking_images, refuse_leaking_models, seen_by

CELLS = [(square(0), 0)]


@pytest.fixture
def sets(tmp_path):
    """Images that are trained with, validated on, and unlabelled ones."""
    names = ({f"{kind}{n}.png": CELLS for n in range(3)} for kind in "tvu")
    return [write_images(tmp_path / str(n), "set.json", own, seed=n) for n, own in enumerate(names)]


def info_of(*sets) -> dict:
    records = [record for dataset in sets for record in dataset.images]
    return {FIELD: TrainedImages.of_records(records).to_plain(), "fold": 1}


def test_a_model_that_saw_nothing_of_it_is_taken_and_what_it_saw_is_known(sets) -> None:
    train, validation, _ = sets
    seen = refuse_leaking_models({"p.json": info_of(train)}, validation)
    assert np.array_equal(seen.keys, TrainedImages.of_records(train.images).keys)


def test_a_model_that_saw_a_validation_image_under_any_name_is_refused(sets, tmp_path) -> None:
    train, validation, _ = sets
    copy = tmp_path / "copy.png"
    shutil.copy(validation.images[1].path, copy)
    record = dataclasses.replace(train.images[0], path=copy, file_name="copy.png")
    info = {FIELD: TrainedImages.of_records([*train.images, record]).to_plain()}
    with pytest.raises(DataError, match=r"1 of the 3 validation images(.|\n)*v1\.png"):
        refuse_leaking_models({"p.json": info}, validation)


def test_predictions_that_do_not_say_what_their_model_saw_are_refused(sets) -> None:
    for info in ({}, {FIELD: 3}, {FIELD: {"count": 2, "zlib": "AAAA"}}, {"fused": {"inputs": [{"info": {}}]}}):
        with pytest.raises(DataError, match=r"m\.json does not record the training images of its models"):
            refuse_leaking_models({"p.json": info_of(sets[0]), "m.json": info}, sets[1])


def test_a_fusion_saw_what_any_of_its_members_saw(sets) -> None:
    train, validation, others = sets
    fused = {
        "fused": {"inputs": [{"info": info_of(train)}, {"info": {"fused": {"inputs": [{"info": info_of(others)}]}}}]}
    }
    assert len(seen_by(fused, "f.json").keys) == 6
    fused["fused"]["inputs"].append({"info": info_of(validation)})
    with pytest.raises(DataError, match="validation images"):
        refuse_leaking_models({"f.json": fused}, validation)


def test_look_alikes_are_left_out_also_turned_and_brighter(sets) -> None:
    _, validation, unlabelled = sets
    pixels = np.array(Image.open(validation.images[2].path)).astype(float)
    pixels = (pixels[::-1, ::-1] * 0.6 + 40).astype(np.uint8)
    Image.fromarray(pixels).save(unlabelled.images[1].path)
    found = leaking_images(unlabelled, validation, LeakRules())
    assert list(found) == [1]
    assert "near-duplicate of the validation image v2.png" in found[1].text
    assert leaking_images(unlabelled, validation, LeakRules(similar=0)) == {}


def with_fields(dataset, **fields):
    images = [
        dataclasses.replace(record, metadata={name: values[n] for name, values in fields.items()})
        for n, record in enumerate(dataset.images)
    ]
    return dataclasses.replace(dataset, images=images)


def test_images_of_a_validated_well_are_left_out_and_those_of_no_known_one(sets) -> None:
    validation = with_fields(sets[1], plate=["P1", "P1", "P2"], well=["A1", "A2", "A1"])
    unlabelled = with_fields(sets[2], plate=["P1", "P2", "P2"], well=["A2", "A2", ""])
    found = leaking_images(unlabelled, validation, LeakRules(apart=("plate", "well")))
    assert {index: reason.kind for index, reason in found.items()} == {
        0: "same plate and well as a validation image",
        2: "plate and well not known",
    }
    assert list(leaking_images(unlabelled, validation, LeakRules(apart=("plate",)))) == [0, 1, 2]


def test_what_the_folds_were_grouped_by_is_kept_apart_by_itself(sets) -> None:
    validation = with_fields(sets[1], plate=["P1", "P1", "P2"])
    validation = dataclasses.replace(validation, info={"split": {"group_by": ["plate"]}})
    unlabelled = with_fields(sets[2], plate=["P3", "P2", "P4"])
    assert list(leaking_images(unlabelled, validation, LeakRules())) == [1]
    assert leaking_images(unlabelled, validation, LeakRules(apart=())) == {}


def test_a_field_that_no_image_has_is_an_error_and_not_a_pass(sets) -> None:
    with pytest.raises(DataError, match="have no plate"):
        leaking_images(sets[2], with_fields(sets[1], plate=["P1"] * 3), LeakRules(apart=("plate",)))
    with pytest.raises(DataError, match="have no plate"):
        leaking_images(with_fields(sets[2], plate=["P1"] * 3), sets[1], LeakRules(apart=("plate",)))
