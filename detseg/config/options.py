"""Options: a part of detseg declares its configuration keys, with their valid values, as a frozen dataclass.

    @dataclass(frozen=True)
    class AnchorOptions(Options):
        section = "MODEL.ANCHOR_GENERATOR"

        name: str = key("NAME", choices=("DefaultAnchorGenerator",))
        offset: float = key("OFFSET", at_least=0, below=1)

        def check(self, problems: Problems) -> None:
            ...  # conditions on combinations of values

Only the declaration knows the valid values: reading a configuration (`from_config`), validating it (`read`, which
collects problems), the list of keys that a model reads and the tables of the documentation (`rules`) all follow from
it. A part receives its options object and never sees the configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from typing_extensions import Self

from detseg.config.kinds import shorten
from detseg.config.node import Config
from detseg.errors import ConfigError, all_problems

# Collects the problems of a configuration, so that one message reports all of them.


class Problems:
    """The problems of one configuration, each with key, value and where the value was set.

    engine: for which the configuration is validated; "native" refuses values that only Detectron2 implements. training:
    whether the configuration is for training, which requires more than prediction with given weights. blames_native:
    whether any problem exists only with the native engine. with_detectron2: returns the problems with that engine, so
    that it is suggested only if it would help.
    """

    def __init__(
        self,
        cfg: Config,
        engine: str = "native",
        *,
        training: bool = False,
        with_detectron2: Callable[[], Sequence[str]] = list,
    ) -> None:
        self.cfg = cfg
        self.with_detectron2 = with_detectron2
        self.engine = engine
        self.training = training
        self.found: list[str] = []
        self.blames_native = False

    def add(self, key: str, expected: str) -> None:
        """Add a problem with one key; `expected` says what is valid and what to do."""
        self.found.append(f"{key} = {shorten(self.cfg[key])} ({self.cfg.origin(key)}): {expected}")

    def add_choices(self, key: str, choices: Sequence[Any], *, elsewhere: bool = False) -> None:
        """Add a problem if the value, or an element, is not in `choices`; elsewhere: Detectron2 may implement it."""
        names = ", ".join(repr(choice) for choice in choices) or "nothing here"
        many = "some of " if isinstance(self.cfg[key], list) else "one of " if len(choices) > 1 else ""
        self.add(key, f"expected {many}{names}{self.elsewhere() if elsewhere else ''}")

    def elsewhere(self) -> str:
        """Return the advice to use the other engine; see `blames_native`."""
        self.blames_native = True
        refused = self.with_detectron2()
        if refused:
            name, reason = refused[0].partition(" = ")[0], refused[0].partition("): ")[2]
            return f"; the detectron2 engine does not accept this configuration: {name}: {reason}"
        return "; for anything else set MODEL.ENGINE detectron2, which uses Detectron2 itself"

    def one_of(self, key: str, choices: Sequence[Any]) -> None:
        """Check that the value is one of `choices`."""
        if self.cfg[key] not in choices:
            self.add(key, f"expected one of {', '.join(repr(choice) for choice in choices)}")

    def within(
        self,
        key: str,
        least: float | None = None,
        most: float | None = None,
        *,
        above: float | None = None,
        below: float | None = None,
    ) -> None:
        """Check that the number, or every number in nested lists, is >= `least`, > `above`, <= `most`, < `below`."""
        value = self.cfg[key]
        fits = all(
            (least is None or number >= least)
            and (above is None or number > above)
            and (most is None or number <= most)
            and (below is None or number < below)
            for number in _numbers(value)
        )
        if not fits:
            bounds = [
                f"{words} {bound}"
                for words, bound in (("at least", least), ("more than", above), ("at most", most), ("less than", below))
                if bound is not None
            ]
            each = "every number " if isinstance(value, list) else ""
            self.add(key, f"expected {each}{' and '.join(bounds)}")

    def pair(self, key: str, least: float, most: float, *, equal: bool = False) -> None:
        """Check for two numbers within [least, most], the first smaller than the second (or equal, if `equal`)."""
        value = self.cfg[key]
        ordered = len(value) == 2 and (value[0] <= value[1] if equal else value[0] < value[1])
        if not ordered or value[0] < least or value[1] > most:
            relation = "not above" if equal else "below"
            self.add(key, f"expected two numbers from {least:g} to {most:g}, the first {relation} the second")

    def length(self, key: str, length: int) -> None:
        """Check that the list has `length` elements."""
        if len(self.cfg[key]) != length:
            self.add(key, f"expected {length} values, got {len(self.cfg[key])}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems, one per line."""
        found = list(dict.fromkeys(self.found))  # two parts may report the same key
        if found:
            raise ConfigError(all_problems(str(self.cfg.source or "the configuration"), found))


def _numbers(value: Any) -> list[float]:
    return [number for element in value for number in _numbers(element)] if isinstance(value, list) else [value]


@dataclasses.dataclass(frozen=True)
class Rule:
    """The valid values of one key.

    Attributes:
        name: of the key, relative to the section of its options.
        choices: the values, or elements of a list, that the native engine implements.
        detectron2: further ones that only Detectron2 implements.
        registry: whether the value is a name that Detectron2, if it is the engine, checks against its registries.
        at_least, above, at_most, below: bounds of a number, or of every number in a list or list of lists.
        length: of a list. not_empty: whether a list needs an element.
        test: any other condition: returns what is expected if a value is invalid, else None.
    """

    name: str
    choices: Sequence[Any] | None = None
    detectron2: Sequence[Any] = ()
    registry: bool = False
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: int | None = None
    not_empty: bool = False
    test: Callable[[Any], str | None] | None = None

    def check(self, problems: Problems, key: str) -> None:
        """Add the problems with the value of `key`."""
        before = len(problems.found)
        value = problems.cfg[key]
        if value is None:  # valid if the key's kind allows it
            return
        if self.choices is not None:
            self._check_choice(problems, key, value)
        if self.length is not None and len(value) != self.length:
            problems.add(key, f"expected {self.length} values, got {len(value)}")
        elif self.not_empty and not value:
            problems.add(key, "expected at least one value")
        problems.within(key, self.at_least, self.at_most, above=self.above, below=self.below)
        # The test may rely on the other conditions.
        if self.test is not None and len(problems.found) == before:
            expected = self.test(value)
            if expected is not None:
                problems.add(key, expected)

    def _check_choice(self, problems: Problems, key: str, value: Any) -> None:
        detectron2 = problems.engine == "detectron2"
        if detectron2 and self.registry:
            return
        choices = [*self.choices, *(self.detectron2 if detectron2 else ())]
        wrong = [each for each in (value if isinstance(value, list) else [value]) if each not in choices]
        if wrong:
            elsewhere = not detectron2 and (self.registry or all(each in self.detectron2 for each in wrong))
            problems.add_choices(key, choices, elsewhere=elsewhere)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Options nested in options, read only if `when` returns that the configuration uses the part."""

    options: type[Options]
    section: str | None
    when: Callable[[Config], bool] | None

    def in_use(self, cfg: Config) -> bool:
        return self.when is None or self.when(cfg)


def key(
    name: str, *, default: Any = dataclasses.MISSING, convert: Callable[[Any], Any] | None = None, **rule: Any
) -> Any:
    """Declare a field that is read from a key of the section; `rule`: fields of `Rule`.

    A name that begins with a top-level section (`INPUT.FORMAT`) is absolute. `default`: for options created without a
    configuration. `convert`: converts a valid value to the field.
    """
    return dataclasses.field(default=default, metadata={"rule": Rule(name, **rule), "convert": convert})


def part(
    options: type[Options],
    *,
    section: str | None = None,
    when: Callable[[Config], bool] | None = None,
    default: Any = dataclasses.MISSING,
) -> Any:
    """Declare a field that holds further options, None if `when(cfg)` is False.

    section: replaces the section of the options' class, for a class used for several sections. default: see `key`.
    """
    return dataclasses.field(default=default, metadata={"part": _Part(options, section, when)})


class Options:
    """Base class of all options; subclasses are frozen dataclasses with fields made by `key` and `part`.

    section: of the keys; options that were read for another section (`part(..., section=...)`) have that one.
    """

    section: ClassVar[str] = ""

    @classmethod
    def from_config(cls, cfg: Config, section: str | None = None) -> Self:
        """Read the options; raise ConfigError with every problem, each with its key and origin."""
        problems = Problems(cfg)
        options = cls.read(problems, section)
        problems.raise_if_any()
        assert options is not None
        return options

    @classmethod
    def read(cls, problems: Problems, section: str | None = None) -> Self | None:
        """Read the options and add their problems; return None if there are any."""
        section = cls.section if section is None else section
        before = len(problems.found)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            rule, inner = field.metadata.get("rule"), field.metadata.get("part")
            if rule is not None:
                full_name, noted = _full_name(section, rule.name), len(problems.found)
                rule.check(problems, full_name)
                value = _frozen(problems.cfg[full_name])
                if field.metadata["convert"] is not None and len(problems.found) == noted:
                    value = field.metadata["convert"](value)
                values[field.name] = value
            elif inner is not None:
                used = inner.in_use(problems.cfg)
                values[field.name] = inner.options.read(problems, inner.section) if used else None
        if len(problems.found) > before:
            return None
        options = cls(**values)
        object.__setattr__(options, "section", section)
        options.check(problems)
        return options if len(problems.found) == before else None

    @classmethod
    def rules(cls, cfg: Config | None = None, section: str | None = None) -> dict[str, Rule]:
        """Return full key -> rule of all keys that these options read; with `cfg`, only of the parts in use."""
        section = cls.section if section is None else section
        found: dict[str, Rule] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            rule, inner = field.metadata.get("rule"), field.metadata.get("part")
            if rule is not None:
                found[_full_name(section, rule.name)] = rule
            elif inner is not None and (cfg is None or inner.in_use(cfg)):
                found |= inner.options.rules(cfg, inner.section)
        return found

    def check(self, problems: Problems) -> None:
        """Add problems with combinations of values; called only if each value is valid."""


_TOP_LEVEL = ("MODEL.", "INPUT.", "DATASETS.", "DATALOADER.", "SOLVER.", "TEST.", "TRACKING.")


def _full_name(section: str, name: str) -> str:
    return name if not section or name.startswith(_TOP_LEVEL) else f"{section}.{name}"


def _frozen(value: Any) -> Any:
    return tuple(_frozen(element) for element in value) if isinstance(value, list) else value
