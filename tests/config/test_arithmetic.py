"""`!!python/object/apply:eval` is done as arithmetic; nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from detseg.config import load_config
from detseg.config.arithmetic import evaluate
from detseg.errors import ConfigError


@pytest.mark.parametrize(
    "text",
    [
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]",  # Base-RetinaNet.yaml
        "[int(x * 0.1 * 640) for x in range(5, 16)]",  # Panoptic-DeepLab
        "(1, -2.5, +3)",
        "[[x * y for y in (1, 2)] for x in range(3)]",
        "7 // 2 + 7 % 2 - 7 / 2",
        "[round(2.5), max(1, 2), min(1, 2), float(3)]",
        "2 ** -1",
    ],
)
def test_values_are_pythons(text: str):
    expected = eval(text)
    assert evaluate(text) == (list(expected) if isinstance(expected, tuple) else expected)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('x')",
        "(1).__class__",
        "[x for x in [1] if x]",
        "[y for x in [1]]",
        "[1] * 1000000000",
        "[[0 for x in range(9999)] for y in range(9999)]",
        "range(10 ** 12)",
        "9 ** 9 ** 9",
        "(-8) ** 0.5",
        "1 / 0",
        "1e400",
        "int('9')",
        "'a' * 3",
        "lambda: 1",
        "1 if 1 else 2",
        "(" * 900,
        "-" * 999 + "1",
        "1 + " * 400,
        "",
    ],
)
def test_everything_else_is_refused(text: str):
    with pytest.raises(ValueError, match=r".+"):
        evaluate(text)


def test_a_file_with_it_is_read_and_anything_else_names_the_line(tmp_path: Path):
    path = tmp_path / "c.yaml"
    line = 'MODEL:\n  ANCHOR_GENERATOR: {SIZES: !!python/object/apply:eval ["[[x, 2 * x] for x in [8, 16]]"]}'
    path.write_text(line)
    assert load_config(path).MODEL.ANCHOR_GENERATOR.SIZES == [[8, 16], [16, 32]]
    for bad in ('["open(0)"]', "[1, 2]", "{a: 1}", '"1 + 1"', "[[1]]"):
        path.write_text(f"SEED: 1\nVIS_PERIOD: !!python/object/apply:eval {bad}")
        with pytest.raises(ConfigError, match=r"c\.yaml:2"):
            load_config(path)
    path.write_text('SEED: !!python/object/apply:os.system ["true"]')
    with pytest.raises(ConfigError, match="tags that make Python objects are refused"):
        load_config(path)
