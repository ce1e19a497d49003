"""Collects what is wrong with a configuration, so that one message tells all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detseg.config.kinds import shorten
from detseg.config.node import Config
from detseg.errors import ConfigError, all_problems


class Problems:
    """The problems of one configuration, each with key, value and where the value was set.

    engine: for which the configuration is judged; "native" refuses values that only Detectron2 implements.
    training: whether a training is to begin, which needs more than prediction with given weights. blames_native:
    whether a problem is one of the native engine only.
    """

    def __init__(self, cfg: Config, engine: str = "native", *, training: bool = False) -> None:
        self.cfg = cfg
        self.engine = engine
        self.training = training
        self.found: list[str] = []
        self.blames_native = False

    def add(self, key: str, expected: str) -> None:
        """Note a problem of one key; `expected` says what it should be and what to do."""
        self.found.append(f"{key} = {shorten(self.cfg[key])} ({self.cfg.origin(key)}): {expected}")

    def add_choices(self, key: str, choices: Sequence[Any], *, elsewhere: bool = False) -> None:
        """Note that the value, or one of a list, is none of `choices`; elsewhere: Detectron2 may implement it."""
        names = ", ".join(repr(choice) for choice in choices) or "nothing here"
        many = "some of " if isinstance(self.cfg[key], list) else "one of " if len(choices) > 1 else ""
        self.add(key, f"expected {many}{names}{self.elsewhere() if elsewhere else ''}")

    def elsewhere(self) -> str:
        """The advice to take the other engine; see `blames_native`."""
        self.blames_native = True
        return "; for anything else set MODEL.ENGINE detectron2, which takes Detectron2 itself"

    def one_of(self, key: str, choices: Sequence[Any]) -> None:
        """The value must be one of `choices`."""
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
        """The number, or every number of nested lists, must be >= `least`, > `above`, <= `most`, < `below`."""
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
        """Two numbers within [least, most], the first smaller than the second (or equal, if `equal`)."""
        value = self.cfg[key]
        ordered = len(value) == 2 and (value[0] <= value[1] if equal else value[0] < value[1])
        if not ordered or value[0] < least or value[1] > most:
            relation = "not above" if equal else "below"
            self.add(key, f"expected two numbers from {least:g} to {most:g}, the first {relation} the second")

    def length(self, key: str, length: int) -> None:
        """The list must have `length` elements."""
        if len(self.cfg[key]) != length:
            self.add(key, f"expected {length} values, got {len(self.cfg[key])}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems, one a line."""
        found = list(dict.fromkeys(self.found))  # two parts may read one key
        if found:
            raise ConfigError(all_problems(str(self.cfg.source or "the configuration"), found))


def _numbers(value: Any) -> list[float]:
    return [number for element in value for number in _numbers(element)] if isinstance(value, list) else [value]
