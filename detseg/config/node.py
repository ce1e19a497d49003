"""Config: the resolved configuration, read by attribute, item or dotted key."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detseg.config.kinds import WrongKindError, coerce
from detseg.config.schema import Schema, schema
from detseg.errors import ConfigError


@dataclass
class _Store:
    """Data shared by all nodes of one configuration.

    values: dotted key -> value, for every known key; origins: dotted key -> where it was set, for messages.
    """

    values: dict[str, Any]
    origins: dict[str, str]
    source: Path | None
    frozen: bool
    known: Schema


class Config:
    """One configuration, or a section of it.

    Values are read as `cfg.MODEL.RPN.NMS_THRESH`, `cfg["MODEL"]["RPN"]` or `cfg["MODEL.RPN.NMS_THRESH"]`; lists are
    returned as copies, so that they can be modified safely. Writing (`cfg.MODEL.DEVICE = "cpu"`, `cfg.set(...)`) checks
    key and type and is possible until `freeze()`; to change a frozen configuration, `clone()` it.
    """

    __slots__ = ("_prefix", "_store")

    def __init__(self, store: _Store, prefix: str = "") -> None:
        object.__setattr__(self, "_store", store)
        object.__setattr__(self, "_prefix", prefix)

    @classmethod
    def from_flat(
        cls,
        values: Mapping[str, Any],
        origins: Mapping[str, str] | None = None,
        source: Path | None = None,
        frozen: bool = False,
        known: Schema | None = None,
    ) -> Config:
        """Create a configuration from resolved values of every known key (dotted names), which are copied unchecked."""
        return cls(_Store(copy.deepcopy(dict(values)), dict(origins or {}), source, frozen, known or schema()))

    @property
    def source(self) -> Path | None:
        """The file from which this configuration was loaded; ignored in equality, dump and hash."""
        return self._store.source

    @property
    def extra_keys(self) -> dict[str, Any]:
        """The keys that MODEL.IMPORTS added, with their defaults, by dotted name."""
        return copy.deepcopy(dict(self._store.known.extra))

    @property
    def is_frozen(self) -> bool:
        """Whether the configuration is frozen."""
        return self._store.frozen

    def __getitem__(self, name: str) -> Any:
        key = self._prefix + name
        values = self._store.values
        if key in values:
            value = values[key]
            return copy.deepcopy(value) if isinstance(value, list) else value
        if key in self._store.known.sections:
            return Config(self._store, key + ".")
        raise ConfigError(unknown_key_message(key, self._store.known))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # looked up by copy and pickle
            raise AttributeError(name)
        try:
            return self[name]
        except ConfigError as error:
            raise AttributeError(str(error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self.set(name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        self.set(name, value)

    def __contains__(self, name: object) -> bool:
        key = f"{self._prefix}{name}"
        return key in self._store.values or key in self._store.known.sections

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.to_dict()]

    def __eq__(self, other: object) -> bool:
        return self.flatten() == other.flatten() if isinstance(other, Config) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable and compared by value; use config_hash

    def __repr__(self) -> str:
        return f"Config({self.to_dict()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        store = self._store
        arguments = (store.values, store.origins, store.source, store.frozen)
        return (_restore, (arguments, self._prefix, dict(store.known.extra)))

    def set(self, key: str, value: Any, origin: str = "set in Python") -> None:
        """Set a key below this node, given by its dotted name.

        Args:
            value: stored as it is, text is not evaluated; an integer is accepted for a float, a tuple for a list.
            origin: where the value comes from, for later messages.

        Raises:
            ConfigError: the configuration is frozen, the key is unknown or the type is wrong.
        """
        name = self._prefix + key
        if self.is_frozen:
            raise ConfigError(f"{name} cannot be set: this configuration is frozen; change a clone() of it")
        kind = self._store.known.kinds.get(name)
        if kind is None:
            raise ConfigError(unknown_key_message(name, self._store.known))
        try:
            self._store.values[name] = coerce(kind, value, decode=False)
        except WrongKindError as error:
            raise ConfigError(f"{name}: {error}") from None
        self._store.origins[name] = origin

    def origin(self, key: str) -> str:
        """Return where a key was set ("file.yaml:12", "command line"), or "default"."""
        return self._store.origins.get(self._prefix + key, "default")

    def freeze(self) -> Config:
        """Refuse all further changes in all nodes of this configuration. Return itself."""
        self._store.frozen = True
        return self

    def clone(self) -> Config:
        """Return an independent copy that is not frozen."""
        store = self._store
        values, origins = copy.deepcopy(store.values), dict(store.origins)
        return Config(replace(store, values=values, origins=origins, frozen=False), self._prefix)

    def flatten(self) -> dict[str, Any]:
        """Return a copy of all values below this node by dotted name, relative to it."""
        start = len(self._prefix)
        values = self._store.values
        return copy.deepcopy({key[start:]: value for key, value in values.items() if key.startswith(self._prefix)})

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of all values below this node as nested dictionaries."""
        return nested({tuple(key.split(".")): value for key, value in self.flatten().items()})


def unknown_key_message(key: str, known: Schema | None = None) -> str:
    """Return a message for an unknown key, with the nearest known one."""
    known = known or schema()
    shown = key if len(key) <= 120 else key[:120] + "..."
    if key in known.sections:
        example = next(name for name in known.kinds if name.startswith(key + "."))
        return f"{shown} is a section, not a key: give one of the keys below it, such as {example}"
    nearest = known.nearest_key(key)
    return f"unknown key {shown!r}" + (f"; did you mean {nearest}?" if nearest else "")


def _restore(arguments: tuple[Any, ...], prefix: str, extra: dict[str, Any]) -> Config:
    return Config(_Store(*arguments, schema().extended(extra)), prefix)


def nested(values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return values by path (section names from the outermost on) as nested dictionaries."""
    tree: dict[str, Any] = {}
    for (*sections, name), value in values.items():
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return tree
