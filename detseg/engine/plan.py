"""The plan of a training: its length, optimizer steps, and how often it logs, saves and evaluates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from detseg.config.options import Options, Problems, key, part
from detseg.data.loader import LoaderOptions
from detseg.engine.mean_teacher.options import MeanTeacherOptions
from detseg.errors import ConfigError
from detseg.inference.precision import AUTO, PRECISIONS
from detseg.optim.optimizer import AverageOptions, ClippingOptions, OptimizerOptions
from detseg.optim.precision import PrecisionOptions
from detseg.optim.schedules import ScheduleOptions
from detseg.runs.wandb_media import MOST_PICTURES

# Scores by which the best checkpoint can be chosen; for all of them larger is better.
BEST_METRICS = ("object_ap", "object_ap50", "object_ap75", "mean_f1", "coco_bbox_ap", "coco_segm_ap")


@dataclass(frozen=True)
class TrainingPlan(Options):
    """Periods are in iterations. metric: a key of the scores, or "auto": see `best_metric`. has_masks: of the model.
    patience: evaluations, 0 for no early stop. teacher: None without unlabelled images.
    """

    section = "SOLVER"

    loader: LoaderOptions = part(LoaderOptions)
    schedule: ScheduleOptions = part(ScheduleOptions)
    optimizer: OptimizerOptions = part(OptimizerOptions)
    clipping: ClippingOptions = part(ClippingOptions)
    precision: PrecisionOptions = part(PrecisionOptions)
    average: AverageOptions = part(AverageOptions)
    teacher: MeanTeacherOptions | None = part(MeanTeacherOptions, when=lambda cfg: bool(cfg.SEMI.UNLABELED))
    checkpoint_period: int = key("CHECKPOINT_PERIOD", at_least=1)
    checkpoint_keep: int = key("CHECKPOINT_KEEP", at_least=1)
    log_period: int = key("LOG_PERIOD", at_least=1)
    evaluation_period: int = key("TEST.EVAL_PERIOD", at_least=0)
    metric: str = key("TEST.BEST_METRIC", choices=("auto", *BEST_METRICS))
    has_masks: bool = key("MODEL.MASK_ON")
    patience: int = key("TEST.EARLY_STOP_PATIENCE", at_least=0)

    def check(self, problems: Problems) -> None:
        cfg = problems.cfg
        if self.patience and not self.evaluation_period:
            problems.add("TEST.EARLY_STOP_PATIENCE", "needs evaluations during training: set TEST.EVAL_PERIOD")
        if not problems.training:
            return
        if self.optimizer.head_warmup_iters and not cfg.MODEL.WEIGHTS:
            problems.add("SOLVER.HEAD_WARMUP_ITERS", "without MODEL.WEIGHTS everything is new: set 0")
        if not cfg.DATASETS.TEST and cfg.DATASETS.FOLD < 0:
            for name in ("TEST.EVAL_PERIOD", "TEST.EARLY_STOP_PATIENCE"):
                if cfg[name] > 0:
                    problems.add(name, "there is nothing to evaluate: give DATASETS.TEST, or set 0")
        elif not self.has_masks and self.best_metric != "coco_bbox_ap":
            expected = "MODEL.MASK_ON is False, and only coco_bbox_ap scores boxes: set it, or auto"
            problems.add("TEST.BEST_METRIC", expected)

    @property
    def best_metric(self) -> str:
        """The score by which the best checkpoint is chosen."""
        if self.metric != "auto":
            return self.metric
        return "object_ap" if self.has_masks else "coco_bbox_ap"

    @property
    def max_iter(self) -> int:
        """Total number of iterations."""
        return self.schedule.max_iter

    @property
    def images_per_iteration(self) -> int:
        """Images per iteration, which is one optimizer step."""
        return self.loader.batch_size * self.loader.accumulate

    def check_processes(self, count: int) -> None:
        """Raise ConfigError if a batch cannot be divided evenly among `count` processes."""
        if self.loader.batch_size % count:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH is {self.loader.batch_size}, the images of all processes together, which "
                f"{count} processes cannot share evenly: set it to a multiple of {count}, or start another number of "
                "them"
            )


@dataclass(frozen=True)
class ComputeOptions(Options):
    """Seed, torch.compile of the backbone, and the PyTorch settings of the same names."""

    seed: int = key("SEED", at_least=-1, at_most=2**32 - 1)
    compile: bool = key("MODEL.COMPILE")
    cudnn_benchmark: bool = key("CUDNN_BENCHMARK")
    float32_precision: str = key("FLOAT32_PRECISION", choices=("", "highest", "high", "medium"))

    @contextmanager
    def applied(self) -> Iterator[ComputeOptions]:
        """Apply PyTorch's settings during the context, and restore them afterwards."""
        benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        if self.float32_precision:
            torch.set_float32_matmul_precision(self.float32_precision)
        try:
            yield self
        finally:
            torch.backends.cudnn.benchmark = benchmark
            torch.set_float32_matmul_precision(precision)


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """How predictions are scored.

    max_detections: per image and class, for COCO AP; 0 for all. max_images: images that an evaluation during training
    uses, evenly spaced; 0 for all. balanced_by: the image-level field, "category" or "", whose values the loader
    balances; the values of a field are also scored separately. overlays: images that the final evaluation draws.
    report: whether it is followed by report.html. pictures: images that each evaluation during training draws for the
    trackers. precision: see `inference.precision`.
    """

    section = "TEST"

    max_detections: int = key("MAX_DETECTIONS_COCO", at_least=0)
    max_images: int = key("MAX_IMAGES_DURING_TRAINING", at_least=0)
    overlays: int = key("OVERLAYS", at_least=0)
    precision: str = key("PRECISION", choices=(AUTO, *PRECISIONS))
    report: bool = key("REPORT")
    balanced_by: str = key("DATALOADER.BALANCE_BY")
    pictures: int = key("TRACKING.PICTURES", at_least=0, at_most=MOST_PICTURES)
