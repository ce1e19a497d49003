"""Augmentation at test time: which views, and how their answers become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detseg.errors import ConfigError, DataError
from detseg.fusion.options import FusionOptions
from detseg.inference.views import PLAIN, View, detectron2_views, parse_views

if TYPE_CHECKING:
    from detseg.config import Config

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
