"""The page of a training, or of several beside each other: `detseg report`, and at the end of every training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detseg.config.loading import Imports
from detseg.evaluation.matches import confusion
from detseg.files.atomic import check_free, make_folder, written_whole
from detseg.files.run_files import REPORT_FILE
from detseg.report.html import render, share, svg
from detseg.report.outcomes import outcome_legend
from detseg.report.run import figures
from detseg.report.run.about import facts, repeat_lines, seconds_trained, status_text
from detseg.report.run.pictures import chosen_images, has_images, image_items
from detseg.report.run.results import RunResults, ScoredSet, read_run
from detseg.report.run.scores import (
    COCO_TITLES,
    TITLES,
    Comparison,
    ScoreRow,
    changed_keys,
    compare,
    data_rows,
    different_keys,
    per_image,
    score_rows,
)
from detseg.version import __version__

logger = logging.getLogger(__name__)

LARGEST = 5_000_000  # bytes: what mail takes
# Of more classes a figure of curves shows those with the most objects.
MOST_CURVES = 8
# Of more runs than this the pages of the single ones are left out.
MOST_IN_FULL = 8


class Detail(NamedTuple):
    """How much a page shows: images of each kind, their longer side in pixels, and figures of the single runs."""

    each: int
    side: int
    figures: bool = True


# A page that is too large is made again with the next.
_DETAILS = (Detail(3, 560), Detail(3, 380), Detail(1, 320), Detail(0, 0), Detail(0, 0, figures=False))


def write_report(
    paths: Sequence[Path], output: Path | None = None, *, overwrite: bool = False, imports: Imports | None = None
) -> Path:
    """Write the page of one run or of several, the first of which the others are compared with; return its path.

    output: None: report.html in the folder of the only run, which is replaced, or in the working folder. imports: as
    for `load_config`.

    Raises RunError where there is no run, DataError where `output` is there, unless `overwrite`, or cannot be written.
    """
    if output is not None:
        check_free(output, overwrite)
    runs = [read_run(path, imports) for path in paths]
    if output is None and len(runs) > 1:
        output = Path(REPORT_FILE)
        check_free(output, overwrite)
    output = output or runs[0].path / REPORT_FILE
    text = report_page(runs)
    make_folder(output.parent)
    with written_whole(output, "the report") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return output


def report_page(runs: Sequence[RunResults]) -> str:
    """Return the page, in most cases of less than a megabyte and never of more than `LARGEST` bytes."""
    for detail in _DETAILS if len(runs) <= MOST_IN_FULL else _DETAILS[3:]:
        text = _page(runs, detail)
        if len(text.encode()) <= LARGEST:
            break
    return text


def _page(runs: Sequence[RunResults], detail: Detail) -> str:
    names = _names_of(runs)
    several = len(runs) > 1
    values: dict[str, Any] = {
        "title": f"Training {names[0]}" if not several else f"{len(runs)} trainings compared",
        "runs": [
            _run_page(run, name, f"run{n}", detail) for n, (run, name) in enumerate(zip(runs, names, strict=True))
        ],
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "when": ", ".join(str(run.path) for run in runs),
        "names": names,
        "open_all": False,
    }
    if several:
        values |= _beside_each_other(runs, names, detail)
    return render("run.html.jinja", **values)


def _names_of(runs: Sequence[RunResults]) -> list[str]:
    """Return short names that differ: folders, with their parents where needed."""
    parts = [Path(os.path.abspath(run.path)).parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names) and not any(name.isdigit() for name in names):
            return names
    return [f"{number}: {run.name}" for number, run in enumerate(runs, start=1)]


def _run_page(run: RunResults, name: str, mark: str, detail: Detail) -> dict[str, Any]:
    """Return what the template shows of one run. mark: begins the ids of its sections."""
    sets = [_set_page(one, f"{mark}-set{number}", name, detail) for number, one in enumerate(run.sets)]
    plain, about = ({}, "") if sets else _plain_scores(run)
    training, evaluations = run.of_kind("training"), run.of_kind("evaluation")
    drawn = []
    for part in [run, *run.parts] if detail.figures else []:
        of = f"{name}, {part.name}" if part is not run else name
        training, evaluations = part.of_kind("training"), part.of_kind("evaluation")
        if training and not run.parts:
            last = training[-1].get("total_loss")
            label = f"losses of {of} by iteration; the last sum is {_three(last)}"
            drawn.append(svg(figures.draw_losses, training, label=label))
        if evaluations and not run.parts:
            label = f"scores of {of} by iteration; the last object AP is {_three(evaluations[-1].get('object_ap'))}"
            drawn.append(svg(figures.draw_scores, evaluations, label=label))
        if training and not run.parts:
            label = f"learning rate, gradient and seconds an iteration of {of}"
            drawn.append(svg(figures.draw_pace, training, label=label))
    if run.parts and detail.figures:
        lines = [(part.name, part.of_kind("training"), part.of_kind("evaluation")) for part in run.parts]
        drawn.append(svg(figures.draw_runs, lines, label=f"losses and scores of the folds of {name}"))
    changes = changed_keys(run)
    links = [(one["id"], f"Scores: {one['name']}") for one in sets] or ([(f"{mark}-scores", "Scores")] if plain else [])
    links += [(f"{one['id']}-images", f"Images: {one['name']}") for one in sets if one["pictures"]]
    links += [(f"{mark}-folds", "Folds")] if run.final.get("folds") else []
    links += [(f"{mark}-training", "Training")] if drawn else []
    links += [(f"{mark}-made", "How it was made"), (f"{mark}-repeat", "To repeat it")]
    return {
        "id": mark,
        "name": name,
        "status": status_text(run),
        "finished": run.status == "finished",
        "when": str(run.path),
        "problems": run.problems,
        "tiles": _tiles(run),
        "links": links,
        "sets": sets,
        "plain_scores": plain,
        "plain_about": about,
        "folds": _plain_table("the folds", {**run.final["folds"], "together": run.final})
        if "folds" in run.final
        else {},
        "training": drawn,
        "facts": facts(run),
        "changes": [(key, _short(value), _short(default), origin) for key, value, default, origin in changes],
        "data": [
            (row["name"], row["key"], *_counts(row))
            if row["found"]
            else (row["name"], row["key"], "-", "-", "not found here", "-")
            for row in data_rows(run)
        ],
        "repeat": "\n".join(repeat_lines(run)),
        "outcome_colours": [(entry.text, "#{:02x}{:02x}{:02x}".format(*entry.colour)) for entry in outcome_legend()],
    }


def _counts(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return f"{row['images']:,}", f"{row['objects']:,}", row["classes"], row["hash"]


def _set_page(scored: ScoredSet, mark: str, run: str, detail: Detail) -> dict[str, Any]:
    of = f"{scored.name} in {run}"
    page: dict[str, Any] = {"id": mark, "name": scored.name, "about": _about(scored)}
    page |= dict.fromkeys(("intervals", "curves", "confusion", "no_pictures"), "") | {"pictures": []}
    rows = score_rows(scored)
    if not rows:
        scores = {"all": scored.scores, **scored.scores.get("per_class", {})}
        return page | {"scores": _plain_table(scored.name, scores)}
    page["scores"] = _score_table(scored.name, rows)
    if detail.figures:
        said = "; ".join(f"{row.name} {_three(row.values[0])} ({_interval(row.ends[0])})" for row in rows[:12])
        page["intervals"] = svg(figures.draw_intervals, rows, label=f"object AP of {of} with its interval: {said}")
        page |= _error_figures(scored, of)
    if len(scored.truth.class_names) > 1:
        page["confusion"] = _confusion(scored)
    if detail.each and not has_images(scored):
        page["no_pictures"] = f"The images are not there ({scored.dataset.images[0].path}): no pictures."
    elif detail.each:
        chosen = [(title, image_items(scored, own, detail.side)) for title, own in chosen_images(scored, detail.each)]
        page["pictures"] = [(title, items) for title, items in chosen if items]
    return page


def _error_figures(scored: ScoredSet, of: str) -> dict[str, Any]:
    names = scored.truth.class_names
    threshold = scored.postprocess.score_threshold
    own = dict(threshold) if isinstance(threshold, Mapping) else dict.fromkeys(names, threshold)
    one = threshold if not isinstance(threshold, Mapping) else None
    curves = scored.curves
    objects = {curve.name: len(curve.object_ap) for curve in curves}
    shown = sorted(curves[1:], key=lambda curve: -objects[curve.name])[:MOST_CURVES]
    named = [(curve.name, curve) for curve in curves if curve is curves[0] or any(curve is other for other in shown)]
    chosen = {**own, **({"all": one} if one is not None else {})}
    return {
        "thresholds": svg(
            figures.draw_thresholds,
            curves[0],
            one,
            label=f"precision, recall, F1 and object AP of {of} by score threshold",
        ),
        "curves": svg(
            figures.draw_curves, named, chosen, label=f"precision by recall, and object AP by threshold, of {of}"
        ),
        "overlaps": svg(
            figures.draw_overlaps, scored.matches, label=f"IoU of hits, and sizes of found and missed objects, of {of}"
        ),
        "counts": svg(
            figures.draw_counts, scored.matches, label=f"predicted by true numbers of objects, and areas, of {of}"
        ),
    }


def _about(scored: ScoredSet) -> str:
    threshold = scored.postprocess.score_threshold
    said = (
        ", ".join(f"{name} {value:.3g}" for name, value in threshold.items())
        if isinstance(threshold, Mapping)
        else f"{threshold:.3g}"
    )
    objects = sum(image.num_objects for image in scored.truth.images)
    return (
        f"{len(scored.truth.images):,} images, {objects:,} objects. Object scores: of predictions with a score of at "
        f"least {said}, overlaps resolved. COCO AP: of all {sum(map(len, scored.raw)):,} predictions. Precision and "
        "recall: at IoU > 0.5, of all images together."
    )


def _score_table(name: str, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    coco = [key for key in COCO_TITLES if any(row.coco[key] is not None for row in rows)]
    # Short titles stay on one line.
    columns = [
        *(title.replace(" ", "\N{NO-BREAK SPACE}") for title in TITLES.values()),
        *(COCO_TITLES[key] for key in coco),
        "images",
        "objects",
        "predicted",
    ]
    table = []
    for row in rows:
        cells = [(_three(value), _interval(ends)) for value, ends in zip(row.values, row.ends, strict=True)]
        cells += [(_three(row.coco[key]), "") for key in coco]
        cells += [(f"{count:,}", "") for count in (row.images, row.objects, row.predictions)]
        table.append((row.name, cells))
    return {"name": name, "columns": columns, "rows": table}


def _plain_table(name: str, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return scores without intervals as a table, rows by name."""
    titles = {**TITLES, **COCO_TITLES}
    keys = [key for key in titles if any(own.get(key) is not None for own in scores.values())]
    rows = [(row, [(_three(own.get(key)), "") for key in keys]) for row, own in scores.items()]
    return {"name": name, "columns": [titles[key] for key in keys], "rows": rows}


def _plain_scores(run: RunResults) -> tuple[dict[str, Any], str]:
    """Return the table of what was scored without predictions at hand, and where it is from; {} where nothing was."""
    evaluations = run.of_kind("evaluation")
    if run.final:
        scores, about = run.final, "As final_metrics.json has them; without the data there are no intervals."
    elif evaluations:
        scores = evaluations[-1]
        about = f"Of the last evaluation during the training, after {scores['iteration']} iterations."
    else:
        return {}, ""
    rows = {"all": scores, **scores.get("per_class", {}), **scores.get("per_group", {}), **scores.get("datasets", {})}
    return _plain_table(run.name, rows), about


def _confusion(scored: ScoredSet) -> dict[str, Any]:
    names = scored.truth.class_names
    counts = confusion(scored.matches, len(names))
    parts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, own, part in zip([*names, "no object (false)"], counts, parts, strict=True):
        cells = [(f"{count:,} ({share(float(p))})", float(p)) for count, p in zip(own, part, strict=True)]
        rows.append((name, [*cells[:-1], ("", 0.0)] if name not in names else cells))
    return {"classes": names, "rows": rows}


def _tiles(run: RunResults) -> list[tuple[str, str]]:
    tiles = []
    evaluations = run.of_kind("evaluation")
    scores = run.final or (evaluations[-1] if evaluations else {})
    if scores.get("object_ap") is not None:
        said = "object AP"
        if run.final and run.sets and (rows := score_rows(run.sets[0])) and _interval(rows[0].ends[0]):
            said += f", 95 %: {_interval(rows[0].ends[0])}"
        tiles.append((_three(scores["object_ap"]), said))
    for key, title in {**TITLES, **COCO_TITLES}.items():
        if key in ("object_ap50", "mean_f1", "coco_segm_ap", "coco_bbox_ap") and scores.get(key) is not None:
            tiles.append((_three(scores[key]), title))
    training = run.of_kind("training")
    if training:
        most = run.config.SOLVER.MAX_ITER if run.config is not None else None
        done = f"{training[-1]['iteration']:,}" + (f" of {most:,}" if most else "")
        tiles.append((duration(seconds_trained(run)), f"for {done} iterations, evaluations left out"))
    return tiles


def duration(seconds: float) -> str:
    """Return a time as people say it: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _beside_each_other(runs: Sequence[RunResults], names: Sequence[str], detail: Detail) -> dict[str, Any]:
    """Return what the template shows of several runs: the first is what the others are compared with."""
    overview, curves, comparisons, failures = [], [], [], []
    for run, name in zip(runs, names, strict=True):
        evaluations = run.of_kind("evaluation")
        scores = run.final or (evaluations[-1] if evaluations else {})
        row = [
            _three(scores.get(key)) for key in ("object_ap", "object_ap50", "object_ap75", "mean_f1", "coco_segm_ap")
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
            failures.append(f"{name} has no predictions of the images of {names[0]}: they are not compared.")
    chosen = {name: value for name, _, value in curves if isinstance(value, float)}
    named = [(name, curve) for name, curve, _ in curves]
    lines = [(name, run.of_kind("training"), run.of_kind("evaluation")) for run, name in zip(runs, names, strict=True)]
    return {
        "overview": overview,
        "comparisons": comparisons,
        "not_compared": failures,
        "curves": svg(figures.draw_curves, named, chosen, label="precision by recall of all runs") if named else "",
        "progress": svg(figures.draw_runs, lines, label="losses and scores of all runs")
        if any(own for _, own, _ in lines)
        else "",
        "different": [(key, *map(_short, values)) for key, values in different_keys(runs)],
    }


def _comparison(
    base: ScoredSet, other: ScoredSet, compared: Comparison, names: tuple[str, str], detail: Detail
) -> dict[str, Any]:
    columns = [f"{title}" for title in TITLES.values()]
    rows = []
    for name, first, second, gains, ends in compared.rows:
        rows.append((f"{name}: {names[0]}", [(_three(value), "") for value in first]))
        cells = [
            (f"{_three(value)} ({_signed(gain)})", _interval(own, signed=True))
            for value, gain, own in zip(second, gains, ends, strict=True)
        ]
        rows.append((f"{name}: {names[1]}", cells))
    differences = [(name, float(gains[0]), ends[0]) for name, _, _, gains, ends in compared.rows]
    differences = [row for row in differences if not np.isnan(row[1])]
    said = "; ".join(
        f"{name} {_signed(gain)} ({_interval(ends, signed=True)})" for name, gain, ends in differences[:12]
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
        "about": f"{len(compared.base_images):,} images that both have. In brackets the difference, below its 95 % "
        "interval; where that does not hold 0, the difference is more than chance in the choice of images.",
        "table": {"name": of, "columns": columns, "rows": rows},
        "figure": svg(
            figures.draw_differences, differences, names[1], label=f"differences in object AP of {of}: {said}"
        ),
        "images": svg(figures.draw_image_scores, *scores, names, label=f"object AP of every image, {of}"),
        "pictures": pictures,
    }


def _three(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _interval(ends: np.ndarray, *, signed: bool = False) -> str:
    """Return "0.490–0.560", or "+0.010 to +0.020"; "" where there is none."""
    if np.isnan(ends).any():
        return ""
    return " to ".join(map(_signed, ends)) if signed else "–".join(map(_three, ends))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:80]} ... {text[-30:]}"
