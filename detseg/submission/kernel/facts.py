"""What is known of Kaggle and of its competitions: `facts.yaml`, and files of the user's own for other competitions."""

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

    sample: name of the table (CSV) that says which images are to be predicted. images: name of their folder, or zip
    without its suffix, beside the table.
    """

    __test__ = False  # pytest takes every class whose name begins with Test for tests

    sample: str
    images: str


@dataclass(frozen=True)
class Competition:
    """A competition that is submitted to with a notebook.

    slug: as in its address. layout: of its CSV. hours: that a notebook may run. tests: the first that is there counts.
    """

    slug: str
    layout: CsvFormat
    hours: float
    tests: tuple[TestImages, ...]

    @classmethod
    def from_plain(cls, values: Any, source: str) -> Competition:
        """Read what `to_plain` gives, or the same with the name of a known format. Raises DataError naming source."""
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
            raise DataError(f"{source}: expected the slug of its address, hours above 0, and at least one of tests")
        layout = FORMATS[chosen] if isinstance(chosen, str) else CsvFormat(**chosen)
        return cls(values["slug"], layout, float(values["hours"]), tuple(tests))

    def to_plain(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML can hold them."""
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
    """Return a known competition, or the one that a YAML file describes (as an entry of facts.yaml does).

    Raises DataError for a name that is neither, and for a file that says something else.
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
    """Raise DataError where a mapping has not these keys with values of these kinds."""
    if not isinstance(values, Mapping) or set(values) != set(kinds):
        found = ", ".join(map(str, values)) if isinstance(values, Mapping) else repr(values)[:80]
        raise DataError(f"{source}: expected {', '.join(kinds)}; found {found or 'nothing'}")
    for key, kind in kinds.items():
        if not isinstance(values[key], kind):
            raise DataError(f"{source}: {key} is {str(values[key])[:80]!r}, which is not of the expected kind")
