"""A session of the kernel: how it survives what happens, and what it submits."""

from __future__ import annotations

import csv
import shutil
import time
from pathlib import Path

import pytest
import torch

from detseg.cli.main import main
from detseg.errors import RunError
from detseg.submission.formats import SubmissionImage
from detseg.submission.kernel import run
from detseg.submission.kernel.budget import Budget, Effort
from detseg.submission.kernel.check import check_kernel
from detseg.submission.kernel.facts import find_competition
from detseg.submission.kernel.run import Kernel
from detseg.submission.reading import read_submission

SARTORIUS = find_competition("sartorius")


def session(root: Path, kernel_folder: Path, image_folder: Path, **options) -> Kernel:
    """A session with the pictures as test images, up to where models are loaded."""
    competition = root / "input" / "competitions" / "sartorius-cell-instance-segmentation"
    shutil.copytree(image_folder, competition / "test", dirs_exist_ok=True)
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


def test_the_notebook_gives_what_the_commands_give(kernel_folder, image_folder, tmp_path):
    """In an environment of its own, without network, with a broken picture among the images."""
    shutil.copytree(image_folder, tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes((image_folder / "a.png").read_bytes()[:60])
    (found,) = check_kernel(kernel_folder, tmp_path / "images", layouts=["now"])
    assert found.problems == (), found.log
    assert found.objects > 3
    assert "broken: " in found.log
    assert "the commit run" in found.log
    assert "PIL.Image" in found.log, "the last cell shows pictures"


def test_a_check_of_other_places_or_without_images_is_refused(kernel_folder, tmp_path, capsys):
    check = ["build_kernel", "--check", str(kernel_folder)]
    assert main([*check, "--layout", "later"]) == 2
    assert "--layout later: expected one of now, before" in capsys.readouterr().err
    assert main([*check, "--images", str(tmp_path)]) == 2
    assert "this folder has no images" in capsys.readouterr().err


def test_a_session_survives_broken_images_and_says_so(kernel_folder, image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    shutil.copytree(image_folder, tmp_path / "images")
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


def test_the_csv_is_valid_whenever_the_session_ends(kernel_folder, image_folder, tmp_path, monkeypatch):
    """Whatever ends it after the second image, that and the first are in it."""
    monkeypatch.setattr(run, "_SECONDS", 0)
    monkeypatch.setattr(run, "_WRITING", float("inf"))
    kernel = session(tmp_path, kernel_folder, image_folder)
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


def test_a_device_without_memory_means_smaller_batches_and_then_the_cpu(
    kernel_folder, image_folder, tmp_path, monkeypatch
):
    """The device is the CPU under another name, which refuses what a full GPU refuses."""
    kernel = session(tmp_path, kernel_folder, image_folder, batch_size=4)
    kernel.load_models()
    kernel.predict()
    expected = rows(kernel.output) if kernel.finish() is None else {}

    kernel = session(tmp_path, kernel_folder, image_folder, batch_size=4)
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


def test_a_session_without_time_leaves_out_views_then_models(kernel_folder, image_folder, tmp_path, monkeypatch):
    """Every pass through a network takes 10 s of a clock; 2 models with 2 views are 40 s an image."""
    shutil.copytree(image_folder, tmp_path / "images")
    for number in range(7):
        shutil.copy(image_folder / "a.png", tmp_path / "images" / f"d{number}.png")
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
    assert "1 of 2 models and 1 of up to 2 views" in kernel.said[0]
    assert not kernel.broken


def test_a_session_whose_time_is_over_submits_what_it_has(kernel_folder, image_folder, tmp_path):
    kernel = session(tmp_path, kernel_folder, image_folder, hours=1, started=time.time() - 3600)
    kernel.load_models()
    kernel.predict()
    assert "3 images are submitted without objects" in kernel.said[0]
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
