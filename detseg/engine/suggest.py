"""A complete training configuration from the suggestions of inspect_data, adapted to this machine."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detseg.coco.catalog import load_dataset
from detseg.coco.dataset import CocoDataset
from detseg.config import load_config
from detseg.curation.inspection.advice import Suggestion
from detseg.curation.inspection.advise_detector import advise_pretrained
from detseg.curation.inspection.advise_training import Machine, Speed, Workload, advise_training
from detseg.curation.inspection.inspect_data import NETWORKS, Inspection, suggested_yaml
from detseg.data.loader import TrainingStream
from detseg.engine.plan import TrainingPlan
from detseg.engine.state import deterministic, undisturbed_rng
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.errors import DetsegError, first_line
from detseg.models.base import total_loss
from detseg.models.devices import choose_device, is_out_of_memory, peak_memory
from detseg.models.imagenet import named_weights
from detseg.models.pretrained import is_named
from detseg.optim.optimizer import build_optimizer
from detseg.optim.precision import build_precision
from detseg.runs.threads import cores_allowed

if TYPE_CHECKING:
    from detseg.config import Config

logger = logging.getLogger(__name__)

PRETRAINED = ("configs/_base_/mask_rcnn_fpn.yaml", "configs/_base_/fine_tuning.yaml")
# The same small network with a backbone of timm, and weights of package:// or timm://.
ON_TIMM = (*NETWORKS, "configs/_base_/efficientnet_lite0.yaml")
_MEAN = "MODEL.PIXEL_MEAN"
# Steps with one image: the first one is slow (libraries start up), the others are measured.
_STEPS = 4


def suggested_training(
    found: Inspection,
    train: Sequence[str],
    test: Sequence[str],
    *,
    minutes: float,
    weights: str = "",
    image_root: str = "",
) -> str:
    """Return the text of a configuration that runs from any folder, each value with its reason as a comment.

    Args:
        found: the inspected data.
        train, test: DATASETS.TRAIN and TEST, catalog names or paths.
        minutes: time limit of training and evaluations.
        weights: MODEL.WEIGHTS: of a ResNet-50 pyramid, or a backbone named `package://...` or `timm://...`; "" trains
        the small network from scratch.
        image_root: folder of the images, if it differs from the one in the files.

    Raises:
        DetsegError: the data cannot be read, or the configuration cannot be trained.
    """
    data: dict[str, Any] = {"DATASETS.TRAIN": _absolute(train), "DATASETS.TEST": _absolute(test)}
    if image_root:
        data["DATASETS.IMAGE_ROOT"] = os.path.abspath(image_root)
    where = Suggestion("data", "The data that were looked at.", "The first set of TEST chooses threshold.", data)
    networks, network, *further = _network(found, weights)
    suggestions = [where, network, *found.suggestions, *further]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suggested.yaml"
        path.write_text(suggested_yaml(suggestions, networks), encoding="utf-8")
        cfg = load_config(path)
    validate_config(cfg)
    loaded = CocoDataset.match_classes([load_dataset(name, image_root) for name in (*train, *test)])
    sets = [CocoDataset.concatenate(part) for part in (loaded[: len(train)], loaded[len(train) :])]
    machine = this_machine(cfg)
    speed = None
    try:
        if sets[0].objects_per_image().any():
            speed = measure(cfg, sets[0])
    except DetsegError as error:
        logger.warning("the speed of a training could not be measured: %s", error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("the speed of a training could not be measured: %s", first_line(error))
    seen = found.report["network"]
    work = Workload(
        images=len(sets[0]),
        validation=len(sets[1]),
        windows=_windows(sets[0], seen["factor"], seen["crop"]),
        objects=(seen["objects_in_crop"] or {}).get("mean", 0.0),
    )
    numbers = advise_training(work, machine, speed, minutes=minutes, pretrained=bool(weights))
    return suggested_yaml([*suggestions, numbers], networks)


def _network(found: Inspection, weights: str) -> tuple[Any, ...]:
    """Return the setting files of a network, its suggestion, and further suggestions that its weights require."""
    classes = {"MODEL.ROI_HEADS.NUM_CLASSES": len(found.report["classes"])}
    if not weights:
        why = "No pretrained weights are named (--weights), and none are needed."
        return NETWORKS, Suggestion("network", "A small pyramid that learns from scratch.", why, classes)
    if not is_named(weights):
        keys = {**classes, "MODEL.WEIGHTS": weights if "://" in weights else os.path.abspath(weights)}
        advice = "A ResNet-50 pyramid from given weights."
        return PRETRAINED, Suggestion("network", advice, "They are named by --weights.", keys)
    known = named_weights(weights)
    keys = {**classes, "MODEL.TIMM.NAME": known.network, "MODEL.WEIGHTS": weights}
    network = Suggestion("network", f"A small pyramid on timm's {known.network}.", "Named by --weights.", keys)
    channels = next((len(one.keys[_MEAN]) for one in found.suggestions if _MEAN in one.keys), 3)
    advice, reason = "Intensities normalised as the weights expect.", f"{weights} was trained with it."
    intensities = Suggestion("input", advice, reason, known.pixel_statistics(channels))
    side = found.report["network"]["side"]
    has_stride_2 = known.network.startswith("tf_efficientnet")
    further = advise_pretrained(found.suggestions, side["median"] if side else None, has_stride_2)
    return ON_TIMM, network, intensities, *further


def _absolute(names: Sequence[str]) -> list[str]:
    return [os.path.abspath(name) if Path(name).is_file() else name for name in names]


def _windows(dataset: CocoDataset, factor: float, crop: int) -> float:
    """Return how many crops cover all images, scaled by `factor` at the network; crop 0: number of whole images."""
    if not crop:
        return float(len(dataset))
    areas = (record.height * record.width * factor**2 for record in dataset.images)
    return sum(max(area / crop**2, 1.0) for area in areas)


def this_machine(cfg: Config) -> Machine:
    """Return the machine with the device of MODEL.DEVICE."""
    cores, device = cores_allowed(), choose_device(cfg.MODEL.DEVICE)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Machine(f"the GPU {torch.cuda.get_device_name(device)}", cores, free)
    name = "the processor" if device.type == "cpu" else str(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = None
    return Machine(name, cores, free)


def measure(cfg: Config, dataset: CocoDataset) -> Speed:
    """Train a new model on a few images and return the time per image, including data loading."""
    plan = TrainingPlan.from_config(cfg)
    device = choose_device(cfg.MODEL.DEVICE)
    stream = TrainingStream.build(plan.loader, dataset, seed=0)
    times, before = [], peak_memory(device) or 0
    with undisturbed_rng(), deterministic(device):
        torch.manual_seed(0)
        model = build_model(cfg).to(device)
        model.prefer_speed()
        optimizer = build_optimizer(plan.optimizer, model, new_entries=())
        precision = build_precision(plan.precision, device)
        for position in range(_STEPS):
            started = time.perf_counter()
            samples = [stream[position]]
            optimizer.zero_grad(set_to_none=True)
            with precision.autocast():
                losses = model(samples)
            precision.scaled(total_loss(losses)).backward()
            precision.step(optimizer)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
    grown = (peak_memory(device) or 0) - before
    return Speed(sorted(times[1:])[(_STEPS - 1) // 2], grown if grown > 0 else None)
