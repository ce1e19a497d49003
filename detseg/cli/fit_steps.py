"""The steps of `detseg fit`, which are other commands, and the record of finished steps."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.cli import prepare
from detseg.cli.main import parse_words
from detseg.cli.next_step import as_part, command_line
from detseg.errors import ConfigError, DataError, list_problems
from detseg.files.atomic import make_folder, read_json, write_json, write_text
from detseg.files.lock import FolderLock
from detseg.files.names import matching
from detseg.formats.table import FORMATS, TOLD

if TYPE_CHECKING:
    from detseg.formats.reader import Reader

DEFAULT_VALIDATION = 0.2
# Enough for a few checkpoints of the small network with averaged weights and optimizer state, and for pictures.
FREE_BYTES = 1_000_000_000
MOST_PICTURES = 50
RECORD = "fit.json"
VAL, TEST = "val", "test"


@dataclass(frozen=True)
class Step:
    """name: in the record. what: description for users. words: command with its arguments. reads: files whose content,
    in addition to the inputs of the steps before, decides whether the step is repeated."""

    name: str
    what: str
    words: tuple[str, ...]
    reads: tuple[Path, ...] = ()

    @property
    def line(self) -> str:
        """The command line."""
        return command_line(*self.words)


def check_before(arguments: argparse.Namespace) -> None:
    """Check early what would fail later: empty folders, invalid settings, a folder of something else, a full disk."""
    from detseg.config import load_config

    if not 0 < arguments.minutes < math.inf:
        raise DataError(f"--minutes is {arguments.minutes}; expected the time of the training, above 0")
    for path, what in ((arguments.images, "images"), (arguments.labels, "labels")):
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder; expected the {what}")
        if path.is_dir() and not any(path.iterdir()):
            raise DataError(f"{path}: the folder is empty; expected the {what}")
    changed = load_config(None, arguments.overrides)
    for key in ("OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.TEST"):
        if changed.origin(key) != "default":
            raise ConfigError(f"{key}: fit sets it, from --output and from --images and --labels; leave it out")
    output: Path = arguments.output
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / RECORD).is_file())):
        raise DataError(f"--output {output} contains something other than a fit; name a new folder")
    folder = next(path for path in (output.absolute(), *output.absolute().parents) if path.is_dir())
    # Archives are unpacked.
    needed = FREE_BYTES + 2 * sum(
        path.stat().st_size for path in (arguments.images, arguments.labels) if path.is_file()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"--output {output}: {free / 1e9:.1f} GB are free there, and {needed / 1e9:.1f} GB are needed for "
            "checkpoints and pictures; make room, or name a folder on another disk"
        )


def plan_steps(arguments: argparse.Namespace, given: Mapping[str, Sequence[str]]) -> list[Step]:
    """Return the steps to run. given: options of `prepare`, flag -> arguments.

    Folders are listed, but no image is read. Unless --dry-run, lists of given validation or test images are written.

    Raises:
        DataError: the format cannot be detected, there are too few images, or a request cannot be met.
    """
    from detseg.formats.detect import tell_format

    output: Path = arguments.output
    kind, labels = arguments.format, arguments.labels
    if kind is None:
        kind, labels = tell_format(arguments.images, labels, arguments.label_suffix)
    _check_options(kind, given)
    words = ["prepare", kind, *_sources(kind, arguments.images, labels)]
    words += [word for own in given.values() for word in own]
    words += ["--output", str(output / "data")]
    reader = prepare.reader_of(parse_words(prepare, words[1:], None))
    if len(reader.names) < 2:
        lost = f":\n{list_problems(reader.problems)}" if reader.problems else ""
        raise DataError(
            f"{arguments.images}: {len(reader.names) or 'no'} image{'s have' if not reader.names else ' has'} labels; "
            "expected 2 or more, one for training and another for scoring, better 10. A large image can be cut "
            f"into parts, with its labels{lost}"
        )
    fractions, parts = _parts(arguments, reader)
    if isinstance(parts, dict):
        if not arguments.dry_run:
            for name, members in parts.items():
                make_folder(output / "lists")
                write_text(output / "lists" / f"{name}.txt", "".join(f"{member}\n" for member in members))
        words += ["--split-lists", str(output / "lists")]
    elif fractions:
        words += ["--split", "1"]
    names = ["all"] if fractions else list(parts)
    data = [str(output / "data" / f"{name}.json") for name in names]
    inspect = ["inspect_data", "--data", *data, "--output", str(output / "inspection")]
    inspect += ["--suggest", str(output / "suggested.yaml"), "--minutes", f"{arguments.minutes:g}"]
    inspect += ["--fractions", *(f"{share:g}" for share in fractions)] if fractions else []
    inspect += ["--weights", arguments.weights] if arguments.weights else []
    training = ["train_net", "--config", str(output / "suggested.yaml"), "OUTPUT_DIR", str(output / "run")]
    training += arguments.overrides
    # Draw the part on which nothing was chosen, if there is one.
    shown = TEST if (len(fractions) == 3 if fractions else TEST in names) else VAL
    folder = output / "suggested_split" if fractions else output / "data"
    pictures = ["visualize", "--ground-truth", str(folder / f"{shown}.json")]
    pictures += ["--predictions", str(output / "run" / "predictions" / f"{shown}.json.gz")]
    pictures += ["--postprocess", str(output / "run" / "postprocess.yaml")]
    pictures += ["--output", str(output / "pictures"), "--limit", f"{MOST_PICTURES}"]
    return [
        Step("prepare", "images and labels to COCO files, checked", tuple(words)),
        Step("inspect", "what is in the data, and which settings suit it", tuple(inspect)),
        Step("train", "training, then scores", tuple(training), (output / "suggested.yaml",)),
        Step("pictures", "truth and prediction side by side", tuple(pictures)),
    ]


def _check_options(kind: str, given: Mapping[str, Sequence[str]]) -> None:
    """Refuse options of `prepare` that belong to another label format."""
    owners = {flag: [name for name in TOLD if flag in _flags(name)] for flag in given}
    wrong = [f"{flag} (of {', '.join(names)})" for flag, names in owners.items() if names and kind not in names]
    if wrong:
        raise DataError(
            f"the labels were detected as {kind}, which has no {', '.join(wrong)}; --format sets another format"
        )


def _flags(kind: str) -> list[str]:
    return [option.flag for option in FORMATS[kind].options]


def _sources(kind: str, images: Path, labels: Path) -> list[str]:
    if kind == "label_images":
        return ["--images", str(images), "--labels", str(labels)]
    if kind == "coco":
        return ["--annotations", str(labels), "--image-root", str(images)]
    return ["--source", str(images), *(["--annotations", str(labels)] if labels != images else [])]


def _parts(arguments: argparse.Namespace, reader: Reader) -> tuple[list[float], dict[str, list[str]] | Sequence[str]]:
    """Return the shares of train, val and test; or [] with the images of these parts, or the data's own part names."""
    wishes = {VAL: arguments.validation, TEST: arguments.test}
    shares = {name: _share(word) for name, word in wishes.items()}
    lists = {name: _named(word, reader) for name, word in wishes.items() if word and shares[name] is None}
    if not lists:
        if reader.parts and not any(wishes.values()):
            if not {"train", VAL} <= set(reader.parts):
                raise DataError(
                    f"{arguments.images}: the images are in the folders {', '.join(reader.parts)}; expected train and "
                    f"val, or --validation {DEFAULT_VALIDATION} to split them again"
                )
            return [], list(reader.parts)
        val, test = shares[VAL] or DEFAULT_VALIDATION, shares[TEST] or 0.0
        if val + test >= 1:
            raise DataError(f"--validation {val:g} and --test {test:g} leave no image for training")
        return [round(1 - val - test, 6), val, *([test] if test else [])], []
    if VAL not in lists or any(shares.values()):
        raise DataError(
            "images are listed for one of --validation and --test: list them for both, or for --validation only, or "
            "give shares"
        )
    held: dict[str, str] = {}
    for part, names in lists.items():
        for name in names:
            if held.setdefault(name, part) != part:
                raise DataError(f"the image {name} is listed for --validation and for --test")
    train = [name for name in reader.names if name not in held]
    if not train:
        raise DataError("--validation and --test list all images, and none is left for training")
    return [], {"train": train, **lists}


def _share(word: str | None) -> float | None:
    """Return an argument as a share of all images, None if it names images."""
    try:
        share = float(word or "")
    except ValueError:
        return None
    if not 0 < share < 1:
        raise DataError(
            f"{word} for validation or test: expected a share of the images, above 0 and below 1, or images"
        )
    return share


def _named(word: str, reader: Reader) -> list[str]:
    """Return the image names in a folder, matching a pattern, or in a list of names or paths."""
    from detseg.images.reading import SUFFIXES

    path = Path(word)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        paths = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    elif path.is_dir():
        paths = [str(one) for one in path.rglob("*") if one.suffix.lower() in SUFFIXES]
    else:
        paths = [str(one) for one in matching(word)] or [word]
    root = Path(str(reader.files)).resolve()
    known = {alias: name for name in reversed(reader.names) for alias in reversed(reader.aliases(name))}
    found = {}
    for one in paths:
        inside = os.path.relpath(Path(one).resolve(), root) if Path(one).exists() else one
        found[one] = known.get(Path(inside).as_posix())
    missing = sorted(one for one, name in found.items() if name is None)
    if missing or not found:
        raise DataError(
            f"{word}: {len(missing) or 'none'} of these are no labelled images of {reader.files}; expected a share of "
            f"the images, a folder, a pattern or a .txt list of some of them:\n{list_problems(missing or [word])}"
        )
    return sorted({name for name in found.values() if name is not None})


@dataclass
class Work:
    """The record of a folder: which steps are done, by a key for each step: its command and its and earlier inputs.

    finished, started: step name -> key.
    """

    folder: Path
    inputs: str
    overwrite: bool
    finished: dict[str, str] = field(default_factory=dict)
    started: dict[str, str] = field(default_factory=dict)
    key: str = ""

    @classmethod
    @contextmanager
    def opened(cls, arguments: argparse.Namespace) -> Iterator[Work]:
        """Open the folder for this process alone. Raises RunError if another process is using it."""
        folder: Path = arguments.output
        make_folder(folder)
        lock = FolderLock(folder)
        try:
            record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
            work = cls(folder, fingerprint((arguments.images, arguments.labels)), arguments.overwrite)
            work.finished, work.started = dict(record.get("finished", {})), dict(record.get("started", {}))
            work.key = work.inputs
            work._save()
            yield work
        finally:
            lock.release()

    def do(self, step: Step) -> int:
        """Run a step unless it is done; return its exit status."""
        content = [hashlib.sha256(path.read_bytes()).hexdigest() for path in step.reads]
        self.key = hashlib.sha256(json.dumps([self.key, step.words, content]).encode()).hexdigest()[:16]
        if self.finished.get(step.name) == self.key:
            print(f"already done: {step.line}")
            return 0
        there = self.started.get(step.name)
        self._check_change(step, there)
        words = list(step.words)
        if step.name == "train" and there:
            words.insert(1, "--resume" if there == self.key else "--overwrite")
        elif there:
            words.append("--overwrite")
        self.finished.pop(step.name, None)
        self.started[step.name] = self.key
        self._save()
        print(f"$ {command_line(*words)}", flush=True)
        module = importlib.import_module(f"detseg.cli.{words[0]}")
        with as_part():
            status = module.run(parse_words(module, words[1:], None)) or 0
        if not status:
            self.finished[step.name] = self.key
            self._save()
        return status

    def _check_change(self, step: Step, there: str | None) -> None:
        """Refuse to repeat a step that would discard a training, unless --overwrite is given."""
        if there is None or there == self.key or self.overwrite or "train" not in self.started:
            return
        raise DataError(
            f"{self.folder} contains a training with other images, labels or options ({step.name} would be repeated): "
            "pass --overwrite to repeat everything that depends on them, or name another --output"
        )

    def check_labels(self) -> None:
        """Raise DataError before the training if the labels do not look like single objects."""
        problems = read_json(self.folder / "inspection" / "report.json")["problems"]["labels"]
        if problems:
            raise DataError(
                "the labels do not look like single objects, and a model would learn them as they are:\n"
                f"{list_problems(problems)}\nCorrect them, or give the option that the message names; "
                "--ignore-warnings trains anyway"
            )

    def _save(self) -> None:
        record: dict[str, Any] = {"inputs": self.inputs, "started": self.started, "finished": self.finished}
        write_json(self.folder / RECORD, record)


def fingerprint(paths: Sequence[Path]) -> str:
    """Return a text that changes when a file below these paths changes: names, sizes and modification times."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        for file in files:
            status = file.stat()
            digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
