"""A plan of rounds says all that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from detseg.errors import ConfigError
from detseg.semi_supervised.gates import Gates
from detseg.semi_supervised.rounds_file import RoundsPlan

PLANS = sorted((Path(__file__).parents[2] / "configs" / "semi_supervised").glob("*.yaml"))
LEAST = {"models": {"small": "quickstart/mask_rcnn.yaml"}, "unlabelled": "unlabelled.json"}


@pytest.mark.parametrize("path", [path for path in PLANS if "models:" in path.read_text()], ids=lambda path: path.stem)
def test_our_plans_are_plans(path: Path) -> None:
    plan = RoundsPlan.load(str(path))
    Gates.from_dict(dict(plan.gates), source=str(path))
    for name in plan.model_names:
        cfg = plan.config(name, plan.mixing)
        assert cfg.DATASETS.PSEUDO_RATIO == [1, 1]
        assert cfg.DATASETS.TEST == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"round": 3}, "round: there is no such setting; did you mean rounds?"),
        ({"rounds": 0}, "rounds is 0; expected 1 or more"),
        ({"metric": "ap"}, "metric is 'ap'; expected one of object_ap"),
        ({"models": {}}, "expected one or more configurations by name"),
        ({"models": {"../a": "b.yaml"}}, "expected one or more configurations by name"),
        ({"models": {"a": "a.yaml", "b": "b.yaml"}}, "fusion is missing"),
        ({"teacher": ["a", "b"]}, "fusion is missing"),
        ({"settings": {"OUTPUT_DIR": "x"}}, "settings has OUTPUT_DIR, which the rounds set themselves"),
        ({"mixing": {"DATASETS.PSEUDO": []}}, "mixing has DATASETS.PSEUDO"),
        ({"predict": ["--raw"]}, "predict has arguments that the rounds set themselves"),
        ({"unlabelled": None}, "unlabelled is missing"),
    ],
)
def test_what_is_wrong_is_said(change: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        RoundsPlan.from_dict({**LEAST, **change}, "plan.yaml")
    assert expected in str(error.value)
    assert str(error.value).startswith("plan.yaml")


def test_all_problems_are_said_together() -> None:
    with pytest.raises(ConfigError, match="3 problems"):
        RoundsPlan.from_dict({"models": 3, "rounds": "x"}, "plan.yaml")


def test_no_such_file() -> None:
    with pytest.raises(ConfigError, match=r"did you mean detseg's own semi_supervised/sartorius.yaml"):
        RoundsPlan.load("semi_supervised/sartoris.yaml")
