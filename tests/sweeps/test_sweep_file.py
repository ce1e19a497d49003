"""Sweep files of W&B: its own code makes the same words of them, and what cannot be done is refused by name."""

from pathlib import Path

import pytest
import yaml

from detseg.cli.main import run_command
from detseg.config import load_config
from detseg.config.command_line import parse_overrides
from detseg.config.node import nested
from detseg.config.own_files import OWN_CONFIGS
from detseg.errors import ConfigError
from detseg.sweeps.sweep_file import MACROS, macro_words, read_sweep_file

OWN = sorted((OWN_CONFIGS / "sweeps").glob("*.yaml"))
GOOD = {
    "program": "tools/train_net.py",
    "command": ["${env}", "${interpreter}", "${program}", "--config", "c.yaml", "${args_no_hyphens}"],
    "method": "random",
    "metric": {"name": "evaluation/object_ap", "goal": "maximize"},
    "parameters": {"SOLVER.BASE_LR": {"min": 0.1, "max": 0.2}},
}


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


@pytest.mark.parametrize("macro", [macro for macro in MACROS if macro != "args_json_file"])
def test_words_are_those_of_wandbs_agent(macro: str):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {"SOLVER": {"BASE_LR": 0.1, "STEPS": [3, 4]}, "A.B": True, "C": False, "D": None, "E": "a b", "F": 400.0}
    of_agent = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    assert macro_words(macro, values, Path("x.json")) == of_agent[macro]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_own_sweeps_are_read_and_their_words_are_taken(path: Path):
    sweep = read_sweep_file(path)
    values = {each.path: (each.choices or (each.low,))[-1] for each in sweep.parameters}
    words = sweep.command(values, Path("x.json"))
    if sweep.program == "train_net":
        named = words[words.index("--config") + 1]
        keys = [word for word in words if "=" in word and not word.startswith("--")]
        cfg = load_config(named, keys)
        assert all(setting.key in cfg.flatten() for setting in parse_overrides(keys))
    assert {path.stem for path in OWN} == {"training", "folds", "fusion", "thresholds"}


def test_own_sweeps_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert read_sweep_file(Path("configs/sweeps/training.yaml")).path == OWN_CONFIGS / "sweeps" / "training.yaml"
    with pytest.raises(ConfigError, match=r"no such sweep file; did you mean detseg's own sweeps/training\.yaml"):
        read_sweep_file(Path("sweeps/trainin.yaml"))


def test_command_is_the_default_one_where_there_is_none(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in GOOD.items() if name != "command"}))
    assert read_sweep_file(path).words == ("${args}",)


@pytest.mark.parametrize(
    "start", [["detseg", "train_net"], ["python", "-m", "detseg", "train"], ["tools/train_net.py"]]
)
def test_the_program_may_be_named_by_the_command(tmp_path: Path, start: list[str]):
    path = tmp_path / "s.yaml"
    left = {name: value for name, value in GOOD.items() if name != "program"}
    path.write_text(yaml.safe_dump({**left, "command": [*start, "--config", "c.yaml", "${args}"]}))
    sweep = read_sweep_file(path)
    assert (sweep.program, sweep.words) == ("train_net", ("--config", "c.yaml", "${args}"))


def test_points_of_a_grid_are_all_different(tmp_path: Path):
    parameters = {"A": {"values": [[1], [2]]}, "B": {"min": 1, "max": 3}, "C": {"value": 7}}
    sweep = read_sweep_file(write(tmp_path / "s.yaml", method="grid", parameters=parameters))
    points = [sweep.grid_point(number) for number in range(sweep.grid_points())]
    assert len(points) == len({str(point) for point in points}) == 6
    assert points[0] == {"A": "[1]", "B": 1}


@pytest.mark.parametrize(
    ("stop", "first", "eta"),
    [
        ({"min_iter": 3}, 3, 3),
        ({"min_iter": 2, "eta": 2}, 2, 2),
        ({"max_iter": 27, "s": 2, "eta": 3}, 3, 3),
        ({"max_iter": 10, "s": 1}, 3, 3),
    ],
)
def test_early_end(tmp_path: Path, stop: dict, first: int, eta: int):
    sweep = read_sweep_file(write(tmp_path / "s.yaml", early_terminate={"type": "hyperband", **stop}))
    assert (sweep.halving.first, sweep.halving.eta) == (first, eta)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"metric": {"name": "val/mAP", "goal": "maximize"}}, "no run of this command logs val/mAP"),
        ({"metric": {"name": "evaluation/object_app"}}, "no run of this command logs"),
        ({"metric": {"name": "final/cross_fitted/object_ap"}}, "no run of this command logs"),
        ({"metric": {"name": "final/object_ap", "goal": "max"}}, "maximize or minimize"),
        ({"metric": None}, "the metric by which trials are compared"),
        ({"method": "custom"}, "method: 'custom' not supported"),
        ({"controller": {"type": "local"}}, "controller: not supported without a server"),
        ({"program": "train.sh"}, "program: train.sh"),
        ({"program": "tools/fuse.py"}, "tune_thresholds --fusion"),
        ({"command": ["torchrun", "${program}", "${args}"]}, "torchrun before the program"),
        ({"command": ["${program}", "${argz}"]}, r"\$\{argz\}"),
        ({"command": ["${program}", "--config", "c.yaml"]}, "all trials would be the same"),
        ({"command": "python x"}, "a list of arguments"),
        ({"early_terminate": {"type": "envelope"}}, "envelope"),
        ({"early_terminate": {"type": "hyperband"}}, "either min_iter, or max_iter"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "min_iter"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "strict": False}}, "strict"),
        ({"run_cap": 0}, "run_cap"),
        ({"method": "grid"}, r"parameters.SOLVER.BASE_LR: a grid needs a finite number of values"),
        ({"parameters": {}}, "expected parameters by name"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, changes: dict, expected: str):
    with pytest.raises(ConfigError, match=expected) as raised:
        read_sweep_file(write(tmp_path / "s.yaml", **changes))
    assert "s.yaml" in str(raised.value)


def test_all_problems_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "s.yaml", method="custom", run_cap="x", metric={"name": "loss"}, job="j")
    assert run_command("sweep", [str(path)], prog="sweep") == 2
    printed = capsys.readouterr().err
    assert "4 problems" in printed
    assert all(name in printed for name in ("custom", "run_cap", "loss", "job"))


@pytest.mark.parametrize("text", ["", "- a", "a: [", "x: " + "[" * 3000, "program: \x00"])
def test_files_that_are_no_sweep(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert run_command("sweep", [str(path)], prog="sweep") == 2
    assert run_command("sweep", [str(tmp_path / "none.yaml")], prog="sweep") == 2
    assert "s.yaml" in capsys.readouterr().err


def test_nested_parameters_reach_the_configuration():
    values = nested({("SOLVER", "BASE_LR"): 0.5, ("SOLVER", "MAX_ITER"): 400.0, ("SEED",): 3.0})
    for macro in set(MACROS) - {"args_json_file"}:
        cfg = load_config(None, macro_words(macro, values, Path("x.json")))
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.5, 400, 3), macro
