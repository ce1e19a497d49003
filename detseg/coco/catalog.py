"""What a data set says of how its images are brought to a model: INPUT keys in the `info` of its COCO file.

`detseg prepare FORMAT --scaling percentile --channels 0 2` writes them as `info.input`, for example {"INPUT.SCALING":
"percentile"}. A training takes them where its configuration leaves the key as it is, and stores them in its
checkpoints, so that prediction does the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from detseg import __version__
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError, DetsegError
from detseg.files.lock import wait_for_lock

if TYPE_CHECKING:
    from detseg.config import Config


logger = logging.getLogger(__name__)

FIELD = "input"
KEYS = (
    *("INPUT.CHANNELS", "INPUT.GRAYSCALE", "INPUT.INVERT"),
    *("INPUT.SCALING", "INPUT.SCALING_PERCENTILES", "INPUT.SCALING_RANGE"),
)
# `info` is the first that a prepare command writes; more is never read of a file.
_HEAD = 2**20


def read_input_keys(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the INPUT keys of a COCO file, {} where `info` is not its first entry or has no `input`.

    Raises DataError where the file cannot be read, or `info.input` holds anything else.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(_HEAD).decode("utf-8", "ignore").lstrip()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    before, colon, after = head.partition(":")
    if not colon or before.replace(" ", "").replace("\n", "") != '{"info"':
        return {}
    try:
        info, _ = json.JSONDecoder().raw_decode(after.lstrip())
    except (ValueError, RecursionError):
        return {}
    keys = info.get(FIELD) if isinstance(info, dict) else None
    if keys is None:
        return {}
    if not isinstance(keys, Mapping) or not set(keys) <= set(KEYS):
        raise DataError(f"{path}: its info.{FIELD} is {str(keys)[:200]}; expected keys among {', '.join(KEYS)}")
    return dict(keys)


def with_input_keys(cfg: Config) -> Config:
    """Return the configuration with what its DATASETS.TRAIN say, for keys that nobody set; that is logged.

    A key that the configuration sets goes before the data's, with a warning.

    Whether it fits the rest of the configuration is for the caller to check.

    Raises:
        DetsegError: data sets say different things.
    """
    said = _of_all(cfg.DATASETS.TRAIN)
    changed = cfg.clone()
    for key, (value, path) in said.items():
        if cfg[key] == value:
            continue
        if cfg.origin(key) == "default":
            changed.set(key, value, origin=f"info.{FIELD} of {path}")
            logger.info("%s = %s, as %s says", key, value, path)
        else:
            logger.warning(
                "%s is %s (%s), although %s was prepared for %s", key, cfg[key], cfg.origin(key), path, value
            )
    return cfg if changed == cfg else changed.freeze()


def _of_all(names: Sequence[str]) -> dict[str, tuple[Any, Path]]:
    """Return key -> value and the file that says it, of all data sets."""
    said: dict[str, tuple[Any, Path]] = {}
    for name in names:
        try:
            path = resolve_dataset(name).json
            keys = read_input_keys(path) if path.is_file() else {}
        except DetsegError as error:
            # A set that is not there is told by whoever loads it.
            if f"info.{FIELD}" in str(error):
                raise
            continue
        for key, value in keys.items():
            other, elsewhere = said.setdefault(key, (value, path))
            if other != value:
                raise DataError(
                    f"{elsewhere} was prepared for {key} {other}, {path} for {value}; set {key} in the configuration, "
                    "or prepare both alike"
                )
    return said


# Names of data sets: from the catalog or paths of COCO files, to images with annotations.

CATALOG_NAME = "catalog.yaml"
ENVIRONMENT = "DETSEG_DATASETS"

_CHECKOUT_FOLDER = Path(__file__).resolve().parents[2] / "datasets"
_ENTRY_KEYS = {"name", "json", "image_root", "classes", "generate", "split", "options", "prepare"}


@dataclass(frozen=True)
class DatasetEntry:
    """A known data set, or a path that was given; its JSON exists.

    image_root: None for what the JSON says. classes: their order; empty for that of the category ids.
    """

    name: str
    json: Path
    image_root: Path | None = None
    classes: tuple[str, ...] = ()


def datasets_folder() -> Path:
    """Return the folder that the catalog's paths are relative to: `$DETSEG_DATASETS`, else ./datasets."""
    return Path(os.environ.get(ENVIRONMENT) or "datasets")


def resolve_dataset(name_or_path: str | os.PathLike[str]) -> DatasetEntry:
    """Find a data set by its name in the catalog or by the path of its COCO file.

    A path is relative to the working folder, else to `$DETSEG_DATASETS`. A synthetic set is made on first use.

    Raises:
        DataError: neither a name nor a file, with the names that there are; or a known set that is not there yet, with
            what to do to get it.
    """
    given = str(name_or_path)
    entries = read_catalog()
    if given in entries:
        return _from_catalog(entries[given])
    for candidate in (Path(given), Path(os.environ.get(ENVIRONMENT, ".")) / given):
        if candidate.is_file():
            return DatasetEntry(name=given, json=candidate)
    raise DataError(
        f"there is no data set {given!r}: no such COCO file in {Path.cwd()}"
        + (f" or in {os.environ[ENVIRONMENT]}" if os.environ.get(ENVIRONMENT) else "")
        + f", and no such name in the catalog, which knows: {', '.join(sorted(entries)) or 'nothing'}"
    )


def load_dataset(name_or_path: str | os.PathLike[str], image_root: str | os.PathLike[str] = "") -> CocoDataset:
    """Load a data set by name or path; `image_root` (DATASETS.IMAGE_ROOT) goes before what catalog and JSON say."""
    entry = resolve_dataset(name_or_path)
    root = _find_folder(image_root) if image_root else entry.image_root
    dataset = CocoDataset.load(entry.json, root)
    return dataset.with_classes(entry.classes) if entry.classes else dataset


def _find_folder(image_root: str | os.PathLike[str]) -> Path:
    """Find a given image root relative to the working folder, else to `$DETSEG_DATASETS`."""
    for base in (Path(), datasets_folder()):
        if (base / image_root).is_dir():
            return base / image_root
    raise DataError(f"DATASETS.IMAGE_ROOT: there is no folder {image_root} in {Path.cwd()} or {datasets_folder()}")


def read_catalog() -> dict[str, dict[str, Any]]:
    """Read all catalogs: that of `$DETSEG_DATASETS` or ./datasets goes before the one that comes with detseg.

    Returns name -> the entry's fields. Raises DataError for a catalog that is none.
    """
    entries: dict[str, dict[str, Any]] = {}
    for folder in (_CHECKOUT_FOLDER, datasets_folder()):
        path = folder / CATALOG_NAME
        if path.is_file():
            entries.update(_read_catalog_file(path))
    return entries


def _read_catalog_file(path: Path) -> dict[str, dict[str, Any]]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no YAML: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of data sets (- name: ..., json: ...)")
    entries = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise DataError(f"{path}: entry number {number} has no name; expected - name: ..., json: ...")
        unknown = set(row) - _ENTRY_KEYS
        if unknown or ("json" not in row and "generate" not in row):
            raise DataError(
                f"{path}: {row['name']}: "
                + (f"unknown keys {', '.join(sorted(map(str, unknown)))}; " if unknown else "it has no json; ")
                + f"known are {', '.join(sorted(_ENTRY_KEYS))}"
            )
        entries[row["name"]] = row
    return entries


def _from_catalog(row: dict[str, Any]) -> DatasetEntry:
    folder = datasets_folder()
    path = _generate(row) if "generate" in row else folder / row["json"]
    if not path.is_file():
        how = f"; to get it: {str(row['prepare']).strip()}" if row.get("prepare") else ""
        raise DataError(f"the data set {row['name']} is not there: {path.absolute()} does not exist{how}")
    return DatasetEntry(
        name=row["name"],
        json=path,
        image_root=folder / row["image_root"] if row.get("image_root") else None,
        classes=tuple(row.get("classes", ())),
    )


def _generate(row: dict[str, Any]) -> Path:
    """Return the COCO file of a generated set, made now where it is not there; one process at a time."""
    if row["generate"] != "synthetic":
        raise DataError(f"catalog: {row['name']}: generate is {row['generate']!r}; expected synthetic")
    from detseg.curation.synthetic import generate_dataset

    options = dict(row.get("options", {}))
    # Other options, or another generator, are another set: nobody meets images that were made differently before.
    mark = hashlib.sha256(json.dumps([options, __version__], sort_keys=True).encode()).hexdigest()[:8]
    folder = datasets_folder() / "generated" / f"synthetic_cells_{mark}"
    path = folder / f"{row['split']}.json"
    with wait_for_lock(folder.with_name(f".{folder.name}.lock")):
        if not path.is_file():
            generate_dataset(folder, **options)
    return path
