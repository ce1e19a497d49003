"""Facts about Kaggle and its competitions: `facts.yaml`, and YAML files of the user for other competitions."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detseg.config.yaml_file import parse_plain_yaml
from detseg.errors import DataError
from detseg.submission.formats import FORMATS, CsvFormat

SLUG = re.compile(r"[a-z0-9](-?[a-z0-9])*")
_FACTS = Path(__file__).with_name("facts.yaml")


@dataclass(frozen=True)
class TestImages:
    """Where a competition has its test images.

    sample: name of the CSV that lists the images to predict. images: name of their folder, or of a zip without its
    suffix, next to the CSV.
    """

    __test__ = False  # pytest would collect a class whose name begins with Test

    sample: str
    images: str


@dataclass(frozen=True)
class Competition:
    """A competition with submission by notebook.

    slug: as in its URL. layout: of its CSV. hours: time limit of a notebook. tests: the first one found is used.
    """

    slug: str
    layout: CsvFormat
    hours: float
    tests: tuple[TestImages, ...]

    @classmethod
    def from_plain(cls, values: Any, source: str) -> Competition:
        """Parse the result of `to_plain`, or the same with the name of a known format. Raises DataError with source."""
        _check(values, {"slug": str, "format": (str, dict), "hours": (int, float), "tests": list}, source)
        chosen = values["format"]
        if isinstance(chosen, str) and chosen not in FORMATS:
            raise DataError(
                f"{source}: format is {chosen!r}; expected {' or '.join(FORMATS)}, or key, runs, by_rows and empty"
            )
        if isinstance(chosen, dict):
            chosen = {"name": values["slug"], "empty": "", **chosen}
            kinds = {"name": str, "key": str, "runs": str, "by_rows": bool, "empty": str}
            _check(chosen, kinds, f"{source}: format")
        tests = []
        for test in values["tests"]:
            _check(test, {"sample": str, "images": str}, f"{source}: tests")
            tests.append(TestImages(**test))
        if not SLUG.fullmatch(values["slug"]) or not tests or not values["hours"] > 0:
            raise DataError(f"{source}: expected slug (from the URL), hours above 0, and at least one entry in tests")
        layout = FORMATS[chosen] if isinstance(chosen, str) else CsvFormat(**chosen)
        return cls(values["slug"], layout, float(values["hours"]), tuple(tests))

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML."""
        return {
            "slug": self.slug,
            "format": asdict(self.layout),
            "hours": self.hours,
            "tests": [asdict(test) for test in self.tests],
        }


@functools.cache
def kaggle_facts() -> Mapping[str, Any]:
    """The content of facts.yaml."""
    return parse_plain_yaml(_FACTS.read_text(encoding="utf-8"), str(_FACTS))


def find_competition(name: str) -> Competition:
    """Return a known competition, or one described by a YAML file like an entry of facts.yaml.

    Raises DataError for a name that is neither, and for an invalid file.
    """
    known = kaggle_facts()["competitions"]
    if name in known:
        return Competition.from_plain(known[name], name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise DataError(f"--competition {name}: expected {', '.join(known)}, or a YAML file that describes another one")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--competition {name}: cannot be read ({error})") from None
    return Competition.from_plain(parse_plain_yaml(text, name), name)


def _check(values: Any, kinds: Mapping[str, type | Sequence[type]], source: str) -> None:
    """Raise DataError unless a mapping has exactly these keys, with values of these types."""
    if not isinstance(values, Mapping) or set(values) != set(kinds):
        found = ", ".join(map(str, values)) if isinstance(values, Mapping) else repr(values)[:80]
        raise DataError(f"{source}: expected {', '.join(kinds)}; found {found or 'nothing'}")
    for key, kind in kinds.items():
        if not isinstance(values[key], kind):
            raise DataError(f"{source}: {key} is {str(values[key])[:80]!r}, which has the wrong type")
