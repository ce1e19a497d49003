"""The table of data sets that can be downloaded: datasets/sources.yaml, and that of the user's own data folder."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from detseg.data.catalog import datasets_folder
from detseg.errors import DataError

TABLE_NAME = "sources.yaml"
_CHECKOUT_FOLDER = Path(__file__).resolve().parents[2] / "datasets"
_KEYS = {
    "name", "title", "page", "licence", "citation", "files", "each", "kaggle", "manual", "folder", "prepare"
}  # fmt: skip
_FILE_KEYS = {"url", "path", "bytes", "about", "sha256"}


@dataclass(frozen=True)
class SourceFile:
    """A file of a data set. path: below its folder. url: empty where the kaggle command or a person fetches it.

    exact: its bytes, where they are known. about: nearly as many, for the room on the disk; 0 where nothing is known.
    sha256: hexadecimal, empty where it is not known.
    """

    path: str
    url: str = ""
    exact: int | None = None
    about: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class DownloadEntry:
    """A data set that can be fetched. kaggle: words behind the command kaggle. manual: how a person fetches it."""

    name: str
    title: str
    page: str
    licence: str
    files: tuple[SourceFile, ...]
    citation: str = ""
    kaggle: tuple[str, ...] = ()
    manual: str = ""
    folder: str = ""
    prepare: str = ""


def read_download_table() -> dict[str, DownloadEntry]:
    """Read all tables: that of `$DETSEG_DATASETS` or ./datasets goes before the one that comes with detseg.

    Raises DataError for a table that is none.
    """
    entries: dict[str, DownloadEntry] = {}
    for path in dict.fromkeys((_CHECKOUT_FOLDER / TABLE_NAME, (datasets_folder() / TABLE_NAME).resolve())):
        if path.is_file():
            entries.update(_read_table(path))
    return entries


def find_entry(name: str) -> DownloadEntry:
    """Return the entry of a name. Raises DataError with the names that there are."""
    entries = read_download_table()
    if name not in entries:
        raise DataError(f"there is no data set {name!r} to download; known are {', '.join(sorted(entries)) or 'none'}")
    return entries[name]


def _read_table(path: Path) -> dict[str, DownloadEntry]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no YAML: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of data sets (- name: ..., files: ...)")
    entries = {}
    for number, row in enumerate(rows):
        entry = _read_entry(row, f"{path}: entry number {number}")
        entries[entry.name] = entry
    return entries


def _read_entry(row: Any, where: str) -> DownloadEntry:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        raise DataError(f"{where} has no name; expected - name: ..., files: ...")
    where = f"{where} ({row['name']})"
    unknown = set(row) - _KEYS
    if unknown:
        raise DataError(
            f"{where}: unknown keys {', '.join(sorted(map(str, unknown)))}; known are {', '.join(sorted(_KEYS))}"
        )
    if not isinstance(row.get("files"), list) or not row["files"]:
        raise DataError(f"{where}: expected a list of files (url, path)")
    each = row.get("each") or {}
    values = [dict(zip(each, words, strict=True)) for words in itertools.product(*each.values())]
    files = tuple(_read_file(file, words, where) for words in values for file in row["files"])
    kaggle, manual = tuple(map(str, row.get("kaggle") or ())), str(row.get("manual") or "")
    if not (kaggle or manual) and not all(file.url for file in files):
        raise DataError(f"{where}: a file has no url; expected one, or kaggle, or manual")
    texts = {key: str(row.get(key) or "") for key in ("title", "page", "licence", "citation", "folder", "prepare")}
    return DownloadEntry(name=row["name"], files=files, kaggle=kaggle, manual=manual, **texts)


def _read_file(row: Any, words: dict[str, str], where: str) -> SourceFile:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or set(row) - _FILE_KEYS:
        raise DataError(f"{where}: a file is {row!r}; expected {', '.join(sorted(_FILE_KEYS))}")
    path, url = row["path"].format_map(words), str(row.get("url") or "").format_map(words)
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise DataError(f"{where}: the path {path} leads out of the data set's folder")
    if url and urlsplit(url).scheme not in ("https", "http"):
        raise DataError(f"{where}: {url} is no web address")
    exact, about = row.get("bytes"), row.get("about") or row.get("bytes") or 0
    return SourceFile(path, url, exact, int(about), str(row.get("sha256") or "").lower())
