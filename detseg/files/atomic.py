"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from detseg.errors import DataError, RunError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes its name when the block ends without exception.

    Whatever happens, nothing temporary stays. An OSError in the block becomes a DataError that says that `what` (for
    example "the picture") cannot be written to `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: {what} cannot be written: {error}; give a folder that is there and writable"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# Files that are whole or absent, whatever happens while they are written.

TEMPORARY_MARK = ".tmp-"
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses inside the block becomes a message.

    Raises:
        RunError: naming `path`, the reason and the remedy.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = _system_error(error)
        if refused is None:
            raise
        remedy = "set OUTPUT_DIR to a folder that can be written"
        if refused.errno in _NO_ROOM:
            remedy = "make room there (checkpoints that were written before are whole), then continue with --resume"
        raise RunError(f"{path} cannot be written: {refused.strerror or refused}; {remedy}") from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The OSError itself, or the one that led to another error: torch raises a RuntimeError of its own after it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in the place of `path`.

    A process that is killed at any moment leaves the old file, or none, under that name. The data are forced to the
    disk before the name changes, so that this holds for a power failure too.

    Raises:
        RunError: the disk is full, or does not let us write.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY_MARK}{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds.

    Raises:
        RunError: it is not there, or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); train this run again with --overwrite") from error


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`."""
    for left in folder.glob(f"*{TEMPORARY_MARK}*"):
        left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse this; the file itself is on the disk
    finally:
        os.close(descriptor)
