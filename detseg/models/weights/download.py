"""Downloads of weights into the cache, once for all runs and processes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from detseg.errors import WeightsError
from detseg.structures.cache_folder import CACHE_VARIABLE, cache_folder
from detseg.structures.file_lock import wait_for_lock
from detseg.structures.transfer import TransferError, transfer


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
    try:
        transfer(url, target, sha256=sha256)
    except TransferError as error:
        if error.is_wrong_file:
            raise WeightsError(
                f"{url} is not the file that was expected: {error}; nothing was kept. Try again, or ask where the "
                "address comes from"
            ) from error
        raise WeightsError(
            f"{url} cannot be downloaded ({error}). Without a network: download it on another machine and put it at "
            f"{target} (the cache is the folder that {CACHE_VARIABLE} names, else ~/.cache/detseg), or give its path "
            "as MODEL.WEIGHTS"
        ) from error


def _safe(name: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._=+-]", "_", name)
    return "_" if name in (".", "..") else name
