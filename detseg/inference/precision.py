"""Number formats of prediction, and how `auto` chooses the fastest one that finds objects as well as float32.

On CPUs with bfloat16, and on GPUs, convolutions in half precision take at most half the time. If only the mask head
uses it (`bfloat16_masks`), boxes and scores are bit-identical to float32, and a few pixels at mask borders differ.
Whether a trained model's boxes tolerate it too is measured at the end of its training (`object_ap_of_precisions` in
final_metrics.json).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from detseg.errors import ConfigError
from detseg.models.base import Segmenter
from detseg.models.map_segmenter import MapSegmenter
from detseg.models.region_segmenter import RegionSegmenter
from detseg.optim.precision import DTYPES, automatic_dtype

AUTO, FULL, OF_MASKS = "auto", "float32", "_masks"
PRECISIONS = (FULL, *DTYPES, *(f"{name}{OF_MASKS}" for name in DTYPES))
# In final_metrics.json: object AP by precision.
MEASURED = "object_ap_of_precisions"
# Largest loss in object AP on the validation images that is accepted for a faster format.
TOLERANCE = 0.001


def check_precision(name: str) -> None:
    """Raise ConfigError for an unknown precision."""
    if name not in (AUTO, *PRECISIONS):
        raise ConfigError(f"the precision is {name!r}; expected one of {AUTO}, {', '.join(PRECISIONS)}")


def precisions_of(segmenter: Segmenter) -> list[str]:
    """Return the precisions that are worthwhile for a model on its device, fastest first; the last is float32."""
    half = automatic_dtype(segmenter.device)
    name = next((name for name, dtype in DTYPES.items() if dtype == half), None)
    if name is not None and isinstance(segmenter, MapSegmenter):
        return [name, FULL]
    if name is None or not isinstance(segmenter, RegionSegmenter) or not segmenter.masks_apart:
        return [FULL]
    return [name, f"{name}{OF_MASKS}", FULL]


def is_equal(object_ap: float, of_float32: float) -> bool:
    """Whether a precision finds objects as well as float32."""
    return object_ap >= of_float32 - TOLERANCE


def choose_precision(segmenter: Segmenter, measured: Mapping[str, float]) -> str:
    """Return the fastest precision that is as good as float32.

    measured: object AP by precision. Without measurements only the masks are computed faster.
    """
    for name in precisions_of(segmenter):
        if name in measured and FULL in measured:
            if is_equal(measured[name], measured[FULL]):
                return name
        elif name.endswith(OF_MASKS):
            return name
    return FULL


@contextmanager
def computing(segmenter: Segmenter, precision: str) -> Iterator[None]:
    """Context in which a model predicts with a precision other than auto."""
    dtype = DTYPES.get(precision.removesuffix(OF_MASKS))
    if dtype is None:  # some device types do not support autocast, even when disabled
        yield
    elif precision.endswith(OF_MASKS):
        segmenter.mask_dtype = dtype
        try:
            yield
        finally:
            segmenter.mask_dtype = None
    else:
        with torch.autocast(segmenter.device.type, dtype=dtype):
            yield
