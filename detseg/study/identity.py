"""What a stage depends on, as hashes: its arguments, configuration, data and code, and the stages before it.

A stage whose dependencies have not changed is not run again. Data are hashed by content, so copies are equal.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from detseg.coco.catalog import find_dataset
from detseg.coco.dataset import CocoDataset
from detseg.config import load_config
from detseg.config.command_line import as_words
from detseg.config.own_files import path_or_own
from detseg.config.schema import default_values
from detseg.errors import DataError
from detseg.files.hashing import fingerprint, hash_file
from detseg.runs.fold_runs import FREE
from detseg.study.stages import Stage

PACKAGE = Path(__file__).resolve().parents[1]
# Larger files are compared by size and by their beginning, middle and end.
_READ_WHOLE = 2**24
_SETS = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.EXTRA_TRAIN")
_FILES = ("DATASETS.PSEUDO", "DATASETS.FOLDS", "SEMI.UNLABELED", "MODEL.WEIGHTS")
# Keys without influence on the trained model; DATASETS.TEST has one, as folds are validated on it.
_FREE_KEYS = [key for key in FREE if key not in ("MODEL.ENGINE", "DATASETS.TEST")]

Parts = dict[str, Any]


def parts_of(stage: Stage, before: Mapping[str, str]) -> Parts:
    """Return what a stage depends on, as plain values: arguments, settings, data, code, and the identities `before` of
    the stages that it needs.

    Raises DetsegError if its configuration cannot be read.
    """
    parts: Parts = {"words": [word for word in stage.words if word != stage.config]}
    outside = [word for word in parts["words"] if "<" not in word]
    if stage.config:
        made_here = {key: value for key, value in stage.settings.items() if "<" in str(value)}
        others = {key: value for key, value in stage.settings.items() if key not in made_here}
        keys = load_config(stage.config, as_words(others)).flatten() | made_here
        defaults = default_values()  # compared too, as new code may change them
        parts["settings"] = {
            key: value for key, value in keys.items() if key not in _FREE_KEYS and value != defaults.get(key)
        }
        named = [name for key in _SETS if key not in made_here for name in keys.get(key, [])]
        parts["sets"] = {name: _set_identity(name) for name in named}
        for value in (keys.get(key, "") for key in _FILES if key not in made_here):
            outside += value if isinstance(value, (list, tuple)) else [value]
    parts["data"] = {word: found for word in dict.fromkeys(outside) if (found := _content(word)) is not None}
    parts["code"] = code_of(stage.words[0])
    parts["needs"] = {name: before[name] for name in stage.needs}
    return json.loads(json.dumps(parts, default=str))


def identity(parts: Parts) -> str:
    """Return twelve hex digits that identify a stage by its dependencies."""
    return _digest([json.dumps(parts, sort_keys=True)])[:12]


def differences(before: Parts, now: Parts) -> list[str]:
    """Return which dependencies have changed, for messages."""
    told = {"words": "configuration", "settings": "configuration", "sets": "data", "data": "data", "code": "code"}
    changed = [told[name] for name in told if before.get(name) != now.get(name)]
    needed = before.get("needs", {})
    changed += [name for name, own in now["needs"].items() if needed.get(name) != own]
    return list(dict.fromkeys(changed))


def _set_identity(name: str) -> str:
    """Return the hash of a data set that no stage makes: of its file and its images."""
    entry = find_dataset(name)
    if entry.generator:
        return f"{entry.generator} {dict(entry.options)}"
    if not entry.json.is_file():
        return "not there"
    return _with_images(entry.json, entry.image_root)


def _with_images(file: Path, image_root: Path | None = None) -> str:
    """Return the hash of a COCO file and the images that it lists."""
    lines = [hash_file(file)]
    for image in CocoDataset.load(file, image_root).images:
        try:
            lines.append(f"{fingerprint(image.path):016x}")
        except OSError:
            lines.append("not there")  # the stage that reads it reports this
    return _digest(lines)


def _content(word: str) -> str | None:
    """Return the hash of the file or folder that an argument names, None if it names none."""
    path = Path(word)
    try:
        path = path if path.exists() else path_or_own(word)
        if path.is_dir() and path != Path("."):
            files = [file for file in sorted(path.rglob("*")) if file.is_file()]
            return _digest(f"{file.relative_to(path).as_posix()}\n{fingerprint(file):016x}" for file in files)
        if not path.is_file():
            return None
        if path.suffix == ".json":
            with suppress(DataError):  # JSON files that are not COCO files
                return _with_images(path)
        return hash_file(path) if path.stat().st_size <= _READ_WHOLE else f"{fingerprint(path):016x}"
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None
        raise DataError(f"{word}: cannot be read ({error.strerror or error})") from None


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


@cache
def code_of(command: str) -> str:
    """Return the hash of a command's source and of all detseg modules that it imports, in functions or by name too."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [".".join(("detseg", "cli", command))]  # joined here, so that tests do not mistake it for an import
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = PACKAGE.joinpath(*name.split(".")[1:])
        for source in (path.with_suffix(".py"), path / "__init__.py"):
            if os.path.isfile(source):
                found[name], imported = _read_source(source)
                waiting += imported
    return _digest(f"{name} {found[name]}" for name in sorted(found))[:12]


_FROM = re.compile(r"^\s*from (detseg[\w.]*) import \(?([\w\s,#:.]+)", re.MULTILINE)
_NAMED = re.compile(r"\bdetseg(?:\.[a-z_0-9]+)+")


@cache
def _read_source(path: Path) -> tuple[str, list[str]]:
    """Return the hash of a file, and the names in it that may be modules of detseg."""
    text = path.read_text(encoding="utf-8")
    named = set()
    for found in _NAMED.findall(text):  # detseg.data.folds also imports the __init__ of detseg and detseg.data
        words = found.split(".")
        named |= {".".join(words[:count]) for count in range(1, len(words) + 1)}
    for origin, names in _FROM.findall(text):
        named |= {f"{origin}.{name}" for name in re.findall(r"\w+", names)}
    return _digest([text])[:16], sorted(named)
