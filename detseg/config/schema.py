"""All known keys with kinds and default values: Detectron2's, with detseg's differences, and detseg's own.

A configuration may have further keys: those that MODEL.IMPORTS adds (`Schema.extended`).
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from detseg.config.detectron2_defaults import DETECTRON2_DEFAULTS
from detseg.config.keys import OWN_KEYS
from detseg.config.kinds import Kind, WrongKindError, coerce, kind_of_default

# <config> is replaced by the configuration's name; each run takes the next free number below it.
DEFAULT_OUTPUT_DIR = "runs/<config>"


@dataclass(frozen=True)
class Difference:
    """A key of Detectron2's with a different default in detseg; docs/configuration.md lists them."""

    name: str
    default: Any
    reason: str


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "MODEL.DEVICE",
        "auto",
        "The best available device (CUDA, else the CPU), so that one file runs everywhere.",
    ),
    Difference(
        "INPUT.MASK_FORMAT",
        "bitmask",
        "Polygons and bitmasks of cells under 80 pixels agree only to IoU 0.69; touching cells need exact masks.",
    ),
    Difference(
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
        False,
        "Images without objects show the model what background looks like.",
    ),
    Difference(
        "DATALOADER.ASPECT_RATIO_GROUPING",
        False,
        "Images are not grouped: a batch depends only on its position in the sample stream, so that a resumed run "
        "repeats the uninterrupted one exactly; crops have one shape anyway.",
    ),
    Difference(
        "OUTPUT_DIR",
        DEFAULT_OUTPUT_DIR,
        "`<config>` is the name of the configuration; every run gets a numbered folder inside, so that nothing is "
        "overwritten.",
    ),
)


# Detectron2's keys whose default does not determine the type, or makes it too narrow.
_DECLARED_KINDS = {
    "MODEL.FPN.IN_FEATURES": Kind("str", (1,)),
    "MODEL.ANCHOR_GENERATOR.SIZES": Kind("number", (1, 2)),  # a single list applies to every level
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": Kind("float", (1, 2)),
    "MODEL.ANCHOR_GENERATOR.ANGLES": Kind("number", (1, 2)),
    "INPUT.CROP.SIZE": Kind("number", (1,)),  # fractions or pixels
    "DATASETS.TRAIN": Kind("str", (1,)),
    "DATASETS.TEST": Kind("str", (1,)),
    "DATASETS.PROPOSAL_FILES_TRAIN": Kind("str", (1,)),
    "DATASETS.PROPOSAL_FILES_TEST": Kind("str", (1,)),
    "SOLVER.WEIGHT_DECAY_BIAS": Kind("float", optional=True),
    "TEST.EXPECTED_RESULTS": Kind("any", (1, 2)),
    "TEST.KEYPOINT_OKS_SIGMAS": Kind("float", (1,)),
}


@functools.cache
def detectron2_defaults() -> Mapping[str, Any]:
    """Return Detectron2's default of each of its keys, by dotted name. Read only."""
    return MappingProxyType(dict(_flatten(DETECTRON2_DEFAULTS, "")))


@dataclass(frozen=True)
class Schema:
    """The keys known to one configuration: defaults and kinds by dotted name, and the section names.

    extra: keys that MODEL.IMPORTS added to the common ones, or defaults that it changed.
    """

    defaults: Mapping[str, Any]
    kinds: Mapping[str, Kind]
    sections: frozenset[str]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def default_values(self) -> dict[str, Any]:
        """Return a new copy of the default of every key, by dotted name."""
        return copy.deepcopy(dict(self.defaults))

    def extended(self, extra: Mapping[str, Any]) -> Schema:
        """Return this schema with further keys or changed defaults, by dotted name."""
        if not extra:
            return self
        kinds = {**self.kinds, **{name: _kind_of_import(extra[name]) for name in extra if name not in self.kinds}}
        values = {name: coerce(kinds[name], value, decode=False) for name, value in extra.items()}
        return Schema(
            MappingProxyType({**self.defaults, **values}),
            MappingProxyType(kinds),
            self.sections | _sections_of(extra),
            MappingProxyType(values),
        )

    def nearest_key(self, name: str) -> str | None:
        """Return the known key or section with the most similar name, or None."""
        wanted = name[:120].upper()
        known = [*self.defaults, *self.sections]
        close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
        if close:
            return close[0]
        # the right last part in a wrong section: SOLVER.NMS_THRESH_TEST
        last = wanted.rsplit(".", 1)[-1]
        by_last = {key.rsplit(".", 1)[-1]: key for key in reversed(list(self.defaults))}
        close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)
        return by_last[close[0]] if close else None


@functools.cache
def schema() -> Schema:
    """Return the keys known to every configuration."""
    values = dict(detectron2_defaults())
    values.update((difference.name, difference.default) for difference in DIFFERENCES)
    values.update((name, key.default) for name, key in OWN_KEYS.items())
    declared = _DECLARED_KINDS | {name: key.kind for name, key in OWN_KEYS.items() if key.kind is not None}
    kinds = {name: declared.get(name) or kind_of_default(value) for name, value in values.items()}
    return Schema(MappingProxyType(values), MappingProxyType(kinds), _sections_of(values))


def kinds() -> Mapping[str, Kind]:
    """Return the kind of every key of `schema()`, by dotted name. Read only."""
    return schema().kinds


def default_values() -> dict[str, Any]:
    """Return a new copy of detseg's default of every key of `schema()`, by dotted name."""
    return schema().default_values()


def _sections_of(values: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name.rsplit(".", count)[0] for name in values for count in range(1, name.count(".") + 1))


def _kind_of_import(default: Any) -> Kind:
    """Return the kind of an imported key; any value if the default does not determine it (None, empty, mixed)."""
    try:
        kind = kind_of_default(default)
        coerce(kind, default, decode=False)
    except (ValueError, WrongKindError):
        return Kind("any", (0, 1, 2), optional=True)
    return kind


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
