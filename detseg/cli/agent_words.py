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
    for word in words:
        word = word.replace("$WANDB_RUN_ID", os.environ.get("WANDB_RUN_ID", "$WANDB_RUN_ID"))
        values = None if overrides else agent_values(word)
        name, is_pair, text = word.partition("=")
        for given, value in (values or ({name: text} if is_pair else {})).items():
            action = _action(parser, given, bare=not overrides)
            own += [word] if action is None and values is None else _option(given, action, value)
        if values is None and not is_pair:
            action = _action(parser, word, bare=False)
            own.append(word if action is None else action.option_strings[0])
    return list(_without_switches(parser, own))


def _action(parser: argparse.ArgumentParser, name: str, *, bare: bool) -> argparse.Action | None:
    if not bare and not name.startswith("--"):
        return None
    option = "--" + name.lstrip("+-")
    known = parser._option_string_actions
    return known.get(option) or known.get(option.replace("_", "-"))


def _option(name: str, action: argparse.Action | None, value: Any) -> list[str]:
    """The words of an option; one that the parser does not know is left to it, to be refused by name."""
    option = f"--{name}" if action is None else action.option_strings[0]
    if isinstance(value, str):
        value = literal(value) if action is None or action.nargs == 0 or action.nargs in ("+", "*") else value
    if value is None or value == "None":
        return []
    if action is not None and action.nargs == 0:
        return [f"{option}={value}"]
    if action is not None and action.nargs in ("+", "*"):
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
