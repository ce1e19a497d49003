"""Untrusted file names: which are valid, and how they are escaped for terminals and spreadsheets."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from detseg.errors import DataError

# Longest component of a path, in bytes, that common file systems accept.
MAX_PART = 255
# Control characters of terminals and spreadsheets, including those that change the writing direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
# How spreadsheets recognize formulas; numbers are exempt.
_FORMULA = ("=", "+", "-", "@", "\t")


def has_drive(name: str) -> bool:
    """Whether a path begins with a Windows drive; on other systems `a:b.png` is an ordinary file name."""
    return bool(PureWindowsPath(name).drive) and (os.name == "nt" or name[2:3] in ("/", "\\") or name[:2] == "\\\\")


def below(name: str, root: Path) -> str:
    """Return a file name of a data set as a path relative to its image root, with forward slashes.

    Absolute names and names with `..` are valid if they lead below the root. Raises DataError for all others.
    """
    slashed = name.replace("\\", "/")
    if "\0" in name or not slashed.strip("/"):
        raise DataError(f"its file_name is {name!r}; expected a path relative to the image root")
    longest = max(slashed.split("/"), key=len)
    if len(longest.encode("utf-8", "surrogatepass")) > MAX_PART:
        raise DataError(
            f"its file_name has a component of {len(longest)} letters ({longest[:20]!r}...), too long for a file"
        )
    is_absolute = slashed.startswith("/") or has_drive(name)
    if not is_absolute and posixpath.normpath(slashed).split("/")[0] not in ("..", "."):
        return name
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, slashed))
    if os.path.commonpath([base, path]) != base or path == base or (has_drive(name) and os.name != "nt"):
        raise DataError(
            f"its file_name leads out of the image root {root}; expected a path below it (see DATASETS.IMAGE_ROOT); "
            "if the images are there, `detseg prepare coco --last-part` keeps only the last part of each name"
        )
    return os.path.relpath(path, base).replace(os.sep, "/")


def without_ending(names: Iterable[str]) -> list[str]:
    """Return slash-separated paths without their suffixes, which are kept if needed to tell them apart (a.png,
    a.jpg)."""
    paths = [PurePosixPath(name.replace("\\", "/")) for name in names]
    counts = Counter(path.with_suffix("") for path in paths)
    return [str(bare if counts[bare := path.with_suffix("")] == 1 else path) for path in paths]


def json_stem(name: str) -> str:
    """Return a file name without .json or .json.gz."""
    return name.removesuffix(".gz").removesuffix(".json")


def matching(pattern: str) -> list[Path]:
    """Return the sorted paths that match a path or glob pattern of the command line, with `~` and `**` expanded.

    Existing paths take precedence over patterns: `a[1].png` is that file before it matches `a1.png`, and in
    `plate[2]/*.png` the folder is plate[2] if it exists. Brackets are first taken literally, then as character classes.
    Empty if nothing matches.
    """
    path = os.path.expanduser(pattern)
    if os.path.lexists(path):
        return [Path(path)]
    folder, rest = path, ""
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder.rstrip(os.sep))
        rest = os.path.join(name, rest) if rest else name
        if not name:  # a root that does not exist, such as that of a missing drive
            return []
    for form in (rest.replace("[", "[[]"), rest):
        found = glob.glob(os.path.join(glob.escape(folder), form), recursive=True)
        if found:
            return [Path(name) for name in sorted(found)]
    return []


def printable(text: str) -> str:
    """Return a text with terminal control characters escaped; line ends are kept."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def to_cell(value: object) -> object:
    """Return a value of a CSV file, with an apostrophe before text that a spreadsheet would take for a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    if not text.startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def from_cell(text: str) -> str:
    """Undo `to_cell`."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text
