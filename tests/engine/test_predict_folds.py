"""`predict --folds`: the out-of-fold predictions of a cross-validation, made again by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from folds_cases import set_folds, train_net, working_folder
from PIL import Image
from tiny_segmenter import TinySegmenter

from detseg.cli.main import run_command
from detseg.coco.predictions_file import PredictionsFile, read_predictions
from detseg.engine import train
from detseg.inference import loading


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with 7 images in 3 folds, one in none, and the trained folds in cv."""
    here = tmp_path_factory.mktemp("folds")
    with pytest.MonkeyPatch.context() as patched:
        working_folder(here, patched)
        assert train_net("--fold", "all", "OUTPUT_DIR", "cv", "SOLVER.CHECKPOINT_KEEP", "3") == 0
    return here


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(train, "build_model", lambda cfg: TinySegmenter())
    monkeypatch.setattr(loading, "build_model", lambda cfg: TinySegmenter())
    return tmp_path / "here"


def predict(*words: object) -> int:
    return run_command("predict", ["--device", "cpu", *map(str, words)], prog="predict")


def assert_same(first: PredictionsFile, second: PredictionsFile) -> None:
    assert first.categories == second.categories
    for one, other in zip(first, second, strict=True):
        for name in ("image_id", "file_name", "rles", "metadata"):
            assert getattr(one, name) == getattr(other, name), name
        for name in ("boxes", "scores", "classes"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        for name in ("fold", "in_training", "checkpoint_hash"):
            assert one.provenance[name] == other.provenance[name], name


@pytest.mark.parametrize("folds", [["cv"], ["cv/fold2", "cv/fold0", "cv/fold1"]])
def test_they_are_those_of_the_training(here: Path, capsys: pytest.CaptureFixture[str], folds: list[str]) -> None:
    assert predict("--folds", *folds, "--output", "again.json.gz") == 0
    printed = capsys.readouterr().out
    assert "objects in all     6" in printed
    own, again = read_predictions("cv/oof.json.gz"), read_predictions("again.json.gz")
    assert_same(own, again)
    assert [image.provenance["in_training"] for image in again] == [False] * 6
    assert [image.metadata["fold"] for image in again] == [0, 1, 2, 0, 1, 2]
    assert (again.info["folds"], again.info["out_of_fold"], again.info["postprocess"]) == (3, True, None)
    assert not list(here.glob("*.parts"))
    assert not list(here.glob("*.csv")), "counts of whatever has a score"
    fuse = ["--inputs", "cv/oof.json.gz", "again.json.gz", "--output", "fused.json"]
    assert run_command("fuse", fuse, prog="fuse") == 0
    assert [image.provenance["fold"] for image in read_predictions("fused.json")] == [0, 1, 2, 0, 1, 2]


def test_other_checkpoints_views_and_thresholds(here: Path) -> None:
    assert predict("--folds", "cv", "--checkpoint", "iteration_0000001.pth", "--output", "first.json") == 0
    hashes = [
        {image.provenance["checkpoint_hash"] for image in read_predictions(path)}
        for path in ("first.json", "cv/oof.json.gz")
    ]
    assert [len(one) for one in hashes] == [3, 3]
    assert not hashes[0] & hashes[1]
    assert predict("--folds", "cv", "--tta", "none", "h", "--output", "views.json") == 0
    assert all(image.provenance["tta"]["views"] == ["none", "h"] for image in read_predictions("views.json"))
    Path("none.yaml").write_text("min_area: 100000\n")
    words = ["--postprocess", "none.yaml", "--label-images", "labels"]
    assert predict("--folds", "cv", *words, "--output", "none.json") == 0
    assert [len(image) for image in read_predictions("none.json")] == [0] * 6
    assert len(list(Path("labels").glob("*.tif"))) == 6


def test_an_interrupted_command_goes_on_with_the_next_fold(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted: list[int] = []
    whole = TinySegmenter.predict

    def count(self: TinySegmenter, images: list, *rest, **options):
        predicted.append(len(images))
        if len(predicted) == 4:  # in the second fold
            raise KeyboardInterrupt
        return whole(self, images, *rest, **options)

    monkeypatch.setattr(TinySegmenter, "predict", count)
    assert predict("--folds", "cv", "--output", "p.json") == 130
    assert not Path("p.json").exists()
    assert predict("--folds", "cv", "--output", "p.json") == 0
    assert len(predicted) == 4 + 3, "no image is predicted again"
    assert_same(read_predictions("cv/oof.json.gz"), read_predictions("p.json"))
    before = Path("p.json").read_bytes()
    assert predict("--folds", "cv", "--output", "p.json") == 2, "an output is not replaced unasked"
    assert predict("--folds", "cv", "--output", "p.json", "--overwrite") == 0
    assert Path("p.json").read_bytes() == before


def test_what_is_kept_of_another_command_is_not_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TinySegmenter.predict
    calls: list[int] = []

    def stop(self: TinySegmenter, images: list, *rest, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(self, images, *rest, **options)

    monkeypatch.setattr(TinySegmenter, "predict", stop)
    assert predict("--folds", "cv", "--checkpoint", "iteration_0000001.pth", "--output", "p.json") == 130
    assert predict("--folds", "cv", "--output", "p.json") == 0
    assert len(calls) == 4 + 6
    assert_same(read_predictions("cv/oof.json.gz"), read_predictions("p.json"))


def test_an_image_that_cannot_be_read_is_listed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/1.png").write_bytes(b"no image")
    assert predict("--folds", "cv", "--output", "p.json") == 1
    assert "1.png" in capsys.readouterr().out
    assert [image.file_name for image in read_predictions("p.json")] == [f"{n}.png" for n in (0, 2, 3, 4, 5)]


def test_what_is_no_cross_validation_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(said: str, *words: str) -> None:
        assert predict("--folds", *words, "--output", "p.json") == 2
        assert said in capsys.readouterr().err
        assert not Path("p.json").exists()

    refused("there are runs of the folds 0 (cv/fold0), 2 (cv/fold2)", "cv/fold0", "cv/fold2")
    refused("are both runs of fold 1", "cv/fold0", "cv/fold1", "cv/fold1")
    refused("data holds no folds", "data")
    refused("gone does not exist", "gone")
    refused("cv holds folds; name it alone", "cv", "cv/fold0")
    refused("--run and --images: --folds has its own models and images", "cv", "--images", "data", "--run", "cv/fold0")
    refused("has no checkpoint 'other.pth'", "cv", "--checkpoint", "other.pth")
    refused("is one model for all folds", "cv", "--checkpoint", "cv/fold0/checkpoints/best.pth")

    shutil.copytree("cv/fold1", "plain")
    config = Path("plain/config.yaml")
    config.write_text(config.read_text().replace("  FOLD: 1\n", "  FOLD: -1\n"))
    refused("plain was not trained with folds", "cv/fold0", "plain", "cv/fold2")
    config.write_text(
        config.read_text().replace("  FOLD: -1\n", "  FOLD: 1\n").replace("BASE_LR: 0.001", "BASE_LR: 0.5")
    )
    refused("SOLVER.BASE_LR was 0.001 and is 0.5", "cv/fold0", "plain", "cv/fold2")

    shutil.rmtree("cv/fold2/checkpoints")
    refused("cv/fold2 has no checkpoint 'best'; there is: none at all", "cv")
    shutil.move("cv/fold2", "elsewhere")
    refused("cv has 3 folds, and fold 2 is not trained: train_net --fold all --resume OUTPUT_DIR cv", "cv")


def test_other_splits_are_refused_by_record_and_by_content(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_folds(here / "data" / "disks.json", [1, 0, 2, 0, 1, 2, -1])
    assert predict("--folds", "cv", "--output", "p.json") == 2
    assert "was trained with other images or folds than data/disks.json has now" in capsys.readouterr().err
    Path("cv/folds.json").unlink()
    assert predict("--folds", "cv/fold0", "cv/fold1", "cv/fold2", "--output", "p.json") == 2
    assert "cv/fold0 was trained with 1 of the 2 images of fold 0" in capsys.readouterr().err
    assert not Path("p.json").exists()


def test_pseudo_labels_of_a_fold_come_from_its_own_model_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What predict writes of a real run is enough to tell whose validation images its model has seen, fused or not."""
    (here / "new").mkdir()
    for path in (here / "data").glob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(here / "new" / f"new_{path.name}")
    for fold in (0, 1):
        # Raw: the model of two training iterations has scores of any height.
        words = ["--run", f"cv/fold{fold}", "--raw", "--images", "new/*.png", "--output", f"p{fold}.json.gz"]
        assert predict(*words) == 0
    fuse = ["--inputs", "p0.json.gz", "p1.json.gz", "--output", "both.json.gz"]
    assert run_command("fuse", fuse, prog="fuse") == 0

    def label(file: str, fold: int, *more: str) -> int:
        words = ["label", "--predictions", file, "--images", "new/*.png", "--labelled", "data/disks.json"]
        words += ["--similar", "0", "--fold", str(fold), "--output", "pseudo.json", "--overwrite"]
        words += ["score=0", "ignore_score=0", *more]
        return run_command("pseudo_label", words, prog="pseudo_label")

    assert label("p0.json.gz", 0) == 0
    written = json.loads((here / "pseudo.json").read_text(encoding="utf-8"))
    assert len(written["images"]) == 7
    for file, fold, *more in (
        ("p1.json.gz", 0),
        ("p0.json.gz", 1),
        ("both.json.gz", 0),
        ("p0.json.gz", 0, "--members", "p1.json.gz"),
    ):
        assert label(file, fold, *more) == 2
        assert "their pseudo-labels would make the score too high" in capsys.readouterr().err


def test_unlabelled_copies_of_validation_images_are_left_out(here: Path) -> None:
    shutil.copytree(here / "data", here / "new")
    assert predict("--run", "cv/fold0", "--raw", "--images", "new/*.png", "--output", "p.json.gz") == 0
    words = [
        "label",
        "--predictions",
        "p.json.gz",
        "--images",
        "new/*.png",
        "--labelled",
        "data/disks.json",
        "--fold",
        "0",
    ]
    words += ["--output", "pseudo.json", "score=0", "ignore_score=0"]
    assert run_command("pseudo_label", words, prog="pseudo_label") == 0
    written = json.loads((here / "pseudo.json").read_text(encoding="utf-8"))
    rows = json.loads((here / "data" / "disks.json").read_text(encoding="utf-8"))["images"]
    left_out = {row["file_name"] for row in written["left_out"] if "validation image" in row["kind"]}
    assert {row["file_name"] for row in rows if row.get("fold") == 0} <= left_out
