"""Pictures of single images in a report: the worst, median and best ones, alone and with outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detseg.errors import DataError
from detseg.report.drawing import resize_display, to_display
from detseg.report.html import jpeg_url
from detseg.report.outcomes import draw_outcomes, outcome_note
from detseg.report.run.results import ScoredSet
from detseg.report.run.scores import per_image

# The largest enlargement.
ENLARGED = 4


class Detail(NamedTuple):
    """Extent of a page: images of each kind, their longer side in pixels, and whether single runs have figures."""

    each: int
    side: int
    figures: bool = True


def chosen_images(scored: ScoredSet, each: int) -> list[tuple[str, list[int]]]:
    """Return the worst, median and best images by object AP: a title and indices, without repetition.

    Of images with equal scores, those with more objects are preferred as the worst and as the best, because an empty
    image shows nothing.
    """
    scores, objects = per_image(scored), np.array([image.num_objects for image in scored.truth.images])
    worst = np.lexsort((-objects, scores)).tolist()
    best = np.lexsort((-objects, -scores)).tolist()
    middle = np.argsort(np.abs(scores - np.median(scores)), kind="stable").tolist() if len(scores) else []
    taken: set[int] = set()
    groups = {}
    for title, order in (("Worst", worst), ("Best", best), ("Median", middle)):
        groups[title] = [index for index in order if index not in taken][:each]
        taken.update(groups[title])
    return [(title, groups[title]) for title in ("Worst", "Median", "Best") if groups[title]]


def image_items(scored: ScoredSet, indices: Sequence[int], side: int, *, plain: bool = True) -> list[dict[str, str]]:
    """Return pictures of images, alone (if `plain`) and with outcomes; unreadable ones are left out.

    side: the longer one, in pixels.
    """
    items, scores = [], per_image(scored)
    for index in indices:
        truth, found, matches = scored.truth.images[index], scored.kept[index], scored.matches[index]
        try:
            shown = to_display(scored.dataset.read_image(index))
        except DataError:
            continue
        if shown.shape[:2] != (truth.height, truth.width):
            continue
        scale = min(side / max(shown.shape[:2]), ENLARGED)
        name = truth.file_name.rsplit("/", 1)[-1] or str(truth.image_id)
        note = f"object AP {scores[index]:.3f}; {outcome_note(matches)}"
        picture = draw_outcomes(shown, truth.rles, found.rles, matches, scale=scale)
        if plain:
            plain_url = jpeg_url(resize_display(shown, scale))
            items.append({"url": plain_url, "alt": f"{name}, the image alone", "name": name, "note": "the image"})
        items.append({"url": jpeg_url(picture), "alt": f"{name} with outcomes: {note}", "name": name, "note": note})
    return items


def has_images(scored: ScoredSet) -> bool:
    """Whether the first image of the set exists."""
    return bool(scored.dataset.images) and scored.dataset.images[0].path.exists()
