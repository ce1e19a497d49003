"""Parts of messages that every package uses."""

from __future__ import annotations

from detseg.errors import did_you_mean, first_line, list_problems


def test_the_first_line_of_an_error_that_says_much_little_or_nothing() -> None:
    assert first_line(ValueError("\n too long\nfor a line")) == "too long"
    assert first_line(ValueError("x" * 1000)) == "x" * 200
    assert first_line(MemoryError()) == first_line(MemoryError("\n")) == "MemoryError"


def test_the_nearest_name_in_whatever_case() -> None:
    assert did_you_mean("clae", ["Blur", "CLAHE"]) == "; did you mean CLAHE?"
    assert did_you_mean("nothing like it", ["Blur", "CLAHE"]) == did_you_mean("x", []) == ""


def test_what_is_wrong_in_many_places_is_told_once_with_their_number() -> None:
    problems = ["a.png: is empty", *(f"{number}.png: has 3 channels" for number in range(40)), "b.png: is empty"]
    assert list_problems(problems).splitlines() == [
        "  - a.png: is empty",
        "  - 0.png, 1.png, 2.png, ... (40 in all): has 3 channels",
        "  - b.png: is empty",
    ]
    assert list_problems([f"name {number}" for number in range(3)], 2).endswith("\n  - name 1\n  ... and 1 more")
