"""Pages of templates: texts are escaped, figures keep apart, numbers read well."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from detseg.report.html import INK, new_figure, number, render, share, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(title: str) -> Figure:
    figure, (axes,) = new_figure(1.5)
    axes.plot([0, 1], [1, 0], label="<b>")
    axes.set_title(title)
    axes.legend()
    return figure


def test_a_page_escapes_texts_and_has_the_style() -> None:
    page = render("page.html.jinja", title="<script>")
    assert "<title>&lt;script&gt;</title>" in page
    assert "prefers-color-scheme: dark" in page
    assert page.startswith("<!doctype html>")


def test_figures_take_the_colours_of_the_page_and_share_no_id() -> None:
    first, second = svg(draw, "a & b", label="one"), svg(draw, "c", label="two")
    assert first.startswith("<svg")
    assert 'aria-label="one"' in first
    assert "var(--ink)" in first
    assert INK not in first
    assert "a &amp; b" in first
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert all(ids)
    assert not ids[0] & ids[1]
    quoted = svg(draw, "d", label='a "b" <c>')
    assert 'aria-label="a &#34;b&#34; &lt;c&gt;"' in quoted
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', first))
    assert used <= ids[0]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (3, "3"), (1234.5, "1,234"), (0.12345, "0.123"), (20.0, "20"), (0, "0")]
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares() -> None:
    assert [share(value) for value in (None, 0, 0.004, 0.5, 1)] == ["-", "0 %", "0.4 %", "50 %", "100 %"]
