"""`predict --triage`: every image by the model of its kind, with the threshold of its kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from detseg.cli import predict as predict_command
from detseg.cli.main import main, parse_words
from detseg.cli.predict_shared import make_shards
from detseg.coco.predictions_file import read_predictions
from detseg.curation.synthetic import KINDS
from detseg.fusion.postprocess import Postprocess
from detseg.inference.predictor import Predictor
from detseg.tuning.triage import Choice, KindClassifier, Model, Triage, image_features


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright noise in turn, a0.png to b3.png."""
    folder, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    for number in range(4):
        dark = (rng.random((48, 64, 3)) ** 4 * 255).astype(np.uint8)
        for name, image in ((f"{'ab'[number % 2]}{number}", dark if number % 2 == 0 else 255 - dark),):
            assert cv2.imwrite(str(folder / f"{name}.png"), image)
    return folder


def triage_of(images: Path, models: tuple[Model, ...], path: Path) -> Path:
    """One that gives dark images the first model and the threshold 0.1, bright ones the last and 0.2."""
    files = sorted(images.glob("*.png"))
    classifier = KindClassifier.fit(
        np.stack([image_features(file) for file in files]), [file.name[0] for file in files]
    )
    settings = {kind: Postprocess(score_threshold=score) for kind, score in (("a", 0.1), ("b", 0.2))}
    own = {"a": Choice(0, settings["a"]), "b": Choice(len(models) - 1, settings["b"])}
    Triage(classifier, models, own["a"], own).save(path)
    return path


def predict(*words: object) -> int:
    return main(["predict", "--device", "cpu", *map(str, words)])


def test_every_image_goes_to_the_model_of_its_kind(two_runs: list[Path], images: Path, tmp_path: Path) -> None:
    predictors = [Predictor.from_run(run, device="cpu", postprocess=False) for run in two_runs]
    hashes = [predictor.provenance["checkpoint_hash"] for predictor in predictors]
    assert hashes[0] != hashes[1]
    models = tuple(Model(f"{name}.json", checkpoint) for name, checkpoint in zip("xy", hashes, strict=True))
    triage = triage_of(images, models, tmp_path / "t.json")
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "c.png").write_bytes(b"no image")
    words = ["--run", two_runs[0], "--run", two_runs[1], "--triage", triage, "--images", folder]
    assert predict(*words, "--output", tmp_path / "p.json") == 1, "one image cannot be read"
    found = list(read_predictions(tmp_path / "p.json"))
    assert [one.file_name for one in found] == ["a0.png", "a2.png", "b1.png", "b3.png"]
    for one in found:
        kind = "ab".index(one.file_name[0])
        settings = Postprocess(score_threshold=(0.1, 0.2)[kind]).for_classes(KINDS)
        expected = settings.apply(predictors[kind](images / one.file_name))
        assert one.rles == expected.rles
        assert one.scores.tolist() == expected.scores.tolist()
        assert (one.provenance["kind"], one.provenance["checkpoint_hash"]) == ("ab"[kind], hashes[kind])
    assert sum(map(len, found)) > 0
    # In tiles, and by the shares of two processes: the same model of every image.
    words += ["--tile", "40", "--overlap", "8"]
    assert predict(*words, "--output", tmp_path / "one.json") == 1
    shared = parse_words(predict_command, [str(word) for word in [*words, "--output", tmp_path / "two.json"]], None)
    shared.raw, shared.device = True, "cpu"
    for rank in range(2):
        make_shards(shared, rank, 2)
    assert predict(*words, "--output", tmp_path / "two.json") == 1
    pairs = zip(*(read_predictions(tmp_path / f"{name}.json") for name in ("one", "two")), strict=True)
    for one, two in pairs:
        assert one.rles == two.rles
        assert one.provenance["checkpoint_hash"] == hashes["ab".index(one.file_name[0])]
    # With one model, several runs are combined, as without a triage.
    alone = triage_of(images, models[:1], tmp_path / "alone.json")
    words[words.index(triage)] = alone
    assert predict(*words, "--output", tmp_path / "both.json") == 1
    assert all(len(one.provenance["models"]) == 2 for one in read_predictions(tmp_path / "both.json"))


def test_other_models_than_those_of_the_triage_are_refused(
    two_runs: list[Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = [Predictor.from_run(run, device="cpu").provenance["checkpoint_hash"] for run in two_runs]
    models = tuple(Model(f"{name}.json", checkpoint) for name, checkpoint in zip("xy", hashes, strict=True))
    triage = triage_of(images, models, tmp_path / "t.json")

    def refused(said: str, *words: object) -> None:
        common = ["--triage", triage, "--images", images, "--output", tmp_path / "p.json"]
        assert predict(*common, *words) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "p.json").exists()

    first, second = (["--run", run] for run in two_runs)
    refused("chooses from 2 models, and 1 are given", *first)
    refused("model 1 has other weights than those that made x.json", *second, *first)
    refused("--model-weights: ", *first, *second, "--model-weights", 1, 2)
