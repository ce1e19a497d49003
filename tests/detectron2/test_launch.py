"""--num-gpus: processes of Detectron2's launch, over gloo where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2_cases import require_detectron2, training_config, write_dataset

require_detectron2()

from detseg.cli.main import run_command
from detseg.config import dump_config
from detseg.files.run_files import read_metrics


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine of one GPU cannot start two processes")
def test_two_processes_train_one_model_and_end_alike(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    data = write_dataset(tmp_path / "data")
    changes = {"MODEL__RESNETS__NORM": "BN", "SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 4}
    config = tmp_path / "disks.yaml"
    config.write_text(dump_config(training_config(data, tmp_path / "run", "detectron2", **changes)))
    words = ["--config", str(config), "--num-gpus", "2", "--num-threads", "1"]
    assert run_command("train_net", words, prog="train_net") == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["engine"], record["processes"], record["status"]) == ("detectron2", 2, "finished")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "training"]
    assert [line["iteration"] for line in lines] == [1, 2]

    capfd.readouterr()
    assert run_command("train_net", words, prog="train_net") == 2
    assert capfd.readouterr().err.count("holds another run") == 1, "one process says it for all"
