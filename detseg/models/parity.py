"""The native models against numbers that Detectron2 itself computed (tests/golden and files like them).

A case is NAME.npz with NAME.json beside it: configuration, weights, two images with objects, and what Detectron2
computed (features, proposals, detections, masks, losses, gradient norms). Its keys are those that `compute` returns.

Bounds: features, boxes, scores 2e-5 of the largest value; losses 1e-5, gradient norms and movements of weights 2e-4
relative; mask probabilities 1e-3 (they are stored in half precision); pasted masks per object max(2 pixels, 3 %). On
CUDA what is stricter is loosened to 1e-4. Detectron2 against itself with another convolution library stays two to six
times below; looser bounds let real mistakes pass.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detseg.config import load_flat_config
from detseg.errors import DataError
from detseg.models.table import build_native
from detseg.models.weights import load_state
from detseg.structures.label_layers import LabelLayers
from detseg.structures.rle import decode
from detseg.structures.sample import Sample

VALUES, CUDA = 2e-5, 1e-4
RELATIVE = {"loss": 1e-5, "grad_norm": 2e-4, "moved": 2e-4}
ABSOLUTE = {"classes": 0.0, "mask_probs": 1e-3}
PIXELS, PIXEL_FRACTION = 2, 0.03
# Lists of an image whose rows belong together.
LISTS = {"proposals": ("proposal_boxes", "objectness"), "detections": ("boxes", "scores", "classes")}
# What the names of a case are about: kind, and how names of this kind begin or end.
KINDS = {
    "features": ("features/",),
    "proposals": ("/proposal_boxes", "/objectness"),
    "detections": ("/boxes", "/scores", "/classes"),
    "mask probabilities": ("/mask_probs",),
    "masks": ("/masks_packed",),
    "losses": ("loss/",),
    "gradients": ("grad_norm/",),
    "one step": ("moved/",),
}
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Row:
    """One name: the largest difference, its bound and in what it is measured."""

    name: str
    difference: float
    bound: float
    measure: str

    @property
    def passed(self) -> bool:
        # Not "difference > bound": NaN must not pass.
        return self.difference <= self.bound

    @property
    def share(self) -> float:
        """How much of its bound it takes; bounds of zero allow nothing, and nothing allows NaN."""
        if np.isnan(self.difference):
            return np.inf
        return self.difference / self.bound if self.bound else (np.inf if self.difference else 0.0)


def worst_of_kinds(rows: Sequence[Row]) -> dict[str, Row]:
    """Return, for each of KINDS that occurs, the row that comes closest to its bound or exceeds it the most."""
    worst: dict[str, Row] = {}
    for row in rows:
        kind = next((kind for kind, ends in KINDS.items() if row.name.startswith(ends) or row.name.endswith(ends)), "")
        if kind and (kind not in worst or row.share > worst[kind].share):
            worst[kind] = row
    return worst


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
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
            raise DataError(f"{path}: cannot be read as NAME.npz with NAME.json beside it: {error}") from error
        if "in0/image_bgr" not in arrays or not isinstance(configuration, dict):
            raise DataError(
                f"{path}: contains no in0/image_bgr, or its JSON no keys; expected a file of Detectron2's numbers"
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


def _made_up_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the entry of a case that stores no weights: drawn from its name."""
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
    model = build_native(load_flat_config(case.configuration | {"MODEL.ENGINE": "native"}))
    state = {name.removeprefix("state/"): value for name, value in case.arrays.items() if name.startswith("state/")}
    if not state:
        state = {
            name: _made_up_weights(name, tuple(value.shape)) if value.is_floating_point() else value.numpy()
            for name, value in model.state_dict().items()
        }
    load_state(model, {name: torch.from_numpy(np.array(value)) for name, value in state.items()}, source=str(case.path))
    return model.to(device)


def compute(case: Case, device: torch.device) -> dict[str, np.ndarray]:
    """Compute everything that the case holds numbers of, under the same names."""
    model = build_case_model(case, device).eval()
    samples = case.samples()
    images = [sample.image for sample in samples]
    results: dict[str, np.ndarray] = {}

    # What is between images and predictions: features, proposals, mask probabilities.
    with torch.no_grad():
        batch = model.image_input(images, model.device)
        features = model.backbone(batch.tensor)
        proposals = model.proposal_generator.propose(model.proposal_generator(features), batch.sizes)
        found = model.roi_heads.detect(features, proposals, batch.sizes)
        masks = model.roi_heads.masks(features, [one.boxes for one in found], [one.classes for one in found])
    for name, feature in features.items():
        results[f"features/{name}"] = _numpy(feature)[:, :, ::2, ::2]
    for index, (proposal, mask) in enumerate(zip(proposals, masks, strict=True)):
        results[f"out{index}/proposal_boxes"] = _numpy(proposal.boxes)
        results[f"out{index}/objectness"] = _numpy(proposal.objectness)
        results[f"out{index}/mask_probs"] = _numpy(mask.probabilities).astype(np.float16)

    for index, predictions in enumerate(model.predict(images, case.output_sizes())):
        full = [decode(rle) for rle in predictions.rles]
        packed = np.stack(full) if full else np.zeros((0, predictions.height, predictions.width), dtype=bool)
        results[f"out{index}/boxes"] = predictions.boxes
        results[f"out{index}/scores"] = predictions.scores
        results[f"out{index}/classes"] = predictions.classes
        results[f"out{index}/masks_packed"] = np.packbits(packed, axis=-1)
        results[f"out{index}/masks_shape"] = np.array(packed.shape)

    # Losses, the norms of their gradients per part, and how far one step of plain SGD moves every entry.
    model.train()
    before = {name: _numpy(value).astype(np.float64) for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    losses = model(samples)
    sum(losses.values()).backward()
    results.update({f"loss/{name}": _numpy(value) for name, value in losses.items()})
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = ".".join(name.split(".")[:2])
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.double().square().sum())
    results.update({f"grad_norm/{part}": np.array(square**0.5) for part, square in squares.items()})
    optimizer.step()
    for name, value in model.state_dict().items():
        results[f"moved/{name}"] = np.array(np.linalg.norm(_numpy(value).astype(np.float64) - before[name]))
    return {name: value for name, value in results.items() if name in case.arrays}


def check_case(case: Case, computed: Mapping[str, np.ndarray], device: torch.device) -> list[Row]:
    """Compare what was computed with what the case holds, a row for each of its names; what is missing fails."""
    expected = case.arrays
    orders = _orders(expected, computed)
    rows = []
    for name, wanted in expected.items():
        prefix, _, kind = name.partition("/")
        if prefix == "state" or prefix.startswith("in") or kind == "masks_shape":
            continue
        if name not in computed:
            rows.append(Row(name, np.inf, 0.0, "not computed"))
            continue
        got = computed[name]
        if kind == "masks_packed":
            wanted, got = unpack_masks(expected, prefix), unpack_masks(computed, prefix)
        if wanted.shape != got.shape:
            rows.append(Row(name, np.inf, 0.0, f"shape {got.shape} instead of {wanted.shape}"))
            continue
        order = orders.get((prefix, "proposals" if kind in LISTS["proposals"] else "detections"))
        if order is not None and len(order) == len(got):
            got = got[order]
        if kind == "masks_packed":
            rows.append(_compare_masks(name, wanted, got))
            continue
        difference = _largest(wanted.astype(np.float64) - got.astype(np.float64))
        if kind in ABSOLUTE:
            rows.append(Row(name, difference, ABSOLUTE[kind], "absolute"))
            continue
        bound = RELATIVE.get(prefix, VALUES)
        bound = max(bound, CUDA) if device.type == "cuda" else bound
        rows.append(Row(name, difference / (_largest(wanted) or 1.0), bound, "relative to the largest value"))
    return rows


def _compare_masks(name: str, wanted: np.ndarray, got: np.ndarray) -> Row:
    different = (wanted != got).sum(axis=(1, 2))
    allowed = np.maximum(PIXELS, PIXEL_FRACTION * wanted.sum(axis=(1, 2)))
    measure = f"of max({PIXELS} pixels, {PIXEL_FRACTION:.0%}); at most {int(_largest(different))} pixels differ"
    return Row(name, _largest(different / allowed), 1.0, measure)


def _orders(
    expected: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """For lists of equal length: which computed row belongs to each expected one.

    Two detections whose scores agree to the last digit or two may change places; they are the same detections.
    """

    def columns(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
        """What distinguishes the rows of a list, (n, columns), each array in units of its largest value."""
        flat = [arrays[name].reshape(len(arrays[name]), -1).astype(np.float64) for name in names]
        return np.concatenate([values / max(_largest(values), 1e-12) for values in flat], axis=1)

    orders = {}
    for prefix in {name.partition("/")[0] for name in expected}:
        for group, kinds in LISTS.items():
            names = [f"{prefix}/{kind}" for kind in kinds]
            if not all(name in expected and name in computed for name in names):
                continue
            if any(expected[name].shape != computed[name].shape or not len(expected[name]) for name in names):
                continue
            wanted, got = columns(expected, names), columns(computed, names)
            distances = np.nan_to_num(np.abs(wanted[:, None] - got[None]).max(axis=2), nan=1e9, posinf=1e9)
            orders[prefix, group] = linear_sum_assignment(distances)[1]
    return orders


def _largest(values: np.ndarray) -> float:
    """The largest absolute value, NaN where there is one."""
    return float(np.abs(values.astype(np.float64)).max()) if values.size else 0.0


def _numpy(tensor: Tensor) -> np.ndarray:
    # A copy: on the CPU the array would share the memory of weights that change.
    return tensor.detach().cpu().numpy().copy()
