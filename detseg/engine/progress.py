"""Progress display of a training: a bar with ETA and running losses, or plain lines without a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from detseg.models.base import total_loss
from detseg.models.devices import peak_memory
from detseg.progress import ProgressBar
from detseg.runs.session import Session
from detseg.runs.tracker import TRAINING

logger = logging.getLogger(__name__)

# Numbers in a line that differ between runs with identical losses.
MEASURED = ("seconds", "data_seconds", "images_per_second", "eta_seconds", "memory_gb")
# Iterations of this process that are shown whatever SOLVER.LOG_PERIOD is.
FIRST_ITERATIONS = (1, 2, 5, 10)


class LossWindow:
    """Sums of the numbers since the last logged line, so that each line is a mean over its whole period.

    Stored in the checkpoint, so that a resumed run writes the same lines.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.sums.items()}

    def clear(self) -> None:
        self.sums, self.count = {}, 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums, self.count = dict(state["sums"]), state["count"]


class Progress:
    """Show every iteration, and every `log_period` iterations log the means since the last line to the trackers.

    Some of the first iterations of this process also get a line with the means so far, not logged to trackers, so that
    losses and expected duration are seen at once. In processes other than the main one nothing is shown.

    Args:
        window: the running means.
        max_iter: total number of iterations; those before `session.iteration` are done.
        log_period: iterations from one line to the next.
        images: per iteration.
        device: of the model.
    """

    def __init__(
        self,
        session: Session,
        window: LossWindow,
        *,
        max_iter: int,
        log_period: int,
        images: int,
        device: torch.device,
    ) -> None:
        self.session = session
        self.window = window
        self.max_iter = max_iter
        self.log_period = log_period
        self.images = images
        self.device = device
        self._bar: Any = None
        self._seconds_mean, self._updates = 0.0, 0
        self._stack = ExitStack()
        self._since = time.perf_counter()

    def __enter__(self) -> Progress:
        if self.session.processes.is_main and sys.stderr is not None and sys.stderr.isatty():
            done, total = self.session.iteration, self.max_iter
            bar = ProgressBar(total=total, initial=done, desc="training", unit="it", dynamic_ncols=True)
            self._bar = self._stack.enter_context(bar)
        self.restart_clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._bar = None

    def restart_clock(self) -> None:
        """Exclude the time since the last update, spent on an evaluation or a checkpoint."""
        self._since = time.perf_counter()

    def update(self, iteration: int, losses: Mapping[str, float], *, data_seconds: float, **other: float) -> None:
        """Record a finished iteration.

        Args:
            iteration: its number, from 1.
            losses: named as by `Segmenter.forward`.
            data_seconds: spent waiting for data.
            other: further numbers, such as lr and gradient_norm.
        """
        if not self.session.processes.is_main:
            return
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        total = total_loss(losses)
        self.window.add({"total_loss": total, **losses, **other, "seconds": seconds, "data_seconds": data_seconds})
        self._updates += 1
        # First the plain mean, later an average over about the last 20 iterations.
        self._seconds_mean += (seconds - self._seconds_mean) * max(1.0 / self._updates, 0.05)
        if self._bar is not None:
            self._bar.set_postfix_str(describe_losses(total, losses), refresh=False)
            self._bar.update(iteration - self._bar.n)
        is_due = iteration % self.log_period == 0 or iteration == self.max_iter
        if is_due or self._updates in FIRST_ITERATIONS:
            means = self.window.means()
            eta = self._seconds_mean * (self.max_iter - iteration)
            if is_due:
                self.window.clear()
                speed = {"images_per_second": self.images / means["seconds"], "eta_seconds": round(eta, 1)}
                memory = peak_memory(self.device)
                used = {} if memory is None else {"memory_gb": memory / 1e9}
                self.session.trackers.log(iteration, TRAINING, {**means, **speed, **used})
            self._show(iteration, means, eta)

    def _show(self, iteration: int, means: Mapping[str, float], eta: float) -> None:
        losses = {name: value for name, value in means.items() if name.startswith("loss")}
        text = (
            f"iteration {iteration}/{self.max_iter}  {describe_losses(means['total_loss'], losses)}  "
            f"lr {means['lr']:.2e}  {means['seconds']:.3f} s/it (data {means['data_seconds']:.3f})  "
            f"ETA {format_seconds(eta)}"
        )
        if self._updates in FIRST_ITERATIONS:
            text += f" of about {format_seconds(self._seconds_mean * self.max_iter)} without evaluations"
        if self._bar is None:
            logger.info("%s", text)
        elif self.session.run.log_file is not None:  # on the terminal the bar shows it
            record = logging.LogRecord(__name__, logging.INFO, __file__, 0, text, None, None)
            self.session.run.log_file.handle(record)


def describe_losses(total: float, losses: Mapping[str, float]) -> str:
    """Format losses: "loss 1.234 (cls 0.400, mask 0.690)"."""
    parts = ", ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
    return f"loss {total:.3f} ({parts})" if parts else f"loss {total:.3f}"


def format_seconds(seconds: float) -> str:
    """Format as hours, minutes and seconds: 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
