"""The `detseg` command, which all scripts in tools/ and datasets/ also run.

A command is a module of this package with `DESCRIPTION`, `add_arguments(parser)` and `run(arguments)`. It is imported
only when used, so that `detseg --help` is fast. If a module sets `ACCEPTS_OVERRIDES`, arguments that the parser does
not know (`KEY VALUE`, `KEY=VALUE`, `--KEY=VALUE`) are passed as `arguments.overrides`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import itertools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any, NoReturn, TextIO

from detseg.cli.agent_words import option_words
from detseg.errors import DetsegError, did_you_mean
from detseg.files.names import printable
from detseg.progress import LogHandler, closed_bars
from detseg.runs.threads import prepare_torch
from detseg.version import __version__

# Name of the command -> description, in the order in which a project needs them.
COMMANDS = {
    "fit": "from images and labels to a trained model, its scores and pictures, in one command",
    "make_synthetic": "draw a data set of synthetic cells with exact masks",
    "download": "download a data set from its official source; checked, and continued if interrupted",
    "prepare": "convert data of any known format to COCO files; `detseg prepare --help` lists the formats",
    "repair": "repair the masks of a COCO file",
    "inspect_data": "inspect a data set: statistics, problems and suggested settings in one HTML file",
    "split": "split a COCO file into folds or parts without leakage, or search a split for leakage",
    "train_net": "train a model, evaluate it and draw its predictions",
    "sweep": "run a W&B sweep without a server: many trainings or tunings, the best as a configuration",
    "run_study": "run a study: trainings in folds, their predictions and scores, compared; resumable, also on Ray",
    "predict": "run a trained model over images and write a Predictions file",
    "export": "write annotations or predictions for other programs: label images, ImageJ, QuPath, measurements, ...",
    "pseudo_label": "train with unlabelled images that a model labels, in rounds that are kept only if they help",
    "fuse": "fuse predictions of several models, flips or programs into one file",
    "tune_thresholds": "choose thresholds and settings of a fusion on out-of-fold predictions",
    "fit_triage": "learn to recognise kinds of images, with a model and threshold for each if that gains",
    "evaluate": "score a Predictions file against ground truth",
    "measure": "measure counts, sizes and shapes of objects by image and condition, with tests between conditions",
    "report": "write one HTML file about a training, or comparing several: scores, curves, images, settings",
    "make_submission": "write, check and score a competition's CSV",
    "build_kernel": "make a Kaggle notebook that submits trained models, check it here, upload it",
    "visualize": "draw predictions and ground truth over the images",
    "convert_weights": "convert weights of any kind to a safetensors file, or to one for Detectron2",
    "check_parity": "compare the native models with numbers computed by Detectron2",
}
SHORT_NAMES = {"train": "train_net"}
# Former name -> present name.
RENAMED = {
    **{
        f"prepare_{name}": f"prepare {name}"
        for name in (
            *("label_images", "coco", "dsb2018", "sartorius", "livecell", "bbbc039"),
            *("stranger_sections", "cellpose", "geojson"),
        )
    },
    "prepare_rois": "prepare imagej",
}

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `detseg COMMAND ...`; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="detseg",
        description="Instance segmentation for microscopy: train, predict, score.",
        epilog="Commands:\n" + "\n".join(f"  {name:27}{text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"detseg {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below; COMMAND --help explains it")
    if not words:
        parser.print_help()
        return EXIT_BAD_INPUT
    name = words[0]
    command = SHORT_NAMES.get(name, name).replace("-", "_")
    if command in RENAMED:
        print(f"error: `detseg {name}` is now `detseg {RENAMED[command]}`; its options are the same", file=sys.stderr)
        return EXIT_BAD_INPUT
    if command not in COMMANDS:
        parser.parse_args(words[:1])
        advice = did_you_mean(command, [*COMMANDS, *SHORT_NAMES]) or f"; there are: {', '.join(COMMANDS)}"
        parser.error(f"there is no command {name!r}{advice}")
    return run_command(command, words[1:], prog=f"detseg {name}")


def run_tool(command: str) -> None:
    """Run one command for the script that the user started, and exit with its status."""
    leave(run_command(command, sys.argv[1:], prog=None))


def console() -> NoReturn:
    """Run the command in sys.argv, and exit with its status."""
    leave(main())


def leave(status: int) -> NoReturn:
    """Exit with `status`.

    In a process of torchrun or --num-gpus, exit at once after flushing all output: threads of PyTorch's gloo may hold
    the process group during interpreter shutdown and abort the process, which torchrun would report as a failed
    training.
    """
    if status > 128:  # a repeated signal, as `timeout` sends it, must not change the status during shutdown
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if "TORCHELASTIC_RUN_ID" in os.environ or "DETSEG_LAUNCHED" in os.environ:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run_command(command: str, words: Sequence[str], prog: str | None) -> int:
    """Parse the arguments of one command and run it. A DetsegError becomes a message and exit status 2."""
    # Before torch is imported, because OpenMP reads the variables then.
    prepare_torch()
    module = importlib.import_module(f"detseg.cli.{command}")
    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal or file cannot encode are escaped instead of ending the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return run_parsed(module, parse_words(module, words, prog))


def run_parsed(module: ModuleType, arguments: argparse.Namespace) -> int:
    """Run a command with parsed arguments; see `run_command`."""
    handler = LogHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    try:
        with closed_bars(), redirect_stdout(_PrintableStream(sys.stdout)):
            return module.run(arguments) or 0
    except DetsegError as error:
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        # Errors that no command checks for: an over-long name, a folder that vanished, a full disk.
        if arguments.debug or error.filename is None:
            raise
        name = printable(os.fsdecode(error.filename))
        print(f"error: {name[:200]}: cannot be used ({error.strerror})", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


class _Printable(logging.Formatter):
    """Escapes terminal control characters, which may come from file names."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _PrintableStream:
    """A stream that escapes terminal control characters, which may come from file names."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Parser(argparse.ArgumentParser):
    """Suggests the nearest option for a mistyped one."""

    words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        advice = [text for word in self.words if (text := self.nearest_option(word))]
        super().error("; ".join([message, *advice]))

    def nearest_option(self, word: str) -> str | None:
        """Return advice with the option that resembles an argument; None for a valid option or without a match."""
        name = word.partition("=")[0]
        if not name.startswith("--") or name in self._option_string_actions:
            return None
        near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.75)
        return f"there is no option {name}: did you mean {near[0]}?" if near else None


def parse_words(module: ModuleType, words: Sequence[str], prog: str | None) -> argparse.Namespace:
    """Return the arguments for a command's `run`."""
    parser = _Parser(prog=prog, description=module.DESCRIPTION, allow_abbrev=False)
    parser.words = words
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    overrides = getattr(module, "ACCEPTS_OVERRIDES", False)
    words = option_words(parser, words, overrides=overrides)
    if not overrides:
        return parser.parse_args(words)
    # Values of overrides may look like options (`SOLVER.BASE_LR -1`), and keys may have the form `--KEY=VALUE`.
    arguments, overrides = parser.parse_known_args(words)
    overrides = [*_keys_behind_values(arguments), *overrides]
    for previous, word in itertools.pairwise(["", *overrides]):
        is_key = "." in word.partition("=")[0]
        is_value = previous[:1].isupper() and "=" not in previous
        if not is_key and not is_value and (advice := parser.nearest_option(word)):
            parser.exit(EXIT_BAD_INPUT, f"error: {advice}\n")
    arguments.overrides = overrides
    return arguments


def _keys_behind_values(arguments: argparse.Namespace) -> list[str]:
    """Split off keys with their values that follow an option with several values: `--images a.png KEY VALUE`."""
    keys: list[str] = []
    for name, values in vars(arguments).items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            continue
        first = next((place for place, value in enumerate(values) if place and _is_key(value)), len(values))
        keys += values[first:]
        setattr(arguments, name, values[:first])
    return keys


def _is_key(word: str) -> bool:
    section, dot, _ = word.partition("=")[0].lstrip("-+").partition(".")
    if not dot or not section.isupper() or os.path.exists(word):
        return False
    from detseg.config.schema import schema

    return section in schema().sections


if __name__ == "__main__":
    console()
