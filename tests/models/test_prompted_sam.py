"""Every class of Segment Anything, small and random: prompts, weights, and a mask decoder that learns."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from models_for_tests import disks, without_objects
from PIL import Image
from small_sams import KINDS, rectangle, save_small_sam

from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.engines.validation import validate
from detseg.errors import ConfigError, WeightsError
from detseg.inference.validation import PREDICTION
from detseg.models.bottom_up.boundary import BoundaryUNet
from detseg.models.prompted.embeddings import EmbeddingCache
from detseg.models.prompted.options import PromptOptions
from detseg.models.prompted.prompts import make_prompts
from detseg.models.prompted.sam import load_sam, square_logits
from detseg.models.prompted.segmenter import PromptedSAM, mask_losses
from detseg.models.weights.files import Weights, write_weights
from detseg.models.weights.loading import load_state
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def sams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sams")
    return {kind: save_small_sam(folder, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_is_prompted_by_boxes_points_and_both(kind: str, sams: dict[str, Path]) -> None:
    sam = load_sam(str(sams[kind]))
    window = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    embedding = sam.embed(window)
    crops = [rectangle(2, 3, 12, 13), rectangle(13, 3, 24, 20), rectangle(30, 5, 45, 25)]
    boxes = np.array([crop.box for crop in crops], np.float32)
    answers = []
    for kinds in (("box",), ("point",), ("box", "point")):
        prompts = make_prompts(boxes, crops, PromptOptions(kinds=kinds)).within(np.arange(3), (0, 0, 50, 30))
        with torch.inference_mode():
            logits, quality = sam.masks(embedding, prompts, (30, 50), multimask=False)
            three, _ = sam.masks(embedding, prompts, (30, 50), multimask=True)
        assert logits.shape[:2] == quality.shape == (3, 1)
        assert three.shape[1] == 3
        assert square_logits(logits[:, 0], (30, 50)).shape == (3, 30, 50)
        assert logits.isfinite().all()
        alone = prompts.within(np.array([1]), (0, 0, 50, 30))
        with torch.inference_mode():
            assert torch.allclose(sam.masks(embedding, alone, (30, 50), False)[0][0], logits[1], atol=1e-4)
        answers.append(logits)
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[1], answers[2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_what_its_folder_does(kind: str, sams: dict[str, Path]) -> None:
    one, other = load_sam(str(sams[kind])), load_sam(str(sams[kind] / "model.safetensors"))
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_weights_that_are_not_here_or_not_sams(sams: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("nobody/nothing-here", "no_such_folder"):
        with pytest.raises(WeightsError, match=r"(?s)not available.*hf download facebook/sam-vit-base.*MODEL.SAM.NAME"):
            load_sam(name)
    torch.save({"a": torch.zeros(1)}, tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match="may execute code"):
        load_sam(str(tmp_path / "sam.pth"))
    write_weights(tmp_path / "model.safetensors", Weights({"a": torch.zeros(1)}))
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_sam(str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="is a bert"):
        load_sam(str(tmp_path))
    (tmp_path / "config.json").write_text((sams["sam"] / "config.json").read_text())
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(WeightsError, match="not the weights of a SAM"):
            load_sam(str(source))


# the system

KEYS = {
    "MODEL.META_ARCHITECTURE": "PromptedSAM",
    "MODEL.MASK_ON": True,
    "MODEL.UNET.ENCODER": "plain",
    "MODEL.UNET.CHANNELS": [8, 4],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.SAM.TILE": 64,
    "MODEL.SAM.OVERLAP": 16,
}


def build(folder: Path, cache: Path, **changes: object) -> PromptedSAM:
    torch.manual_seed(0)
    return build_model(
        load_flat_config(KEYS | {"MODEL.SAM.NAME": str(folder), "MODEL.SAM.CACHE": str(cache)} | changes)
    )


def losses_of_training(model: PromptedSAM, sample: Sample) -> list[float]:
    """Train 40 iterations on one sample; return the total loss of each."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=5e-3)
    history = []
    for _ in range(40):
        total = sum(value for name, value in model([sample]).items() if name.startswith("loss"))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    return history


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_learns_and_nothing_else(kind: str, sams: dict[str, Path], tmp_path: Path) -> None:
    """On disks in noise, prompted by their boxes and points: the loss falls, what is frozen stays as it was."""
    model = build(sams[kind], tmp_path).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = losses_of_training(model, disks(6, (64, 64)))
    assert np.mean(history[-5:]) < 0.75 * np.mean(history[:5]), history
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("sam.net.mask_decoder.") for name in moved)
    assert not any("conv_s0" in name for name in moved)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1, "one window, embedded once"


def test_the_decoder_learns_real_grains(
    sams: dict[str, Path], tmp_path: Path, shared_data: Callable[[str], Path]
) -> None:
    """Of photographs of pebbles, with the small random encoder frozen and its embeddings from disk."""
    with zipfile.ZipFile(shared_data("imagegrains_train.zip")) as archive:
        name = "1_P1060330_1"
        image = np.array(Image.open(io.BytesIO(archive.read(f"images/{name}.jpg"))))[:128, :128]
        labels = tifffile.imread(io.BytesIO(archive.read(f"labels/{name}_mask.tif")))[:128, :128]
    layers = LabelLayers.from_label_image(labels)
    sample = Sample(image, layers, np.zeros(len(layers)))
    model = build(sams["sam"], tmp_path, **{"MODEL.SAM.TILE": 128, "MODEL.SAM.TRAIN_OBJECTS": 8}).train()
    history = losses_of_training(model, sample)
    assert np.mean(history[-5:]) < 0.85 * np.mean(history[:5]), history


def test_embeddings_from_disk_are_those_that_were_computed(sams: dict[str, Path], tmp_path: Path) -> None:
    sam = load_sam(str(sams["sam2"]))
    window = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    first = EmbeddingCache(tmp_path, sam).embed(window)
    again = EmbeddingCache(tmp_path, sam).embed(window)
    assert len(first) == 3
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    sam.net.no_memory_embedding.data += 1
    assert not torch.equal(EmbeddingCache(tmp_path, sam).embed(window)[2], first[2]), "other weights, other files"


def test_ignored_regions_change_no_loss_of_masks(sams: dict[str, Path], tmp_path: Path) -> None:
    model = build(sams["sam"], tmp_path)
    sample = disks(4, (64, 64))
    ignored = np.zeros((64, 64), bool)
    ignored[40:] = True
    losses = []
    for ignore in (ignored, None):
        torch.manual_seed(1)
        losses.append(model([dataclasses.replace(sample, ignore=ignore)]))
    assert losses[0]["loss_focal"].item() != losses[1]["loss_focal"].item()
    logits = torch.randn(2, 1, 8, 8)
    share = torch.ones(1, 8, 8)
    share[:, 4:] = 0
    target = (torch.rand(2, 8, 8) > 0.5).float()
    changed, moved = target.clone(), logits.clone()
    changed[:, 4:], moved[:, :, 4:] = 1 - changed[:, 4:], 5.0
    quality, weights = torch.full((2, 1), 0.5), torch.ones(2)
    one, two = (mask_losses(x, quality, y, share, weights) for x, y in ((logits, target), (moved, changed)))
    assert all(torch.allclose(one[name], two[name]) for name in one)


def test_images_without_objects_give_a_loss_and_a_gradient_of_zero(sams: dict[str, Path], tmp_path: Path) -> None:
    model = build(sams["sam"], tmp_path)
    losses = model([without_objects((30, 33)), Sample(np.zeros((20, 20, 3), np.uint8))])
    total = sum(losses.values())
    total.backward()
    assert float(total) == 0
    assert {name for name in losses if name.startswith("loss")} == {
        "loss_focal",
        "loss_dice",
        "loss_quality",
    }


def test_known_losses_of_masks() -> None:
    logits = torch.full((1, 2, 2, 2), 20.0)
    logits[0, 1] = -20.0
    target = torch.ones(1, 2, 2)
    losses = mask_losses(logits, torch.tensor([[0.5, 0.5]]), target, torch.ones(1, 2, 2), torch.ones(1))
    assert float(losses["loss_focal"]) == pytest.approx(0, abs=1e-6)
    assert float(losses["loss_dice"]) == pytest.approx(0, abs=1e-6)
    assert float(losses["loss_quality"]) == pytest.approx(0.25)
    assert float(losses["iou_masks"]) == 1


def test_a_first_pass_alone_fills_the_system_and_its_checkpoint_fills_all(
    sams: dict[str, Path], tmp_path: Path
) -> None:
    """MODEL.WEIGHTS is the U-Net's checkpoint: SAM's weights are those of its own folder, and none are missing."""
    unet = build_model(load_flat_config(KEYS | {"MODEL.META_ARCHITECTURE": "BoundaryUNet"} | _without_sam()))
    assert isinstance(unet, BoundaryUNet)
    model = build(sams["sam"], tmp_path)
    published = {name: value.clone() for name, value in model.sam.state_dict().items()}
    report = load_state(model, unet.state_dict())
    assert not report.missing
    assert not report.unused
    assert all(torch.equal(value, model.first_pass.state_dict()[name]) for name, value in unet.state_dict().items())
    assert all(torch.equal(value, model.sam.state_dict()[name]) for name, value in published.items())
    state = model.state_dict()
    assert not load_state(build(sams["sam"], tmp_path), state).missing
    del state["sam.net.mask_decoder.iou_token.weight"]
    with pytest.raises(WeightsError, match="iou_token"):
        load_state(model, state)


def _without_sam() -> dict[str, object]:
    default = load_flat_config({})
    return {name: default[name] for name in KEYS if name.startswith("MODEL.SAM.")}


def test_predicts_objects_of_the_first_pass_at_the_output_size(sams: dict[str, Path], tmp_path: Path) -> None:
    model = build(sams["sam"], tmp_path, **{"MODEL.SAM.MIN_QUALITY": 1.0}).eval()
    image = np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8)
    (found,) = model.predict([image], [(80, 104)], soft_masks=True)
    (first,) = model.first_pass.predict([image], [(80, 104)])
    assert (found.height, found.width) == (80, 104)
    assert len(found.soft_masks) == len(found)
    assert found.provenance["sam"]["drawn"] == 0
    assert 0 < len(found) <= len(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.SAM.OVERLAP": 300}, "at most half"),
        ({"MODEL.SAM.PROMPTS": ["text"]}, "'box', 'point'"),
        ({"MODEL.PIXEL_MEAN": [1.0, 2.0], "MODEL.PIXEL_STD": [1.0, 1.0]}, "gray or RGB"),
        ({"MODEL.SAM.NAME": " "}, "a name, a folder or a file"),
    ],
)
def test_impossible_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(load_flat_config(KEYS | changes), PREDICTION, training=False)
