"""The words that W&B's agent writes for each macro of a sweep's command, made by W&B's own code."""

import json
from pathlib import Path

import pytest

from detseg.config import load_config
from detseg.errors import ConfigError

# As a server sends them: whole numbers as floats, parameters in parameters as mappings.
VALUES = {
    "SOLVER": {"BASE_LR": 0.003, "MAX_ITER": 400.0, "EMA": {"ENABLED": True}},
    "SOLVER.STEPS": [300.0, 350],
    "MODEL.MASK_ON": False,
    "INPUT.CROP.ENABLED": True,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "MODEL.WEIGHTS": None,
    "DATASETS.TEST": None,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16.5]],
    "DATASETS.TRAIN": ["a.json", "b.json"],
    "SEED": 7.0,
}
MACROS = (
    "args",
    "args_no_hyphens",
    "args_no_equals",
    "args_json",
    "args_append_hydra",
    "args_override_hydra",
    "args_no_boolean_flags",
)


def words_of_agent(macro: str, values: dict) -> list[str]:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    return utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})[macro]


def check(words: list[str]) -> None:
    # Off is not written by ${args_no_boolean_flags}: the configuration's own value has to be off.
    cfg = load_config(None, ["MODEL.MASK_ON", "False", *words])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.EMA.ENABLED) == (0.003, 400, True)
    assert isinstance(cfg.SOLVER.MAX_ITER, int)
    assert cfg.SOLVER.STEPS == [300, 350]
    assert not cfg.MODEL.MASK_ON
    assert cfg.INPUT.CROP.ENABLED
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None
    assert (cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST) == ("", [])
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[8.0], [16.5]]
    assert cfg.DATASETS.TRAIN == ["a.json", "b.json"]
    assert cfg.SEED == 7


@pytest.mark.parametrize("macro", MACROS)
def test_every_macro_of_a_sweep_gives_its_values(macro: str):
    check(words_of_agent(macro, VALUES))


def test_file_of_an_agent(tmp_path: Path):
    path = tmp_path / "wandb" / "sweep-ab12" / "config-x7.json"
    path.parent.mkdir(parents=True)
    path.write_text(words_of_agent("args_json", VALUES)[0])
    check([str(path)])
    path.unlink()
    with pytest.raises(ConfigError, match=r"config-x7\.json.*cannot be read"):
        load_config(None, [str(path)])


def test_macro_without_parameters_changes_nothing():
    assert load_config(None, words_of_agent("args_json", {})) == load_config(None)


@pytest.mark.parametrize("word", ["--MODEL.MASK_ON", "--MODEL.MASK_ON=true", "MODEL.MASK_ON=1"])
def test_a_switch_may_stand_alone(word: str):
    if word.endswith("=1"):
        with pytest.raises(ConfigError, match="MASK_ON"):
            load_config(None, [word])
        return
    assert load_config(None, ["MODEL.MASK_ON=False", word, "--SEED=3"]).MODEL.MASK_ON


def test_lists_of_json():
    cfg = load_config(None, ["MODEL.RESNETS.DEFORM_ON_PER_STAGE=[false, true, false, true]"])
    assert cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE == [False, True, False, True]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("SOLVER={'MAXITER': 3}", "SOLVER.MAX_ITER"),
        (json.dumps({"SOLVR.MAX_ITER": 3}), "SOLVER.MAX_ITER"),
        ("SOLVER.MAX_ITER=400.5", "expected an integer"),
        ("SOLVER.BASE_LR=None", "SOLVER.BASE_LR"),
        ("SOLVER={'STEPS': 3", "is a section"),
        (json.dumps({"MODEL": {"IMPORTS": ["os:system"]}}), "configuration files only"),
        ("{" * 5000, "unknown key"),
    ],
)
def test_wrong_words_name_the_key(word: str, expected: str):
    with pytest.raises(ConfigError, match=expected):
        load_config(None, [word])
