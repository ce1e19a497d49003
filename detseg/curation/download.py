"""Download data sets from their official sources, listed in datasets/sources.yaml and the user's own table.

An interrupted download is continued; every file is verified and recorded.
"""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from detseg.coco.catalog import datasets_folder, listed_sets
from detseg.errors import DataError
from detseg.files.atomic import json_object, make_folder, write_output
from detseg.files.hashing import sha256_of
from detseg.files.lock import wait_for_lock
from detseg.files.transfer import TransferError, transfer

TABLE_NAME = "sources.yaml"
DOWNLOADS = "downloads"
RECORD_NAME = "downloads.json"
_TEXT_KEYS = ("title", "page", "licence", "citation", "folder", "prepare", "manual")
_KEYS = {**dict.fromkeys(("name", *_TEXT_KEYS), str), "files": list, "each": dict, "kaggle": list}
_FILE_KEYS = {"url", "path", "bytes", "about", "sha256"}


@dataclass(frozen=True)
class DownloadFile:
    """A file of a data set. path: below its folder. url: empty if the kaggle command or the user downloads it.

    exact: size in bytes, if known. about: approximate size, for the check of disk space; 0 if unknown. sha256:
    hexadecimal, empty if unknown.
    """

    path: str
    url: str = ""
    exact: int | None = None
    about: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class DownloadEntry:
    """A data set that can be downloaded. kaggle: arguments of the command kaggle. manual: instructions for the user."""

    name: str
    files: tuple[DownloadFile, ...]
    kaggle: tuple[str, ...]
    title: str
    page: str
    licence: str
    citation: str
    folder: str
    prepare: str
    manual: str

    def by_hand(self, files: Sequence[DownloadFile], folder: Path) -> str:
        """Return instructions for downloading files by hand."""
        if self.manual:
            return f"Manually ({self.page}): {self.manual.replace('{folder}', str(folder))}"
        if self.kaggle:
            names = ", ".join(str(folder / file.path) for file in files)
            return f"Manually: log in at {self.page}, accept the rules, press Download All, and put the file at {names}"
        lines = "\n".join(f"  {file.url}\n    -> {folder / file.path}" for file in files)
        return (
            f"Manually, on a machine with internet access, download\n{lines}\nand run this command again to verify them"
        )


def read_download_table() -> dict[str, DownloadEntry]:
    """Read all tables; entries in `$DETSEG_DATASETS` or ./datasets override those that come with detseg.

    Raises DataError for an invalid table.
    """
    entries = {}
    for place, row in listed_sets(TABLE_NAME, _KEYS):
        try:
            entries[row["name"]] = _read_entry(row, place)
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:  # a wrong type, or an unknown {name}
            raise DataError(
                f"{place}: invalid each or files ({error}); expected `each` to map names to lists, with every {{name}} "
                "that url and path use, and numbers for bytes and about"
            ) from None
    return entries


def find_entry(name: str) -> DownloadEntry:
    """Return the entry with this name. Raises DataError with the known names."""
    entries = read_download_table()
    if name not in entries:
        raise DataError(f"there is no data set {name!r} to download; known are {', '.join(sorted(entries)) or 'none'}")
    return entries[name]


def _read_entry(row: dict[str, Any], where: str) -> DownloadEntry:
    if not isinstance(row.get("files"), list) or not row["files"]:
        raise DataError(f"{where}: expected a list of files (url, path)")
    each = row.get("each") or {}
    values = [dict(zip(each, words, strict=True)) for words in itertools.product(*each.values())]
    files = tuple(_read_file(file, words, where) for words in values for file in row["files"])
    texts = {key: str(row.get(key) or "") for key in _TEXT_KEYS}
    kaggle = tuple(map(str, row.get("kaggle") or ()))
    if not (kaggle or texts["manual"]) and not all(file.url for file in files):
        raise DataError(f"{where}: a file has no url; expected one, or kaggle, or manual")
    return DownloadEntry(row["name"], files, kaggle, **texts)


def _read_file(row: Any, words: dict[str, str], where: str) -> DownloadFile:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or set(row) - _FILE_KEYS:
        raise DataError(f"{where}: a file is {row!r}; expected {', '.join(sorted(_FILE_KEYS))}")
    path, url = row["path"].format_map(words), str(row.get("url") or "").format_map(words)
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise DataError(f"{where}: the path {path} is outside the data set's folder")
    if url and urlsplit(url).scheme not in ("https", "http"):
        raise DataError(f"{where}: {url} is not a URL")
    exact, about = row.get("bytes"), row.get("about") or row.get("bytes") or 0
    return DownloadFile(path, url, exact, int(about), str(row.get("sha256") or "").lower())


@dataclass(frozen=True)
class Fetched:
    """A file that exists. how: `downloaded`, `there` (as recorded) or `checked` (found, verified and recorded now)."""

    path: Path
    size: int
    sha256: str
    how: str


def download_folder(entry: DownloadEntry, output: Path | None = None) -> Path:
    """Return the folder for the files of a data set: `output`, or by default downloads/NAME in the data folder."""
    return output if output is not None else datasets_folder() / DOWNLOADS / (entry.folder or entry.name)


def download(entry: DownloadEntry, folder: Path, *, check: bool = False, overwrite: bool = False) -> list[Fetched]:
    """Download the missing files of a data set; return all its files.

    Existing files are used wherever they come from: they are verified, and their hashes recorded in downloads.json next
    to them. check: read recorded files again. overwrite: download files again that are not the expected ones.

    Raises:
        DataError: a file cannot be downloaded (the message says how to do it manually), differs from what is expected
            or recorded, or the disk is full.
    """
    make_folder(folder)
    with wait_for_lock(folder / f".{entry.name}.lock"):
        record = _read_record(folder)
        missing = [file for file in entry.files if not (folder / file.path).exists()]
        if overwrite:
            missing += [file for file in entry.files if file not in missing and _problem(file, folder, record, check)]
        if missing:
            partial = sum(part.stat().st_size for f in missing if (part := folder / f"{f.path}.part").is_file())
            needed, free = sum(file.about for file in missing) - partial, shutil.disk_usage(folder).free
            if needed > free:
                raise DataError(
                    f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; make room, or give "
                    "another folder with --output"
                )
            _fetch(entry, missing, folder)
        return [_take(entry, file, folder, record, check, file in missing) for file in entry.files]


def _fetch(entry: DownloadEntry, files: Sequence[DownloadFile], folder: Path) -> None:
    if entry.manual:
        missing = ", ".join(str(folder / file.path) for file in files)
        raise DataError(
            f"{entry.name}: can only be downloaded after filling in a form; missing are "
            f"{missing}.\n{entry.by_hand(files, folder)}"
        )
    if entry.kaggle:
        _run_kaggle(entry, files, folder)
        return
    for number, file in enumerate(files):
        target = folder / file.path
        make_folder(target.parent)
        try:
            transfer(file.url, target, sha256=file.sha256 or None, size=file.exact)
        except TransferError as error:
            if error.is_wrong_file:
                raise DataError(
                    f"{file.url}: is not the expected file: {error}; it was discarded. Try again; if it persists, the "
                    f"data set has changed: see {entry.page}"
                ) from None
            raise DataError(
                f"{file.url}: cannot be downloaded ({error}).\n{entry.by_hand(files[number:], folder)}"
            ) from None
        except OSError as error:
            raise DataError(
                f"{target}: cannot be written ({error.strerror or error}); make room, or give another folder with "
                "--output. The next run continues where this one stopped"
            ) from None


def _run_kaggle(entry: DownloadEntry, files: Sequence[DownloadFile], folder: Path) -> None:
    """Run the kaggle command, which handles login, progress and resuming itself."""
    command, by_hand = shutil.which("kaggle"), entry.by_hand(files, folder)
    if command is None:
        raise DataError(
            f"{entry.name}: the command kaggle is not installed; pip install kaggle, and create a token at kaggle.com "
            f"> Settings > API.\n{by_hand}"
        )
    try:
        done = subprocess.run([command, *entry.kaggle, "-p", str(folder)], stderr=subprocess.PIPE, check=False)
    except OSError as error:
        raise DataError(f"{command}: failed to start ({error.strerror or error}).\n{by_hand}") from None
    said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
    absent = [str(folder / file.path) for file in files if not (folder / file.path).exists()]
    if done.returncode or absent:
        reason = said[-1] if said else f"exit status {done.returncode}, without {', '.join(absent)}"
        raise DataError(
            f"{entry.name}: the kaggle command failed ({reason[:300]}); log in, and accept the rules at {entry.page}.\n"
            f"{by_hand}"
        )


def _take(
    entry: DownloadEntry, file: DownloadFile, folder: Path, record: dict[str, Any], check: bool, is_new: bool
) -> Fetched:
    """Verify a file that exists and record its hash."""
    path = folder / file.path
    if path.is_dir():
        return Fetched(path, 0, "", "there")
    known, size = record.get(file.path), path.stat().st_size
    if known and not check and not is_new and size == known["bytes"]:
        return Fetched(path, size, known["sha256"], "there")
    problem = _problem(file, folder, {} if is_new else record, check)
    if problem:
        raise DataError(
            f"{path}: {problem}. Download it again with --overwrite, or, if it is the right file, remove it from "
            f"{RECORD_NAME}"
        )
    digest = sha256_of(path)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    record[file.path] = {"url": file.url or entry.page, "bytes": size, "sha256": digest, "time": now}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    write_output(folder / RECORD_NAME, text, "the record of downloads")
    return Fetched(path, size, digest, "downloaded" if is_new else "checked")


def _problem(file: DownloadFile, folder: Path, record: dict[str, Any], check: bool) -> str:
    """Return why an existing file is not the expected one, or an empty string."""
    path = folder / file.path
    if path.is_dir():
        return ""
    size, known = path.stat().st_size, record.get(file.path)
    if file.exact is not None and size != file.exact:
        return f"has {size} bytes; expected {file.exact}"
    if known and size != known["bytes"]:
        return f"has {size} bytes; when it was downloaded it had {known['bytes']}"
    if path.suffix == ".zip" and not zipfile.is_zipfile(path):
        return "is not a complete zip archive"
    expected = file.sha256 or (known["sha256"] if known else "")
    # Recorded files have been hashed before.
    if expected and (check or not known) and (digest := sha256_of(path)) != expected:
        return f"has the SHA-256 {digest}; expected {expected}"
    return ""


def _read_record(folder: Path) -> dict[str, Any]:
    """Return path -> its record; invalid rows are ignored."""
    try:
        content = json_object(folder / RECORD_NAME)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder / RECORD_NAME}: cannot be read ({error}); remove it to verify all files again"
        ) from None
    return {path: row for path, row in content.items() if isinstance(row, dict) and {"bytes", "sha256"} <= set(row)}
