"""Convert the arguments that sweep agents write to options that argparse reads."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

from detseg.config.command_line import agent_values, whole_numbers
from detseg.config.kinds import literal

# Set by W&B's agents, and by `detseg sweep`.
STARTED_BY_AGENT = ("WANDB_SWEEP_ID", "DETSEG_SWEEP")


def option_words(parser: argparse.ArgumentParser, words: Sequence[str], *, overrides: bool) -> list[str]:
    """Return the arguments of a command with the values of a sweep converted to options.

    Only if an agent started the command: `NAME=VALUE` and a JSON argument become options, underscores in their names
    hyphens, `--switch=True` a switch, `--list=[1, 2]` several arguments, 3.0 the integer 3; None is left out.
    `$WANDB_RUN_ID` is expanded, because W&B expands its own macros before the agent knows the id.

    overrides: the command accepts configuration keys; arguments that are not options are such keys.
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
    """Return the arguments of an option; an unknown one is left to the parser, which refuses it by name."""
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
    """Convert switches with a value (`--switch=True`, `--switch True`) to plain switches, or drop them."""
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
