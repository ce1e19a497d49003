"""Pages in a real browser, narrow and wide, dark and light: no error, every picture there, read by eyes and readers.

Chromium or Chrome is looked for on the PATH, else in DETSEG_BROWSER; without one these tests are skipped.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from run_folders import make_data, make_run

from detseg.cli.main import main

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("DETSEG_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome (on the PATH, or DETSEG_BROWSER)")

# Put into a copy of a page: what a reader would meet, as JSON in the document.
LOOK = """
<script>
window.addEventListener("load", () => {
  const all = (what) => [...document.querySelectorAll(what)];
  for (const one of all("details")) one.open = true;
  const numbers = (text) => text.match(/[\\d.]+(e-\\d+)?/g).map(Number);
  const parse = (text) => {
    const [r, g, b, a = 1] = numbers(text.replace("color(srgb", ""));
    return text.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (one) => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, part, i) => {
    const v = c[i] / 255;
    return sum + part * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const faint = [];
  for (const one of all("h1,h2,h3,h4,p,td,th,a,b,span,small,figcaption,pre,summary,svg text")) {
    if (!one.textContent.trim() || one.className === "skip") continue;
    const style = getComputedStyle(one);
    const back = ground(one);
    const ink = over(parse(one.closest("svg") ? style.fill : style.color), back);
    const [high, low] = [light(ink), light(back)].sort((x, y) => y - x);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) faint.push(`${one.tagName} ${one.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  const levels = all("h1,h2,h3,h4,h5").map((one) => Number(one.tagName[1]));
  const found = {
    pictures: all("img").length,
    broken: all("img").filter((one) => !one.naturalWidth).length,
    silent: all("img").filter((one) => !one.alt).length
      + all("figure > svg").filter((one) => !one.matches('[role="img"][aria-label]')).length,
    figures: all("figure > svg").filter((one) => one.getBoundingClientRect().width > 100).length,
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    jumps: levels.filter((level, i) => i && level > levels[i - 1] + 1).length,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor,
    unreachable: all(".scroll").filter((one) => one.tabIndex !== 0 || !one.getAttribute("aria-label")).length,
    faint,
  };
  document.documentElement.setAttribute("data-found", JSON.stringify(found));
});
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    data = make_data(folder / "data")
    for name, quality in (("good", 1.0), ("poor", 0.4)):
        make_run(folder / name, data, quality=quality)
    runs = ["--run", str(folder / "good"), str(folder / "poor")]
    assert main(["report", *runs[:2]]) == 0
    assert main(["report", *runs, "--output", str(folder / "both.html")]) == 0
    assert main(["inspect_data", "--data", str(data), "--output", str(folder / "data report")]) == 0
    return {
        "a training": folder / "good" / "report.html",
        "two trainings": folder / "both.html",
        "a data set": folder / "data report" / "index.html",
    }


@pytest.mark.parametrize(("width", "dark"), [(420, True), (1280, False)], ids=["narrow and dark", "wide and light"])
@pytest.mark.parametrize("name", ["a training", "two trainings", "a data set"])
def test_a_page_is_whole_for_every_reader(
    pages: dict[str, Path], tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    copy = tmp_path / "page.html"
    copy.write_text(pages[name].read_text(encoding="utf-8").replace("</body>", LOOK + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += [f"--window-size={width},900", "--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    result = subprocess.run(
        [BROWSER, *options, copy.as_uri()], capture_output=True, text=True, timeout=180, check=False
    )
    said = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not said, said
    (text,) = re.findall(r'data-found="([^"]*)"', result.stdout)
    found = json.loads(html.unescape(text))
    assert found["dark"] is dark
    assert found["paper"] == ("rgb(21, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert found["pictures"] > 3
    assert found["figures"] > 4
    wrong = {key: found[key] for key in ("broken", "silent", "jumps", "unreachable", "faint") if found[key]}
    assert not wrong, "broken pictures, figures without words, headings that skip a level, faint texts"
    assert found["sideways"] <= 0, "the page itself must not scroll sideways"
