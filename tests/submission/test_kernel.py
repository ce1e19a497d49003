"""The kernel: what is shipped, and how a session finds its inputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from detseg.cli.main import main
from detseg.errors import ConfigError, DataError
from detseg.files.hashing import sha256_of
from detseg.fusion.options import FusionOptions
from detseg.inference.predictor import Predictor
from detseg.runs.checkpoint import export_checkpoint
from detseg.submission.kernel.bundle import KernelOptions, build_kernel
from detseg.submission.kernel.facts import find_competition, kaggle_facts
from detseg.submission.kernel.inputs import find_images
from detseg.submission.kernel.run import Kernel
from detseg.submission.kernel.wheels import write_own_wheel

SARTORIUS = find_competition("sartorius")


def test_the_data_set_holds_the_best_weights_and_what_the_manifest_says(kernel_folder, two_runs):
    data = kernel_folder / "data"
    manifest = json.loads((data / "manifest.json").read_text())
    assert {name: sha256_of(data / name) for name in manifest["files"]} == manifest["files"]
    assert set(manifest["files"]) == {path.name for path in data.iterdir()} - {"manifest.json", "dataset-metadata.json"}
    assert [member["weights"] for member in manifest["members"]] == ["model1.safetensors", "model2.safetensors"]
    best = torch.load(two_runs[1] / "checkpoints" / "best.pth", weights_only=True)["model"]
    shipped = Predictor.from_checkpoint(data / "model2.safetensors").model.state_dict()
    assert all(torch.equal(shipped[name], value) for name, value in best.items())
    assert "score_threshold" in (data / "postprocess.yaml").read_text()


def test_the_metadata_are_what_kaggle_reads(kernel_folder):
    metadata = json.loads((kernel_folder / "notebook" / "kernel-metadata.json").read_text())
    assert metadata["machine_shape"] == "NvidiaTeslaT4"
    assert metadata["enable_internet"] is False
    assert metadata["is_private"] is True
    assert metadata["competition_sources"] == ["sartorius-cell-instance-segmentation"]
    data = json.loads((kernel_folder / "data" / "dataset-metadata.json").read_text())
    assert metadata["dataset_sources"] == [data["id"]]
    assert metadata["id"] == f"somebody/{metadata['title'].lower().replace(' ', '-')}"
    notebook = json.loads((kernel_folder / "notebook" / metadata["code_file"]).read_text())
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "HOURS = 9" in code[0]
    assert f'MANIFEST = "{sha256_of(kernel_folder / "data" / "manifest.json")}"' in code[0]
    assert sum(len(source.splitlines()) for source in code) < 50, "the notebook is to be read"
    assert "@" not in "".join(code)


def test_a_kaggle_model_in_place_of_a_data_set(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("detseg.submission.kernel.bundle.add_missing_packages", lambda *_: [])  # seconds; tested below
    words = ["build_kernel", "--run", str(two_runs[0]), "--competition", "dsb2018", "--owner", "me", "--as-model"]
    words += ["--title", "Nuclei alone", "--output", str(tmp_path / "kernel")]
    assert main(words) == 0
    metadata = json.loads((tmp_path / "kernel" / "notebook" / "kernel-metadata.json").read_text())
    assert metadata["model_sources"] == ["me/nuclei-alone-weights/pyTorch/default/1"]
    assert metadata["dataset_sources"] == []
    instance = json.loads((tmp_path / "kernel" / "data" / "model-instance-metadata.json").read_text())
    assert (instance["modelSlug"], instance["framework"]) == ("nuclei-alone-weights", "pyTorch")
    before = sha256_of(tmp_path / "kernel" / "data" / "manifest.json")
    assert main(words) == 2
    assert sha256_of(tmp_path / "kernel" / "data" / "manifest.json") == before, "an existing kernel is not replaced"


def test_what_cannot_be_a_kernel_is_refused_and_leaves_nothing(two_runs, tmp_path, capsys):
    run_words = ["build_kernel", "--run", str(two_runs[0]), "--run", str(two_runs[1])]
    output = ["--output", str(tmp_path / "kernel")]
    both = [*run_words, *output, "--owner", "me", "--competition"]
    for words, message in (
        ([*both, "sartorius"], "give --postprocess FILE"),
        ([*both, "melanoma"], "expected sartorius, dsb2018, or a YAML file"),
        ([*run_words, *output, "--competition", "sartorius"], "--owner NAME"),
        ([*both, "sartorius", "--title", "x"], "expected 5 to 50"),
        ([*both, "sartorius", "--model-weights", "1"], "1 weights for 2 runs"),
        ([*both, "sartorius", "--tta", "sideways"], "sideways"),
        (["build_kernel"], "give one of --run"),
        (["build_kernel", "--check", str(tmp_path)], "not a kernel"),
        (["build_kernel", "--push", str(tmp_path)], "give a folder written by build_kernel"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_runs_of_other_classes_do_not_go_together(two_runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(two_runs[1], other)
    state = torch.load(other / "checkpoints" / "best.pth", weights_only=True)
    torch.save({**state, "classes": state["classes"][::-1]}, other / "checkpoints" / "best.pth")
    options = KernelOptions([str(two_runs[0]), str(other)], SARTORIUS, "me", FusionOptions())
    with pytest.raises(ConfigError, match="the same classes in the same order"):
        build_kernel(options, tmp_path / "kernel")


def test_a_checkpoint_as_safetensors_predicts_the_same(two_runs, image_folder, tmp_path):
    checkpoint = two_runs[0] / "checkpoints" / "best.pth"
    about = export_checkpoint(checkpoint, tmp_path / "model.safetensors")
    assert about["classes"]
    own, other = (Predictor.from_checkpoint(path) for path in (checkpoint, tmp_path / "model.safetensors"))
    assert own.classes == other.classes
    first, second = own(image_folder / "a.png"), other(image_folder / "a.png")
    assert len(first)
    assert first.rles == second.rles
    assert np.array_equal(first.scores, second.scores)


def test_the_wheel_of_a_checkout_is_whole(tmp_path):
    """It runs from elsewhere: configurations and tables are in it."""
    wheel = write_own_wheel(tmp_path)
    (tmp_path / "again").mkdir()
    assert sha256_of(write_own_wheel(tmp_path / "again")) == sha256_of(wheel), "the same files give the same bytes"
    with zipfile.ZipFile(wheel) as file:
        assert file.testzip() is None
        assert not [name for name in file.namelist() if "__pycache__" in name or name.startswith("detseg/.")]
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import detseg; assert detseg.__file__.startswith(sys.argv[1]), detseg.__file__\n"
        "from detseg.config import load_config\n"
        "from detseg.coco.catalog import read_catalog\n"
        "from detseg.submission.kernel.facts import kaggle_facts\n"
        "assert load_config('dsb2018/mask_rcnn_small_FPN.yaml').DATASETS.TRAIN == ['dsb2018_train']\n"
        "assert 'dsb2018_train' in read_catalog() and kaggle_facts()['packages']\n"
    )
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    words = [sys.executable, "-c", program, str(tmp_path / "installed")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Facts and competitions.


def test_another_competition_is_a_yaml_file(tmp_path):
    text = """
slug: cells-of-somebody
format: {key: image, runs: rle, by_rows: true, empty: "0 0"}
hours: 12
tests: [{sample: sample.csv, images: pictures}]
"""
    (tmp_path / "mine.yaml").write_text(text)
    competition = find_competition(str(tmp_path / "mine.yaml"))
    assert competition.layout.empty == "0 0"
    assert competition.hours == 12
    assert type(competition).from_plain(competition.to_plain(), "again") == competition
    for old, new, message in (
        ("hours: 12\n", "", "expected slug, format, hours, tests"),
        ("hours: 12", "hours: soon", "hours is 'soon'"),
        ("slug: cells", "slug: Cells of", "slug"),
        ("by_rows: true", "by_rows: 1", "by_rows"),
        ("images: pictures", "pictures: x", "expected sample, images"),
    ):
        (tmp_path / "wrong.yaml").write_text(text.replace(old, new))
        with pytest.raises(DataError, match=message):
            find_competition(str(tmp_path / "wrong.yaml"))


@pytest.mark.parametrize("name", kaggle_facts()["competitions"])
def test_every_known_competition_is_read(name):
    assert find_competition(name).tests


# The inputs.


@pytest.mark.parametrize("place", ["competitions/x", "x", "a/b/c/d"])
def test_images_are_found_by_content_wherever_they_are(place, image_folder, tmp_path):
    inputs = tmp_path / "input"
    folder = inputs / place
    shutil.copytree(image_folder, folder / "test")
    (folder / "sample_submission.csv").write_text("id,predicted\nc,\na,\n")
    (inputs / "aaa").mkdir()
    (inputs / "aaa" / "sample_submission.csv").write_text("row,target\n1,2\n")
    found = find_images(inputs, SARTORIUS, tmp_path)
    assert list(found.images) == ["c", "a", "b"], "the order of the sample, then what only the folder has"
    assert found.files == {name: folder / "test" / f"{name}.png" for name in "abc"}


def test_images_in_a_zip_and_in_folders_of_their_own(image_folder, tmp_path):
    folder = tmp_path / "input" / "data-science-bowl-2018"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "stage2_test_final.zip", "w") as file:
        for path in image_folder.iterdir():
            file.write(path, f"{path.stem}/images/{path.name}")
            file.write(path, f"{path.stem}/masks/{path.stem}0.png")
    for stage in ("stage2_sample_submission_final", "stage1_sample_submission"):
        (folder / f"{stage}.csv").write_text("ImageId,EncodedPixels\na,\nb,\nc,\n")
    found = find_images(tmp_path / "input", find_competition("dsb2018"), tmp_path / "unpacked")
    assert found.sample.name == "stage2_sample_submission_final.csv"
    assert sorted(found.files) == ["a", "b", "c"]


def test_missing_inputs_are_named(kernel_folder, tmp_path):
    (tmp_path / "input" / "other").mkdir(parents=True)
    with pytest.raises(DataError, match=r"(?s)add the competition sartorius.*other"):
        find_images(tmp_path / "input", SARTORIUS, tmp_path)
    broken = tmp_path / "data"
    shutil.copytree(kernel_folder / "data", broken)
    (broken / "model1.safetensors").write_bytes(b"x")
    (broken / "fusion.yaml").unlink()
    with pytest.raises(DataError, match=r"(?s)fusion.yaml: is missing.*model1.safetensors: differs"):
        Kernel(broken, tmp_path, hours=1, started=0)
