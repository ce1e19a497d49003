"""The search space: settings, the values that are tried first, and finer ones between them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detseg.errors import ConfigError
from detseg.evaluation.ground_truth import GroundTruth
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.structures import rle as rle_codec

Value = float | int | str | None

# Settings are those of the postprocess; those of the fusion have this prefix.
FUSION = "fusion."
POSTPROCESS_SETTINGS = (
    *("score_threshold", "mask_quality", "min_area", "max_area", "mask_threshold", "nms_iou", "image_class"),
    "min_visible_fraction",
)
FUSION_SETTINGS = tuple(
    FUSION + name
    for name in ("threshold", "min_score", "agreement", "min_members", "mask_threshold", "mask_quality", "weights")
)
BY_DEFAULT = (*POSTPROCESS_SETTINGS[:-1], FUSION + "threshold")
# After a change of these, scores have another meaning, or other thresholds apply.
CHANGE_SCORES = (
    *("mask_quality", "image_class"),
    *(FUSION + name for name in ("threshold", "agreement", "min_members", "mask_quality", "weights")),
)
WHOLE_NUMBERS = ("min_area", "max_area", FUSION + "min_members")
NEED_SOFT_MASKS = ("mask_threshold", "mask_quality", FUSION + "mask_quality")

_GRIDS: dict[str, tuple[Value, ...]] = {
    "score_threshold": tuple(step / 20 for step in range(1, 20)),
    "mask_threshold": (None, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7),
    "nms_iou": (None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "mask_quality": (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
    "min_visible_fraction": (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "image_class": Postprocess.choices("image_class"),
    FUSION + "threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    FUSION + "min_score": (0.0, 0.05, 0.1, 0.2, 0.3),
    FUSION + "agreement": (0.0, 0.25, 0.5, 1.0),
    FUSION + "mask_threshold": (0.3, 0.4, 0.5, 0.6, 0.7),
    FUSION + "mask_quality": (0.0, 0.5, 1.0, 2.0),
    FUSION + "weights": (0.5, 1.0, 2.0),
}
# Settings for which values between those of the grid are tried too.
_FINER = ("score_threshold", "min_area", "max_area", "mask_threshold", "nms_iou", FUSION + "threshold")
# Percentiles of the objects' areas that are tried as limits.
_LOW = (0, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20)
_HIGH = (90, 95, 98, 99, 99.5, 100)


@dataclass(frozen=True)
class State:
    """All settings of one trial; fusion is None without a fusion."""

    postprocess: Postprocess
    fusion: FusionOptions | None = None

    @property
    def key(self) -> str:
        """A string that is equal for equal settings."""
        return json.dumps([self.postprocess.to_dict(), self.fusion_key], sort_keys=True)

    @property
    def fusion_key(self) -> str:
        return "" if self.fusion is None else json.dumps(self.fusion.to_dict(), sort_keys=True)

    @property
    def masks_key(self) -> str:
        """A string that is equal if masks and scores of all candidates are."""
        names = ("classes", "mask_threshold", "mask_quality", "fill_holes", "keep_largest_component", "image_class")
        settings = self.postprocess.to_dict()
        return self.fusion_key + json.dumps([settings[name] for name in names], sort_keys=True)


@dataclass(frozen=True)
class Coordinate:
    """One number or categorical value that is searched.

    setting: its name. part: the class that it applies to, the index of the member whose weight it is, or None for all.
    values: tried first, before finer ones (`near`).
    """

    setting: str
    part: str | int | None
    values: tuple[Value, ...]

    @property
    def name(self) -> str:
        return self.setting if self.part is None else f"{self.setting} of {self.part}"

    def get(self, state: State) -> Value:
        """Return the value in `state`."""
        if self.setting == FUSION + "weights":
            return state.fusion.weights[self.part] if state.fusion.weights else 1.0
        holder = state.fusion if self.setting.startswith(FUSION) else state.postprocess
        value = getattr(holder, self.setting.removeprefix(FUSION))
        return value[self.part] if self.part is not None and isinstance(value, Mapping) else value

    def set(self, state: State, value: Value, members: int = 1) -> State:
        """Return `state` with another value; members: number of weights."""
        if self.setting == FUSION + "weights":
            weights = list(state.fusion.weights or [1.0] * members)
            weights[self.part] = value
            return dataclasses.replace(state, fusion=dataclasses.replace(state.fusion, weights=tuple(weights)))
        if self.setting.startswith(FUSION):
            name = self.setting.removeprefix(FUSION)
            return dataclasses.replace(state, fusion=dataclasses.replace(state.fusion, **{name: value}))
        if self.part is not None:
            old = getattr(state.postprocess, self.setting)
            old = old if isinstance(old, Mapping) else dict.fromkeys(state.postprocess.classes, old)
            value = {**old, self.part: value}
        return dataclasses.replace(state, postprocess=dataclasses.replace(state.postprocess, **{self.setting: value}))

    def near(self, value: Value, step: int) -> tuple[Value, ...]:
        """Return values around `value`, closer with every step from 1; none for settings that are not refined."""
        if not isinstance(value, (int, float)) or self.setting not in _FINER:
            return ()
        if self.setting in ("min_area", "max_area"):
            factors = 1 + np.array([-0.5, -0.25, 0.25, 0.5]) / 2**step
            return tuple(sorted({round(value * float(factor)) for factor in factors} - {value}))
        numbers = [value + sign * 0.05 / 2**step for sign in (-1, 1)]
        return tuple(round(number, 6) for number in numbers if 0 < number < 1)


def check_settings(names: Sequence[str], *, fusion: bool, soft_masks: bool) -> None:
    """Raise ConfigError for settings that do not exist, or that cannot be tuned with these predictions."""
    known = [*POSTPROCESS_SETTINGS, *FUSION_SETTINGS]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no setting {name!r} to tune; there are: {', '.join(known)}")
        if name.startswith(FUSION) and not fusion:
            raise ConfigError(f"{name} is tuned on the predictions of several members: give --fusion FILE")
        if name in NEED_SOFT_MASKS and not soft_masks:
            raise ConfigError(
                f"{name} needs mask probabilities, which the predictions lack; make them with predict --soft-masks"
            )


def make_coordinates(
    names: Sequence[str], truth: GroundTruth, state: State, *, classes: Sequence[str] | None, members: int = 1
) -> list[Coordinate]:
    """Return the coordinates to search for the settings `names`, in their order.

    classes: names of the classes that get values of their own; None for one value for all.
    """
    coordinates = []
    for name in names:
        if name == FUSION + "weights":
            coordinates += [Coordinate(name, member, _GRIDS[name]) for member in range(members)]
        elif name == FUSION + "min_members":
            coordinates.append(Coordinate(name, None, tuple(range(1, members + 1))))
        elif classes is None or name not in Postprocess.per_class_keys():
            coordinates.append(Coordinate(name, None, _values(name, truth, None)))
        else:
            coordinates += [Coordinate(name, part, _values(name, truth, part)) for part in classes]
    for index, item in enumerate(coordinates):
        present = item.get(state)  # a mapping if values per class are to be replaced by one for all
        if present not in item.values and not isinstance(present, Mapping):
            coordinates[index] = dataclasses.replace(item, values=(present, *item.values))
    return coordinates


def _values(name: str, truth: GroundTruth, class_name: str | None) -> tuple[Value, ...]:
    if name not in ("min_area", "max_area"):
        return _GRIDS[name]
    chosen = [
        rle
        for image in truth.images
        for rle, index, crowd in zip(image.rles, image.classes, image.crowd, strict=True)
        if not crowd and class_name in (None, truth.class_names[index])
    ]
    nothing: Value = 0 if name == "min_area" else None
    if not chosen:
        return (nothing,)
    limits = np.percentile(rle_codec.area(chosen), _LOW if name == "min_area" else _HIGH)
    numbers = sorted({int(limit) if name == "min_area" else int(np.ceil(limit)) for limit in limits})
    return tuple(dict.fromkeys([nothing, *numbers]))
