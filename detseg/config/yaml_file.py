"""Read a configuration file into its settings, with the line of each.

Only plain YAML is accepted: no Python tags, no duplicate keys in a section, and no code is run.
`!!python/object/apply:eval` is evaluated as arithmetic, as Detectron2's own files use it. The node tree is walked here,
because the dictionaries of a YAML loader no longer have line numbers and duplicates.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detseg.config.arithmetic import evaluate
from detseg.config.fork_keys import ADDED_BY_FORKS, FORK_KEYS, changes_nothing, fork_key_message
from detseg.config.kinds import shorten
from detseg.config.node import unknown_key_message
from detseg.config.old_versions import OLD_KEYS, OLD_SECTIONS, Setting
from detseg.config.own_files import near_own
from detseg.config.schema import Schema
from detseg.errors import ConfigError, DataError, all_problems

logger = logging.getLogger(__name__)

BASE_KEY = "_BASE_"
IMPORTS_KEY = "MODEL.IMPORTS"
_LARGEST_FILE = 1_000_000  # bytes; a real configuration has a few thousand
_LARGEST_PLAIN = 20_000_000  # characters; an index of folds names every image
_LONGEST_NUMBER = 1000  # characters
_DEEPEST = 40  # nesting of sections and lists; the keys need 7
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader, if available, is ten times faster
_EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"


class _ConfigLoader(_Loader):
    """A safe loader that also evaluates arithmetic."""


def _arithmetic(loader: Any, node: yaml.Node) -> Any:
    try:
        (text,) = loader.construct_sequence(node)
        return evaluate(str(text))
    except ValueError as error:
        raise yaml.constructor.ConstructorError(None, None, f"{_EVAL_TAG}: {error}", node.start_mark) from None


_ConfigLoader.add_constructor(_EVAL_TAG, _arithmetic)


@dataclass
class ConfigFile:
    """The content of a file: the names of its base files as written in it, and its own settings in order."""

    bases: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)


def read_config_file(path: Path, known: Schema | None, included_by: str = "") -> ConfigFile:
    """Read one YAML file, without its base files.

    Args:
        known: the known keys. None reads only MODEL.IMPORTS, which adds keys, and checks nothing else.
        included_by: the file that names this one in `_BASE_`, for the message if this one is missing.

    Raises:
        ConfigError: the file is missing or not valid YAML, or keys are unknown or duplicate (all are listed).
    """
    text = _read_text(path, included_by)
    loader = None
    try:
        _refuse_depth(path, text)
        loader = _ConfigLoader(text)
        return _Walk(path, loader, known).run(loader.get_single_node())
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(path, error)) from None
    except (ValueError, OverflowError, RecursionError, MemoryError, TypeError, AttributeError, KeyError) as error:
        # PyYAML raises these for values such as 2018-99-99 and for very deep nesting
        raise ConfigError(f"{path}: cannot be read as YAML ({type(error).__name__}: {shorten(str(error))})") from None
    finally:
        if loader is not None:
            loader.dispose()


def parse_plain_yaml(text: str, place: str, *, aliases: bool = False) -> Any:
    """Read YAML settings other than a configuration, bounded in depth, time and memory.

    aliases: read `*name` and `<<`, with which a few lines can stand for any number of values; for detseg's own lists.

    Raises DataError, with a message that begins with `place`, for anything that is not plain YAML.
    """
    try:
        if len(text) > _LARGEST_PLAIN:
            raise DataError(f"{place}: has {len(text)} characters, the limit is {_LARGEST_PLAIN}")
        _refuse_depth(place, text)
        inside: list[str | None] = []  # the anchors (&name) of the lists and mappings around an event
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append(event.anchor)
            elif isinstance(event, yaml.CollectionEndEvent):
                inside.pop()
            where, is_alias = f"{place}:{event.start_mark.line + 1}", isinstance(event, yaml.AliasEvent)
            if not aliases and (is_alias or getattr(event, "value", None) == "<<"):
                raise DataError(f"{where}: * and << are not read; write the values out")
            if is_alias and event.anchor in inside:
                raise DataError(f"{where}: *{event.anchor} refers to itself without end")
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise DataError(str(error)) from None
    except yaml.YAMLError as error:
        raise DataError(_yaml_message(place, error)) from None
    except (ValueError, OverflowError, RecursionError, MemoryError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{place}: cannot be read as YAML ({type(error).__name__}: {shorten(str(error))})") from None


def _read_text(path: Path, included_by: str) -> str:
    by = f", named by {BASE_KEY} in {included_by}" if included_by else ""
    try:
        if path.is_dir():
            raise ConfigError(f"{path}{by}: is a folder, expected a YAML file")
        if path.suffix == ".py" and path.is_file():
            raise ConfigError(
                f"{path}{by}: is a Python file (Detectron2's lazy configuration), which would have to be executed; "
                "only YAML is read. Take the YAML file of the same model (Detectron2's "
                "configs/COCO-InstanceSegmentation, "
                "or those in configs/ here) as _BASE_ of your own and add what differs, KEY: VALUE; a model that "
                "exists "
                "only as a lazy configuration is trained with Detectron2's own tools/lazyconfig_train_net.py"
            )
        if path.exists() and not path.is_file():  # reading a pipe could block for ever
            raise ConfigError(f"{path}{by}: is a pipe or a device, expected a YAML file")
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{path}{by}: has {path.stat().st_size} bytes; this is not a configuration file")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" (looked in {os.getcwd()})"
        raise ConfigError(f"{path}: no such configuration file{by}{where}{near_own(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}{by}: is not UTF-8 text (byte {error.start}); expected a YAML file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{shorten(str(path))}{by}: cannot be read: {error}") from None


def _refuse_depth(path: Path | str, text: str) -> None:
    """Refuse deep nesting before composing: the C composer recurses and would crash the process instead of raising.

    Also refuse numbers of thousands of digits: 1:59:59:... is one, and takes quadratic time to construct.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > _LONGEST_NUMBER:
            # Only texts that YAML 1.1 could take for a number are refused; other long texts have other letters.
            is_text = set(event.value) - set("0123456789abcdefABCDEFxXoO+-._:")
            if not is_text:
                raise ConfigError(f"{path}:{event.start_mark.line + 1}: a number of {len(event.value)} characters")
        if depth > _DEEPEST:
            raise ConfigError(f"{path}:{event.start_mark.line + 1}: nested more than {_DEEPEST} levels deep")


def _yaml_message(path: Path | str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark is not None else f"{path}"
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    if "could not determine a constructor for the tag" in problem:
        return f"{where}: {problem}; only plain YAML is read, tags that make Python objects are refused"
    return f"{where}: not valid YAML: {problem}"


class _Walk:
    """Collects the settings and the problems of one file."""

    def __init__(self, path: Path, loader: Any, known: Schema | None) -> None:
        self.path = path
        self.known = known
        self.construct = lambda node: loader.construct_object(node, deep=True)
        self.file = ConfigFile()
        self.problems: list[str] = []

    def run(self, root: yaml.Node | None) -> ConfigFile:
        if root is None:
            return self.file
        if not isinstance(root, yaml.MappingNode):
            found = shorten(self.construct(root))
            raise ConfigError(f"{self.path}: expected sections and keys (MODEL: ...), got {found}")
        self._section(root, "")
        if self.known is None:
            return self.file
        if self.problems:
            raise ConfigError(all_problems(str(self.path), self.problems))
        return self.file

    def _section(self, section: yaml.MappingNode, prefix: str) -> None:
        seen: dict[str, int] = {}
        for name_node, node in section.value:
            name, line = name_node.value, name_node.start_mark.line + 1
            problem = None
            if name_node.tag == "tag:yaml.org,2002:merge":
                problem = f"the merge key << is not supported; inherit with {BASE_KEY}: FILE"
            elif not isinstance(name_node, yaml.ScalarNode) or name_node.tag != "tag:yaml.org,2002:str":
                problem = f"a key must be a name such as MODEL, got {shorten(name)}"
            elif name in seen:
                problem = f"{prefix}{name} is given twice in this section, first in line {seen[name]}"
            elif "." in name:
                problem = f"{shorten(name)}: expected one section in another (MODEL:, below it RPN:)"
            elif name == BASE_KEY and not prefix:
                problem = self._bases(self.construct(node))
            else:
                problem = self._entry(prefix + name, node, f"{self.path}:{line}")
            if problem:
                self.problems.append(f"{self.path}:{line}: {problem}")
            if isinstance(name, str):
                seen.setdefault(name, line)

    def _entry(self, key: str, node: yaml.Node, where: str) -> str | None:
        """Add a setting or walk a section; return its problem, if any."""
        is_section = isinstance(node, yaml.MappingNode)
        if self.known is None:
            if key == IMPORTS_KEY:
                self.file.settings.append(Setting(key, self.construct(node), where))
            elif is_section and IMPORTS_KEY.startswith(key + "."):
                self._section(node, key + ".")
        elif key in self.known.sections or (is_section and key in OLD_SECTIONS):
            value = None if is_section else self.construct(node)
            if value is not None:  # `MODEL:` with nothing below is an empty section
                return f"{key} is a section, expected keys below it, got {shorten(value)}"
            if is_section:
                self._section(node, key + ".")
        elif key in OLD_KEYS and not is_section:
            self.file.settings.append(Setting(key, self.construct(node), where))
        elif key not in self.known.kinds:
            if key not in FORK_KEYS or is_section:
                return unknown_key_message(key, self.known) + ADDED_BY_FORKS * key.startswith("MODEL.")
            value = self.construct(node)
            if not changes_nothing(key, value):
                return fork_key_message(key, shorten(value))
            logger.info("%s: %s is a key of %s, which has no effect at %r", where, key, FORK_KEYS[key][0], value)
        elif is_section:
            return f"{key}: got a section, expected {self.known.kinds[key].describe()}"
        else:
            self.file.settings.append(Setting(key, self.construct(node), where))
        return None

    def _bases(self, value: Any) -> str | None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            return f"{BASE_KEY}: got {shorten(value)}, expected a file name or a list of them"
        self.file.bases = list(names)
        return None
