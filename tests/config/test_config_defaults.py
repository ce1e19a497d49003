"""Keys and defaults against Detectron2's own, and our differences against their list."""

import json
from pathlib import Path

import pytest

from detseg.config import get_default_config, load_config, load_flat_config
from detseg.config.keys import OWN_KEYS
from detseg.config.kinds import Kind, kind_of_default
from detseg.config.schema import DIFFERENCES, default_values, detectron2_defaults, kinds

GOLDEN = Path(__file__).parents[1] / "golden"
ZOO = json.loads((GOLDEN / "d2_zoo.json").read_text(encoding="utf-8"))


def test_detectron2_keys_and_defaults_are_verbatim():
    expected = json.loads((GOLDEN / "d2_defaults.json").read_text(encoding="utf-8"))
    assert dict(detectron2_defaults()) == expected


def test_only_listed_defaults_differ_from_detectron2():
    ours = default_values()
    differing = {key for key, value in detectron2_defaults().items() if ours[key] != value}
    assert differing == {difference.name for difference in DIFFERENCES}
    assert all(difference.reason for difference in DIFFERENCES)


def test_differences_that_the_design_asks_for():
    cfg = get_default_config()
    assert cfg.MODEL.DEVICE == "auto"
    assert cfg.INPUT.MASK_FORMAT == "bitmask"
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS is False
    assert cfg.OUTPUT_DIR == "runs/<config>"


def test_own_keys_are_new_and_explained():
    assert not set(OWN_KEYS) & set(detectron2_defaults())
    assert all(len(key.explanation) > 20 for key in OWN_KEYS.values())


def test_every_default_is_of_its_own_kind():
    cfg = get_default_config()
    for key, value in default_values().items():
        cfg.set(key, value)
        assert cfg[key] == value, f"{key}: its default {value!r} does not fit {kinds()[key]}"


def test_defaults_are_not_shared():
    first = get_default_config()
    first.set("MODEL.PIXEL_MEAN", [1.0])
    first.MODEL.ANCHOR_GENERATOR.SIZES[0].append(7)
    assert get_default_config() == load_config()
    assert get_default_config().MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo_configs_resolve_to_their_values(name: str):
    differs = ZOO[name]["differs_from_defaults"]
    flat = load_flat_config(differs).flatten()
    expected = default_values() | differs
    assert flat == expected


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*_rcnn_*.json")), ids=lambda path: path.stem)
def test_resolved_keys_of_golden_models_load(path: Path):
    resolved = json.loads(path.read_text(encoding="utf-8"))
    cfg = load_flat_config(resolved)
    assert {key: cfg[key] for key in resolved} == resolved


def test_kind_of_an_empty_default_must_be_declared():
    with pytest.raises(ValueError, match="must be declared"):
        kind_of_default([])
    assert kind_of_default([[0.5]]) == Kind("float", (2,))
