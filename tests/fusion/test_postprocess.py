"""Postprocess: every setting, per class and for all, and its YAML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scoring_cases import predictions_of, random_case, rectangle, without_masks

from detseg.errors import DataError
from detseg.fusion.postprocess import Postprocess, keep_largest_component
from detseg.structures import rle as rle_codec


def test_the_default_only_resolves_overlaps():
    predictions = predictions_of([rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)], scores=[0.0, 1.0])
    assert len(Postprocess(resolve_overlaps=False).apply(predictions)) == 2
    assert Postprocess().apply(predictions).rles == [rectangle(0, 0, 5, 10), rectangle(5, 0, 15, 10)]


def test_a_score_equal_to_the_threshold_is_kept():
    predictions = predictions_of([rectangle(0, 0, 5, 5)] * 3, scores=[0.5, 0.49, 0.51])
    kept = Postprocess(score_threshold=0.5, resolve_overlaps=False).apply(predictions)
    assert kept.scores.tolist() == pytest.approx([0.5, 0.51])


def test_settings_per_class():
    rles = [rectangle(0, 0, 5, 5), rectangle(10, 0, 15, 5), rectangle(20, 0, 30, 10), rectangle(30, 20, 40, 30)]
    predictions = predictions_of(rles, scores=[0.5, 0.5, 0.5, 0.9], classes=[0, 1, 1, 0])
    settings = Postprocess(
        classes=["a", "b"],
        score_threshold={"a": 0.6, "b": 0.2},
        min_area={"b": 50, "a": 0},
        max_area={"a": 99, "b": None},
    )
    # The first has too low a score, the second is too small, the last too large.
    assert settings.apply(predictions).rles == [rles[2]]


def test_the_class_of_the_image_chooses_the_settings():
    rles = [rectangle(0, 0, 5, 5), rectangle(10, 0, 15, 5), rectangle(20, 0, 30, 10), rectangle(30, 20, 40, 30)]
    predictions = predictions_of(rles, scores=[0.5, 0.4, 0.3, 0.9], classes=[1, 1, 1, 0])
    # The scores of b sum up to 1.2, those of a to 0.9; the best single one is of a.
    own = Postprocess(classes=["a", "b"], score_threshold={"a": 0.95, "b": 0.35}, min_area={"a": 0, "b": 20})
    assert [own.apply(predictions).rles, own.image_class] == [rles[:2], "keep"]
    of_image = dataclasses.replace(own, image_class="settings").apply(predictions)
    assert (of_image.rles, of_image.classes.tolist()) == ([rles[0], rles[1], rles[3]], [1, 1, 0])
    relabelled = dataclasses.replace(own, image_class="relabel").apply(predictions)
    assert (relabelled.rles, relabelled.classes.tolist()) == (of_image.rles, [1, 1, 1])
    boxes = dataclasses.replace(own, image_class="relabel").apply(without_masks(predictions))
    assert boxes.classes.tolist() == [1, 1, 1]
    assert predictions.classes.tolist() == [1, 1, 1, 0]


def test_relabelled_predictions_are_duplicates_of_one_another():
    same = predictions_of([rectangle(0, 0, 9, 9)] * 2, scores=[0.9, 0.8], classes=[0, 1])
    settings = {"nms_iou": 0.5, "resolve_overlaps": False}
    assert len(Postprocess(**settings, image_class="settings").apply(same)) == 2
    assert len(Postprocess(**settings, image_class="relabel").apply(same)) == 1


def test_the_class_of_an_image_without_predictions_or_without_settings():
    settings = Postprocess(classes=["a", "b"], min_area={"a": 5, "b": 9}, image_class="relabel")
    assert len(settings.apply(predictions_of([]))) == 0
    unknown = predictions_of([rectangle(0, 0, 5, 5)], classes=[2])
    with pytest.raises(DataError, match=r"made for 2 classes \(a, b\), but a prediction has the class 2"):
        settings.apply(unknown)


def test_areas_are_inclusive():
    predictions = predictions_of([rectangle(0, 0, 5, 5)])
    assert len(Postprocess(min_area=25, max_area=25).apply(predictions)) == 1
    assert len(Postprocess(min_area=26).apply(predictions)) == 0
    assert len(Postprocess(max_area=24).apply(predictions)) == 0


def test_what_overlaps_shrink_or_tear_is_checked_again():
    # The bar on top tears the low one into 40 and 60 pixels.
    predictions = predictions_of([rectangle(4, 0, 6, 40), rectangle(0, 5, 12, 15)], scores=[0.9, 0.5])
    assert rle_codec.area(Postprocess().apply(predictions).rles).tolist() == [80, 100]
    assert rle_codec.area(Postprocess(keep_largest_component=True).apply(predictions).rles).tolist() == [80, 60]
    assert rle_codec.area(Postprocess(keep_largest_component=True, min_area=61).apply(predictions).rles).tolist() == [
        80
    ]


def test_holes_and_components():
    ring = np.zeros((40, 50), dtype=bool)
    ring[5:15, 5:15] = True
    ring[8:10, 8:10] = False
    ring[30:33, 30:33] = True
    predictions = predictions_of([rle_codec.encode_mask(ring)])
    filled = Postprocess(fill_holes=True).apply(predictions)
    assert rle_codec.area(filled.rles).tolist() == [100 + 9]
    largest = Postprocess(keep_largest_component=True).apply(predictions)
    assert rle_codec.area(largest.rles).tolist() == [96]
    assert largest.boxes.tolist() == [[5, 5, 15, 15]]
    both = Postprocess(keep_largest_component=True, fill_holes=True).apply(predictions)
    assert both.rles == [rectangle(5, 5, 15, 15)]


def test_holes_are_those_of_the_first_look_only():
    """A hole that a better object makes is that object, not to be filled."""
    predictions = predictions_of([rectangle(0, 0, 10, 10), rectangle(4, 4, 6, 6)], scores=[0.5, 0.9])
    result = Postprocess(fill_holes=True, keep_largest_component=True).apply(predictions)
    assert rle_codec.area(result.rles).tolist() == [96, 4]


def test_components_touch_at_corners():
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]], dtype=bool)
    assert keep_largest_component(mask).sum() == 2
    assert keep_largest_component(np.zeros((0, 0), dtype=bool)).shape == (0, 0)


def test_boxes_alone_get_the_score_threshold():
    predictions = without_masks(predictions_of([rectangle(0, 0, 5, 5)] * 2, scores=[0.2, 0.9]))
    result = Postprocess(score_threshold=0.5, min_area=1000).apply(predictions)
    assert result.scores.tolist() == pytest.approx([0.9])
    assert result.rles is None


@pytest.mark.parametrize("seed", range(4))
def test_cutting_by_score_commutes_with_everything_else(seed):
    _, predictions = random_case(seed, images=1, objects=25)
    settings = Postprocess(min_area=12, keep_largest_component=True, fill_holes=True, min_visible_fraction=0.3)
    everything = settings.apply(predictions[0])
    for cut in np.unique(predictions[0].scores):
        cut_first = dataclasses.replace(settings, score_threshold=float(cut)).apply(predictions[0])
        assert cut_first.rles == everything.select(everything.scores >= cut).rles


def test_empty_input():
    settings = Postprocess(score_threshold=0.5, min_area=3, fill_holes=True, keep_largest_component=True)
    assert len(settings.apply(predictions_of([]))) == 0
    assert list(settings.apply_all([])) == []


def test_files_of_before_mean_what_they_meant(tmp_path):
    path = tmp_path / "postprocess.yaml"
    path.write_text("classes: [a, b]\nscore_threshold: {a: 0.5, b: 0.2}\nmin_area: 30\n", encoding="utf-8")
    assert Postprocess.load(path).image_class == "keep"


def test_yaml_round_trip(tmp_path):
    settings = Postprocess(
        classes=["shsy5y", "1", "Zelle ä"],
        score_threshold={"shsy5y": 0.42, "1": 0.5, "Zelle ä": 1},
        max_area={"shsy5y": None, "1": 900, "Zelle ä": 70},
        fill_holes=True,
    )
    path = tmp_path / "postprocess.yaml"
    settings.save(path)
    assert Postprocess.load(path) == settings
    assert "shsy5y: 0.42" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


BAD = {
    "not valid YAML": "a: [",
    "mapping": "- 1",
    "unknown setting 'score'": "score: 0.5",
    "score_threshold is 1.5": "score_threshold: 1.5",
    "score_threshold is '0.5'": "score_threshold: '0.5'",
    "score_threshold is True": "score_threshold: true",
    "score_threshold is nan": "score_threshold: .nan",
    "min_area is -1": "min_area: -1",
    "min_area is None": "min_area: null",
    "fill_holes is 1": "fill_holes: 1",
    "image_class is 'drop', expected one of: keep, settings, relabel": "image_class: drop",
    "resolve_overlaps is {}": "resolve_overlaps: {}",
    "expected a list of names": "classes: cell",
    "different names": "classes: [a, a]",
    "names the classes a, expected one value for each of: a, b": "classes: [a, b]\nscore_threshold: {a: 0.5}",
    "min_area of b is 'x'": "classes: [a, b]\nmin_area: {a: 1, b: x}",
    "could not determine": "score_threshold: !!python/object/apply:os.getcwd []",
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_refused_by_name(tmp_path, message):
    path = tmp_path / "post.yaml"
    path.write_text(BAD[message], encoding="utf-8")
    with pytest.raises(DataError) as caught:
        Postprocess.load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_empty_file(tmp_path):
    with pytest.raises(DataError, match=r"missing\.yaml"):
        Postprocess.load(tmp_path / "missing.yaml")
    (tmp_path / "empty.yaml").touch()
    assert Postprocess.load(tmp_path / "empty.yaml") == Postprocess()
    with pytest.raises(DataError, match="the output folder cannot be made"):
        Postprocess().save(tmp_path / "empty.yaml" / "below-a-file.yaml")


def test_more_classes_than_named_are_refused():
    settings = Postprocess(classes=["a"], score_threshold={"a": 0.5})
    with pytest.raises(DataError, match="1 classes"):
        settings.apply(predictions_of([rectangle(0, 0, 3, 3)], classes=[1]))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/postprocess/*.yaml")), ids=str)
def test_the_examples_can_be_read(path):
    assert len(Postprocess.load(path).apply(predictions_of([rectangle(0, 0, 30, 30)], scores=[0.9]))) == 1
