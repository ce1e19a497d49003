"""Atomic writes: a file appears complete or not at all, even if the process is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from detseg.errors import DataError, RunError, some_of

# In the names of temporary files, before host and process id, so that leftovers of killed processes can be found.
TEMPORARY_MARK = ".tmp-"
_OWNER = re.compile(re.escape(TEMPORARY_MARK) + r"([0-9a-f]{6})-(\d+)$")
_MACHINE = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
# Age in seconds after which a temporary file of another host counts as abandoned.
_ABANDONED = 24 * 3600
# Folders in which this process has already removed the leftovers of killed processes.
_TIDIED: set[Path] = set()
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def _replacing(path: Path, *, sync: bool) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` if the block ends without an exception.

    If the process is killed, `path` is still the old file (or absent); the next process that writes to this folder
    removes the temporary file. sync: flush the data to disk before the rename, so that this also holds for a power
    failure.
    """
    if path.parent not in _TIDIED:
        _TIDIED.add(path.parent)
        remove_temporaries(path.parent)
    temporary = path.with_name(f".{path.name}{temporary_ending()}")
    try:
        yield temporary
        if sync:
            _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        if sync and os.name != "nt":  # Windows cannot open folders
            with suppress(OSError):  # some network file systems refuse this; the file itself is on the disk
                _sync(path.parent, os.O_RDONLY)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_ending() -> str:
    """Return the suffix of this process's temporary files, by which `remove_temporaries` recognizes them."""
    return f"{TEMPORARY_MARK}{_MACHINE}-{os.getpid()}"


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_whole(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` if the block ends without an exception.

    The temporary file is always removed. An OSError in the block becomes a DataError saying that `what` (for example
    "the picture") cannot be written to `path`.
    """
    try:
        with _replacing(Path(path), sync=False) as temporary:
            yield temporary
    except OSError as error:
        raise DataError(
            f"{path}: {what} cannot be written: {error}; give a folder that exists and is writable"
        ) from None


def check_free(*paths: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise DataError if a file exists that would be overwritten (unless `overwrite`) or cannot be written.

    To be called before long computations, so that they do not end at an output folder that cannot be created.
    """
    for folder in {Path(path).parent for path in paths}:
        above = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), folder)
        if not above.is_dir():
            raise DataError(f"{folder}: the output folder cannot be made, {above} is not a folder; name another one")
        if not os.access(above, os.W_OK | os.X_OK):
            raise DataError(
                f"{folder}: the output folder cannot be written (no permission in {above}); name another one"
            )
    present = [] if overwrite else [str(path) for path in paths if os.path.exists(path)]
    if present:
        verb, them = ("exists", "it") if len(present) == 1 else ("exist", "them")
        raise DataError(
            f"{some_of(present)} {verb} already; pass --overwrite to replace {them}, or name another output"
        )


def write_output(path: str | os.PathLike[str], text: str, what: str) -> None:
    """Write UTF-8 text atomically with Unix line ends; create its folder. Raises like `written_whole`."""
    make_folder(Path(path).parent)
    with written_whole(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert operating system errors in the block, in which a run writes `path`, to RunError.

    Raises:
        RunError: with `path`, the reason and the remedy.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch raises its own RuntimeError after an OSError.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        remedy = "name a folder that can be written (--output, or OUTPUT_DIR of a training)"
        if cause.errno in _DISK_FULL:
            remedy = "make room there (checkpoints that were written before are whole), then continue with --resume"
        raise RunError(f"{path} cannot be written: {cause.strerror or cause}; {remedy}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file of a run atomically: `write` fills a temporary file, which then replaces `path`.

    Raises:
        RunError: the disk is full, or the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path, sync=True) as temporary, open(temporary, "wb") as file:
            write(file)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises OSError, and ValueError if the content is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {str(content)[:80]}")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run, which must hold an object.

    Raises:
        RunError: the file does not exist or is damaged.
    """
    try:
        return json_object(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); train this run again with --overwrite") from error


def remove_temporaries(folder: Path, *, all_of_them: bool = False) -> None:
    """Remove the temporary files that killed processes left in `folder`.

    all_of_them: no other process is writing there. Otherwise, temporary files of running processes stay, and those of
    other hosts if they are less than a day old.
    """
    with suppress(OSError):  # the folder is missing or not ours
        for left in folder.glob(f"*{TEMPORARY_MARK}*"):
            if all_of_them or _is_abandoned(left):
                left.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    owner = _OWNER.search(path.name)
    if owner is None:  # written by another program
        return False
    if owner[1] != _MACHINE or os.name == "nt":  # on Windows, os.kill(pid, 0) would end the process
        return time.time() - path.stat().st_mtime > _ABANDONED
    try:
        os.kill(int(owner[2]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


@contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Create a folder for the files written in the block; if the block fails, remove the created folders if empty.

    Raises DataError if the folder cannot be created.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    make_folder(folder)
    try:
        yield
    except BaseException:
        for one in made:
            with suppress(OSError):
                one.rmdir()  # fails if not empty
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which is renamed to `path` if the block ends without an exception.

    An existing folder is replaced; if anything fails, it is kept.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    older = path.with_name(f"{temporary.name}.replaced")
    try:
        temporary.chmod(0o755)
        yield temporary
        if path.exists():
            path.rename(older)
        temporary.rename(path)
    except BaseException:
        if older.exists():
            older.rename(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises DataError if that is impossible, or if a file has that name."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: the output folder cannot be made ({error.strerror or error}); name another one"
        ) from None
