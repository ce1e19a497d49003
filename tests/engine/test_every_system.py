"""What every system promises in training, the R-CNNs and the bottom-up systems alike, over one table.

Two processes that train one model are in test_distributed.py, what a model promises by itself in
tests/models/test_contract.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from test_folds import set_folds
from test_predict_folds import assert_same
from test_resume import assert_same_run
from tiny_networks import SYSTEMS
from tiny_segmenter import write_disks
from torch import nn
from train_and_die import tiny_config

from detseg.cli.main import run_command
from detseg.coco.predictions_file import read_predictions
from detseg.config import Config, dump_config
from detseg.engine.train import train
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.runs.run_folder import open_run

pytestmark = pytest.mark.usefixtures("one_thread")

every_system = pytest.mark.parametrize("name", SYSTEMS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images in two folds."""
    path = write_disks(tmp_path_factory.mktemp("disks"), count=4)
    set_folds(path, [0, 1, 0, 1])
    return path


def config(name: str, data: Path, folder: Path, **changes: object) -> Config:
    cfg = tiny_config(data, folder).clone()
    usual = {"MODEL.ROI_HEADS.NUM_CLASSES": 1, "TEST.PRECISION": "float32", "TEST.REPORT": False}
    usual |= {"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.EVAL_PERIOD": 2}
    if SYSTEMS[name].get("MODEL.UNET.ENCODER"):
        # the mean as the threshold: a network that has learned nothing finds something; drawn numbers go on too
        usual |= {"MODEL.UNET.THRESHOLD": 0.0, "MODEL.UNET.DROPOUT": 0.1}
    for key, value in (SYSTEMS[name] | usual | changes).items():
        cfg.set(key, value)
    validate_config(cfg.freeze())
    return cfg


@every_system
def test_killed_and_resumed_it_ends_in_the_same_bits(name: str, data: Path, tmp_path: Path) -> None:
    def run(folder: str, *, dies_in_pass: int = 0, resume: bool = False) -> Path:
        cfg, passes = config(name, data, tmp_path / folder), itertools.count(1)

        def count(*_: object) -> None:
            if next(passes) == dies_in_pass:
                raise MemoryError("in the middle of an iteration")

        def build(cfg: Config) -> nn.Module:
            model = build_model(cfg)
            model.register_forward_pre_hook(count)
            return model

        with open_run(cfg, resume=resume) as opened:
            train(cfg, opened, resume=resume, build=build)
            return opened.path

    whole = run("whole")
    with pytest.raises(MemoryError):
        run("torn", dies_in_pass=4)
    assert_same_run(whole, run("torn", resume=True))


@every_system
def test_folds_predict_every_image_by_the_model_that_has_not_seen_it(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"SOLVER.MAX_ITER": 2, "TEST.EVAL_PERIOD": 0, "DATASETS.TEST": []}
    Path("system.yaml").write_text(dump_config(config(name, data, tmp_path / "cv", **changes)), encoding="utf-8")
    words = ["--config", "system.yaml", "--num-threads", "1", "--fold", "all"]
    assert run_command("train_net", words, prog="train_net") == 0
    own = read_predictions("cv/oof.json.gz")
    about = [image.provenance for image in own]
    assert [one["fold"] for one in about] == [0, 1, 0, 1]
    assert not any(one["in_training"] for one in about)
    assert len({one["checkpoint_hash"] for one in about}) == 2
    assert sum(map(len, own)) > 0, "nothing would be compared"
    words = ["--device", "cpu", "--folds", "cv", "--output", "again.json.gz"]
    assert run_command("predict", words, prog="predict") == 0
    assert_same(own, read_predictions("again.json.gz"))
