"""torchvision of another build than torch: one clear message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detseg.models.torchvision_ops import require_operators

BROKEN = {
    "operators do not load": 'raise RuntimeError("operator torchvision::nms does not exist")',
    "library does not load": 'raise OSError("undefined symbol: _ZN3c10")',
    "not installed": 'raise ImportError("No module named torchvision")',
}


def test_here_they_load() -> None:
    require_operators()


@pytest.mark.parametrize("statement", BROKEN.values(), ids=BROKEN.keys())
def test_the_message_says_versions_and_remedy(statement: str, tmp_path: Path) -> None:
    """A torchvision that fails on import as one of another build does, in front of the real one."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(statement)
    code = "from detseg.models.torchvision_ops import require_operators\nrequire_operators()"
    repository = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository)])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("detseg.errors.DetsegError: ")
    for part in ("torch 2", "torchvision", "Reinstall both together", "pip install torch torchvision"):
        assert part in message
