"""The page of one or several trainings: `detseg report`, and at the end of every training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detseg.config.loading import Imports
from detseg.evaluation.matches import confusion
from detseg.files.atomic import check_free, write_output
from detseg.files.run_files import REPORT_FILE
from detseg.report.html import render, share, svg
from detseg.report.outcomes import outcome_legend
from detseg.report.run import figures
from detseg.report.run.about import facts, repeat_lines, seconds_trained, status_text
from detseg.report.run.comparison import beside_each_other
from detseg.report.run.pictures import Detail, chosen_images, has_images, image_items
from detseg.report.run.results import RunResults, ScoredSet, read_run
from detseg.report.run.scores import COCO_TITLES, TITLES, ScoreRow, changed_keys, data_rows, is_inherited, score_rows
from detseg.report.run.text import duration, interval_text, short, three
from detseg.version import __version__

logger = logging.getLogger(__name__)

LARGEST = 5_000_000  # bytes, small enough for e-mail
# Maximum number of classes in a figure of curves: those with the most objects.
MOST_CURVES = 8
# With more runs than this, the sections on single runs are left out.
MOST_IN_FULL = 8


# If a page is too large, it is made again with the next.
_DETAILS = (Detail(3, 560), Detail(3, 380), Detail(1, 320), Detail(0, 0), Detail(0, 0, figures=False))


def write_report(
    paths: Sequence[Path], output: Path | None = None, *, overwrite: bool = False, imports: Imports | None = None
) -> Path:
    """Write the page of one run, or of several compared with the first; return its path.

    output: None: report.html in the folder of a single run, where it is replaced, or in the working folder. imports: as
    in `load_config`.

    Raises RunError if there is no run, DataError if `output` exists, unless `overwrite`, or cannot be written.
    """
    if output is not None:
        check_free(output, overwrite=overwrite)
    runs = [read_run(path, imports) for path in paths]
    if output is None and len(runs) > 1:
        output = Path(REPORT_FILE)
        check_free(output, overwrite=overwrite)
    output = output or runs[0].path / REPORT_FILE
    write_output(output, report_page(runs), "the report")
    return output


def report_page(runs: Sequence[RunResults]) -> str:
    """Return the page, usually less than a megabyte and never more than `LARGEST` bytes."""
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
        values |= beside_each_other(runs, names, detail)
    return render("run.html.jinja", **values)


def _names_of(runs: Sequence[RunResults]) -> list[str]:
    """Return short, distinct names: folders, with their parents if needed."""
    parts = [Path(os.path.abspath(run.path)).parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names) and not any(name.isdigit() for name in names):
            return names
    return [f"{number}: {run.name}" for number, run in enumerate(runs, start=1)]


def _run_page(run: RunResults, name: str, mark: str, detail: Detail) -> dict[str, Any]:
    """Return the template's values for one run. mark: prefix of the ids of its sections."""
    sets = [_set_page(one, f"{mark}-set{number}", name, detail) for number, one in enumerate(run.sets)]
    plain, about = ({}, "") if sets else _plain_scores(run)
    drawn = _training_figures(run, name) if detail.figures else []
    changes = [(key, short(value), short(default), origin) for key, value, default, origin in changed_keys(run)]
    links = [(one["id"], f"Scores: {one['name']}") for one in sets] or ([(f"{mark}-scores", "Scores")] if plain else [])
    links += [(f"{one['id']}-images", f"Images: {one['name']}") for one in sets if one["pictures"]]
    links += [(f"{mark}-folds", "Folds")] if run.final.get("folds") else []
    links += [(f"{mark}-training", "Training")] if drawn else []
    repeat = "\n".join(repeat_lines(run))
    links += [(f"{mark}-made", "How it was made"), *([(f"{mark}-repeat", "To repeat it")] if repeat else [])]
    return {
        "id": mark,
        "name": name,
        "status": status_text(run),
        "finished": run.status == "finished",
        "when": str(run.path),
        "problems": run.problems,
        "tiles": _tiles(run, sets[0]["interval"] if sets else ""),
        "links": links,
        "sets": sets,
        "plain_scores": plain,
        "plain_about": about,
        "folds": _plain_table("the folds", {**run.final["folds"], "together": run.final})
        if "folds" in run.final
        else {},
        "training": drawn,
        "facts": facts(run),
        "changes": [row for row in changes if not is_inherited(run, row[3])],
        "inherited": [row for row in changes if is_inherited(run, row[3])],
        "data": data_rows(run),
        "repeat": repeat,
        "outcome_colours": [(entry.text, "#{:02x}{:02x}{:02x}".format(*entry.colour)) for entry in outcome_legend()],
    }


def _training_figures(run: RunResults, name: str) -> list[str]:
    """Return losses, scores and pace by iteration; for folds, losses and scores of all in one figure."""
    if run.parts:
        lines = [(part.name, part.of_kind("training"), part.of_kind("evaluation")) for part in run.parts]
        return [svg(figures.draw_runs, lines, label=f"losses and scores of the folds of {name}")]
    training, evaluations, drawn = run.of_kind("training"), run.of_kind("evaluation"), []
    if training:
        label = f"losses of {name} by iteration; the last sum is {three(training[-1].get('total_loss'))}"
        drawn.append(svg(figures.draw_losses, training, label=label))
    if evaluations:
        label = f"scores of {name} by iteration; the last object AP is {three(evaluations[-1].get('object_ap'))}"
        drawn.append(svg(figures.draw_scores, evaluations, label=label))
    if training:
        label = f"learning rate, gradient and seconds per iteration of {name}"
        drawn.append(svg(figures.draw_pace, training, label=label))
    return drawn


def _set_page(scored: ScoredSet, mark: str, run: str, detail: Detail) -> dict[str, Any]:
    of = f"{scored.name} in {run}"
    page: dict[str, Any] = {"id": mark, "name": scored.name, "about": _about(scored)}
    page |= dict.fromkeys(("interval", "intervals", "curves", "confusion", "no_pictures"), "") | {"pictures": []}
    rows = score_rows(scored)
    if not rows:
        scores = {"all": scored.scores, **scored.scores.get("per_class", {})}
        return page | {"scores": _plain_table(scored.name, scores)}
    page["scores"] = _score_table(scored.name, rows)
    page["interval"] = interval_text(rows[0].ends[0])
    if detail.figures:
        said = "; ".join(f"{row.name} {three(row.values[0])} ({interval_text(row.ends[0])})" for row in rows[:12])
        page["intervals"] = svg(figures.draw_intervals, rows, label=f"object AP of {of} with its interval: {said}")
        page |= _error_figures(scored, of)
    if len(scored.truth.class_names) > 1:
        page["confusion"] = _confusion(scored)
    if detail.each and not has_images(scored):
        page["no_pictures"] = f"The images do not exist ({scored.dataset.images[0].path}), so there are no pictures."
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
            figures.draw_curves, named, chosen, label=f"precision-recall curve, and object AP by threshold, of {of}"
        ),
        "overlaps": svg(
            figures.draw_overlaps, scored.matches, label=f"IoU of hits, and sizes of found and missed objects, of {of}"
        ),
        "counts": svg(
            figures.draw_counts, scored.matches, label=f"predicted vs true numbers of objects, and areas, of {of}"
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
        f"{len(scored.truth.images):,} images, {objects:,} objects. Object scores: for predictions with a score of at "
        f"least {said}, overlaps resolved. COCO AP: for all {sum(map(len, scored.raw)):,} predictions. Precision and "
        "recall: at IoU > 0.5, over all images."
    )


def _score_table(name: str, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    coco = [key for key in COCO_TITLES if any(row.coco[key] is not None for row in rows)]
    # Short titles fit on one line.
    columns = [
        *(title.replace(" ", "\N{NO-BREAK SPACE}") for title in TITLES.values()),
        *(COCO_TITLES[key] for key in coco),
        "images",
        "objects",
        "predicted",
    ]
    table = []
    for row in rows:
        cells = [(three(value), interval_text(ends)) for value, ends in zip(row.values, row.ends, strict=True)]
        cells += [(three(row.coco[key]), "") for key in coco]
        cells += [(f"{count:,}", "") for count in (row.images, row.objects, row.predictions)]
        table.append((row.name, cells))
    return {"name": name, "columns": columns, "rows": table}


def _plain_table(name: str, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return scores without intervals as a table with named rows."""
    titles = {**TITLES, **COCO_TITLES}
    keys = [key for key in titles if any(own.get(key) is not None for own in scores.values())]
    rows = [(row, [(three(own.get(key)), "") for key in keys]) for row, own in scores.items()]
    return {"name": name, "columns": [titles[key] for key in keys], "rows": rows}


def _plain_scores(run: RunResults) -> tuple[dict[str, Any], str]:
    """Return the table of recorded scores, used if there are no predictions, and its origin; {} without scores."""
    scores = run.scores
    if not scores:
        return {}, ""
    about = "From final_metrics.json; without the data there are no intervals."
    if not run.final:
        about = f"From the last evaluation during training, after {scores['iteration']} iterations."
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


def _tiles(run: RunResults, interval: str) -> list[tuple[str, str]]:
    """Return the large numbers at the top, with their captions. interval: of object AP, or ""."""
    tiles = []
    scores = run.scores
    if scores.get("object_ap") is not None:
        kept = interval.replace("–", "\N{WORD JOINER}–\N{WORD JOINER}")  # on one line
        tiles.append((three(scores["object_ap"]), f"object AP, 95 %: {kept}" if kept else "object AP"))
    for key, title in {**TITLES, **COCO_TITLES}.items():
        if key in ("object_ap50", "mean_f1", "coco_segm_ap", "coco_bbox_ap") and scores.get(key) is not None:
            tiles.append((three(scores[key]), title))
    training = run.of_kind("training")
    if training:
        most = run.config.SOLVER.MAX_ITER if run.config is not None else None
        done = f"{training[-1]['iteration']:,}" + (f" of {most:,}" if most else "")
        tiles.append((duration(seconds_trained(run)), f"for {done} iterations, without evaluations"))
    return tiles
