"""Options in the forms in which the agents of sweeps write them, as argparse reads them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

from detseg.config.command_line import agent_values, whole_numbers
from detseg.config.kinds import literal

# Of W&B's agents, and of `detseg sweep`.
STARTED_BY_AGENT = ("WANDB_SWEEP_ID", "DETSEG_SWEEP")


def option_words(parser: argparse.ArgumentParser, words: Sequence[str], *, overrides: bool) -> list[str]:
    """Return the words of a command with the values of a sweep as options.

    Only where an agent started it: `NAME=VALUE` and a word of JSON are options then, underscores in their names are
    hyphens, `--switch=True` is a switch, `--list=[1, 2]` several words, 3.0 the integer 3, and None not given.
    `$WANDB_RUN_ID` is filled in: W&B's own macro is filled in before the agent knows it.

    overrides: the command takes keys, which its other words are.
    """
    if not any(name in os.environ for name in STARTED_BY_AGENT):
        return list(words)
    own: list[str] = []
    remaining = [word.replace("$WANDB_RUN_ID", os.environ.get("WANDB_RUN_ID", "$WANDB_RUN_ID")) for word in words]
    while remaining:
        word = remaining.pop(0)
        values = None if overrides else agent_values(word)
        name, is_pair, text = word.partition("=")
        action = _action(parser, name, bare=bool(is_pair) and not overrides)
        if values is not None:
            for given, value in values.items():
                own += _option(given, _action(parser, given, bare=True), value)
        elif action is None:
            own.append(word)
        elif is_pair:
            own += _option(name, action, text)
        elif action.nargs != 0 and remaining and not remaining[0].startswith("--"):
            own += _option(name, action, remaining.pop(0))
        else:
            own.append(action.option_strings[0])
    return list(_without_switches(parser, own))


def _action(parser: argparse.ArgumentParser, name: str, *, bare: bool) -> argparse.Action | None:
    if not bare and not name.startswith("--"):
        return None
    option = "--" + name.lstrip("+-")
    known = parser._option_string_actions
    return known.get(option) or known.get(option.replace("_", "-"))


def _option(name: str, action: argparse.Action | None, value: Any) -> list[str]:
    """The words of an option; one that the parser does not know is left to it, to be refused by name."""
    option = "--" + name.lstrip("+-") if action is None else action.option_strings[0]
    takes_several = action is not None and action.nargs in ("+", "*")
    if isinstance(value, str) and takes_several and isinstance(literal(value), (list, tuple)):
        value = literal(value)
    if value is None or value == "None":
        return []
    if takes_several:
        return [option, *(str(each) for each in (value if isinstance(value, (list, tuple)) else [value]))]
    if action is not None and action.type is int:
        number = literal(value) if isinstance(value, str) else value
        value = whole_numbers(number, value)
    return [f"{option}={value}"]


def _without_switches(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """Switches with a value, behind = or as the next word, become switches that are there or not."""
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, is_pair, text = word.partition("=")
        action = parser._option_string_actions.get(name)
        if action is None or action.nargs != 0:
            yield word
            continue
        if not is_pair and remaining and remaining[0] in ("True", "False", "None"):
            text = remaining.pop(0)
        if text in ("", "True", "true"):
            yield name
        elif text not in ("False", "false", "None"):
            yield word
