"""Downloads into a cache: whole or absent, continued where they broke off, checked."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from detseg.errors import WeightsError
from detseg.structures.cache_folder import CACHE_VARIABLE, cache_folder
from detseg.structures.file_lock import wait_for_lock

_logger = logging.getLogger(__name__)

ATTEMPTS = 3
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20  # bytes


class _BrokenError(Exception):
    """The transfer ended early; what came is kept."""


def cached_path(url: str) -> Path:
    """Where the file of a web address lies in the cache: weights/HOST/PATH; nothing in an address leads out of it."""
    parts = urlsplit(url)
    names = [_safe(name) for name in [parts.netloc.rpartition("@")[2], *parts.path.split("/")] if name]
    path = cache_folder().joinpath("weights", *names)
    if parts.query:
        path = path.with_name(f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-{path.name}")
    return path


def download(url: str, *, sha256: str | None = None) -> Path:
    """Return the file of a web address, from the cache or from the web.

    An interrupted download is continued, also by another process; several processes that want the same file wait for
    the one that is at it. sha256: the hexadecimal digest, or how it begins.

    Raises:
        WeightsError: not to be had (the message names the address and where a file downloaded elsewhere is to be put),
            or not the file that sha256 tells.
    """
    target = cached_path(url)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(target.with_name(f".{target.name}.lock")):
            if not target.is_file():
                _fetch(url, target, sha256)
    except OSError as error:
        raise WeightsError(
            f"{url} cannot be stored at {target}: {error.strerror or error}; set {CACHE_VARIABLE} to a folder that can "
            "be written and has room"
        ) from error
    return target


def _fetch(url: str, target: Path, sha256: str | None) -> None:
    partial = target.with_name(f"{target.name}.part")
    _logger.info("downloading %s to %s", url, target)
    for attempt in range(ATTEMPTS):
        try:
            _transfer(url, partial)
            break
        except (_BrokenError, urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            final = attempt == ATTEMPTS - 1 or (isinstance(error, urllib.error.HTTPError) and error.code < 500)
            if final or (isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError)):
                raise WeightsError(
                    f"{url} cannot be downloaded ({_reason(error)}). Without a network: download it on another machine "
                    f"and put it at {target} (the cache is the folder that {CACHE_VARIABLE} names, else "
                    "~/.cache/detseg), or give its path as MODEL.WEIGHTS"
                ) from error
            _logger.warning("%s: %s; trying again", url, _reason(error))
        except ValueError as error:
            raise WeightsError(f"{url} is no web address: {error}") from error
    _check(url, partial, sha256)
    os.replace(partial, target)
    _stamp(partial).unlink(missing_ok=True)


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


def _transfer(url: str, partial: Path) -> None:
    """Append to `partial` what is missing."""
    have = partial.stat().st_size if partial.is_file() else 0
    try:
        answer = _ask(url, have, _stamp(partial))
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        partial.unlink()  # longer than the file, or another one: from the beginning
        answer = _ask(url, 0, _stamp(partial))
    with answer.body, partial.open("ab" if answer.start else "wb") as file:
        _copy(answer, file, url)
    if answer.total is not None and partial.stat().st_size != answer.total:
        raise _BrokenError(f"{partial.stat().st_size} of {answer.total} bytes came")


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


def _check(url: str, partial: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    digest = hashlib.sha256()
    with partial.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if not digest.hexdigest().startswith(sha256.lower()):
        for path in (partial, _stamp(partial)):
            with suppress(OSError):
                path.unlink()
        raise WeightsError(
            f"{url} is not the file that was expected: its SHA-256 is {digest.hexdigest()}, not {sha256}; nothing was "
            "kept. Try again, or ask where the address comes from"
        )


def _stamp(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.version")


def _safe(name: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._=+-]", "_", name)
    return "_" if name in (".", "..") else name
