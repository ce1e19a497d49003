"""Settings of fusion: the shipped files, the way to YAML and back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fusion_cases import random_members

from detseg.errors import DetsegError
from detseg.fusion.fuse import fuse
from detseg.fusion.options import FusionOptions, parse_words
from detseg.fusion.postprocess import Postprocess

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("path", sorted((CONFIGS / "fusion").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_settings_work(path):
    members = random_members(0)
    fused = fuse(members, FusionOptions.load(path))
    assert 0 < len(fused) <= sum(map(len, members))


@pytest.mark.parametrize("path", sorted((CONFIGS / "postprocess").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_ways_to_disjoint_masks_work(path):
    assert len(Postprocess.load(path).apply(random_members(0)[0])) > 0


def test_to_yaml_and_back(tmp_path):
    options = FusionOptions(
        method="wbf", classes=["a", "b"], threshold={"a": 0.5, "b": 0.6}, weights=[2, 1], masks="mean", agreement=0.5
    )
    options.save(tmp_path / "f.yaml")
    assert FusionOptions.load(tmp_path / "f.yaml") == options
    (tmp_path / "empty.yaml").write_text("")
    assert FusionOptions.load(tmp_path / "empty.yaml") == FusionOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: nms", "unknown setting 'methods'; there are: method"),
        ("method: wfb", "method is 'wfb', expected one of: nms, soft_nms, wbf"),
        ("method: [nms]", "method is .'nms'., expected one of"),
        ("threshold: 1.5", "threshold is 1.5, expected a number from 0 to 1"),
        ("threshold: .nan", "threshold is nan"),
        ("threshold: true", "threshold is True"),
        ("mask_threshold: 0", "mask_threshold is 0, expected a number greater than 0"),
        ("min_members: 1.5", "min_members is 1.5, expected a whole number from 1"),
        ("min_members: .inf", "min_members is inf"),
        ("sigma: 0", "sigma is 0"),
        ("agreement: -1", "agreement is -1, expected a power of 0 or more"),
        ("agreement: {a: 1}", "agreement is .'a': 1."),
        ("across_classes: yes please", "across_classes is 'yes please'"),
        ("weights: [1, -1]", "weight of a member is -1"),
        ("weights: 2", "expected one number per member"),
        ("classes: [a]\nthreshold: {b: 0.5}", "threshold names the classes b, expected one value for each of: a"),
        ("classes: [a, a]", "expected different names"),
        ("method: soft_nms\nmasks: mean", "masks must be best"),
        ("method: soft_nms\nagreement: 1", "has no groups"),
        ("- nms", "expected a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(DetsegError, match=message) as error:
        FusionOptions.load(path)
    assert "f.yaml" in str(error.value)


def test_words_of_the_command_line():
    words = ["threshold=0.6", "--method=wbf", "masks", "mean", "weights=[1, 2]", "across_classes=false", "agreement=0"]
    assert parse_words(words) == {
        "threshold": 0.6,
        "method": "wbf",
        "masks": "mean",
        "weights": [1, 2],
        "across_classes": False,
        "agreement": 0,
    }
    for wrong in (["threshold"], ["threshold="], ["threshold=[1"]):
        with pytest.raises(DetsegError, match="threshold has no valid value"):
            parse_words(wrong)
