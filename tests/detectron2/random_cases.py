"""Random configurations of the whole family, and how far two ways of computing one of them are apart.

The bounds are not numbers of one machine: what native may differ from Detectron2 follows from what Detectron2 differs
from itself, on the same weights and images, when its convolutions are computed by another library (oneDNN switched
off) or on another layout of memory (channels last).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2_cases import KEYS, disks, without_objects
from rcnn_architectures import C4, DC5

from detseg.config import load_flat_config
from detseg.engines.build import build_model
from detseg.models.base import Segmenter
from detseg.structures.predictions import Predictions
from detseg.structures.sample import Sample

# The least difference that is one: some units in the last place of single precision, relative to the largest value.
# Masks are compared in levels of 255; an unpaired detection is one that the other side does not have.
FLOORS = {"boxes": 2e-6, "scores": 2e-6, "masks": 1.0, "unpaired": 0.0, "losses": 2e-6, "gradients": 1e-5}
STEP_FLOOR = 2e-6
# How many times what Detectron2 differs from itself; of two ways of rounding one is now and then the luckier one.
FACTOR = 4
_LOSSES = ("smooth_l1", "giou", "diou", "ciou")


@dataclass(frozen=True)
class Drawn:
    """keys: of the configuration, by dotted name. samples: to train with and to predict. steps: of a trajectory."""

    keys: dict[str, Any]
    samples: list[Sample]

    def model(self, engine: str) -> Segmenter:
        return build_model(load_flat_config({**self.keys, "MODEL.ENGINE": engine}))


def draw(seed: int, *, wide: bool = False) -> Drawn:
    """Draw a configuration and images; wide: of 128 channels and more, as the networks that are used have.

    Sampling takes all anchors and proposals that there are, so that nothing is random in what is computed.
    """
    random = np.random.default_rng((seed, wide))

    def one_of(*values: Any) -> Any:
        return values[random.integers(len(values))]

    backbone = one_of("FPN", "FPN", "FPN", "C4", "DC5")
    depth = one_of(18, 34, 50, 50) if backbone == "FPN" else 50
    groups, width = one_of(1, 1, 2), 64 if wide else 8
    channels = 128 if wide else 32
    norms = ["FrozenBN", "BN", "LN", ""] + ["GN"] * (wide or depth < 50)  # groups of 32 channels
    norm, head_norm = one_of(*norms), one_of("", "GN", "LN", "BN")
    cascade = backbone != "C4" and random.random() < 0.4
    iou = one_of(0.5, 0.4)
    keys = KEYS | {"FPN": {}, "C4": C4, "DC5": DC5}[backbone]
    keys |= {
        "MODEL.MASK_ON": random.random() < 0.85,
        "MODEL.PIXEL_STD": one_of([1.0] * 3, [57.0, 58.0, 59.0]),
        "INPUT.FORMAT": one_of("BGR", "RGB"),
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NORM": norm,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 64 if wide else 32,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 4 * width,
        "MODEL.RESNETS.NUM_GROUPS": groups if depth >= 50 else 1,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width // groups if depth >= 50 else 64,
        "MODEL.RESNETS.STRIDE_IN_1X1": bool(one_of(True, False)),
        "MODEL.FPN.OUT_CHANNELS": channels,
        "MODEL.FPN.NORM": head_norm,
        "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": one_of([[0.5, 1.0, 2.0]], [[1.0]], [[0.3, 3.0]]),
        "MODEL.ANCHOR_GENERATOR.OFFSET": one_of(0.0, 0.5),
        "MODEL.RPN.CONV_DIMS": one_of([-1], [channels], [-1, -1]),
        "MODEL.RPN.BOUNDARY_THRESH": one_of(-1, 0, 16),
        "MODEL.RPN.NMS_THRESH": one_of(0.5, 0.7),
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": one_of(*_LOSSES),
        "MODEL.RPN.SMOOTH_L1_BETA": one_of(0.0, 0.11),
        "MODEL.RPN.LOSS_WEIGHT": one_of(1.0, 0.5),
        "MODEL.ROI_HEADS.NUM_CLASSES": one_of(2, 3, 4),
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [iou],
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": one_of(0.3, 0.5, 0.7),
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": bool(one_of(True, True, False)),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": bool(cascade or one_of(True, False)),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": one_of(*_LOSSES),
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": one_of(0.0, 0.5),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": one_of([10.0, 10.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0]),
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": one_of(0, 2),
        "MODEL.ROI_BOX_HEAD.NUM_CONV": one_of(0, 1, 2),
        "MODEL.ROI_BOX_HEAD.CONV_DIM": channels,
        "MODEL.ROI_BOX_HEAD.NORM": head_norm,
        "MODEL.ROI_BOX_HEAD.NUM_FC": one_of(1, 2),
        "MODEL.ROI_BOX_HEAD.FC_DIM": 4 * channels,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": bool(one_of(True, False)),
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": one_of(0, 2),
        "MODEL.ROI_MASK_HEAD.CONV_DIM": channels,
        "MODEL.ROI_MASK_HEAD.NORM": head_norm,
        "TEST.DETECTIONS_PER_IMAGE": one_of(5, 20, -1),
    }
    if backbone != "C4":
        keys["MODEL.ROI_MASK_HEAD.NUM_CONV"] = one_of(0, 1, 2)
        keys["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"] = one_of(5, 7)
        keys["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"] = one_of(7, 14)
    if cascade:
        keys["MODEL.ROI_HEADS.NAME"] = "CascadeROIHeads"
        keys["MODEL.ROI_BOX_CASCADE_HEAD.IOUS"] = [iou, iou + 0.1, iou + 0.2]
    sizes = [(64, 96), (70, 50)] if not wide else [(96, 128), (90, 75)]
    samples = [disks(int(random.integers(3, 12)), size, seed=100 * seed + index) for index, size in enumerate(sizes)]
    return Drawn(keys, [*samples, without_objects()] if random.random() < 0.3 else samples)


def without_onednn() -> Any:
    """The context in which convolutions are computed by another library."""
    return torch.backends.mkldnn.flags(enabled=False)


@dataclass(frozen=True)
class Answer:
    """What a model computes of a case: predictions in evaluation, losses and the gradient of their sum in training."""

    predictions: list[Predictions]
    losses: dict[str, float]
    gradient: torch.Tensor


def answer_of(model: Segmenter, samples: Sequence[Sample]) -> Answer:
    images = [sample.image for sample in samples]
    predictions = model.eval().predict(
        images, [(2 * image.shape[0], image.shape[1]) for image in images], soft_masks=True
    )
    with restored(model):
        losses = model.train()(samples)
        sum(losses.values()).backward()
        parts = [each.grad.flatten() for _, each in sorted(model.named_parameters()) if each.grad is not None]
        return Answer(predictions, {name: loss.item() for name, loss in losses.items()}, torch.cat(parts))


@contextmanager
def restored(model: Segmenter) -> Iterator[None]:
    """Give a model back its weights and statistics, without gradients."""
    state = copy.deepcopy(model.state_dict())
    yield
    model.load_state_dict(state)
    model.zero_grad(set_to_none=True)


def differences(one: Answer, other: Answer) -> dict[str, float]:
    """How far two answers are apart, by the names of FLOORS; the worst of each."""
    found = dict.fromkeys(FLOORS, 0.0)
    for a, b in zip(one.predictions, other.predictions, strict=True):
        found = {name: max(found[name], value) for name, value in _of_predictions(a, b).items()} | {
            name: found[name] for name in ("losses", "gradients")
        }
    if one.losses.keys() != other.losses.keys():
        raise AssertionError(f"losses {sorted(one.losses)} and {sorted(other.losses)}")
    found["losses"] = max(abs(value - other.losses[name]) / max(abs(value), 1e-3) for name, value in one.losses.items())
    found["gradients"] = float((one.gradient - other.gradient).norm() / one.gradient.norm())
    return found


def _of_predictions(one: Predictions, other: Predictions) -> dict[str, float]:
    """Detections are paired first: equal scores may change places, and the last ones their limit."""
    far = np.abs(one.boxes[:, None] - other.boxes[None]).max(axis=2, initial=0)
    far = far + 1e6 * (one.classes[:, None] != other.classes[None])
    pairs = [(i, int(far[i].argmin())) for i in range(len(one)) if len(other)]
    pairs = [(i, j) for i, j in pairs if far[i, j] < 0.5 and int(far[:, j].argmin()) == i]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    size = max(one.height, one.width)
    levels = 0.0
    if one.soft_masks is not None:
        crops = [(one.soft_masks[i].astype(int), other.soft_masks[j].astype(int)) for i, j in pairs]
        # of boxes that differ in the last digit a crop may begin a pixel later
        levels = max((float(np.abs(a - b).max(initial=0)) for a, b in crops if a.shape == b.shape), default=0.0)
    return {
        "boxes": float(np.abs(one.boxes[rows] - other.boxes[columns]).max(initial=0)) / size,
        "scores": float(np.abs(one.scores[rows] - other.scores[columns]).max(initial=0)),
        "masks": levels,
        "unpaired": (len(one) + len(other) - 2 * len(pairs)) / max(len(one) + len(other), 1),
    }


def trajectory(model: Segmenter, samples: Sequence[Sample], steps: int) -> list[float]:
    """The total loss of each of some steps of SGD with momentum and clipped gradients, on the same batch."""
    with restored(model):
        parameters = [each for each in model.train().parameters() if each.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        totals = []
        for _ in range(steps):
            loss = sum(model(samples).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            totals.append(loss.item())
        return totals


@dataclass(frozen=True)
class Comparison:
    """Differences by the names of FLOORS, and relative ones of the total loss by step (`steps` of them).

    native: from Detectron2. fast: of the native model as commands run it, from Detectron2 on channels last. itself: of
    Detectron2 from itself, the larger one of the two ways that the module names.
    """

    native: dict[str, float]
    fast: dict[str, float]
    itself: dict[str, float]
    native_steps: list[float]
    fast_steps: list[float]
    itself_steps: list[float]

    def beyond(self) -> list[str]:
        """What is beyond its bound, in words."""
        found = []
        for name, values in (("native", self.native), ("fast", self.fast)):
            for kind, floor in FLOORS.items():
                if values[kind] > max(floor, FACTOR * self.itself[kind]):
                    found.append(f"{name}: {kind} {values[kind]:.1e}, Detectron2 from itself {self.itself[kind]:.1e}")
        for name, steps in (("native", self.native_steps), ("fast", self.fast_steps)):
            found += [f"{name}: {text}" for text in steps_beyond(steps, self.itself_steps)]
        return found


def steps_beyond(found: Sequence[float], itself: Sequence[float]) -> list[str]:
    """The steps whose relative difference is larger than that of Detectron2 from itself up to there allows."""
    bounds = [max(STEP_FLOOR, FACTOR * max(itself[: step + 1])) for step in range(len(itself))]
    return [
        f"step {step + 1}: {value:.1e}, bound {bound:.1e}"
        for step, (value, bound) in enumerate(zip(found, bounds, strict=True))
        if value > bound
    ]


def compare(drawn: Drawn, steps: int = 0) -> Comparison:
    """Compute a case in all ways, from the same random weights."""
    torch.manual_seed(0)
    theirs, ours = drawn.model("detectron2"), drawn.model("native")
    ours.load_state_dict(theirs.state_dict())
    ways: Mapping[str, tuple[Callable[[], Segmenter], Any]] = {
        "theirs": (lambda: theirs, nullcontext),
        "library": (lambda: theirs, without_onednn),
        "native": (lambda: ours, nullcontext),
        "fast": (ours.prefer_speed, nullcontext),
        "layout": (lambda: theirs.to(memory_format=torch.channels_last), nullcontext),
    }
    answers, totals = {}, {}
    for name, (model, context) in ways.items():
        with context():
            answers[name] = answer_of(model(), drawn.samples)
            totals[name] = np.array(trajectory(model(), drawn.samples, steps))
    pairs = {"native": ("theirs", "native"), "fast": ("layout", "fast")}
    pairs |= {name: ("theirs", name) for name in ("library", "layout")}
    found = {name: differences(*(answers[way] for way in pair)) for name, pair in pairs.items()}
    relative = {name: np.abs(totals[a] - totals[b]) / np.abs(totals[a]).clip(1e-3) for name, (a, b) in pairs.items()}
    return Comparison(
        found["native"],
        found["fast"],
        {name: max(found["library"][name], found["layout"][name]) for name in FLOORS},
        relative["native"].tolist(),
        relative["fast"].tolist(),
        np.maximum(relative["library"], relative["layout"]).tolist(),
    )
