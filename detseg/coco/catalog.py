"""From names of data sets, in the catalog or paths of COCO files, to images with annotations."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import open_json
from detseg.config.own_files import own_folder
from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import DataError, DetsegError
from detseg.files.names import json_stem
from detseg.files.reading import check_regular
from detseg.version import __version__

if TYPE_CHECKING:
    from detseg.config import Config


# INPUT keys in the `info` of a COCO file: how its images are to be preprocessed for a model.
#
# `detseg prepare FORMAT --scaling percentile --channels 0 2` writes them as `info.input`, for example {"INPUT.SCALING":
# "percentile"}. A training uses them if its configuration leaves the key at its default, and stores them in its
# checkpoints, so that prediction does the same.

logger = logging.getLogger(__name__)

FIELD = "input"
KEYS = (
    *("INPUT.CHANNELS", "INPUT.GRAYSCALE", "INPUT.INVERT"),
    *("INPUT.SCALING", "INPUT.SCALING_PERCENTILES", "INPUT.SCALING_RANGE"),
)
# `info` is the first entry in files by prepare; only this many characters of a file are read.
_HEAD = 2**20


def read_input_keys(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the INPUT keys of a COCO file, {} if `info` is not its first entry or has no `input`.

    Raises DataError if the file cannot be read, or `info.input` has any other content.
    """
    path = Path(path)
    try:
        with open_json(path, errors="ignore") as file:
            head = file.read(_HEAD).lstrip()
    except (OSError, EOFError, zlib.error) as error:
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
    """Return the configuration with the INPUT keys of its training sets, for keys that are not set; this is logged.

    A key that the configuration sets overrides the data's, with a warning. The caller must validate the result against
    the rest of the configuration.

    Raises:
        DetsegError: the data sets disagree.
    """
    said: dict[str, tuple[Any, Path]] = {}  # key -> value and the file that has it
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.EXTRA_TRAIN):
        try:
            path = find_dataset(name).json
        except DetsegError:  # loading it reports that there is no such set
            continue
        for key, value in (read_input_keys(path) if path.is_file() else {}).items():
            other, elsewhere = said.setdefault(key, (value, path))
            if other != value:
                raise DataError(
                    f"{elsewhere} was prepared for {key} {other}, {path} for {value}; set {key} in the configuration, "
                    "or prepare both in the same way"
                )
    changed = cfg.clone()
    for key, (value, path) in said.items():
        if cfg[key] == value:
            continue
        if cfg.origin(key) == "default":
            changed.set(key, value, origin=f"info.{FIELD} of {path}")
            logger.info("%s = %s, from %s", key, value, path)
        else:
            logger.warning(
                "%s is %s (%s), although %s was prepared for %s", key, cfg[key], cfg.origin(key), path, value
            )
    return cfg if changed == cfg else changed.freeze()


CATALOG_NAME = "catalog.yaml"
ENVIRONMENT = "DETSEG_DATASETS"
# What can generate a data set; packages that import this one run it.
GENERATORS = ("synthetic",)

_OWN_FOLDER = own_folder("datasets")
_ENTRY_KEYS = {
    **dict.fromkeys(("name", "json", "image_root", "generate", "split", "prepare"), str),
    "classes": list,
    "options": dict,
}
_KINDS = {str: "a string", list: "a list", dict: "a mapping"}


@dataclass(frozen=True)
class DatasetEntry:
    """A known data set, or a path that was given.

    image_root: None for the JSON's own. classes: their order; empty for that of the category ids. generator: what makes
    the set if its JSON does not exist ("synthetic"), with `options`, in the folder of the JSON; "": nothing.
    """

    name: str
    json: Path
    image_root: Path | None = None
    classes: tuple[str, ...] = ()
    generator: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def datasets_folder() -> Path:
    """Return the folder to which the catalog's paths are relative: `$DETSEG_DATASETS`, else ./datasets."""
    return Path(os.environ.get(ENVIRONMENT) or "datasets")


def find_dataset(name_or_path: str | os.PathLike[str]) -> DatasetEntry:
    """Find a data set by its name in the catalog or by the path of its COCO file; a known one need not exist yet.

    A path is relative to the working folder, else to `$DETSEG_DATASETS`.

    Raises:
        DataError: neither a name nor a file; the message lists the names.
    """
    given = str(name_or_path)
    rows = read_catalog()
    if given in rows:
        return _entry_of(rows[given])
    for candidate in (Path(given), Path(os.environ.get(ENVIRONMENT, ".")) / given):
        check_regular(candidate)
        if candidate.is_file():
            return DatasetEntry(name=given, json=candidate)
    below = f" or in {os.environ[ENVIRONMENT]}" if os.environ.get(ENVIRONMENT) else ""
    if Path(given).is_dir():
        raise DataError(
            f"{given}: is a folder; expected a COCO file, which `detseg prepare` makes from images and labels"
        )
    if given.lower().endswith((".json", ".json.gz")):
        raise DataError(f"there is no data set {given!r}: no such COCO file in {Path.cwd()}{below}")
    raise DataError(
        f"there is no data set {given!r}: no such COCO file in {Path.cwd()}{below}, and no such name in the catalog, "
        f"which knows: {', '.join(sorted(rows)) or 'nothing'}"
    )


def resolve_dataset(name_or_path: str | os.PathLike[str]) -> DatasetEntry:
    """Find a data set whose JSON exists; see `find_dataset`.

    Raises:
        DataError: as `find_dataset`; or a known set that does not exist yet; the message says how to get it.
    """
    entry = find_dataset(name_or_path)
    if not entry.json.is_file():
        how = str(read_catalog()[entry.name].get("prepare") or "").strip()
        if entry.generator:
            how = "training and inspect_data make it; in Python detseg.curation.synthetic.make_missing_sets"
        raise DataError(
            f"the data set {entry.name} is missing: {entry.json.absolute()} does not exist"
            + (f"; to get it: {how}" if how else "")
        )
    return entry


def load_dataset(
    name_or_path: str | os.PathLike[str], image_root: str | os.PathLike[str] = "", *, boxes: bool = False
) -> CocoDataset:
    """Load a data set by name or path; `image_root` (DATASETS.IMAGE_ROOT) overrides catalog and JSON.

    boxes: see CocoDataset.load.
    """
    entry = resolve_dataset(name_or_path)
    root = entry.image_root
    if image_root:  # relative to the working folder, else to `$DETSEG_DATASETS`
        found = [base / image_root for base in (Path(), datasets_folder()) if (base / image_root).is_dir()]
        if not found:
            raise DataError(
                f"DATASETS.IMAGE_ROOT: there is no folder {image_root} in {Path.cwd()} or {datasets_folder()}"
            )
        root = found[0]
    dataset = CocoDataset.load(entry.json, root, boxes=boxes)
    return dataset.with_classes(entry.classes) if entry.classes else dataset


def set_names(paths: Sequence[str]) -> list[str]:
    """Return short, unique names that are valid in file names for data sets: "data/a/val.json" gives "val"."""
    names: list[str] = []
    for path in paths:
        stem = json_stem(re.split(r"[/\\]", path)[-1])
        name = re.sub(r"[^\w.-]+", "_", stem) or "data"
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def read_catalog() -> dict[str, dict[str, Any]]:
    """Read all catalogs; entries in `$DETSEG_DATASETS` or ./datasets override those that come with detseg.

    Returns name -> the entry's fields. Raises DataError for an invalid catalog.
    """
    entries = {}
    for place, row in listed_sets(CATALOG_NAME, _ENTRY_KEYS):
        if "json" not in row and "generate" not in row:
            raise DataError(f"{place}: it has no json; known are {', '.join(sorted(_ENTRY_KEYS))}")
        if "generate" in row and "split" not in row:
            raise DataError(f"{place}: generate needs split: the part of the generated set")
        entries[row["name"]] = row
    return entries


def listed_sets(file_name: str, known: Mapping[str, type]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and fields of the sets in a YAML list: first that of detseg, then that of `datasets_folder`.

    known: the legal fields with their types: str, list (of str or dict) or dict; null counts as absent.

    Raises DataError for anything but a list of named sets with these fields.
    """
    for path in dict.fromkeys((_OWN_FOLDER / file_name, (datasets_folder() / file_name).resolve())):
        if not path.is_file():
            continue
        try:
            rows = parse_plain_yaml(path.read_text(encoding="utf-8"), str(path), aliases=True) or []
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: invalid YAML: {error}") from None
        if not isinstance(rows, list):
            raise DataError(f"{path}: expected a list of data sets (- name: ...)")
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or not isinstance(row.get("name"), str):
                raise DataError(f"{path}: entry number {number} has no name; expected - name: ...")
            place = f"{path}: entry number {number} ({row['name']})"
            unknown = sorted(map(str, set(row) - set(known)))
            if unknown:
                raise DataError(f"{place}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}")
            row = {key: value for key, value in row.items() if value is not None}
            for key, value in row.items():
                items = value if isinstance(value, (list, dict)) else ()
                if not isinstance(value, known[key]) or not all(isinstance(item, (str, dict)) for item in items):
                    raise DataError(f"{place}: {key} is {str(value)[:80]!r}; expected {_KINDS[known[key]]}")
            yield place, row


def _entry_of(row: dict[str, Any]) -> DatasetEntry:
    folder = datasets_folder()
    root = folder / row["image_root"] if row.get("image_root") else None
    classes = tuple(row.get("classes", ()))
    if "generate" not in row:
        return DatasetEntry(row["name"], folder / row["json"], root, classes)
    if row["generate"] not in GENERATORS:
        raise DataError(f"catalog: {row['name']}: generate is {row['generate']!r}; expected {' or '.join(GENERATORS)}")
    options = dict(row.get("options", {}))
    # Other options, or another generator, are another set, so that no outdated images are used.
    mark = hashlib.sha256(json.dumps([options, __version__], sort_keys=True).encode()).hexdigest()[:8]
    path = folder / "generated" / f"synthetic_cells_{mark}" / f"{row['split']}.json"
    return DatasetEntry(row["name"], path, root, classes, row["generate"], options)
