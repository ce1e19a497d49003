"""What a data set says of how its images are brought to a model: INPUT keys in the `info` of its COCO file.

`detseg prepare FORMAT --scaling percentile --channels 0 2` writes them as `info.input`, for example {"INPUT.SCALING":
"percentile"}. A training takes them where its configuration leaves the key as it is, and stores them in its
checkpoints, so that prediction does the same.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.coco.catalog import find_dataset
from detseg.coco.json_scan import open_json
from detseg.errors import DataError, DetsegError

if TYPE_CHECKING:
    from detseg.config import Config


logger = logging.getLogger(__name__)

FIELD = "input"
KEYS = (
    *("INPUT.CHANNELS", "INPUT.GRAYSCALE", "INPUT.INVERT"),
    *("INPUT.SCALING", "INPUT.SCALING_PERCENTILES", "INPUT.SCALING_RANGE"),
)
# `info` is the first that a prepare command writes; no more characters than these are read of a file.
_HEAD = 2**20


def read_input_keys(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the INPUT keys of a COCO file, {} where `info` is not its first entry or has no `input`.

    Raises DataError where the file cannot be read, or `info.input` holds anything else.
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
    """Return the configuration with what its DATASETS.TRAIN say, for keys that are not set; that is logged.

    A key that the configuration sets overrides the data's, with a warning.

    Whether it fits the rest of the configuration is for the caller to check.

    Raises:
        DetsegError: data sets say different things.
    """
    said: dict[str, tuple[Any, Path]] = {}  # key -> value and the file that says it
    for name in cfg.DATASETS.TRAIN:
        try:
            path = find_dataset(name).json
        except DetsegError:  # loading it says that there is no such set
            continue
        for key, value in (read_input_keys(path) if path.is_file() else {}).items():
            other, elsewhere = said.setdefault(key, (value, path))
            if other != value:
                raise DataError(
                    f"{elsewhere} was prepared for {key} {other}, {path} for {value}; set {key} in the configuration, "
                    "or prepare both alike"
                )
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
