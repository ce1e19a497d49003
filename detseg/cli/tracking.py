"""`--track`: log a command as a W&B run, in the group of the run whose files it reads."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)

_OPTIONS = ("track", "track_project", "track_group", "debug", "overwrite")


def add_tracking(parser: argparse.ArgumentParser) -> None:
    tracking = parser.add_argument_group("tracking by Weights & Biases (docs/tracking.md)")
    tracking.add_argument(
        "--track",
        action="store_true",
        help="log settings, scores, inputs and outputs as a W&B run beside the training's",
    )
    tracking.add_argument("--track-project", default="", metavar="NAME", help="another project than the training's")
    tracking.add_argument("--track-group", default="", metavar="NAME", help="another group than the training's")


def tracked(job_type: str) -> Callable[[Callable[..., int | None]], Callable[[argparse.Namespace], int | None]]:
    """Decorate the `run` of a command: pass it a CommandRun as well, and end that however the command ends."""

    def decorate(run: Callable[..., int | None]) -> Callable[[argparse.Namespace], int | None]:
        @functools.wraps(run)
        def whole(arguments: argparse.Namespace) -> int | None:
            from detseg.errors import ConfigError
            from detseg.runs.tracked_command import CommandRun
            from detseg.runs.wandb_run import missing_wandb

            options = {"project": arguments.track_project, "group": arguments.track_group}
            if any(options.values()) and not arguments.track:
                raise ConfigError("--track-project and --track-group belong to --track")
            if arguments.track and (missing := missing_wandb("auto")):
                raise ConfigError(f"--track: {missing}")
            command, status = CommandRun(job_type, asked=arguments.track, **options), 1
            try:
                result = run(arguments, command)
                status = result or 0
            except KeyboardInterrupt:
                status = 130
                raise
            finally:
                if sync := command.end(status):
                    logger.info("W&B: to send this run: %s", sync)
            return result

        return whole

    return decorate


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the command's options, as W&B shows them."""
    return {name: value for name, value in vars(arguments).items() if name not in _OPTIONS}
