"""Detectron2's trainer in the place of the native loop: see `engine.train.run_iterations`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from detseg.data.loader import Share, build_train_loader
from detseg.detectron2.config import to_cfg_node
from detseg.detectron2.steps import NotFiniteError
from detseg.detectron2.trainer import Trainer
from detseg.engine.interrupt import StopRequest
from detseg.engine.precision import Precision
from detseg.engine.progress import Progress, Silence
from detseg.engine.run_folder import RunFolder
from detseg.engine.state import TrainingState
from detseg.engine.train import Batches, Evaluate, Loop, Plan, dump_not_finite

if TYPE_CHECKING:
    from detseg.config import Config
    from detseg.data.coco import CocoDataset

logger = logging.getLogger(__name__)

# The batches that PRECISE_BN looks at are others than those of training.
_STATISTICS_SEED = 1


def build_loop(cfg: Config, data: CocoDataset, share: Share) -> Loop:
    """The loop of a training by Detectron2; data and share are looked at for TEST.PRECISE_BN alone."""
    node = to_cfg_node(cfg)

    def statistics_batches() -> Batches:
        """Endless enough: each evaluation takes NUM_ITER batches."""
        settings = cfg.clone()
        settings.DATALOADER.NUM_WORKERS = 0
        images = cfg.SOLVER.IMS_PER_BATCH * cfg.TEST.PRECISE_BN.NUM_ITER
        total = images * (cfg.SOLVER.MAX_ITER + 1)
        return iter(build_train_loader(settings, data, 0, total, seed=cfg.SEED + _STATISTICS_SEED, share=share))

    def loop(
        state: TrainingState,
        batches: Batches,
        *,
        plan: Plan,
        run: RunFolder,
        progress: Progress | Silence,
        evaluate: Evaluate | None,
        stop: StopRequest,
    ) -> None:
        state.model.train()
        if state.precision.dtype is not None and state.precision.device.type != "cuda":
            logger.info("Detectron2's mixed precision needs CUDA: full precision on %s", state.precision.device)
            state.precision = Precision(state.precision.device, None)
        trainer = Trainer(
            node,
            state=state,
            batches=batches,
            plan=plan,
            run=run,
            progress=progress,
            evaluate=evaluate,
            stop=stop,
            statistics_batches=statistics_batches if cfg.TEST.PRECISE_BN.ENABLED else None,
        )
        try:
            trainer.train()
        except NotFiniteError as error:
            learning_rate = state.optimizer.defaults["lr"] * state.schedule(state.iteration)
            dump_not_finite(state, error.what, trainer.batches.latest, error.losses, run, learning_rate)

    return loop
