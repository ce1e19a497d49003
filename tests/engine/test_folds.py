"""Training the folds of a data set: each run leaves its fold out, and together they predict every image once."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from folds_cases import images_of, set_folds, train_net, working_folder
from tiny_segmenter import TinySegmenter, write_disks

from detseg.cli.main import run_command
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions
from detseg.config import load_config
from detseg.data.sampling import SamplingOptions
from detseg.engine.data_sets import load_folds, load_test_sets, load_training_set
from detseg.engine.out_of_fold import cross_fitted_object_ap
from detseg.errors import ConfigError, DataError
from detseg.evaluation.ground_truth import GroundTruth
from detseg.runs.checkpoint import load_checkpoint
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions
from detseg.tuning.thresholds import evaluate_tuned


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    return working_folder(tmp_path, monkeypatch)


def test_a_fold_is_validated_and_the_others_are_trained_with(here: Path) -> None:
    cfg = load_config("disks.yaml", ["DATASETS.FOLD", "1"])
    assert images_of(load_training_set(cfg)) == {"0.png", "2.png", "3.png", "5.png"}
    sets = load_test_sets(cfg)
    assert list(sets) == ["fold1"]
    assert images_of(sets["fold1"]) == {"1.png", "4.png"}
    plain = load_config("disks.yaml", [])
    assert len(load_training_set(plain)) == 7
    with pytest.raises(ConfigError, match="folds 0 to 2"):
        load_test_sets(load_config("disks.yaml", ["DATASETS.FOLD", "3"]))


def test_folds_of_an_index_and_sets_without_folds(here: Path) -> None:
    other = write_disks(here / "other", count=2)
    (here / "folds.yaml").write_text("0: [0.png, 1.png]\n1: [2.png, 3.png, 4.png, 5.png, 6.png]\n")
    words = ["DATASETS.FOLDS", "folds.yaml", "DATASETS.FOLD", "0"]
    assert images_of(load_test_sets(load_config("disks.yaml", words))["fold0"]) == {"0.png", "1.png"}
    both = json.dumps(["data/disks.json", other.as_posix()])
    with pytest.raises(DataError, match=r"other/disks.json has no folds .*belongs in DATASETS.EXTRA_TRAIN"):
        load_training_set(load_config("disks.yaml", ["DATASETS.TRAIN", both, "DATASETS.FOLD", "0"]))


def test_further_sets_are_trained_with_in_every_fold_and_never_validated_on(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = write_disks(here / "other", count=9)
    content = json.loads(other.read_text())
    for kind, kept in (("images", [7, 8]), ("annotations", [7, 8])):
        content[kind] = [content[kind][index] for index in kept]
    other.write_text(json.dumps(content))
    words = ["DATASETS.EXTRA_TRAIN", "['other/disks.json']"]
    for fold in range(3):
        cfg = load_config("disks.yaml", [*words, "DATASETS.FOLD", str(fold)])
        assert images_of(load_training_set(cfg)) >= {"7.png", "8.png"}
        assert images_of(load_test_sets(cfg)[f"fold{fold}"]) == {f"{fold}.png", f"{fold + 3}.png"}
    assert len(load_training_set(load_config("disks.yaml", words))) == 7 + 2, "without --fold, too"
    sampling = SamplingOptions.from_config(load_config("disks.yaml", [*words, "DATASETS.TRAIN_WEIGHTS", "[1, 3]"]))
    assert sampling.num_sets + sampling.num_extra_sets == 2

    # An image of a fold is refused by its content, whatever its name; one of equal name and size is warned of
    content["images"][0]["file_name"] = "0.png"
    other.write_text(json.dumps(content))
    shutil.copyfile(here / "other" / "7.png", here / "other" / "0.png")
    assert train_net(*words, "DATASETS.FOLD", "0", "OUTPUT_DIR", "extra") == 0
    assert caplog.text.count("1 images have the name and size of a validation image") == 1
    shutil.copyfile(here / "data" / "4.png", here / "other" / "8.png")
    with pytest.raises(DataError, match=r"8.png \(other/disks.json\) is 4.png \(.*data/disks.json\)"):
        load_training_set(load_config("disks.yaml", [*words, "DATASETS.FOLD", "0"]))
    assert train_net("DATASETS.TRAIN", "['other/disks.json']", *words, "DATASETS.TEST", "['data/disks.json']") == 2
    assert not list(here.glob("runs/*/0*"))


def test_ids_of_two_folded_sets_do_not_meet(here: Path) -> None:
    set_folds(write_disks(here / "other", count=4), [0, 1, 2, 2])
    both = json.dumps(["data/disks.json", "other/disks.json"])
    sets = load_folds(load_config("disks.yaml", ["DATASETS.TRAIN", both]))
    dataset, folds = sets.validation, sets.folds
    assert len({record.image_id for record in dataset.images}) == len(dataset) == 10
    assert folds.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 2]
    cfg = load_config("disks.yaml", ["DATASETS.TRAIN", both, "DATASETS.FOLD", "2"])
    chosen = {record.image_id for record in load_test_sets(cfg)["fold2"].images}
    assert chosen == {dataset.images[index].image_id for index in np.flatnonzero(folds == 2)}


def test_all_folds_and_their_predictions_as_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_net("--fold", "all") == 0
    runs = Path("runs/disks/001")
    printed = capsys.readouterr().out
    assert "together" in printed
    assert str(runs) in printed
    assert {path.name for path in runs.iterdir()} >= {"fold0", "fold1", "fold2", "oof.json.gz", "oof_ground_truth.json"}

    truth = CocoDataset.load(runs / "oof_ground_truth.json")
    truth.check_images_exist()
    joined = list(read_predictions(runs / "oof.json.gz", truth))
    assert [p.image_id for p in joined] == [1, 2, 3, 4, 5, 6]
    assert [p.provenance["fold"] for p in joined] == [0, 1, 2, 0, 1, 2]
    assert [record.metadata["fold"] for record in truth.images] == [0, 1, 2, 0, 1, 2]
    own = {p.image_id: p for p in read_predictions(runs / "fold1" / "predictions" / "fold1.json.gz")}
    assert set(own) == {2, 5}
    assert [p.rles for p in joined if p.image_id in own] == [own[2].rles, own[5].rles]

    metrics = json.loads((runs / "final_metrics.json").read_text())
    expected, _ = evaluate_tuned(truth, joined)
    assert metrics["object_ap"] == expected["object_ap"]
    assert metrics["images"] == 6
    assert set(metrics["folds"]) == {"fold0", "fold1", "fold2"}
    assert metrics["folds"]["fold2"] == json.loads((runs / "fold2" / "final_metrics.json").read_text())
    assert f"score_threshold: {metrics['score_threshold']}" in (runs / "postprocess.yaml").read_text()
    with open(runs / "fold_scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["fold"] for row in rows] == ["fold0", "fold1", "fold2", "mean", "deviation", "together"]
    mean = np.mean([metrics["folds"][f"fold{fold}"]["object_ap"] for fold in range(3)])
    assert float(rows[3]["object_ap"]) == pytest.approx(mean)
    assert load_config(runs / "fold1" / "config.yaml").DATASETS.FOLD == 1

    # Finished folds are not repeated; one that is missing is trained, and gives what it gave
    before = {fold: (runs / f"fold{fold}" / "run.json").read_text() for fold in range(3)}
    weights = load_checkpoint(runs / "fold1" / "checkpoints" / "last.pth")["model"]
    (runs / "fold1").rename(here / "elsewhere")
    assert train_net("--fold", "all", "--resume") == 0
    assert (runs / "fold0" / "run.json").read_text() == before[0]
    assert (runs / "fold2" / "run.json").read_text() == before[2]
    again = load_checkpoint(runs / "fold1" / "checkpoints" / "last.pth")["model"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    assert [p.rles for p in read_predictions(runs / "oof.json.gz", truth)] == [p.rles for p in joined]


def test_an_interrupted_fold_goes_on(here: Path) -> None:
    assert train_net("--fold", "all", "OUTPUT_DIR", "cv") == 0
    last = Path("cv/fold2/checkpoints/last.pth")
    finished = load_checkpoint(last)["model"]
    record = json.loads(Path("cv/fold2/run.json").read_text())
    Path("cv/fold2/run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    Path("cv/fold2/predictions/fold2.json.gz").unlink()
    words = ["--num-threads", "1", "--fold", "all", "--resume", "OUTPUT_DIR", "cv"]
    assert run_command("train_net", words, prog="train_net") == 0, "the settings are those of the folds"
    assert all(torch.equal(tensor, load_checkpoint(last)["model"][name]) for name, tensor in finished.items())
    assert len(json.loads(Path("cv/fold2/run.json").read_text())["resumed"]) == 1
    assert json.loads(Path("cv/fold0/run.json").read_text())["resumed"] == []


def test_folds_one_by_one_meet_in_one_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fold, said in (("2", "fold 0, 1 of 3"), ("0", "fold 1 of 3"), ("1", "together")):
        assert train_net("--fold", fold) == 0
        assert said in capsys.readouterr().out
    assert [path.name for path in sorted(Path("runs/disks").glob("0*"))] == ["001"]
    assert len(list(read_predictions("runs/disks/001/oof.json.gz"))) == 6
    assert train_net("--fold", "0") == 0, "a second round begins in a folder of its own"
    assert Path("runs/disks/002/fold0/run.json").is_file()
    assert train_net("--fold", "1", "SEED", "4") == 0
    assert Path("runs/disks/003/fold1/run.json").is_file(), "other settings, another folder"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fold", "3"], "one of 0 to 2"),
        (["--fold", "x"], "expected all"),
        (["--fold", "0", "--eval-only"], "--fold trains"),
        (["--fold", "all", "DATASETS.FOLDS", "none.csv"], "there is no file none.csv"),
        (["--fold", "all", "SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH"),
        (["--fold", "all", "MODEL.WEIGHTS", "gone.pth"], "gone.pth"),
        (["--fold", "all", "DATASETS.TRAIN", "[]"], "DATASETS.TRAIN"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert train_net(*words) == 2
    assert said in capsys.readouterr().err
    assert not list(here.glob("runs/*/0*")), "folds that never began leave nothing behind"


def test_what_is_not_alike_is_not_joined(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["OUTPUT_DIR", "cv", "SOLVER.BASE_LR", "0.02"]
    assert train_net("--fold", "0", *words) == 0
    assert train_net("--fold", "1", "OUTPUT_DIR", "cv") == 2
    assert "SOLVER.BASE_LR was 0.02 and is 0.001" in capsys.readouterr().err
    assert train_net("--fold", "all", "--resume", "OUTPUT_DIR", "cv") == 2, "what --resume is told must be the same"
    assert "SOLVER.BASE_LR" in capsys.readouterr().err
    path = here / "data" / "disks.json"
    before = path.read_text()
    data = json.loads(before)
    data["annotations"][3]["iscrowd"] = 1
    path.write_text(json.dumps(data))
    assert train_net("--fold", "1", *words) == 2
    assert "whose annotations differ" in capsys.readouterr().err
    path.write_text(before)
    assert train_net("--fold", "1", *words, "SOLVER.LOG_PERIOD", "2") == 0, "which changes nothing learned"
    run_folder = ["--resume", "OUTPUT_DIR", "cv/fold1", "SOLVER.MAX_ITER", "4"]
    assert run_command("train_net", ["--num-threads", "1", *run_folder], prog="train_net") == 0
    capsys.readouterr()
    assert train_net("--fold", "2", *words) == 2
    assert "SOLVER.MAX_ITER was 3 and is 4" in capsys.readouterr().err
    assert not Path("cv/oof.json.gz").exists()


def test_the_printed_command_resumes_all_folds_exactly(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: TinySegmenter, samples: list) -> dict:
        raise KeyboardInterrupt

    words = ["--fold", "all", "SOLVER.BASE_LR=0.02", "OUTPUT_DIR", "my folds", "--SOLVER.MAX_ITER=2"]
    with monkeypatch.context() as patched:
        patched.setattr(TinySegmenter, "forward", interrupt)
        assert train_net(*words) == 130
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("to continue: "), "it is the last line"
    _, _, command = line.partition(": ")
    printed = shlex.split(command)
    assert printed[printed.index("--config") :] == [
        *("--config", "disks.yaml", "--num-threads", "1", "--fold", "all", "--resume", "OUTPUT_DIR", "my folds"),
        *("SOLVER.BASE_LR=0.02", "--SOLVER.MAX_ITER=2"),
    ]
    assert run_command("train_net", printed[printed.index("--config") :], prog="train_net") == 0
    assert len(list(read_predictions("my folds/oof.json.gz"))) == 6
    for fold in range(3):
        assert load_config(f"my folds/fold{fold}/config.yaml").SOLVER.BASE_LR == 0.02


def test_other_folds_do_not_mix(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_net("--fold", "0", "OUTPUT_DIR", "cv") == 0
    set_folds(here / "data" / "disks.json", [0, 0, 1, 1, 2, 2, 2])
    assert train_net("--fold", "1", "OUTPUT_DIR", "cv") == 2
    assert "holds 3 folds of 6 images, which differ from" in capsys.readouterr().err
    assert train_net("--fold", "1", "OUTPUT_DIR", "cv/fold0") == 2
    assert "holds a run and not folds" in capsys.readouterr().err
    assert train_net("--fold", "0", "OUTPUT_DIR", "new") == 0
    assert train_net("--fold", "0", "OUTPUT_DIR", "new") == 2
    assert "holds another run" in capsys.readouterr().err
    assert train_net("--fold", "0", "OUTPUT_DIR", "new", "--overwrite") == 0


def test_cross_fitted_score_of_predictions_that_a_threshold_makes_perfect(here: Path) -> None:
    set_folds(here / "data" / "disks.json", [0, 1, 2, 0, 1, 2, 0])
    truth = load_folds(load_config("disks.yaml", []))
    dataset, folds = truth.validation, truth.folds
    predictions = []
    for image in GroundTruth.from_coco(dataset).images:
        wrong = np.zeros((image.height, image.width), dtype=np.uint8, order="F")
        wrong[:3, :3] = 1
        rles = [*image.rles, rle_codec.encode_mask(wrong.astype(bool))]
        boxes = np.zeros((len(rles), 4), dtype=np.float32)
        boxes[:, 2:] = 3
        scores = np.array([0.9] * len(image.rles) + [0.4], dtype=np.float32)
        classes = np.array([*image.classes, 0])
        size = (image.height, image.width)
        predictions.append(Predictions(image.image_id, image.file_name, *size, boxes, scores, classes, rles=rles))
    assert cross_fitted_object_ap(dataset, predictions, folds) == pytest.approx(1.0)
    assert cross_fitted_object_ap(dataset, predictions, np.zeros_like(folds)) is None
    nothing = [Predictions.empty(each.image_id, each.file_name, each.height, each.width) for each in predictions]
    assert cross_fitted_object_ap(dataset, nothing, folds) is None
