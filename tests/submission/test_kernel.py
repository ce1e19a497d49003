"""The kernel: what is shipped, how a session finds its inputs and survives what happens, and what it submits."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.cli.main import main
from detseg.errors import ConfigError, DataError, RunError
from detseg.files.hashing import sha256_of
from detseg.fusion.options import FusionOptions
from detseg.inference.predictor import Predictor
from detseg.runs.checkpoint import export_checkpoint
from detseg.submission.formats import SubmissionImage
from detseg.submission.kernel import guard, run
from detseg.submission.kernel.budget import Budget, Effort
from detseg.submission.kernel.bundle import KernelOptions, build_kernel
from detseg.submission.kernel.check import check_kernel
from detseg.submission.kernel.facts import find_competition, kaggle_facts
from detseg.submission.kernel.inputs import find_images
from detseg.submission.kernel.run import Kernel
from detseg.submission.kernel.wheels import write_own_wheel
from detseg.submission.reading import read_submission

SARTORIUS = find_competition("sartorius")


def session(root: Path, kernel_folder: Path, pictures: Path, **options) -> Kernel:
    """A session with the pictures as test images, up to where models are loaded."""
    competition = root / "input" / "competitions" / "sartorius-cell-instance-segmentation"
    shutil.copytree(pictures, competition / "test", dirs_exist_ok=True)
    names = sorted(path.stem for path in (competition / "test").iterdir())
    (competition / "sample_submission.csv").write_text("id,predicted\n" + "".join(f"{name},\n" for name in names))
    kernel = Kernel(kernel_folder / "data", root, **{"hours": 1, "started": time.time(), **options})
    kernel.find_images()
    return kernel


def rows(path: Path) -> dict[str, list[str]]:
    """The run-lengths of every image of a CSV."""
    found: dict[str, list[str]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["id"], []).append(row["predicted"])
    return found


def is_valid(path: Path, names: str) -> bool:
    images = {name: SubmissionImage(name, 64, 64 if name == "a" else 96) for name in names}
    return not read_submission(path, images, SARTORIUS.layout).problems


# What is shipped.


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
        ([*both, "sartorius", "--title", "x"], "titles of 5 to 50"),
        ([*both, "sartorius", "--model-weights", "1"], "1 weights for 2 runs"),
        ([*both, "sartorius", "--tta", "sideways"], "sideways"),
        (["build_kernel"], "give one of --run"),
        (["build_kernel", "--check", str(tmp_path)], "is no kernel"),
        (["build_kernel", "--push", str(tmp_path)], "name a folder that build_kernel wrote"),
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


def test_a_checkpoint_as_safetensors_predicts_the_same(two_runs, pictures, tmp_path):
    checkpoint = two_runs[0] / "checkpoints" / "best.pth"
    about = export_checkpoint(checkpoint, tmp_path / "model.safetensors")
    assert about["classes"]
    own, other = (Predictor.from_checkpoint(path) for path in (checkpoint, tmp_path / "model.safetensors"))
    assert own.classes == other.classes
    first, second = own(pictures / "a.png"), other(pictures / "a.png")
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
def test_images_are_found_by_content_wherever_they_are(place, pictures, tmp_path):
    inputs = tmp_path / "input"
    folder = inputs / place
    shutil.copytree(pictures, folder / "test")
    (folder / "sample_submission.csv").write_text("id,predicted\nc,\na,\n")
    (inputs / "aaa").mkdir()
    (inputs / "aaa" / "sample_submission.csv").write_text("row,target\n1,2\n")
    found = find_images(inputs, SARTORIUS, tmp_path)
    assert list(found.images) == ["c", "a", "b"], "the order of the sample, then what only the folder has"
    assert found.files == {name: folder / "test" / f"{name}.png" for name in "abc"}


def test_images_in_a_zip_and_in_folders_of_their_own(pictures, tmp_path):
    folder = tmp_path / "input" / "data-science-bowl-2018"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "stage2_test_final.zip", "w") as file:
        for path in pictures.iterdir():
            file.write(path, f"{path.stem}/images/{path.name}")
            file.write(path, f"{path.stem}/masks/{path.stem}0.png")
    for stage in ("stage2_sample_submission_final", "stage1_sample_submission"):
        (folder / f"{stage}.csv").write_text("ImageId,EncodedPixels\na,\nb,\nc,\n")
    found = find_images(tmp_path / "input", find_competition("dsb2018"), tmp_path / "unpacked")
    assert found.sample.name == "stage2_sample_submission_final.csv"
    assert sorted(found.files) == ["a", "b", "c"]


def test_missing_inputs_are_named(kernel_folder, tmp_path):
    (tmp_path / "input" / "other").mkdir(parents=True)
    with pytest.raises(DataError, match=r"(?s)attach the competition sartorius.*other"):
        find_images(tmp_path / "input", SARTORIUS, tmp_path)
    broken = tmp_path / "data"
    shutil.copytree(kernel_folder / "data", broken)
    (broken / "model1.safetensors").write_bytes(b"x")
    (broken / "fusion.yaml").unlink()
    with pytest.raises(DataError, match=r"(?s)fusion.yaml: is missing.*model1.safetensors: is not the file"):
        Kernel(broken, tmp_path, hours=1, started=0)


# A session.


def test_the_notebook_gives_what_the_commands_give(kernel_folder, pictures, tmp_path):
    """In an environment of its own, without network, with a broken picture among the images."""
    shutil.copytree(pictures, tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    (found,) = check_kernel(kernel_folder, tmp_path / "images", layouts=["now"])
    assert found.problems == (), found.log
    assert found.objects > 3
    assert "broken: " in found.log
    assert "the commit run" in found.log
    assert "PIL.Image" in found.log, "the last cell shows pictures"


def test_a_check_of_other_places_or_without_images_is_refused(kernel_folder, tmp_path, capsys):
    check = ["build_kernel", "--check", str(kernel_folder)]
    assert main([*check, "--layout", "later"]) == 2
    assert "--layout later: this kernel's inputs can be as now, before" in capsys.readouterr().err
    assert main([*check, "--images", str(tmp_path)]) == 2
    assert "there are no images in this folder" in capsys.readouterr().err


def test_a_session_survives_broken_images_and_says_so(kernel_folder, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    shutil.copytree(pictures, tmp_path / "images")
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    kernel = session(tmp_path, kernel_folder, tmp_path / "images")
    output = tmp_path / "working" / "submission.csv"
    assert rows(output) == {name: [""] for name in "abc"}, "there is a CSV before a model is loaded"
    kernel.load_models()
    kernel.predict()
    kernel.finish()
    said = capsys.readouterr().out
    assert "the rerun" in said
    assert "1 images are submitted without having been predicted" in said
    assert is_valid(output, "abc")
    found = rows(output)
    assert found["b"] == [""]
    assert len(found["a"]) > 1
    counts = [int(line.split()[1]) for line in said.splitlines() if line.startswith("  ") and len(line.split()) == 2]
    assert sum(counts) == sum(len(runs) for name, runs in found.items() if name != "b"), "counts by class"
    assert kernel.pictures(3) is None


@pytest.mark.parametrize("sample", ["id,predicted\n", "id,predicted\nx,\n"])
def test_an_empty_test_folder_is_a_valid_submission(sample, kernel_folder, tmp_path):
    folder = tmp_path / "input" / "x"
    (folder / "test").mkdir(parents=True)
    (folder / "sample_submission.csv").write_text(sample)
    kernel = Kernel(kernel_folder / "data", tmp_path, hours=1, started=time.time())
    for step in (kernel.find_images, kernel.load_models, kernel.predict, kernel.finish):
        step()
    assert kernel.pictures() is None
    assert (tmp_path / "working" / "submission.csv").read_text() == sample


def test_only_broken_images_fail_the_commit_run(kernel_folder, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    kernel = session(tmp_path, kernel_folder, tmp_path / "images")
    kernel.load_models()
    kernel.predict()
    with pytest.raises(RunError, match="no image could be predicted"):
        kernel.finish()


def test_the_csv_is_valid_whenever_the_session_ends(kernel_folder, pictures, tmp_path, monkeypatch):
    """Whatever ends it after the second image, that and the first are in it."""
    monkeypatch.setattr(run, "_SECONDS", 0)
    monkeypatch.setattr(run, "_WRITING", float("inf"))
    kernel = session(tmp_path, kernel_folder, pictures)
    kernel.load_models()
    predict, seen = kernel._predict_once, []

    def interrupted(records, members):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(records)
        return predict(records, members)

    monkeypatch.setattr(kernel, "_predict_once", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernel.predict()
    output = tmp_path / "working" / "submission.csv"
    assert is_valid(output, "abc")
    found = rows(output)
    assert found["c"] == [""]
    assert "" not in found["a"] + found["b"]


def test_a_device_without_memory_means_smaller_batches_and_then_the_cpu(kernel_folder, pictures, tmp_path, monkeypatch):
    """The device is the CPU under another name, which refuses what a full GPU refuses."""
    kernel = session(tmp_path, kernel_folder, pictures, batch_size=4)
    kernel.load_models()
    kernel.predict()
    expected = rows(kernel.output) if kernel.finish() is None else {}

    kernel = session(tmp_path, kernel_folder, pictures, batch_size=4)
    kernel.load_models()
    kernel.device = torch.device("meta")  # is not "cpu"; the models stay where they are
    moved: list[str] = []

    def move(members, device):
        kernel.device = device
        moved.append(device.type)

    original = kernel._predict_once

    def full(records, members):
        if kernel.device.type != "cpu" and (
            kernel.batch_size > 1 or any(record.file_name == "b.png" for record in records)
        ):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(records, members)

    monkeypatch.setattr(kernel, "_move", move)
    monkeypatch.setattr(kernel, "_predict_once", full)
    kernel.predict()
    kernel.finish()
    assert kernel.batch_size == 1
    assert moved == ["cpu", "meta"], "one image on the CPU, the others on the device again"
    assert [text for text in kernel.said if "b.png" in text]
    assert rows(kernel.output) == expected
    assert not kernel.broken


def test_a_session_without_time_leaves_out_views_then_models(kernel_folder, pictures, tmp_path, monkeypatch):
    """Every pass through a network takes 10 s of a clock; 2 models with 2 views are 40 s an image."""
    shutil.copytree(pictures, tmp_path / "images")
    for number in range(7):
        shutil.copy(pictures / "a.png", tmp_path / "images" / f"d{number}.png")
    now = [0.0]
    monkeypatch.setattr(run.time, "time", lambda: now[0])
    monkeypatch.setattr(run.time, "perf_counter", lambda: now[0])
    kernel = session(tmp_path, kernel_folder, tmp_path / "images", hours=200 / 0.97 / 3600, started=0.0)
    kernel.load_models()
    original, efforts = kernel._predict_once, []

    def slow(records, members):
        views = [len(member.views) for member in members]
        efforts.append(tuple(views))
        now[0] += 10.0 * sum(views)
        return original(records, members)

    monkeypatch.setattr(kernel, "_predict_once", slow)
    kernel.predict()
    kernel.finish()
    # 10 images in 200 s: the first shows 40 s an image; 160 s for 9 of them are enough for one view of one model
    assert efforts == [(2, 2)] + [(1,)] * 9
    assert len(kernel.said) == 1
    assert "1 of 2 models with 1 of up to 2 views" in kernel.said[0]
    assert not kernel.broken


def test_a_session_whose_time_is_over_submits_what_it_has(kernel_folder, pictures, tmp_path):
    kernel = session(tmp_path, kernel_folder, pictures, hours=1, started=time.time() - 3600)
    kernel.load_models()
    kernel.predict()
    assert "3 images are without objects" in kernel.said[0]
    assert is_valid(kernel.output, "abc")


def test_the_budget_drops_views_before_models():
    now = [0.0]
    budget = Budget(1, 0.0, [4, 2], clock=lambda: now[0])  # 3492 s after the reserve
    assert budget.passes(Effort(2, 4)) == 6
    budget.took(1, 100.0)  # slow, as first images are, and not 5 % of all time
    assert budget.plan(1000) is None
    budget.took(10, 60.0)  # 1 s a pass
    now[0] = 492.0
    assert budget.plan(500) is None, "500 images of 6 s fit into 3000 s"
    assert budget.plan(501)
    assert budget.effort == Effort(2, 3)
    budget.plan(700)  # 4 passes an image: two views of both models
    assert budget.effort == Effort(2, 2)
    budget.plan(1400)
    assert budget.effort == Effort(2, 1)
    budget.plan(2000)
    assert budget.effort == Effort(1, 1)
    assert budget.plan(10**6) is None, "less there is not"


# The guard, and the commands that send a kernel.


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
        assert "there is no network here" in guarded(program + call, []).stderr


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
    assert "Kaggle asks for a token" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(push) == 2
    assert "there is no command kaggle" in capsys.readouterr().err
    assert len(calls(stand_in)) == 1


def test_an_image_without_objects_has_the_row_that_the_competition_wants(tmp_path):
    from detseg.submission.writing import SubmissionTable

    layout = dataclasses.replace(SARTORIUS.layout, empty="0 0")
    images = {"a": SubmissionImage("a", 4, 4)}
    SubmissionTable(images, layout).write(tmp_path / "s.csv")
    assert (tmp_path / "s.csv").read_text() == "id,predicted\na,0 0\n"
    assert read_submission(tmp_path / "s.csv", images, layout).masks == {"a": []}
