"""The command line: one table of commands, each reachable as a script and as `detseg COMMAND`, and clear exits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from detseg.cli import main as command_line
from detseg.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {path.stem: path for folder in ("tools", "datasets") for path in (ROOT / folder).glob("*.py")}


def test_every_command_has_a_script_and_every_script_is_a_command():
    assert set(SCRIPTS) == set(command_line.COMMANDS)


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as leave:
        command_line.main([command, "--help"])
    assert leave.value.code == 0
    assert f"usage: detseg {command}" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_runs_its_own_command_from_any_folder(name, tmp_path):
    # The script imports what it needs to parse only: `--help` loads no PyTorch and works without any data.
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(SCRIPTS[name])!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS[name])!r}, run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules, 'asking for help loads PyTorch'\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "usage: " in answer.stdout


def test_help_lists_all_commands_and_no_arguments_is_no_success(capsys):
    with pytest.raises(SystemExit) as leave:
        command_line.main(["--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in command_line.COMMANDS)
    assert command_line.main([]) == command_line.EXIT_BAD_INPUT


def test_a_mistyped_command_names_the_nearest_one_and_any_other_all(capsys):
    for word, answer in (("trian", "did you mean train?"), ("evalute", "did you mean evaluate?"), ("xyz", "train_net")):
        with pytest.raises(SystemExit) as leave:
            command_line.main([word])
        assert leave.value.code == command_line.EXIT_BAD_INPUT
        assert answer in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["evaluate", "--ground-thruth", "a", "--predictions", "b"], "--ground-thruth: did you mean --ground-truth?"),
        (["export", "--outptu=x"], "--outptu: did you mean --output?"),
        (["train", "--config", "x.yaml", "--resum"], "--resum: did you mean --resume?"),
    ],
)
def test_a_mistyped_option_names_the_nearest_one(words, answer, capsys):
    with pytest.raises(SystemExit) as leave:
        command_line.main(words)
    assert leave.value.code == command_line.EXIT_BAD_INPUT
    assert answer in capsys.readouterr().err


def test_keys_and_values_that_look_like_options_are_none(capsys):
    words = ["--config", "x.yaml", "--SOLVER.MAX_ITR=3", "SOLVER.BASE_LR", "-1", "OUTPUT_DIR", "--resumed"]
    assert command_line.main(["train", *words]) == command_line.EXIT_BAD_INPUT
    assert "x.yaml: no such configuration file" in capsys.readouterr().err


def test_hyphens_and_the_short_name_reach_the_same_command(capsys):
    for name in ("train", "train-net"):
        with pytest.raises(SystemExit):
            command_line.main([name, "--help"])
        assert "--config" in capsys.readouterr().out


def test_bad_input_is_one_message_and_the_traceback_comes_with_debug(monkeypatch, capsys):
    from detseg.cli import evaluate

    def fail(arguments):
        raise DataError("truth.json: expected a COCO file; got a poem")

    monkeypatch.setattr(evaluate, "run", fail)
    words = ["evaluate", "--ground-truth", "truth.json", "--predictions", "p.json"]
    assert command_line.main(words) == command_line.EXIT_BAD_INPUT
    assert capsys.readouterr().err == "error: truth.json: expected a COCO file; got a poem\n"
    assert command_line.main([*words, "--debug"]) == command_line.EXIT_BAD_INPUT
    assert "Traceback" in capsys.readouterr().err


def test_importing_the_package_loads_no_heavy_library():
    code = "import detseg, sys; print([m for m in ('torch', 'cv2', 'albumentations') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_predictor_is_found_at_the_top():
    import detseg
    from detseg.inference.predictor import Predictor

    assert detseg.Predictor is Predictor
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = detseg.Predictr


@pytest.mark.parametrize("name", command_line.RENAMED)
def test_a_former_name_answers_with_the_new_one(name, capsys):
    new = command_line.RENAMED[name]
    for typed in (name, name.replace("_", "-")):
        assert command_line.main([typed, "--source", "x"]) == command_line.EXIT_BAD_INPUT
        assert f"`detseg {typed}` is now `detseg {new}`" in capsys.readouterr().err
    with pytest.raises(SystemExit) as leave:
        command_line.main([*new.split(), "--help"])
    assert leave.value.code == 0
    assert f"usage: detseg {new}" in capsys.readouterr().out


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "a\x1b[31mb.png")
    (tmp_path / "s.csv").write_text("id,predicted\nx,1 3\n")
    words = ["--check", str(tmp_path / "s.csv"), "--images", str(tmp_path / "images"), "--format", "sartorius"]
    assert command_line.main(["make_submission", *words]) == 1
    said = "".join(capsys.readouterr())
    assert "image a\\x1b[31mb has no row" in said
    assert "\x1b" not in said


def test_keys_may_follow_an_option_that_takes_several_values(tmp_path, monkeypatch):
    from detseg.cli import predict

    keys = ["MODEL.SAM.TILE", "512", "TEST.AUG.ENABLED=True"]
    words = ["--images", "a.png", "A.PNG", *keys, "--output", "p.json", "INPUT.MIN_SIZE_TEST", "0"]
    arguments = command_line.parse_words(predict, words, "predict")
    assert arguments.images == ["a.png", "A.PNG"]
    assert arguments.overrides == [*keys, "INPUT.MIN_SIZE_TEST", "0"]
    # a file of such a name stays one
    monkeypatch.chdir(tmp_path)
    (tmp_path / "INPUT.PNG").touch()
    assert command_line.parse_words(predict, ["--images", "a.png", "INPUT.PNG"], "predict").images[1] == "INPUT.PNG"
