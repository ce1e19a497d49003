"""The native models against numbers that Detectron2 itself computed (tests/golden and files like them).

A case is NAME.npz with NAME.json beside it: configuration, weights, two images with objects, and what Detectron2
answered (features, proposals, detections, masks, losses, gradient norms). Its keys are those that `compute` returns.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detseg.config import load_flat_config
from detseg.errors import DataError
from detseg.models.parity_rows import Row, compare_all
from detseg.models.table import build_model
from detseg.models.weights import load_state
from detseg.structures.label_layers import LabelLayers
from detseg.structures.rle import decode
from detseg.structures.sample import Sample

LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Case:
    """One file of numbers: its arrays by name, and its configuration as flat keys."""

    path: Path
    arrays: dict[str, np.ndarray]
    configuration: dict[str, object]

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read NAME.npz and NAME.json. Raises DataError where one of them is missing or is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            configuration = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError, zlib.error, AttributeError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as NAME.npz with NAME.json beside it: {error}") from error
        if "in0/image_bgr" not in arrays or not isinstance(configuration, dict):
            raise DataError(
                f"{path}: holds no in0/image_bgr, or its JSON no keys; expected a file of Detectron2's numbers"
            )
        return cls(path, arrays, configuration)

    @property
    def image_count(self) -> int:
        return sum(name.endswith("/image_bgr") for name in self.arrays)

    def samples(self) -> list[Sample]:
        """Return the images, RGB, with their objects."""
        samples = []
        for index in range(self.image_count):
            image = np.ascontiguousarray(self.arrays[f"in{index}/image_bgr"][::-1].transpose(1, 2, 0))
            masks = unpack_masks(self.arrays, f"in{index}")
            layers = LabelLayers.from_masks(masks)
            samples.append(Sample(image, layers, self.arrays[f"in{index}/classes"], image_id=index))
        return samples

    def output_sizes(self) -> list[tuple[int, int]]:
        """Return the (height, width) in which the detections of each image are wanted."""
        shapes = [self.arrays[f"out{index}/masks_shape"] for index in range(self.image_count)]
        return [(int(shape[1]), int(shape[2])) for shape in shapes]


def unpack_masks(arrays: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    """Return masks (N, H, W) bool from `PREFIX/masks_packed` and `PREFIX/masks_shape`."""
    shape = tuple(arrays[f"{prefix}/masks_shape"])
    return np.unpackbits(arrays[f"{prefix}/masks_packed"], axis=-1, count=shape[-1]).reshape(shape).astype(bool)


def made_up_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the weights of a case that stores none: drawn from the name of each entry."""
    return {name: _made_up(name, shape) for name, shape in shapes.items()}


def _made_up(name: str, shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_mean"):
        return np.float32(0.1) * x
    if name.endswith("running_var"):
        return 1 + np.float32(0.3) * np.abs(x)
    if len(shape) in (2, 4):
        x = x * np.float32((1.6 / np.prod(shape[1:])) ** 0.5)
        return x * np.float32(0.02) if "stem.conv1" in name else x
    if "norm" in name and name.endswith("weight"):
        return 1 + np.float32(0.1) * x
    return np.float32(0.05) * x


def build_case_model(case: Case, device: torch.device) -> torch.nn.Module:
    """Build the model of a case with its weights."""
    model = build_model(load_flat_config(case.configuration | {"MODEL.ENGINE": "native"}))
    state = {name.removeprefix("state/"): value for name, value in case.arrays.items() if name.startswith("state/")}
    if not state:
        own = model.state_dict()
        state = made_up_weights({name: tuple(value.shape) for name, value in own.items() if value.is_floating_point()})
        state |= {name: value.numpy() for name, value in own.items() if not value.is_floating_point()}
    load_state(model, {name: torch.from_numpy(np.array(value)) for name, value in state.items()}, source=str(case.path))
    return model.to(device)


def compute(case: Case, device: torch.device) -> dict[str, np.ndarray]:
    """Compute everything that the case holds numbers of, under the same names."""
    model = build_case_model(case, device)
    samples = case.samples()
    results: dict[str, np.ndarray] = {}
    model.eval()
    with torch.no_grad():
        _compute_stages(model, samples, results)
    answers = model.predict([sample.image for sample in samples], output_sizes=case.output_sizes())
    for index, answer in enumerate(answers):
        masks = [decode(rle) for rle in answer.rles]
        packed = np.stack(masks) if masks else np.zeros((0, answer.height, answer.width), dtype=bool)
        results[f"out{index}/boxes"] = answer.boxes
        results[f"out{index}/scores"] = answer.scores
        results[f"out{index}/classes"] = answer.classes
        results[f"out{index}/masks_packed"] = np.packbits(packed, axis=-1)
        results[f"out{index}/masks_shape"] = np.array(packed.shape)
    model.train()
    results.update(_compute_training(model, samples))
    return {name: value for name, value in results.items() if name in case.arrays}


def _compute_stages(model: torch.nn.Module, samples: list[Sample], results: dict[str, np.ndarray]) -> None:
    """What lies between images and answers: features, proposals, mask probabilities."""
    batch = model.image_input([sample.image for sample in samples], model.device)
    features = model.backbone(batch.tensor)
    for name, feature in features.items():
        results[f"features/{name}"] = _numpy(feature)[:, :, ::2, ::2]
    proposals = model.proposal_generator.propose(model.proposal_generator(features), batch.sizes)
    found = model.roi_heads.detect(features, proposals, batch.sizes)
    masks = model.roi_heads.masks(features, [one.boxes for one in found], [one.classes for one in found])
    for index, (proposal, mask) in enumerate(zip(proposals, masks, strict=True)):
        results[f"out{index}/proposal_boxes"] = _numpy(proposal.boxes)
        results[f"out{index}/objectness"] = _numpy(proposal.objectness)
        results[f"out{index}/mask_probs"] = _numpy(mask).astype(np.float16)


def _compute_training(model: torch.nn.Module, samples: list[Sample]) -> dict[str, np.ndarray]:
    """Losses, the norms of their gradients per part, and how far one step of plain SGD moves every entry."""
    before = {name: _numpy(value).astype(np.float64) for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses = model(samples)
    sum(losses.values()).backward()
    results = {f"loss/{name}": _numpy(value) for name, value in losses.items()}
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = ".".join(name.split(".")[:2])
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.double().square().sum())
    results.update({f"grad_norm/{part}": np.array(square**0.5) for part, square in squares.items()})
    optimizer.step()
    for name, value in model.state_dict().items():
        results[f"moved/{name}"] = np.array(np.linalg.norm(_numpy(value).astype(np.float64) - before[name]))
    return results


def check_case(case: Case, computed: Mapping[str, np.ndarray], device: torch.device) -> list[Row]:
    """Compare what was computed with what the case holds, a row for each of its names."""
    return compare_all(case.arrays, computed, unpack_masks, cuda=device.type == "cuda")


def _numpy(tensor: Tensor) -> np.ndarray:
    # A copy: on the CPU the array would share the memory of weights that change.
    return tensor.detach().cpu().numpy().copy()
