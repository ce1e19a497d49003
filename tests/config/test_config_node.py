"""Config: reading, writing, freezing, copying."""

import copy
import pickle

import pytest

from detseg.config import Config, get_default_config, load_config
from detseg.errors import ConfigError


def test_reading_by_attribute_item_and_dotted_key():
    cfg = get_default_config()
    assert cfg.MODEL.RPN.NMS_THRESH == cfg["MODEL"]["RPN"]["NMS_THRESH"] == cfg["MODEL.RPN.NMS_THRESH"] == 0.7
    assert isinstance(cfg.MODEL, Config)
    assert "RPN" in cfg.MODEL
    assert "MODEL.RPN.NMS_THRESH" in cfg
    assert "RPM" not in cfg.MODEL
    assert set(cfg.SOLVER.AMP) == {"ENABLED", "DTYPE"}


def test_unknown_names_tell_the_nearest():
    cfg = get_default_config()
    with pytest.raises(AttributeError, match=r"MODEL\.RPN\.NMS_THRESH"):
        cfg.MODEL.RPN.NMS_TRESH  # noqa: B018
    with pytest.raises(ConfigError, match=r"MODEL\.MASK_ON"):
        cfg["MODEL.MASK_IN"]
    with pytest.raises(ConfigError, match="unknown key"):
        cfg.MODEL.MASKS = True


def test_reading_never_changes_anything():
    cfg = load_config()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][0] = 0
    cfg.MODEL.PIXEL_MEAN.append(1.0)
    cfg.flatten()["MODEL.PIXEL_MEAN"].append(1.0)
    cfg.to_dict()["MODEL"]["PIXEL_MEAN"].append(1.0)
    assert cfg == get_default_config()


def test_writing_is_typed_and_keeps_its_own_copy():
    cfg = get_default_config()
    mean = [1, 2.0]
    cfg.MODEL.PIXEL_MEAN = mean
    mean.append(3)
    assert cfg.MODEL.PIXEL_MEAN == [1.0, 2.0]
    cfg["MODEL"]["DEVICE"] = "cpu"
    cfg.MODEL.set("RPN.NMS_THRESH", 1)
    assert cfg.MODEL.DEVICE == "cpu"
    assert isinstance(cfg.MODEL.RPN.NMS_THRESH, float)
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER: got '10'"):
        cfg.SOLVER.MAX_ITER = "10"
    with pytest.raises(ConfigError, match="is a section"):
        cfg.MODEL = {}


def test_frozen_refuses_and_a_clone_is_free():
    cfg = load_config()
    with pytest.raises(ConfigError, match="frozen"):
        cfg.MODEL.RPN.NMS_THRESH = 0.5
    changed = cfg.clone()
    changed.MODEL.RPN.NMS_THRESH = 0.5
    assert cfg.MODEL.RPN.NMS_THRESH == 0.7
    assert changed != cfg
    section = cfg.MODEL.clone()
    section.RPN.NMS_THRESH = 0.6
    assert cfg.MODEL.RPN.NMS_THRESH == 0.7


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copies_are_equal_and_stay_frozen(copied):
    cfg = load_config(None, ["SEED=3"])
    again = copied(cfg)
    assert again == cfg
    assert again.is_frozen
    assert copied(cfg.MODEL) == cfg.MODEL
    assert again.origin("SEED") == "command line"


def test_sections_flatten_relative_to_themselves():
    amp = get_default_config().SOLVER.AMP
    assert amp.flatten() == amp.to_dict() == {"ENABLED": False, "DTYPE": "auto"}
