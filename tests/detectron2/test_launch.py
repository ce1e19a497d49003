"""--num-gpus: processes of Detectron2's launch, over gloo where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2_cases import require_detectron2, training_config, write_dataset

require_detectron2()

from detseg.config import dump_config  # noqa: E402
from detseg.engine.metric_log import read_metrics  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine of one GPU cannot start two processes")
def test_two_processes_train_one_model_and_end_alike(tmp_path: Path):
    data = write_dataset(tmp_path / "data")
    changes = {"MODEL__RESNETS__NORM": "BN", "SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 4}
    config = tmp_path / "disks.yaml"
    config.write_text(dump_config(training_config(data, tmp_path / "run", "detectron2", **changes)))
    command = [sys.executable, str(ROOT / "tools" / "train_net.py"), "--config", str(config), "--num-gpus", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["engine"], record["processes"], record["status"]) == ("detectron2", 2, "finished")
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "training"]
    assert [line["iteration"] for line in lines] == [1, 2]

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 2
    assert again.stderr.count("holds another run") == 1, "one process says it for all"
