"""Whatever a file or the command line holds: the right result or ConfigError, quickly, and nothing else."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detseg.config import Config, config_hash, dump_config, load_config, load_flat_config
from detseg.config.kinds import Kind, WrongKindError, coerce, literal
from detseg.config.schema import kinds
from detseg.errors import ConfigError

QUICK = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
KEYS = st.sampled_from(sorted(kinds()))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def load_or_refuse(path: Path | None, words: list = ()) -> Config | None:
    try:
        return load_config(path, words)
    except ConfigError as error:
        assert 0 < len(str(error)) < 20_000  # noqa: PT017
        return None


def nest(flat: dict) -> dict:
    tree: dict = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@QUICK
@given(text=st.text(alphabet=st.sampled_from("MODELSEED_BASE: -[]{}&*!|>'\"\n#?,1.e\t%@\x00é"), max_size=60))
def test_any_text_as_a_file(text: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    load_or_refuse(path)


@QUICK
@given(content=st.binary(max_size=60))
def test_any_bytes_as_a_file(content: bytes, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    load_or_refuse(path)


@QUICK
@given(flat=st.dictionaries(KEYS, VALUES, max_size=4))
def test_known_keys_with_any_values(flat: dict, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(nest(flat)), encoding="utf-8")
    cfg = load_or_refuse(path)
    if cfg is not None:
        again = tmp_path / "again.yaml"
        again.write_text(dump_config(cfg), encoding="utf-8")
        assert load_config(again) == cfg


@QUICK
@given(words=st.lists(KEYS | st.text(max_size=10) | st.builds("--{}={}".format, KEYS, SCALARS), max_size=4))
def test_any_words_on_the_command_line(words: list[str]):
    load_or_refuse(None, words)


@QUICK
@given(key=KEYS, value=VALUES)
def test_any_stored_value(key: str, value):
    try:
        cfg = load_flat_config({key: value})
    except ConfigError:
        return
    stored = json.loads(json.dumps(cfg.flatten(), allow_nan=False))
    assert load_flat_config(stored) == cfg
    assert config_hash(load_flat_config(stored)) == config_hash(cfg)


@QUICK
@given(key=st.sampled_from([key for key, kind in kinds().items() if kind == Kind("str")]), text=st.text(max_size=12))
def test_any_text_value_survives_the_dump(key: str, text: str, tmp_path: Path):
    cfg = load_flat_config({key: text})
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(cfg), encoding="utf-8")
    try:
        assert load_config(path) == cfg
    except ConfigError as error:
        assert key in str(error), "only the value's meaning may be refused"  # noqa: PT017


@QUICK
@given(value=VALUES)
@pytest.mark.parametrize("kind", sorted(set(kinds().values()), key=str), ids=str)
def test_coercion_gives_the_kind_and_is_stable(kind: Kind, value):
    try:
        result = coerce(kind, value, decode=False)
    except WrongKindError as error:
        assert "expected" in str(error)  # noqa: PT017
        return
    assert coerce(kind, result, decode=False) == result


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000,
        "SEED: " + "[" * 3_000 + "]" * 3_000,
        "{a: " * 5_000,
        "SEED: &a [*a]",
        "MODEL: &a {MODEL: *a}",
        "a: &a [1,1]\n"
        + "".join(f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p}]\n" for p, c in zip("abcdefghij", "bcdefghijk", strict=True)),
        "SEED: " + "9" * 5_000,
        "SEED: 0x" + "f" * 100_000,
        'SEED: "' + "(" * 90_000 + '"',
        'SEED: "' + "-" * 90_000 + '1"',
        "SEED: '" + "1+" * 40_000 + "1'",
        "X" * 500_000 + ": 1",
        "? {a: 1}\n: 2",
        "SEED: !!binary AAAA",
        "SEED: !!set {a}",
        "TEST: {EXPECTED_RESULTS: [!!timestamp 2001-01-01]}",
        "TEST: {EXPECTED_RESULTS: [[&a [1], *a]]}",
        "SEED: *missing",
        "%YAML 9.9\n---\nSEED: 1",
        "SEED: 1:99:99999999999999999999",
        "SEED: ._",
    ],
    ids=range(21),
)
def test_known_attacks(text: str, tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    cfg = load_or_refuse(path)
    assert cfg is None or isinstance(cfg.SEED, int)


def test_billion_laughs_in_a_known_key(tmp_path: Path):
    pairs = zip("abcdefghij", "bcdefghijk", strict=True)
    inner = ", ".join(["&a [x]", *(f"&{c} [{', '.join([f'*{p}'] * 9)}]" for p, c in pairs)])
    path = tmp_path / "c.yaml"
    path.write_text(f"TEST:\n  EXPECTED_RESULTS: [{inner}]\n", encoding="utf-8")
    assert load_or_refuse(path) is None


def test_literals_do_not_raise():
    for text in ("", " ", "\x00", "\\", "1e999", "0x", "1j", "b'a'", "{}", "{[]: 1}", "\ud800", "f'{1}'"):
        literal(text)
