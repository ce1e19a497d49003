"""Options from the words that W&B's agent writes, made by W&B's own code."""

from __future__ import annotations

import argparse
from importlib import import_module

import pytest

from detseg.cli.main import parse_words

GIVEN = ["--predictions", "a.json.gz", "--ground-truth", "t.json", "--output", "runs/$WANDB_RUN_ID.yaml"]
VALUES = {
    "only": ["score_threshold", "min_area"],
    "shared": True,
    "min_gain": 0.002,
    "rounds": 3.0,
    "fusion": None,
    "search": "optuna",
    "overwrite": False,
}


def parsed(words: list[str], command: str = "tune_thresholds") -> argparse.Namespace:
    return parse_words(import_module(f"detseg.cli.{command}"), words, None)


@pytest.fixture(autouse=True)
def agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "r7")


@pytest.mark.parametrize(
    "macro", ["args", "args_no_hyphens", "args_no_boolean_flags", "args_no_equals", "args_append_hydra", "args_json"]
)
def test_every_macro_gives_the_options(macro: str):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    given = {"args": {name: {"value": value} for name, value in VALUES.items()}}
    words = utils.create_sweep_command_args(given)[macro]
    found = parsed([*GIVEN, *words])
    assert found.only == ["score_threshold", "min_area"]
    assert (found.shared, found.overwrite, found.fusion) == (True, False, None)
    assert (found.min_gain, found.rounds, found.search) == (0.002, 3, "optuna")
    assert found.output == "runs/r7.yaml"
    assert found.predictions == ["a.json.gz"]


def test_a_parameter_that_is_no_option_is_refused(capsys: pytest.CaptureFixture[str]):
    for words in (["--min_gian=0.1"], ['{"min_gian": 0.1}']):
        with pytest.raises(SystemExit):
            parsed([*GIVEN, *words])
        assert "min-gain" in capsys.readouterr().err


def test_words_of_users_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_SWEEP_ID")
    monkeypatch.setenv("OTHER", "1")
    words = ["--predictions", "metric=1.json", "shared=True", *GIVEN[2:]]
    found = parsed(words)
    assert found.predictions == ["metric=1.json", "shared=True"]
    assert (found.shared, found.output) == (False, "runs/$WANDB_RUN_ID.yaml")


def test_keys_of_a_training_are_left_to_the_configuration():
    words = ["--config", "c.yaml", "--SOLVER.BASE_LR=0.1", '{"SEED": 3}', "--fold=0", "resume=True", "--MODEL.MASK_ON"]
    found = parsed(words, "train_net")
    assert (found.fold, found.resume) == ("0", False)
    assert found.overrides == ["--SOLVER.BASE_LR=0.1", '{"SEED": 3}', "resume=True", "--MODEL.MASK_ON"]
