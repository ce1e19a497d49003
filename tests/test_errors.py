"""Parts of messages that every package uses."""

from __future__ import annotations

from detseg.errors import did_you_mean, first_line


def test_the_first_line_of_an_error_that_says_much_little_or_nothing() -> None:
    assert first_line(ValueError("\n too long\nfor a line")) == "too long"
    assert first_line(ValueError("x" * 1000)) == "x" * 200
    assert first_line(MemoryError()) == first_line(MemoryError("\n")) == "MemoryError"


def test_the_nearest_name_in_whatever_case() -> None:
    assert did_you_mean("clae", ["Blur", "CLAHE"]) == "; did you mean CLAHE?"
    assert did_you_mean("nothing like it", ["Blur", "CLAHE"]) == did_you_mean("x", []) == ""
