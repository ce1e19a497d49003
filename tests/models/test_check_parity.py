"""The command check_parity: table, exit status, dumped files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from detseg.cli.main import main
from detseg.models.parity import Row, worst_of_kinds

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
NAME = "mask_rcnn_R_50_FPN_nothing"


def test_success_and_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check_parity", str(GOLDEN / f"{NAME}.npz"), "--dump", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "loss/loss_mask" in text
    assert "within" in text
    with np.load(GOLDEN / f"{NAME}.npz") as golden, np.load(tmp_path / "out" / f"{NAME}.npz") as dumped:
        expected = {name for name in golden.files if not name.startswith(("in", "state/"))}
        assert set(dumped.files) == expected
        for name in expected:
            assert dumped[name].shape == golden[name].shape, name


def test_the_summary_is_a_table_of_the_largest_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check_parity", str(GOLDEN / f"{NAME}.npz"), "--summary"]) == 0
    head, line, row, end = capsys.readouterr().out.splitlines()
    assert head.split("|")[2].strip() == "features"
    assert row.startswith(f"| {NAME} | ")
    assert len(row.split("|")) == len(head.split("|")) == len(line.split("|"))
    assert "within" in end


def test_the_worst_of_a_kind() -> None:
    rows = [
        Row("features/p2", 1e-6, 2e-5, ""),
        Row("features/p3", 3e-6, 2e-5, ""),
        Row("out0/classes", 1.0, 0.0, ""),
        Row("out0/boxes", 1e-4, 2e-5, ""),
        Row("loss/loss_cls", float("nan"), 1e-5, ""),
        Row("loss/loss_mask", 1e-7, 1e-5, ""),
    ]
    assert {kind: row.name for kind, row in worst_of_kinds(rows).items()} == {
        "features": "features/p3",
        "detections": "out0/classes",
        "losses": "loss/loss_cls",
    }


def test_a_difference_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(GOLDEN / f"{NAME}.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["loss/loss_cls"] = arrays["loss/loss_cls"] * np.float32(1.001)
    np.savez(tmp_path / f"{NAME}.npz", **arrays)
    shutil.copy(GOLDEN / f"{NAME}.json", tmp_path)
    assert main(["check_parity", str(tmp_path / f"{NAME}.npz")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "loss/loss_cls" in [line.split()[0] for line in lines if "out of bounds" in line]


@pytest.mark.parametrize("words", [["missing.npz"], [str(GOLDEN / f"{NAME}.npz"), "--device", "nonsense"]])
def test_bad_input_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check_parity", *words]) == 2
    assert words[-1] in capsys.readouterr().err


def test_something_else_than_numbers_of_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    (tmp_path / "x.json").write_text("{}")
    assert main(["check_parity", str(tmp_path / "x.npz")]) == 2
    (tmp_path / "y.npz").write_bytes(b"nothing")
    assert main(["check_parity", str(tmp_path / "y.npz")]) == 2
    assert "y.npz" in capsys.readouterr().err
    (tmp_path / "z.npz").write_bytes((GOLDEN / f"{NAME}.npz").read_bytes()[:5000])
    assert main(["check_parity", str(tmp_path / "z.npz")]) == 2
    assert "z.npz" in capsys.readouterr().err
