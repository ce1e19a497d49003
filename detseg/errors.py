"""The exceptions that detseg raises for bad input.

Every message says what was read, where (file, row or annotation id, key), what was expected and what to do. The command
line prints that one message and exits with status 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class DetsegError(Exception):
    """Something that the user gave or that surrounds the program is wrong; the message says what and how to mend it."""


class ConfigError(DetsegError):
    """A configuration file, key or value is wrong."""


class DataError(DetsegError):
    """An image, a mask, a table or a data set is wrong."""


class WeightsError(DetsegError):
    """A checkpoint cannot be read or does not fit the model."""


class OutputError(WeightsError):
    """What a network gives for an image is not finite."""


class RunError(DetsegError):
    """A run folder cannot be used, or a training cannot go on."""


def all_problems(where: str, problems: Sequence[str]) -> str:
    """One message of all problems: a single one as it is, several as a list below what they are of."""
    return problems[0] if len(problems) == 1 else f"{where}: {count_problems(problems)}:\n{list_problems(problems)}"


def count_problems(problems: Sequence[str]) -> str:
    """Say how many there are."""
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"


def refuse(problems: Mapping[str, object]) -> None:
    """Raise ConfigError with the first message whose condition holds. problems: message -> condition."""
    for message, is_wrong in problems.items():
        if is_wrong:
            raise ConfigError(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the known name most like this one, in whatever case, or nothing."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for messages, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def some_of(names: Sequence[str]) -> str:
    """Join the first three names, for messages."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def list_problems(problems: Sequence[str], limit: int = 20) -> str:
    """Join problems into an indented list, one per line; after `limit` lines only their number is told.

    What is wrong in three or more places (`PLACE: what is wrong`) is one line, with the number of places.
    """
    places: dict[str, dict[str, None]] = {}
    for problem in problems:
        place, _, what = problem.partition(": ")
        places.setdefault(what, {})[place] = None
    lines: dict[str, None] = {}
    for problem in problems:
        what = problem.partition(": ")[2]
        same = list(places[what]) if what else []
        text = f"{some_of(same)} ({len(same)} in all): {what}" if len(same) > 2 else problem
        lines[f"  - {text}"] = None
    more = [f"  ... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join([*list(lines)[:limit], *more])
