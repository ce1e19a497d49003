"""docs/configuration.md says what the code says."""

from pathlib import Path

import pytest

from detseg.config.keys import OWN_KEYS
from detseg.engine.document import fill_tables
from detseg.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.mark.parametrize("page", [PAGE, PAGE.with_name("engines.md")], ids=lambda page: page.name)
def test_tables_are_up_to_date(page: Path):
    text = page.read_text(encoding="utf-8")
    assert fill_tables(text) == text, f"run: python -m detseg.engine.document {page}"


def test_every_own_key_is_documented():
    text = PAGE.read_text(encoding="utf-8")
    missing = [name for name, key in OWN_KEYS.items() if f"`{name}`" not in text or key.explanation not in text]
    assert not missing


def test_unknown_table_is_refused():
    with pytest.raises(ConfigError, match="own keys"):
        fill_tables("<!-- table: other -->\n<!-- end -->")
