"""Triage: kinds of images are told apart, and get models and thresholds of their own only where that gains."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scoring_cases import predictions_of, rectangle, truth_of

from detseg.errors import DataError
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.postprocess import Postprocess
from detseg.tuning.triage import FEATURES, KindClassifier, Model, Triage, fit_triage, image_features


def picture(folder: Path, kind: str, seed: int, dtype: type = np.uint8) -> Path:
    """Write spots on a dark ground, or violet ones on a pink one."""
    rng = np.random.default_rng(seed)
    spots = cv2.GaussianBlur((rng.random((64, 80)) > 0.97).astype(np.float32), (0, 0), 2)[..., None]
    spots /= spots.max()
    ground, colour = (
        (np.zeros(3), np.ones(3)) if kind == "dark" else (np.array([0.9, 0.7, 0.9]), np.array([0.5, 0.2, 0.5]))
    )
    image = ground + (colour - ground) * spots + rng.normal(0, 0.02, (64, 80, 3))
    path = folder / f"{kind}{seed}{np.dtype(dtype).name}.png"
    cv2.imwrite(str(path), (np.clip(image, 0, 1)[..., ::-1] * np.iinfo(dtype).max).astype(dtype))
    return path


def test_kinds_are_told_apart_whatever_the_unit_of_intensities(tmp_path: Path) -> None:
    kinds = ["dark", "stained"] * 4
    features = np.stack([image_features(picture(tmp_path, kind, seed)) for seed, kind in enumerate(kinds)])
    assert features.shape == (8, len(FEATURES))
    classifier = KindClassifier.fit(features, kinds)
    others = [image_features(picture(tmp_path, kind, 20 + seed, np.uint16)) for seed, kind in enumerate(kinds)]
    assert classifier.predict(np.stack(others)) == kinds
    cv2.imwrite(str(tmp_path / "flat.png"), np.full((5, 7), 9, dtype=np.uint8))
    assert np.isfinite(image_features(tmp_path / "flat.png")).all()


def cases(low_is_right_in: str) -> tuple:
    """24 images of two kinds; predictions of 0.9 are right, those of 0.4 only in the images of one kind."""
    truths, found, kinds = [], [], []
    for number in range(24):
        kind = "ab"[number % 2]
        both = [rectangle(0, 0, 10, 10), rectangle(20, 0, 30, 10)]
        truths.append(truth_of(both if kind in low_is_right_in else both[:1], image_id=number + 1))
        found.append(predictions_of(both, [0.9, 0.4], image_id=number + 1))
        kinds.append(kind)
    features = np.zeros((24, len(FEATURES)))
    features[:, 0] = [kind == "a" for kind in kinds]
    return GroundTruth(["cell"], truths), {Model("p.json"): found}, features, kinds


def test_thresholds_of_the_kinds_are_used_where_they_gain(tmp_path: Path) -> None:
    triage = fit_triage(*cases("a"), start=Postprocess())
    report = triage.report
    assert (report["used"], report["accuracy"], report["object_ap_own"]) == (True, 1, 1)
    assert 0 < report["interval"][0] < report["gain"] < 0.5
    thresholds = [triage.own[kind].settings.score_threshold for kind in "ab"]
    assert thresholds[0] <= 0.4 < thresholds[1] <= 0.9
    triage.save(tmp_path / "t.json")
    again = Triage.load(tmp_path / "t.json")
    assert (again.models, again.own, again.usual) == (triage.models, triage.own, triage.usual)
    assert np.array_equal(again.classifier.weights, triage.classifier.weights)


def test_one_threshold_stays_where_kinds_need_no_other() -> None:
    triage = fit_triage(*cases("ab"), start=Postprocess())
    assert not triage.report["used"]
    assert triage.own == {}
    assert triage.usual.settings.score_threshold <= 0.4


def test_every_kind_gets_the_model_that_finds_its_objects_where_that_gains() -> None:
    truth, members, features, kinds = cases("a")
    (found,) = members.values()

    def nothing_in(*without: str) -> list:
        limits = [1 if kind in without else 0 for kind in kinds]
        return [image.select(image.scores > limit) for image, limit in zip(found, limits, strict=True)]

    members = {Model("of a", "1a"): nothing_in("b"), Model("of b"): nothing_in("a"), Model("no"): nothing_in("a", "b")}
    triage = fit_triage(truth, members, features, kinds, start=Postprocess())
    assert triage.report["used"]
    assert {kind: triage.models[choice.model].name for kind, choice in triage.own.items()} == {"a": "of a", "b": "of b"}
    assert triage.report["object_ap_own"] == pytest.approx(1)
    assert triage.report["object_ap_one"] <= 0.5, "one model finds the objects of half of the images"
    # Of models that are equally good, the first.
    triage = fit_triage(truth, {Model("all"): found} | members, features, kinds, start=Postprocess())
    assert [triage.models[choice["model"]].name for choice in triage.report["chosen"].values()] == ["all"] * 3


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    truth, members, features, kinds = cases("a")
    with pytest.raises(DataError, match="two or more kinds"):
        fit_triage(truth, members, features, ["a"] * len(kinds), start=Postprocess())
    fit_triage(truth, members, features, kinds, start=Postprocess()).save(tmp_path / "good.json")
    good = (tmp_path / "good.json").read_text()
    other = good.replace('"model": 0', '"model": 1')
    assert other != good
    for text in ("[]", '{"format": "detseg triage 2"}', "{", other):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(DataError, match="not a triage file"):
            Triage.load(tmp_path / "t.json")
    with pytest.raises(DataError, match="No such file"):
        Triage.load(tmp_path / "missing.json")
