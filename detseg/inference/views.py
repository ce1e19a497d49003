"""Views of an image for augmentation at test time: turned and mirrored, at another size, with other intensities.

A view is written as words joined by +, in any order, each kind once:

    none h v hv transpose rot90 rot270 antitranspose     how it is turned (square.py)
    scale=1.25                                           the size at the model, times this
    short=800                                            that of INPUT.MIN_SIZE_TEST instead (pixels)
    brightness=0.1  contrast=1.2                         as INPUT.RANDOM_BRIGHTNESS and RANDOM_CONTRAST draw them
    clahe, clahe=3                                       contrast limited adaptive histogram equalisation, its limit

so that h+scale=1.25+clahe is one view. Two words stand for several views: flips (none, h, v, hv) and eight (all of the
square); flips+clahe are four.

The order is: intensities, size, turning. An image is turned at the size at which the model sees it, so that turning
moves whole pixels and its inverse is exact whatever the sizes are. The model's own padding comes after, at the right
and at the bottom of the turned image: seen from the image, the grid of strides lies elsewhere in every view. Training
showed the network objects at all places of its grid, so no view is preferred; in what they differ, their mean averages.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from detseg.data.augment.intensities import ValueRange, change_intensities
from detseg.errors import ConfigError, DataError
from detseg.fusion.options import FusionOptions
from detseg.inference.symmetries import SYMMETRIES, Symmetry

if TYPE_CHECKING:
    from detseg.config import Config


SETS = {"flips": ("none", "h", "v", "hv"), "eight": tuple(SYMMETRIES)}
CLAHE_LIMIT = 2.0
CLAHE_TILES = (8, 8)
# Word -> smallest and largest legal number.
NUMBERS = {
    "scale": (0.1, 10.0),
    "short": (1, 100_000),
    "brightness": (-1.0, 1.0),
    "contrast": (0.0, 10.0),
    "clahe": (0.1, 100.0),
}


@dataclass(frozen=True)
class Intensities:
    """brightness: added, a fraction of the range. contrast: a factor about the mean. clahe: its limit, 0 for none."""

    brightness: float = 0.0
    contrast: float = 1.0
    clahe: float = 0.0

    def __call__(self, image: np.ndarray, value_range: ValueRange) -> np.ndarray:
        """Return an image (H, W, C) uint8, uint16 or float32 with other intensities, of the same dtype and range."""
        if self.brightness or self.contrast != 1:
            image = change_intensities(
                image, contrast=self.contrast, brightness=self.brightness, value_range=value_range
            )
        return equalise(image, self.clahe, value_range) if self.clahe else image


@dataclass(frozen=True)
class View:
    """One way to look at an image; see the module. longest: the longer edge is at most this where `short` is set."""

    symmetry: Symmetry = SYMMETRIES["none"]
    scale: float = 1.0
    short: int = 0
    longest: int = 100_000
    intensities: Intensities = Intensities()
    name: str = "none"


PLAIN = View()


def parse_views(words: Sequence[str]) -> list[View]:
    """Read views, sets expanded, without those that come twice.

    Raises:
        ConfigError: naming the word and what there is.
    """
    views: dict[View, None] = {}
    for text in words:
        for view in _parse(text):
            views[view] = None
    if not views:
        raise ConfigError(f"expected at least one view; {_known()}")
    return list(views)


def detectron2_views(min_sizes: Sequence[int], max_size: int, flip: bool) -> list[View]:
    """The views of Detectron2's TEST.AUG: every size, and with `flip` its mirror image too."""
    views = []
    for short in min_sizes:
        for turned in ("none", "h") if flip else ("none",):
            view = View(SYMMETRIES[turned], short=int(short), longest=max_size, name=f"{turned}+short={short}")
            views.append(view)
    return views


def _parse(text: str) -> list[View]:
    """The views of one word of the user's."""
    numbers: dict[str, float] = {}
    turned: tuple[str, ...] | None = None
    for word in text.split("+"):
        key, _, value = word.strip().partition("=")
        if key in numbers or (turned is not None and (key in SETS or key in SYMMETRIES)):
            raise ConfigError(f"the view {text!r} says twice how it is turned, or {key!r} twice")
        if key in SETS or key in SYMMETRIES:
            if value:
                raise ConfigError(f"the view {text!r}: {key} takes no number")
            turned = SETS.get(key, (key,))
        elif key in NUMBERS:
            numbers[key] = CLAHE_LIMIT if key == "clahe" and not value else _number(text, key, value)
        else:
            raise ConfigError(f"the view {text!r}: there is no {word.strip()!r}; {_known()}")
    suffix = "".join(f"+{key}={number:g}" for key, number in sorted(numbers.items()))
    intensities = Intensities(numbers.get("brightness", 0.0), numbers.get("contrast", 1.0), numbers.get("clahe", 0.0))
    return [
        View(
            SYMMETRIES[name],
            scale=numbers.get("scale", 1.0),
            short=int(numbers.get("short", 0)),
            intensities=intensities,
            name=name + suffix,
        )
        for name in turned or ("none",)
    ]


def _number(text: str, key: str, value: str) -> float:
    low, high = NUMBERS[key]
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high or (key == "short" and number != int(number)):
        kind = "a whole number" if key == "short" else "a number"
        raise ConfigError(f"the view {text!r}: expected {key}={kind} from {low:g} to {high:g}, got {value!r}")
    return number


def _known() -> str:
    numbers = ", ".join(f"{key}=" for key in NUMBERS)
    return f"there are {', '.join(itertools.chain(SETS, SYMMETRIES))}, {numbers} and what + joins of them"


def equalise(image: np.ndarray, limit: float, value_range: ValueRange) -> np.ndarray:
    """Contrast limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994) of an image (H, W, C).

    Of RGB the lightness is equalised, of any other number of channels each alone; 256 levels are told apart. Same dtype
    and range.
    """
    low, high = value_range
    if not high > low:
        return image
    scaled = np.clip((image.astype(np.float32) - low) * (255.0 / (high - low)), 0, 255)
    levels = np.rint(scaled).astype(np.uint8)
    method = cv2.createCLAHE(clipLimit=limit, tileGridSize=CLAHE_TILES)
    if image.shape[2] == 3:
        lab = cv2.cvtColor(levels, cv2.COLOR_RGB2LAB)
        lab[:, :, 0] = method.apply(np.ascontiguousarray(lab[:, :, 0]))
        levels = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    else:
        planes = [method.apply(np.ascontiguousarray(levels[:, :, channel])) for channel in range(image.shape[2])]
        levels = np.stack(planes, axis=2)
    if image.dtype == np.uint8 and (low, high) == (0.0, 255.0):
        return levels
    equalised = levels.astype(np.float32) * np.float32((high - low) / 255.0) + np.float32(low)
    return np.rint(equalised).astype(image.dtype) if image.dtype.kind == "u" else equalised


# Augmentation at test time: which views, and how their answers become one.

MERGE_THEN_MASK, FUSE = "merge_then_mask", "fuse"
MODES = (MERGE_THEN_MASK, FUSE)


@dataclass(frozen=True)
class TestTimeAugmentation:
    """How the views of an image, and several models, are put together.

    views: every one is shown to every model. mode: "merge_then_mask": the boxes of all views are merged first, then
    every view gives the probabilities of the merged boxes' masks, which are averaged. "fuse": every view detects boxes
    and masks, which are fused. fusion: how boxes (and in "fuse", masks) become one; the threshold of averaged masks is
    its `mask_threshold`. max_detections: the best of an image that are kept; 0 for all.

    Raises:
        ConfigError: what does not go together.
    """

    __test__ = False  # pytest: no test, in spite of the name

    views: Sequence[View] = (PLAIN,)
    mode: str = MERGE_THEN_MASK
    fusion: FusionOptions = field(
        default_factory=lambda: FusionOptions(method="wbf", threshold=0.65, masks="mean")  # as TEST.AUG's defaults
    )
    max_detections: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if not self.views:
            raise ConfigError("augmentation at test time needs at least one view")
        if self.mode not in MODES:
            raise ConfigError(f"the mode of augmentation at test time is {self.mode!r}; expected {' or '.join(MODES)}")
        if self.mode == MERGE_THEN_MASK and self.fusion.overlap == "mask_iou":
            raise ConfigError(
                f"{self.fusion.source}: overlap is mask_iou, but {MERGE_THEN_MASK} merges boxes before there are "
                f"masks; use box_iou, or the mode {FUSE}"
            )

    @classmethod
    def from_config(cls, cfg: Config) -> TestTimeAugmentation:
        """Read TEST.AUG; where it is not enabled, the image as it is is the only view.

        Raises:
            ConfigError: naming the key.
        """
        return cls(
            views=config_views(cfg) if cfg.TEST.AUG.ENABLED else (PLAIN,),
            mode=cfg.TEST.AUG.MODE,
            fusion=config_fusion(cfg),
            max_detections=max(cfg.TEST.DETECTIONS_PER_IMAGE, 0),
        )

    @property
    def changes_nothing(self) -> bool:
        """Whether the only view is the image as it is."""
        return self.views == (PLAIN,)

    def replace(self, **changes: Any) -> TestTimeAugmentation:
        """Return these settings with some of them changed."""
        return dataclasses.replace(self, **changes)

    def describe(self) -> dict[str, Any]:
        """Return plain values for provenance."""
        return {
            "views": [view.name for view in self.views],
            "mode": self.mode,
            "fusion": {key: value for key, value in self.fusion.to_dict().items() if key not in ("classes", "weights")},
        }


def config_views(cfg: Config) -> list[View]:
    """The views of TEST.AUG: those of VIEWS, else Detectron2's MIN_SIZES, MAX_SIZE and FLIP."""
    settings = cfg.TEST.AUG
    if settings.VIEWS:
        try:
            return parse_views(settings.VIEWS)
        except ConfigError as error:
            raise ConfigError(f"TEST.AUG.VIEWS ({cfg.origin('TEST.AUG.VIEWS')}): {error}") from None
    if not settings.MIN_SIZES:
        raise ConfigError("TEST.AUG has no views: give TEST.AUG.VIEWS, or TEST.AUG.MIN_SIZES")
    return detectron2_views(settings.MIN_SIZES, settings.MAX_SIZE, settings.FLIP)


def config_fusion(cfg: Config) -> FusionOptions:
    """The options of TEST.AUG.METHOD, THRESHOLD, MASKS and MIN_VIEWS."""
    settings = cfg.TEST.AUG
    values = {
        "method": settings.METHOD,
        "threshold": settings.THRESHOLD,
        "min_members": settings.MIN_VIEWS,
        "masks": settings.MASKS if settings.MODE == FUSE else "best",
    }
    try:
        return FusionOptions.from_dict(values, source="TEST.AUG")
    except DataError as error:
        raise ConfigError(str(error)) from None
