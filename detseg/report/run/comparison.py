"""Comparison of several trainings: the others with the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detseg.report.html import svg
from detseg.report.run import figures
from detseg.report.run.about import seconds_trained, status_text
from detseg.report.run.pictures import Detail, has_images, image_items
from detseg.report.run.results import RunResults, ScoredSet
from detseg.report.run.scores import TITLES, Comparison, compare, different_keys, per_image
from detseg.report.run.text import duration, interval_text, short, signed, three


def beside_each_other(runs: Sequence[RunResults], names: Sequence[str], detail: Detail) -> dict[str, Any]:
    """Return the template's values for several runs, compared with the first."""
    overview, curves, comparisons, failures = [], [], [], []
    for run, name in zip(runs, names, strict=True):
        row = [
            three(run.scores.get(key)) for key in ("object_ap", "object_ap50", "object_ap75", "mean_f1", "coco_segm_ap")
        ]
        sets = ", ".join(one.name for one in run.sets) or "-"
        overview.append((name, status_text(run), sets, *row, duration(seconds_trained(run))))
        if run.sets and run.sets[0].curves:
            curves.append((name, run.sets[0].curves[0], run.sets[0].postprocess.score_threshold))
    for run, name in zip(runs[1:], names[1:], strict=True):
        found = False
        for base in runs[0].sets:
            other = next(
                (one for one in run.sets if one.name == base.name), run.sets[0] if len(run.sets) == 1 else None
            )
            compared = compare(base, other) if other is not None else None
            if compared is not None:
                comparisons.append(_comparison(base, other, compared, (names[0], name), detail))
                found = True
        if not found:
            failures.append(f"{name} has no predictions of the images of {names[0]}, so they are not compared.")
    chosen = {name: value for name, _, value in curves if isinstance(value, float)}
    named = [(name, curve) for name, curve, _ in curves]
    lines = [(name, run.of_kind("training"), run.of_kind("evaluation")) for run, name in zip(runs, names, strict=True)]
    return {
        "overview": overview,
        "comparisons": comparisons,
        "not_compared": failures,
        "curves": svg(figures.draw_curves, named, chosen, label="precision-recall curves of all runs") if named else "",
        "progress": svg(figures.draw_runs, lines, label="losses and scores of all runs")
        if any(own for _, own, _ in lines)
        else "",
        "different": [(key, *map(short, values)) for key, values in different_keys(runs)],
    }


def _comparison(
    base: ScoredSet, other: ScoredSet, compared: Comparison, names: tuple[str, str], detail: Detail
) -> dict[str, Any]:
    rows = []
    for name, first, second, gains, ends in compared.rows:
        rows.append((f"{name}: {names[0]}", [(three(value), "") for value in first]))
        cells = [
            (f"{three(value)} ({signed(gain)})", interval_text(own, with_sign=True))
            for value, gain, own in zip(second, gains, ends, strict=True)
        ]
        rows.append((f"{name}: {names[1]}", cells))
    differences = [(name, float(gains[0]), ends[0]) for name, _, _, gains, ends in compared.rows]
    differences = [row for row in differences if not np.isnan(row[1])]
    said = "; ".join(
        f"{name} {signed(gain)} ({interval_text(ends, with_sign=True)})" for name, gain, ends in differences[:12]
    )
    of = f"{names[1]} and {names[0]} on {base.name}"
    scores = per_image(base)[compared.base_images], per_image(other)[compared.other_images]
    pictures = []
    if detail.each and has_images(base):
        order = np.argsort(scores[1] - scores[0], kind="stable")
        for title, chosen in (("Lost most", order[: detail.each]), ("Gained most", order[::-1][: detail.each])):
            chosen = [one for one in chosen if (scores[1] - scores[0])[one] * (1 if title[0] == "G" else -1) > 0]
            items = []
            for one in chosen:
                places = (base, compared.base_images[one]), (other, compared.other_images[one])
                for (scored, place), name in zip(places, names, strict=True):
                    for item in image_items(scored, [int(place)], detail.side, plain=False):
                        items.append({**item, "note": f"{name}: {item['note']}"})
            if items:
                pictures.append((title, items))
    return {
        "title": f"{names[1]} against {names[0]}: {other.name}",
        "about": f"{len(compared.base_images):,} common images. In brackets the difference, below it its 95 % "
        "interval; if that does not contain 0, the difference is significant with respect to the choice of images.",
        "table": {"name": of, "columns": list(TITLES.values()), "rows": rows},
        "figure": svg(
            figures.draw_differences, differences, names[1], label=f"differences in object AP of {of}: {said}"
        ),
        "images": svg(figures.draw_image_scores, *scores, names, label=f"object AP of every image, {of}"),
        "pictures": pictures,
    }
