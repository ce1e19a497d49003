"""What a wheel has in it, and what its installation `detseg[inference]` can do without the packages of training."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.submission.kernel import guard

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools, which builds the wheel, is not installed")
def test_pip_wheel_gives_one_pure_wheel_with_configurations_and_tables(tmp_path):
    words = ["-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir"]
    build = subprocess.run([sys.executable, *words, str(tmp_path)], capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    for folder in ("configs", "datasets"):
        files = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.yaml")}
        generated = {name for name in files if name.startswith(("generated/", "prepared/", "downloads/"))}
        assert {f"detseg/{folder}/{name}" for name in files - generated} <= packed
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "detseg").rglob("*.py")}
    assert {name for name in packed if name.endswith(".py")} == modules, "no more, left from an earlier build, no less"
    assert {"detseg/submission/kernel/facts.yaml", "detseg/submission/kernel/notebook.template"} <= packed


def inference_imports() -> list[str]:
    """The names under which the packages of the extra `inference` are imported."""
    (listed,) = (
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "INFERENCE"
    )
    wanted = {element.value.partition(">")[0] for element in listed.elts}
    names = metadata.packages_distributions()
    return [
        name for name, owners in names.items() if {owner.lower() for owner in owners} & {one.lower() for one in wanted}
    ]


def test_inference_runs_with_the_packages_of_its_extra_alone(two_runs, tmp_path):
    """predict, fuse, tune_thresholds and make_submission; matplotlib, albumentations and others are not found."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "a.png")
    text = Path(guard.__file__).read_text(encoding="utf-8")
    program = f"""{text}
install({inference_imports()!r}, ["detseg"])
import json, os
from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions
for number, run in enumerate({[str(run) for run in two_runs]!r}):
    assert main(["predict", "--run", run, "--images", "a.png", "--raw", "--output", f"p{{number}}.json"]) == 0
fuse = ["fuse", "--inputs", "p0.json", "p1.json", "--config", "fusion/wbf.yaml", "--output", "fused.json"]
assert main(fuse) == 0
file = json.load(open("fused.json"))
truth = [{{**one, "iscrowd": 0}} for one in file["annotations"][:5]]
json.dump({{**file, "annotations": truth}}, open("truth.json", "w"))
tune = ["tune_thresholds", "--predictions", "fused.json", "--ground-truth", "truth.json", "--output", "tuned.yaml"]
assert main(tune) == 0
submit = ["make_submission", "--predictions", "fused.json", "--format", "dsb2018", "--postprocess", "tuned.yaml"]
assert main([*submit, "--output", "submission.csv"]) == 0
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no plot of the settings" in done.stderr
    assert json.loads((tmp_path / "tuned.json").read_text())
    assert (tmp_path / "submission.csv").read_text().startswith("ImageId,EncodedPixels\na,")
