"""The guard that lets in only what Kaggle has, and the commands that send a kernel."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from detseg.cli.main import main
from detseg.errors import DataError, RunError
from detseg.fusion.options import FusionOptions
from detseg.submission.formats import SubmissionImage
from detseg.submission.kernel import guard
from detseg.submission.kernel.bundle import KernelOptions, build_kernel
from detseg.submission.kernel.facts import find_competition, kaggle_facts
from detseg.submission.reading import read_submission

SARTORIUS = find_competition("sartorius")


def guarded(program: str, imports: list[str]) -> subprocess.CompletedProcess[str]:
    text = Path(guard.__file__).read_text(encoding="utf-8")
    words = [sys.executable, "-c", f"{text}\ninstall({imports!r})\n{program}"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_guard_lets_in_listed_packages_and_what_they_require():
    assert guarded("import skimage.measure, scipy, networkx, unittest.mock", ["skimage"]).returncode == 0
    done = guarded("import importlib.util as u; print(u.find_spec('yaml')); import yaml", ["skimage"])
    assert done.stdout == "None\n"
    assert "No module named 'yaml'" in done.stderr


def test_the_guard_lets_nothing_into_a_network():
    program = "import socket, urllib.request\n"
    for call in ("socket.create_connection(('127.0.0.1', 9))", "urllib.request.urlopen('http://localhost:9/')"):
        assert "no network, as on Kaggle" in guarded(program + call, []).stderr


def test_a_package_that_kaggle_lacks_and_nobody_can_install_is_named(two_runs, tmp_path, monkeypatch):
    """safetensors, which is compiled, stands for one, left out with what brings it."""
    facts = dict(kaggle_facts())
    left_out = ("safetensors", "timm", "albumentations")
    facts["packages"] = {name: value for name, value in facts["packages"].items() if name not in left_out}
    monkeypatch.setattr("detseg.submission.kernel.wheels.kaggle_facts", lambda: facts)
    options = KernelOptions([str(two_runs[0])], SARTORIUS, "me", FusionOptions())
    with pytest.raises((DataError, RunError), match="safetensors"):
        build_kernel(options, tmp_path / "kernel")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """A program `kaggle` that writes down its arguments; the second question for a data set's state is answered ready.

    It fails where the file `fail` is beside it.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kaggle"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "with open(here / 'calls', 'a') as file: file.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "calls = (here / 'calls').read_text().count('status')\n"
        "if 'status' in sys.argv: print('ready' if calls > 1 else 'pending')\n"
        "sys.exit(3 if (here / 'fail').exists() else 0)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "secret")
    monkeypatch.setattr("detseg.submission.kernel.push._PAUSE", 0.01)
    return folder


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_push_prints_and_with_yes_runs_the_commands(kernel_folder, stand_in, capsys):
    push = ["build_kernel", "--push", str(kernel_folder)]
    assert main(push) == 0
    said = capsys.readouterr().out
    assert f"kaggle datasets create -p {kernel_folder / 'data'}\n" in said
    assert "kaggle competitions submit sartorius-cell-instance-segmentation -k somebody/" in said
    assert not (stand_in / "calls").exists(), "without --yes nothing is run"
    assert main([*push, "--yes"]) == 0
    status = ["datasets", "status", "somebody/detseg-sartorius-cell-instance-segmentatio-weights"]
    pushed = ["kernels", "push", "-p", str(kernel_folder / "notebook")]
    assert calls(stand_in) == [["datasets", "create", "-p", str(kernel_folder / "data")], status, status, pushed]
    assert main([*push, "--yes", "--message", "better"]) == 0
    assert calls(stand_in)[4] == ["datasets", "version", "-p", str(kernel_folder / "data"), "-m", "better"]
    assert main([*push, "--yes", "--submit", "3"]) == 0
    submitted = calls(stand_in)[-1]
    assert submitted[:3] == ["competitions", "submit", "sartorius-cell-instance-segmentation"]
    assert submitted[3:] == ["-k", submitted[4], "-v", "3", "-f", "submission.csv", "-m", "detseg"]
    assert "secret" not in capsys.readouterr().out


def test_push_stops_at_the_first_failure_and_without_a_token(kernel_folder, stand_in, capsys, monkeypatch):
    push = ["build_kernel", "--push", str(kernel_folder), "--yes"]
    (stand_in / "fail").touch()
    assert main(push) == 2
    assert len(calls(stand_in)) == 1
    assert "ended with status 3" in capsys.readouterr().err
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(stand_in))
    assert main(push) == 2
    assert "Kaggle needs a token" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(push) == 2
    assert "the command kaggle is not installed" in capsys.readouterr().err
    assert len(calls(stand_in)) == 1


def test_push_of_metadata_that_somebody_changed_is_refused(tmp_path, capsys):
    (tmp_path / "notebook").mkdir()
    for text in ("[]", "{}", '{"id": "me/x", "competition_sources": ["sartorius"]}'):
        (tmp_path / "notebook" / "kernel-metadata.json").write_text(text)
        assert main(["build_kernel", "--push", str(tmp_path), "--message", "better"]) == 2
        assert "kernel-metadata.json: cannot be read" in capsys.readouterr().err


def test_an_image_without_objects_has_the_row_that_the_competition_wants(tmp_path):
    from detseg.submission.writing import SubmissionTable

    layout = dataclasses.replace(SARTORIUS.layout, empty="0 0")
    images = {"a": SubmissionImage("a", 4, 4)}
    SubmissionTable(images, layout).write(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\na,0 0\n"
    assert read_submission(tmp_path / "s.csv", images, layout).masks == {"a": []}
