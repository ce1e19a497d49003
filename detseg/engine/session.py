"""From a configuration to everything that the loop needs, and from its end to a finished run folder."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detseg.config import config_hash, dump_config
from detseg.engine.evaluation import evaluate_in_full
from detseg.engine.reproducibility import choose_seed, environment
from detseg.engine.state import TrainingState, build_state
from detseg.engines.build import build_model
from detseg.engines.choice import choose_engine
from detseg.errors import ConfigError, DetsegError, RunError
from detseg.files.atomic import write_text
from detseg.files.hashing import hash_file
from detseg.models.weights import load_weights
from detseg.optim.precision import compile_backbone
from detseg.runs.distributed import ALONE, Processes
from detseg.runs.interrupt import StopRequest, TrainingInterrupted
from detseg.runs.run_folder import RunFolder, new_record, read_record, update_record

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.config import Config
    from detseg.models.base import Segmenter

logger = logging.getLogger(__name__)

BuildModel = Callable[["Config"], "Segmenter"]


@contextmanager
def recorded_run(cfg: Config, run: RunFolder, processes: Processes = ALONE) -> Iterator[Config]:
    """Write config.yaml and run.json; inside the context the configuration has the run's seed and folder.

    run.json then says how it ended: finished, interrupted or failed; "running" where the process was killed.
    """
    recorded = processes.from_main(lambda: _begin_record(cfg, run, processes.count))
    if not processes.is_main:
        yield recorded
        return
    try:
        yield recorded
    except (TrainingInterrupted, KeyboardInterrupt):
        _record_end(run, status="interrupted")
        raise
    except DetsegError as error:
        _record_end(run, status="failed", error=str(error))
        run.forget()
        raise
    except BaseException as error:
        _record_end(run, status="failed", error=f"{type(error).__name__}: {error}")
        raise
    update_record(run, status="finished")


def _record_end(run: RunFolder, **values: str) -> None:
    with suppress(RunError):  # a full disk must not hide what happened
        update_record(run, **values)


def _begin_record(cfg: Config, run: RunFolder, processes: int) -> Config:
    before = None if run.new else read_record(run)
    engine = choose_engine(cfg)
    if before is not None and before["engine"] != engine.name:
        raise RunError(
            f"{run.path} was begun by the engine {before['engine']}, and MODEL.ENGINE asks for {engine.name} "
            f"({cfg.origin('MODEL.ENGINE')}): a run goes on with its own engine. Leave MODEL.ENGINE away, or start "
            f"another run from its weights: MODEL.WEIGHTS {run.last}"
        )
    recorded = cfg.clone()
    recorded.set("MODEL.ENGINE", engine.name, origin=engine.reason)
    recorded.SEED = choose_seed(cfg.SEED) if before is None else before["seed"]
    recorded.OUTPUT_DIR = str(run.path)
    recorded.freeze()
    record = new_record(
        config=None if cfg.source is None else str(cfg.source),
        config_hash=config_hash(recorded),
        seed=recorded.SEED,
        engine=engine.name,
        engine_reason=engine.reason if before is None else before["engine_reason"],
        environment={**environment(), **engine_versions(engine.name)},
        processes=processes,
    )
    if before is None:
        update_record(run, **record)
    else:
        news = ("started", "command", "environment", "git", "host", "process", "processes")
        again = {key: record[key] for key in news}
        update_record(
            run, status="running", config_hash=record["config_hash"], resumed=[*before.get("resumed", []), again]
        )
    write_text(run.config, dump_config(recorded))
    logger.info("run folder %s, seed %d, engine %s (%s)", run.path, recorded.SEED, engine.name, record["engine_reason"])
    if processes > 1:
        images = cfg.SOLVER.IMS_PER_BATCH
        logger.info("%d processes, %d of the %d images of a batch in each", processes, images // processes, images)
    return recorded


def engine_versions(engine: str) -> dict[str, str]:
    """The versions that decide an engine's numbers beside those of `environment`."""
    packages = ("detectron2", "fvcore") if engine == "detectron2" else ()
    return {package: importlib.metadata.version(package) for package in packages}


@contextmanager
def compute_settings(cfg: Config) -> Iterator[None]:
    """CUDNN_BENCHMARK and FLOAT32_PRECISION, as they were afterwards."""
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)


def check_shares(cfg: Config, processes: Processes) -> None:
    """Refuse a batch that cannot be shared out evenly.

    Raises:
        ConfigError: naming both numbers.
    """
    images = cfg.SOLVER.IMS_PER_BATCH
    if images % processes.count:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {images}, the images of all processes together, which {processes.count} "
            f"processes cannot share evenly: set it to a multiple of {processes.count}, or start another number of them"
        )


def start_state(
    cfg: Config, classes: Sequence[str], build: BuildModel | None = None, processes: Processes = ALONE
) -> TrainingState:
    """The state of a training before its first iteration: model from the seed or MODEL.WEIGHTS, fresh optimizer."""
    device = processes.device(cfg.MODEL.DEVICE)
    torch.manual_seed(cfg.SEED)
    model = (build or build_model)(cfg)
    new_entries = None
    if cfg.MODEL.WEIGHTS:
        new_entries = set(load_weights(model, cfg.MODEL.WEIGHTS, fine_tune=True, cfg=cfg).new)
    model.to(device).prefer_speed()
    if cfg.MODEL.COMPILE:
        compile_backbone(model, len(cfg.MODEL.PIXEL_MEAN))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info("%s on %s: %.2f million parameters to train", cfg.MODEL.META_ARCHITECTURE, device, trained / 1e6)
    return build_state(cfg, model, classes, processes, new_entries)


def finish(
    cfg: Config, state: TrainingState, run: RunFolder, test_sets: Mapping[str, CocoDataset], stop: StopRequest
) -> dict[str, Any]:
    """Score the best weights in full; what is returned is what final_metrics.json holds, {} without DATASETS.TEST."""
    if state.best.iteration == 0:  # never evaluated: the newest weights are the best that are known
        state.save_best(run.best, {})
    if not test_sets:
        logger.warning("there is no DATASETS.TEST: the last weights are kept as %s, without a score", run.best)
        return {}
    classes = state.about["classes"]
    reason = (read_record(run) or {}).get("engine_reason", "")
    return evaluate_weights(cfg, state.model, run.best, test_sets, classes, run.path, stop, state.processes, reason)


def evaluate_weights(
    cfg: Config,
    model: Segmenter,
    weights: str | Path,
    test_sets: Mapping[str, CocoDataset],
    classes: Sequence[str],
    folder: Path,
    stop: StopRequest,
    processes: Processes = ALONE,
    reason: str = "",
) -> dict[str, Any]:
    """Load weights into `model` and evaluate them in full, with everything written into `folder`.

    reason: why this engine, where the configuration does not know it any more.
    """
    engine = choose_engine(cfg, training=False)

    def load() -> dict[str, Any]:
        load_weights(model, weights)
        about = {"weights": str(weights), "checkpoint_hash": hash_file(Path(weights))}
        return {"engine": engine.name, "engine_reason": reason or engine.reason, **about}

    provenance = processes.from_main(load)
    processes.share_state(model)
    return evaluate_in_full(
        cfg, model.eval(), test_sets, classes, folder, stop=stop, provenance=provenance, processes=processes
    )
