"""The table's counts are those of applying the postprocess and matching, to the last one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fusion_cases import random_members
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_cases import predictions_of, random_case, rectangle, truth_of, without_masks

from detseg.errors import DataError
from detseg.evaluation.evaluate import align, count_all, evaluate
from detseg.evaluation.ground_truth import GroundTruth, ImageTruth
from detseg.fusion.postprocess import Postprocess
from detseg.structures import rle as rle_codec
from detseg.tuning.candidates import OBJECT_METRICS, CandidateTable, CountTable, is_fast, object_numbers

NAMES = ("kind 0", "kind 1")


def assert_equal_counts(truth, predictions, postprocess):
    aligned = align(truth, predictions)
    shaped = [postprocess.shaped(image) for image in aligned]
    table = CandidateTable(truth.images, shaped, image_classes=postprocess.image_classes(aligned))
    objects = object_numbers(truth.images, len(truth.class_names))
    fast = CountTable.of_hits(table.hits(postprocess), objects)
    applied = [postprocess.apply(image) for image in aligned]
    slow = CountTable.of_images(count_all(truth, applied), len(truth.class_names))
    for field in dataclasses.fields(CountTable):
        np.testing.assert_array_equal(getattr(fast, field.name), getattr(slow, field.name), err_msg=field.name)


def postprocesses():
    per_class = lambda values: st.fixed_dictionaries({name: st.sampled_from(values) for name in NAMES})  # noqa: E731
    return st.builds(
        Postprocess,
        classes=st.just(NAMES),
        score_threshold=per_class([0.0, 0.3, 0.5, 0.7]),
        min_area=per_class([0, 20, 45]),
        max_area=per_class([None, 60, 90]),
        nms_iou=per_class([None, 0.0, 0.2, 0.5]),
        fill_holes=st.booleans(),
        min_visible_fraction=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
        image_class=st.sampled_from(Postprocess.choices("image_class")),
    )


@given(seed=st.integers(0, 10**6), postprocess=postprocesses(), crowds=st.booleans())
@settings(max_examples=60, deadline=None)
def test_counts_are_those_of_applying(seed, postprocess, crowds):
    truth, predictions = random_case(seed, images=3, crowds=crowds, objects=30)
    assert_equal_counts(truth, predictions, postprocess)


@given(seed=st.integers(0, 10**6), mask=st.sampled_from([None, 0.3, 0.7]), power=st.sampled_from([0, 0.5, 2]))
@settings(max_examples=25, deadline=None)
def test_counts_with_mask_probabilities(seed, mask, power):
    found, other = random_members(seed, members=2, objects=25)
    truth = GroundTruth(list(NAMES), [ImageTruth(7, "a.png", 60, 70, other.rles, other.classes)])
    chosen = Postprocess(score_threshold=0.2, mask_threshold=mask, mask_quality=power, min_area=15, nms_iou=0.6)
    assert_equal_counts(truth, [found], chosen)


def test_a_heap_of_masks_where_each_decides_about_the_next():
    # Each covers most of the next one: who is dropped frees the pixels for the one after it.
    heap = [rectangle(x, 0, x + 10, 10) for x in range(0, 40, 3)]
    truth = GroundTruth(list(NAMES), [truth_of(heap[::2])])
    for fraction in (0.0, 0.25, 0.35, 0.65, 0.75, 1.0):
        for low in (0, 65):
            assert_equal_counts(
                truth,
                [predictions_of(heap, scores=np.linspace(0.9, 0.3, len(heap)))],
                Postprocess(min_visible_fraction=fraction, min_area=low),
            )


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("metric", OBJECT_METRICS)
def test_scores_are_those_of_evaluate(metric, row):
    truth, predictions = random_case(5, images=6, crowds=True)
    postprocess = Postprocess(score_threshold=0.4)
    table = CandidateTable(truth.images, align(truth, predictions))
    parts = CountTable.of_hits(table.hits(postprocess), object_numbers(truth.images, 2)).parts(metric, row)
    metrics = evaluate(truth, postprocess.apply_all(predictions), coco=False)
    wanted = metrics if row == 0 else metrics["per_class"][NAMES[row - 1]]
    assert parts[0].sum() / parts[1].sum() == pytest.approx(wanted[metric], abs=1e-12)


def test_only_one_class_is_as_if_there_were_no_others():
    truth, predictions = random_case(8, images=4)
    postprocess = Postprocess(score_threshold=0.3)
    table = CandidateTable(truth.images, align(truth, predictions))
    alone = align(truth, [image.select(image.classes == 1) for image in predictions])
    wanted = CandidateTable(truth.images, alone).hits(postprocess)
    np.testing.assert_array_equal(table.hits(postprocess, 1).level_in_class, wanted.level_in_class)


def test_nothing_at_all():
    empty = GroundTruth(list(NAMES), [])
    assert_equal_counts(GroundTruth(list(NAMES), [truth_of([])]), [], Postprocess())
    assert_equal_counts(GroundTruth(list(NAMES), [truth_of([rectangle(0, 0, 4, 4)])]), [], Postprocess())
    assert len(CandidateTable(empty.images, [])) == 0
    nothing = rle_codec.encode_mask(np.zeros((40, 50), dtype=bool))
    assert_equal_counts(GroundTruth(list(NAMES), [truth_of([nothing])]), [predictions_of([nothing])], Postprocess())


def test_boxes_without_masks_are_refused():
    found = without_masks(predictions_of([rectangle(0, 0, 4, 4)]))
    with pytest.raises(DataError, match="have no masks"):
        CandidateTable([truth_of([])], [found])


def test_which_settings_the_table_knows():
    assert is_fast(Postprocess(fill_holes=True, nms_iou=0.3))
    assert not is_fast(Postprocess(resolve_overlaps=False))
    assert not is_fast(Postprocess(overlap_policy="watershed"))
    assert not is_fast(Postprocess(classes=["a", "b"], keep_largest_component={"a": False, "b": True}))
