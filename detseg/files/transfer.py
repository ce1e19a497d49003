"""Where files are kept that can be had again: downloads, decoded samples."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

CACHE_VARIABLE = "DETSEG_CACHE"


def cache_folder() -> Path:
    """Return $DETSEG_CACHE, else .cache/detseg in the home folder. It need not be there yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "detseg"


# Files from the web: whole or absent, continued where they broke off, checked, and only where the disk has room.

_logger = logging.getLogger(__name__)

# Attempts in a row that bring nothing before it is given up.
ATTEMPTS = 3
_TIMEOUT = 30.0  # seconds without a byte
_PAUSE = 0.5  # seconds before an attempt behind one that brought nothing
_BLOCK = 1 << 20  # bytes


class TransferError(Exception):
    """A file cannot be had; the message says why, without the address.

    is_wrong_file: it came whole, and is not the one that was expected.
    """

    def __init__(self, message: str, *, is_wrong_file: bool = False) -> None:
        super().__init__(message)
        self.is_wrong_file = is_wrong_file


class _BrokenError(Exception):
    """The transfer ended early; what came is kept."""


def transfer(url: str, target: Path, *, sha256: str | None = None, size: int | None = None) -> str:
    """Bring the file of a web address to `target`, in a folder that exists, and return its SHA-256 (hexadecimal).

    What an earlier attempt left beside the target is continued where the server can do that and has the same file.
    sha256: the digest that is expected, or how it begins. size: the bytes that are expected.

    Raises:
        TransferError: it cannot be had, the disk has no room for it, or it is another file than expected (then nothing
            is kept).
        OSError: it cannot be stored.
    """
    partial = target.with_name(f"{target.name}.part")
    _logger.info("downloading %s to %s", url, target)
    failures = 0
    while True:
        before = _length(partial)
        try:
            _continue(url, partial)
            break
        except (_BrokenError, urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            failures = 1 if _length(partial) > before else failures + 1
            if failures >= ATTEMPTS or _is_final(error):
                raise TransferError(_reason(error)) from error
            _logger.warning("%s: %s; trying again", url, _reason(error))
            time.sleep(_PAUSE * (failures - 1))
        except ValueError as error:
            raise TransferError(f"it is no web address: {error}") from error
    digest = digest_of(partial)
    wrong = _difference(_length(partial), digest, size, sha256)
    if wrong:
        for path in (partial, _stamp(partial)):
            with suppress(OSError):
                path.unlink()
        raise TransferError(wrong, is_wrong_file=True)
    os.replace(partial, target)
    _stamp(partial).unlink(missing_ok=True)
    return digest


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _difference(found_size: int, digest: str, size: int | None, sha256: str | None) -> str:
    """Say how a file differs from what was expected, or nothing."""
    if size is not None and found_size != size:
        return f"it has {found_size} bytes, not {size}"
    if sha256 is not None and not digest.startswith(sha256.lower()):
        return f"its SHA-256 is {digest}, not {sha256}"
    return ""


def _is_final(error: BaseException) -> bool:
    """Whether to try again is of no use: the server has no such file, or there is no way to it."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500
    return isinstance(error, urllib.error.URLError)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__


@dataclass(frozen=True)
class _Answer:
    """start: the first byte that comes. total: the length of the whole file, None where the server does not say."""

    body: http.client.HTTPResponse
    start: int
    total: int | None


def _continue(url: str, partial: Path) -> None:
    """Append to `partial` what is missing."""
    have = _length(partial)
    try:
        answer = _ask(url, have, _stamp(partial))
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        partial.unlink()  # longer than the file, or another one: from the beginning
        answer = _ask(url, 0, _stamp(partial))
    with answer.body:
        _check_room(answer, partial)
        with partial.open("ab" if answer.start else "wb") as file:
            _copy(answer, file, url)
    if answer.total is not None and _length(partial) != answer.total:
        raise _BrokenError(f"{_length(partial)} of {answer.total} bytes came")


def _check_room(answer: _Answer, partial: Path) -> None:
    free = shutil.disk_usage(partial.parent).free
    # What lies there of another version is replaced.
    needed = (answer.total or 0) - max(answer.start, _length(partial))
    if needed > free:
        raise TransferError(
            f"{partial.parent} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are still to come; make room, "
            "or name another folder"
        )


def _ask(url: str, have: int, stamp: Path) -> _Answer:
    """Ask for the file from byte `have` on; `stamp` holds which version of it the first bytes are of."""
    headers = {"User-Agent": "detseg", "Accept-Encoding": "identity"}
    version = stamp.read_text(encoding="latin1") if stamp.is_file() else ""
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    body = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    length = body.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", body.headers.get("Content-Range", ""))
    if body.status == 206 and match and int(match[1]) == have:
        return _Answer(body, have, int(match[2]) if match[2] != "*" else None)
    tag = body.headers.get("ETag", "")
    stamp.write_text(tag if tag and not tag.startswith("W/") else body.headers.get("Last-Modified", ""), "latin1")
    return _Answer(body, 0, total)


def _copy(answer: _Answer, file: BinaryIO, url: str) -> None:
    name = url.rpartition("/")[2]
    with tqdm(
        total=answer.total, initial=answer.start, unit="B", unit_scale=True, unit_divisor=1024, desc=name, disable=None
    ) as bar:
        try:
            while block := answer.body.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        except http.client.IncompleteRead as error:
            file.write(error.partial)
            raise _BrokenError("the connection broke off") from error


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _stamp(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.version")
