"""The commands and imports that the documents show are those that there are."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from detseg.cli.main import SHORT_NAMES, parse_words
from detseg.config import config_name, get_default_config

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "datasets" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:.*&& )?(?:python (?:tools|datasets)/(\w+)\.py|detseg (\w+)) (.*)")


def blocks(document: Path) -> list[str]:
    """Code blocks, fenced and indented; a command that goes on in the next line is one line."""
    text = document.read_text(encoding="utf-8")
    found = [textwrap.dedent(block) for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)]
    found += [textwrap.dedent(block) for block in re.findall(r"(?<=\n\n)((?: {4}.*\n)+)", text)]
    return [re.sub(r"\s*\\\n\s*", " ", block) for block in found]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_have_the_options_and_keys_that_are_shown(document: Path) -> None:
    defaults = get_default_config()
    for line in "\n".join(blocks(document)).splitlines():
        shown = COMMAND.fullmatch(re.sub(r" +# .*", "", line))
        if shown is None:
            continue
        name = shown[1] or SHORT_NAMES.get(shown[2], shown[2])
        words = shlex.split(re.sub(r"\[KEY VALUE \.\.\.\]|\.\.\.", "", shown[3]))
        try:
            arguments = parse_words(importlib.import_module(f"detseg.cli.{name}"), words, name)
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{document.name}: {line}")
            continue
        for word in getattr(arguments, "overrides", []):
            key = word.partition("=")[0]
            if re.fullmatch(r"[A-Z][A-Z0-9]*(\.[A-Z0-9_]+)+", key):
                node = defaults
                for part in key.split("."):
                    assert part in node, f"{document.name}: {line}: there is no key {key}"
                    node = node[part]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_imports_that_are_shown_work(document: Path) -> None:
    for block in blocks(document):
        if not re.search(r"^(from|import) detseg", block, re.MULTILINE):
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{document.name}: {node.module} has no {name.name}"


def test_runs_have_the_folders_that_trainings_give_them() -> None:
    configs = list((ROOT / "configs").glob("*/*.yaml"))
    stems, names = {path.stem for path in configs}, {config_name(path) for path in configs}
    for file in [*DOCUMENTS, *configs]:
        for run in re.findall(r"\bruns/(\w+)/001", file.read_text(encoding="utf-8")):
            assert run in names or run not in stems, f"{file.name}: runs/{run}/001"
