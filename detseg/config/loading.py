"""Load configurations from files and command-line arguments to a validated, frozen Config; and dump them as text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from detseg.config.command_line import COMMAND_LINE, parse_overrides
from detseg.config.kinds import Kind, WrongKindError, coerce
from detseg.config.node import Config
from detseg.config.old_versions import Setting, upgraded
from detseg.config.own_files import path_or_own
from detseg.config.schema import Schema, schema
from detseg.config.yaml_file import BASE_KEY, IMPORTS_KEY, read_config_file
from detseg.errors import ConfigError, all_problems

_MOST_FILES = 100  # read for one configuration; more is a mistake in _BASE_
Imports = Callable[[Sequence[str]], Mapping[str, Any]]
"""Imports the code named in MODEL.IMPORTS and returns the keys that it adds, with their defaults, by dotted name."""

# The output folder and the engine do not change what a run computes.
_NOT_HASHED = ("OUTPUT_DIR", "MODEL.ENGINE")


def get_default_config() -> Config:
    """Return a configuration with detseg's defaults for all keys, not frozen."""
    return Config.from_flat(schema().default_values())


def load_config(
    path: str | os.PathLike[str] | None = None, overrides: Sequence[Any] = (), *, imports: Imports | None = None
) -> Config:
    """Load a YAML file, based on the files that its `_BASE_` names, then apply overrides.

    Args:
        path: the YAML file; None starts from the defaults. For it and for `_BASE_`, names of detseg's own files are
            also accepted from any working directory (`dsb2018/mask_rcnn_small_FPN.yaml`, `configs/dsb2018/...`), if no
            such file exists there.
        overrides: command-line arguments, in any mix of the forms of `parse_overrides`.
        imports: handles MODEL.IMPORTS: `detseg.engines.validation.run_imports`, which runs the named code, for files
            that the user gave on the command line; None, for all other files, refuses it.

    Returns:
        The frozen configuration, with known keys and correct types. Values are validated by the parts that train and
        predict with it: `detseg.engine.validation`, `detseg.inference.validation`.

    Raises:
        ConfigError: a missing file, invalid or non-plain YAML, a `_BASE_` cycle, unknown keys, wrong types; the message
            gives file and line.
    """
    source = None if path is None else path_or_own(path)
    named = [] if source is None else _collect(source, known=None, chain=(), count=[0])
    known = _known_keys(named[-1].value, named[-1].origin, imports) if named else schema()
    settings = [] if source is None else upgraded(_collect(source, known=known, chain=(), count=[0]), str(source))
    settings += parse_overrides(overrides, known)
    return _apply(settings, source, known).freeze()


def load_flat_config(mapping: Mapping[str, Any], *, imports: Imports | None = None) -> Config:
    """Return a frozen Config from resolved values by dotted key, as stored in checkpoints and run folders.

    Missing keys have their defaults; types are checked, text is not evaluated, combinations are not validated.

    Args:
        imports: see `load_config`; a checkpoint must not name code to run.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    known = _known_keys(mapping.get(IMPORTS_KEY) or [], "stored configuration", imports)
    config = Config.from_flat(known.default_values(), known=known)
    problems = []
    for key, value in mapping.items():
        try:
            config.set(str(key), value, origin="stored configuration")
        except ConfigError as error:
            problems.append(str(error) if ":" in str(error) else f"stored configuration: {error}")
    if problems:
        raise ConfigError(all_problems("stored configuration", problems))
    return config.freeze()


def _known_keys(names: Any, origin: str, imports: Imports | None) -> Schema:
    """Return the known keys, including those of MODEL.IMPORTS.

    Raises:
        ConfigError: MODEL.IMPORTS names code that must not be run.
    """
    try:
        chosen = coerce(schema().kinds[IMPORTS_KEY], names, decode=True)
    except WrongKindError as error:
        raise ConfigError(f"{origin}: {IMPORTS_KEY}: {error}") from None
    if not chosen:
        return schema()
    if imports is None:
        raise ConfigError(
            f"{origin}: {IMPORTS_KEY} names code ({', '.join(chosen)}), which runs only if a configuration file given "
            "on the command line names it, never from a run folder or a checkpoint: give --config FILE"
        )
    return schema().extended(imports(chosen))


def dump_config(cfg: Config) -> str:
    """Return all values as YAML text, from which `load_config` loads an equal configuration."""
    tree = cfg.to_dict()
    return yaml.safe_dump(_quote_text(tree), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def config_hash(cfg: Config) -> str:
    """Return 16 hexadecimal digits that identify a configuration, independent of platform and order of keys.

    All keys count except OUTPUT_DIR and MODEL.ENGINE.
    """
    values = {key: value for key, value in cfg.flatten().items() if key not in _NOT_HASHED}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def config_name(path: str | os.PathLike[str] | None) -> str:
    """Return the name of a configuration for `runs/<config>`: quickstart_mask_rcnn for
    configs/quickstart/mask_rcnn.yaml.

    Folders below one called `configs` are part of the name, so that files of the same name for different tasks are told
    apart; elsewhere the name is that of the file. Without a file it is "default".
    """
    if path is None:
        return "default"
    parts = list(Path(os.path.abspath(path)).with_suffix("").parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "configs"]
    return "_".join(parts[folders[-1] + 1 :]) if folders else parts[-1]


def _collect(path: Path, known: Schema | None, chain: tuple[Path, ...], count: list[int]) -> list[Setting]:
    """Return the settings of a file's bases, followed by its own; chain: the files that led to this one."""
    identity = Path(os.path.realpath(path))
    if identity in [Path(os.path.realpath(earlier)) for earlier in chain]:
        circle = " -> ".join(str(each) for each in (*chain, path))
        raise ConfigError(f"{BASE_KEY} cycle: {circle}; a file cannot build on itself")
    count[0] += 1
    if count[0] > _MOST_FILES:
        raise ConfigError(f"{path}: more than {_MOST_FILES} files through {BASE_KEY}; is one included again and again?")
    file = read_config_file(path, known, included_by=str(chain[-1]) if chain else "")
    settings: list[Setting] = []
    for base in file.bases:
        settings += _collect(_base_path(base, path), known, (*chain, path), count)
    return settings + file.settings


def _base_path(base: str, path: Path) -> Path:
    if "://" in base:
        raise ConfigError(f"{path}: {BASE_KEY}: {base} is an address; expected a local file, relative to this one")
    return path_or_own(base, path.parent)


def _apply(settings: Sequence[Setting], source: Path | None, known: Schema) -> Config:
    values = known.default_values()
    origins: dict[str, str] = {}
    problems = []
    for setting in settings:
        try:
            values[setting.key] = coerce(known.kinds[setting.key], setting.value, decode=True)
        except WrongKindError as error:
            problems.append(f"{setting.origin}: {setting.key}: {error}")
        origins[setting.key] = setting.origin
    if problems:
        raise ConfigError(all_problems(str(source or COMMAND_LINE), problems))
    return Config.from_flat(values, origins, source, known=known)


def _quote_text(value: Any) -> Any:
    """Quote text that loading would otherwise evaluate to something else."""
    if isinstance(value, dict):
        return {key: _quote_text(element) for key, element in value.items()}
    if isinstance(value, str) and _read_back(value) != value:
        return repr(value)
    return value


def _read_back(text: str) -> str | None:
    """Return what loading makes of a text for a string key; None if it refuses it."""
    try:
        return coerce(Kind("str"), text, decode=True)
    except WrongKindError:
        return None
