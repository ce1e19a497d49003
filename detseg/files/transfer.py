"""Downloads: atomic, resumable, verified, and only if the disk has space for them."""

from __future__ import annotations

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

from detseg.files.hashing import sha256_of
from detseg.progress import ProgressBar

CACHE_VARIABLE = "DETSEG_CACHE"

_logger = logging.getLogger(__name__)

# Consecutive attempts without a single byte before the download is given up.
ATTEMPTS = 3
_TIMEOUT = 30.0  # seconds without a byte
_PAUSE = 0.5  # seconds before the second such attempt, doubled before the third
_BLOCK = 1 << 20  # bytes


def cache_folder() -> Path:
    """Return the folder of downloads and caches: $DETSEG_CACHE, else ~/.cache/detseg. It may not exist yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(os.path.expanduser(named)) if named else Path.home() / ".cache" / "detseg"


class TransferError(Exception):
    """A file cannot be downloaded; the message gives the reason, without the URL.

    is_wrong_file: it was downloaded completely, but is not the expected file.
    """

    def __init__(self, message: str, *, is_wrong_file: bool = False) -> None:
        super().__init__(message)
        self.is_wrong_file = is_wrong_file


class _BrokenError(Exception):
    """The transfer ended early; the bytes received so far are kept."""


def transfer(url: str, target: Path, *, sha256: str | None = None, size: int | None = None) -> str:
    """Download a URL to `target`, whose folder must exist, and return its SHA-256 (hexadecimal).

    A partial download beside the target is resumed if the server supports that and still has the same file. sha256: the
    expected digest or its first digits. size: the expected size in bytes.

    Raises:
        TransferError: the download failed, the disk has no space for it, or the file is not the expected one (then
            nothing is kept).
        OSError: the file cannot be stored.
    """
    partial = target.with_name(f"{target.name}.part")
    version = target.with_name(f"{target.name}.part.version")
    _logger.info("downloading %s to %s", url, target)
    failures = 0
    while True:
        before = _length(partial)
        try:
            _continue(url, partial, version)
            break
        except (_BrokenError, urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            # No such file, or the server cannot be reached: no use in trying again.
            is_final = isinstance(error, urllib.error.URLError)
            if isinstance(error, urllib.error.HTTPError):
                reason, is_final = f"the server answers {error.code} {error.reason}", error.code < 500
            failures = 1 if _length(partial) > before else failures + 1
            if failures >= ATTEMPTS or is_final:
                raise TransferError(reason) from error
            _logger.warning("%s: %s; trying again", url, reason)
            time.sleep(_PAUSE * (failures - 1))
        except ValueError as error:
            raise TransferError(f"it is not a valid URL: {error}") from error
    digest, wrong = sha256_of(partial), ""
    if size is not None and _length(partial) != size:
        wrong = f"it has {_length(partial)} bytes, not {size}"
    elif sha256 is not None and not digest.startswith(sha256.lower()):
        wrong = f"its SHA-256 is {digest}, not {sha256}"
    if wrong:
        for path in (partial, version):
            with suppress(OSError):
                path.unlink()
        raise TransferError(wrong, is_wrong_file=True)
    os.replace(partial, target)
    version.unlink(missing_ok=True)
    return digest


@dataclass(frozen=True)
class _Answer:
    """start: offset of the first byte received. total: size of the whole file in bytes, None if not known."""

    body: http.client.HTTPResponse
    start: int
    total: int | None


def _continue(url: str, partial: Path, version: Path) -> None:
    """Append the missing bytes to `partial`; `version` stores the file version (ETag or date) that they are from."""
    have = _length(partial)
    try:
        answer = _ask(url, have, version)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        partial.unlink()  # longer than the file, or of another version: start again
        answer = _ask(url, 0, version)
    with answer.body:
        free = shutil.disk_usage(partial.parent).free
        # A stored part of another version is overwritten.
        needed = (answer.total or 0) - max(answer.start, _length(partial))
        if needed > free:
            raise TransferError(
                f"{partial.parent} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are still to be "
                "downloaded; make room, or name another folder"
            )
        name, units = url.rpartition("/")[2], {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        with (
            partial.open("ab" if answer.start else "wb") as file,
            ProgressBar(total=answer.total, initial=answer.start, desc=name, **units) as bar,
        ):
            try:
                while block := answer.body.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                raise _BrokenError("the connection was lost") from error
    if answer.total is not None and _length(partial) != answer.total:
        raise _BrokenError(f"{_length(partial)} of {answer.total} bytes were received")


def _ask(url: str, have: int, version: Path) -> _Answer:
    """Request the file from byte `have` on, if the server still has the same version."""
    headers = {"User-Agent": "detseg", "Accept-Encoding": "identity"}
    stored = version.read_text(encoding="latin1") if version.is_file() else ""
    if have and stored:
        headers |= {"Range": f"bytes={have}-", "If-Range": stored}
    body = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    length = body.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", body.headers.get("Content-Range", ""))
    if body.status == 206 and match and int(match[1]) == have:
        return _Answer(body, have, int(match[2]) if match[2] != "*" else None)
    tag = body.headers.get("ETag", "")
    # A weak ETag does not guarantee identical bytes.
    version.write_text(tag if tag and not tag.startswith("W/") else body.headers.get("Last-Modified", ""), "latin1")
    return _Answer(body, 0, total)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
