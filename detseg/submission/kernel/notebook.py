"""The notebook: a template of cells, and the .ipynb made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPLATE = Path(__file__).with_name("notebook.template")
_CELL = re.compile(r"^# %%(.*)\n", re.M)


def make_notebook(values: Mapping[str, Any]) -> str:
    """Return the text of the .ipynb; values: replacements for `@name@` in the template."""
    text = _TEMPLATE.read_text(encoding="utf-8")
    text = re.sub(r"@(\w+)@", lambda match: str(values[match[1]]), text)
    _, *parts = _CELL.split(text)
    cells = []
    for number, (kind, source) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        source = source.strip()
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if "markdown" in kind:
            cell |= {"cell_type": "markdown", "source": re.sub(r"^# ?", "", source, flags=re.M)}
        else:
            cell |= {"cell_type": "code", "source": source, "outputs": [], "execution_count": None}
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
