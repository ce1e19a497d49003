"""Suggestions as a configuration file, each with its reason as a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detseg.data.coco_writer import make_folder
from detseg.data.inspection.suggestion import Suggestion
from detseg.errors import DataError
from detseg.structures.atomic_write import written_whole

_WIDTH = 118


def suggested_yaml(suggestions: Sequence[Suggestion], files: Sequence[str], classes: int, name: str) -> str:
    """Return the text of a configuration that others build on with `_BASE_`.

    files: the data that it was made for. classes: their number. name: of the file, for the line that shows its use.
    """
    presets = [suggestion.base for suggestion in suggestions if suggestion.base]
    bases = ["configs/_base_/mask_rcnn_fpn.yaml", *(f"configs/_base_/{preset}" for preset in presets), name]
    head = [
        "Suggested by detseg inspect_data for " + ", ".join(files) + ".",
        "To be built on, behind the network and a preset of augmentation, whose values it goes before:",
        f"  _BASE_: [{', '.join(bases)}]",
    ]
    lines = [part for line in head for part in _comment(line, "")]
    tree: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    _put(tree, "MODEL.ROI_HEADS.NUM_CLASSES", classes)
    for suggestion in suggestions:
        for key, value in suggestion.keys.items():
            _put(tree, key, value)
        if suggestion.keys:
            first = next(iter(suggestion.keys))
            reasons.setdefault(first, []).append(f"{suggestion.what} {suggestion.reason}")
    lines += _write(tree, "", 0, reasons)
    return "\n".join(lines) + "\n"


def check_suggested(path: Path, *, overwrite: bool) -> None:
    """Raise DataError where the file exists, unless `overwrite`."""
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; pass --overwrite to replace it, or name another file")


def write_suggested(path: Path, text: str, *, overwrite: bool) -> None:
    """Write the file. Raises DataError where it exists, unless `overwrite`, or cannot be written."""
    check_suggested(path, overwrite=overwrite)
    make_folder(path.parent)
    with written_whole(path, "the suggested configuration") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def _write(tree: dict[str, Any], prefix: str, depth: int, reasons: dict[str, list[str]]) -> list[str]:
    lines = []
    for name, value in tree.items():
        key, indent = f"{prefix}{name}", "  " * depth
        for reason in reasons.get(key, ()):
            lines += _comment(reason, indent)
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_write(value, f"{key}.", depth + 1, reasons)]
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
            lines.append(f"{indent}{name}: {text}")
    return lines
