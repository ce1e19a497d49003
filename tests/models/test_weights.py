"""Reading weights: what fits, and messages for what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models_for_tests import small_model

from detseg.errors import WeightsError
from detseg.models.weights import load_state, load_weights


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"model": state}, path)
    return path


def test_round_trip(tmp_path: Path) -> None:
    first, second = small_model(seed=1), small_model(seed=2)
    report = load_weights(second, save(tmp_path / "w.pth", first.state_dict()))
    assert len(report.loaded) == len(first.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    torch.save(first.state_dict(), tmp_path / "bare.pth")
    load_weights(second, tmp_path / "bare.pth")


def test_entries_that_older_checkpoints_hold_are_no_misfit(tmp_path: Path) -> None:
    state = small_model().state_dict()
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    load_weights(small_model(), save(tmp_path / "w.pth", state))


def test_a_misfit_names_entries_and_shapes(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", small_model(MODEL__FPN__OUT_CHANNELS=32).state_dict())
    with pytest.raises(WeightsError) as error:
        load_weights(small_model(), path)
    assert str(path) in str(error.value)
    assert "backbone.fpn_lateral2.weight: (32, 8, 1, 1) in the file, (16, 8, 1, 1) in the model" in str(error.value)
    with pytest.raises(WeightsError, match="fpn_lateral2"):
        load_weights(small_model(), path, fine_tune=True)


def test_missing_and_unknown_entries_are_refused_for_prediction(tmp_path: Path) -> None:
    state = small_model().state_dict()
    state["roi_heads.cascade.weight"] = state.pop("roi_heads.mask_head.deconv.weight")
    with pytest.raises(WeightsError) as error:
        load_weights(small_model(), save(tmp_path / "w.pth", state))
    assert "roi_heads.mask_head.deconv.weight: not in the file" in str(error.value)
    assert "roi_heads.cascade.weight: (16, 16, 2, 2) in the file, not in the model" in str(error.value)


def test_fine_tuning_for_other_classes_says_what_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = save(tmp_path / "w.pth", small_model(seed=1).state_dict())
    model = small_model(seed=2, MODEL__ROI_HEADS__NUM_CLASSES=5)
    before = model.roi_heads.box_predictor.cls_score.weight.clone()
    with pytest.raises(WeightsError, match="cls_score"):
        load_weights(model, path)
    report = load_weights(model, path, fine_tune=True)
    assert sorted(report.reinitialized) == [
        f"roi_heads.{name}.{kind}"
        for name in ("box_predictor.bbox_pred", "box_predictor.cls_score", "mask_head.predictor")
        for kind in ("bias", "weight")
    ]
    assert torch.equal(model.roi_heads.box_predictor.cls_score.weight, before)
    assert "cls_score" in caplog.text


def test_a_backbone_alone_begins_a_training_but_not_a_prediction(tmp_path: Path) -> None:
    backbone = {n: v for n, v in small_model(seed=1).state_dict().items() if n.startswith("backbone.bottom_up")}
    path = save(tmp_path / "w.pth", backbone)
    report = load_weights(small_model(), path, fine_tune=True)
    assert sorted(report.loaded) == sorted(backbone)
    assert "roi_heads.mask_head.deconv.weight" in report.missing
    with pytest.raises(WeightsError, match="fpn_lateral2"):
        load_weights(small_model(), path)


def test_a_stem_is_adapted_to_other_channels(tmp_path: Path) -> None:
    source = small_model(seed=1)
    model = small_model(seed=2, MODEL__PIXEL_MEAN=[0.0], MODEL__PIXEL_STD=[1.0])
    report = load_weights(model, save(tmp_path / "w.pth", source.state_dict()), fine_tune=True)
    assert report.adapted == ["backbone.bottom_up.stem.conv1.weight"]
    gray = torch.rand(1, 1, 32, 32)
    old, new = source.backbone.bottom_up.stem.conv1.eval(), model.backbone.bottom_up.stem.conv1.eval()
    torch.testing.assert_close(new(gray), old(gray.repeat(1, 3, 1, 1)), atol=1e-4, rtol=1e-4)


def test_weights_of_another_model_altogether() -> None:
    with pytest.raises(WeightsError, match="encoder"):
        load_state(small_model(), {"encoder.weight": torch.zeros(3, 3)}, fine_tune=True)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 truncated"], ids=["empty", "text", "truncated"])
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth"):
        load_weights(small_model(), path)


def test_a_missing_file_and_other_content(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(small_model(), tmp_path / "none.pth")
    torch.save({"model": {"a": [1, 2]}}, tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="has no weights"):
        load_weights(small_model(), tmp_path / "list.pth")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return print, ("executed",)


def test_nothing_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(WeightsError, match="tensors and plain values"):
        load_weights(small_model(), tmp_path / "hostile.pth")
    assert "executed" not in capsys.readouterr().out
