"""How far two sets of numbers lie apart, name by name, and how far they may.

Bounds: features, boxes, scores 2e-5 of the largest value; losses 1e-5, gradient norms and movements of weights 2e-4
relative; mask probabilities 1e-3 (they are stored in half precision); pasted masks per object max(2 pixels, 3 %). On
CUDA what is stricter is loosened to 1e-4. Detectron2 against itself with another convolution library stays two to six
times below; looser bounds let real mistakes pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

VALUES, LOSSES, GRADIENTS, MASK_PROBABILITIES, CUDA = 2e-5, 1e-5, 2e-4, 1e-3, 1e-4
PIXELS, PIXEL_FRACTION = 2, 0.03
# Lists of an image whose rows belong together.
LISTS = {"proposals": ("proposal_boxes", "objectness"), "detections": ("boxes", "scores", "classes")}


@dataclass(frozen=True)
class Row:
    """One name: the largest difference, its bound and in what it is measured."""

    name: str
    difference: float
    bound: float
    measure: str

    @property
    def passed(self) -> bool:
        # Not "difference > bound": NaN must not pass.
        return self.difference <= self.bound


def compare_all(
    expected: Mapping[str, np.ndarray],
    computed: Mapping[str, np.ndarray],
    unpack_masks: Callable[[Mapping[str, np.ndarray], str], np.ndarray],
    cuda: bool,
) -> list[Row]:
    """Return a row for every name of `expected` but inputs and weights; what is missing is infinitely far away."""
    orders = _orders(expected, computed)
    rows = []
    for name, wanted in expected.items():
        prefix, _, kind = name.partition("/")
        if prefix == "state" or prefix.startswith("in") or kind == "masks_shape":
            continue
        if name not in computed:
            rows.append(Row(name, np.inf, 0.0, "not computed"))
        elif kind == "masks_packed":
            order = orders.get((prefix, "detections"))
            rows.append(_masks(name, unpack_masks(expected, prefix), unpack_masks(computed, prefix), order))
        else:
            group = "proposals" if kind in LISTS["proposals"] else "detections"
            rows.append(_row(name, wanted, computed[name], orders.get((prefix, group)), cuda))
    return rows


# What the names of a case are about: kind, and how names of this kind begin or end.
KINDS = {
    "features": ("features/",),
    "proposals": ("/proposal_boxes", "/objectness"),
    "detections": ("/boxes", "/scores", "/classes"),
    "mask probabilities": ("/mask_probs",),
    "masks": ("/masks_packed",),
    "losses": ("loss/",),
    "gradients": ("grad_norm/",),
    "one step": ("moved/",),
}


def worst_of_kinds(rows: Sequence[Row]) -> dict[str, Row]:
    """Return, for each of KINDS that occurs, the row that comes closest to its bound or passes it the most."""
    worst: dict[str, Row] = {}
    for row in rows:
        kind = next((kind for kind, ends in KINDS.items() if row.name.startswith(ends) or row.name.endswith(ends)), "")
        if kind and (kind not in worst or _share(row) > _share(worst[kind])):
            worst[kind] = row
    return worst


def _share(row: Row) -> float:
    """How much of its bound a row takes; bounds of zero allow nothing, and nothing allows NaN."""
    if np.isnan(row.difference):
        return np.inf
    return row.difference / row.bound if row.bound else (np.inf if row.difference else 0.0)


def _row(name: str, wanted: np.ndarray, got: np.ndarray, order: np.ndarray | None, cuda: bool) -> Row:
    prefix, _, kind = name.partition("/")
    if wanted.shape != got.shape:
        return Row(name, np.inf, 0.0, f"shape {got.shape} instead of {wanted.shape}")
    if order is not None and len(order) == len(got):
        got = got[order]
    difference = _largest(np.abs(wanted.astype(np.float64) - got.astype(np.float64)))
    if kind == "classes":
        return Row(name, difference, 0.0, "absolute")
    if kind == "mask_probs":
        return Row(name, difference, MASK_PROBABILITIES, "absolute")
    bound = {"loss": LOSSES, "grad_norm": GRADIENTS, "moved": GRADIENTS}.get(prefix, VALUES)
    if cuda:
        bound = max(bound, CUDA)
    largest = _largest(np.abs(wanted.astype(np.float64)))
    if largest > 0:
        difference /= largest
    return Row(name, difference, bound, "relative to the largest value")


def _masks(name: str, wanted: np.ndarray, got: np.ndarray, order: np.ndarray | None) -> Row:
    if wanted.shape != got.shape:
        return Row(name, np.inf, 0.0, f"shape {got.shape} instead of {wanted.shape}")
    if order is not None:
        got = got[order]
    different = (wanted != got).sum(axis=(1, 2))
    allowed = np.maximum(PIXELS, PIXEL_FRACTION * wanted.sum(axis=(1, 2)))
    measure = f"of max({PIXELS} pixels, {PIXEL_FRACTION:.0%}); at most {int(_largest(different))} pixels differ"
    return Row(name, _largest(different / allowed), 1.0, measure)


def _orders(
    expected: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """For lists of equal length: which computed row belongs to each expected one.

    Two detections whose scores agree to the last digit or two may change places; they are the same detections.
    """
    orders = {}
    for prefix in {name.partition("/")[0] for name in expected}:
        for group, kinds in LISTS.items():
            names = [f"{prefix}/{kind}" for kind in kinds]
            if not all(name in expected and name in computed for name in names):
                continue
            if any(expected[name].shape != computed[name].shape or not len(expected[name]) for name in names):
                continue
            wanted, got = _side_by_side(expected, names), _side_by_side(computed, names)
            distances = np.nan_to_num(np.abs(wanted[:, None] - got[None]).max(axis=2), nan=1e9, posinf=1e9)
            orders[prefix, group] = linear_sum_assignment(distances)[1]
    return orders


def _side_by_side(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Return (n, columns): what distinguishes the rows of a list, each array in units of its largest value."""
    columns = [arrays[name].reshape(len(arrays[name]), -1).astype(np.float64) for name in names]
    return np.concatenate([column / max(_largest(np.abs(column)), 1e-12) for column in columns], axis=1)


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else 0.0
