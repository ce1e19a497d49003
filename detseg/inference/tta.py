"""Test-time augmentation (TEST.AUG): the views of an image that are predicted, and how they are combined."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from detseg.config.options import Options, Problems, key, part
from detseg.errors import ConfigError, DataError
from detseg.fusion.options import FusionOptions
from detseg.inference.views import PLAIN, View, detectron2_views, parse_views
from detseg.models.options import LimitOptions
from detseg.models.table import ARCHITECTURES

MERGE_THEN_MASK, FUSE, AVERAGE_MAPS, AUTO = "merge_then_mask", "fuse", "average_maps", "auto"
MODES = (MERGE_THEN_MASK, FUSE, AVERAGE_MAPS)
_WBF_THRESHOLD = 0.65
NO_SHORT_VIEWS = (
    "with INPUT.OBJECT_SIZE images have no one shorter edge: in place of short= and of TEST.AUG.MIN_SIZES name views "
    "whose size is relative to that of the objects, such as TEST.AUG.VIEWS [none, scale=0.8, scale=1.25]"
)


def _not_views(words: Sequence[str]) -> str | None:
    try:
        parse_views(words or ["none"])
    except ConfigError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class SizeViewOptions(Options):
    """Detectron2's views: shorter edges, the longest edge, and whether each view is also mirrored."""

    section = "TEST.AUG"

    min_sizes: tuple[int, ...] = key("MIN_SIZES", at_least=1)
    max_size: int = key("MAX_SIZE", at_least=1)
    flip: bool = key("FLIP")


@dataclass(frozen=True)
class AugmentationOptions(LimitOptions):
    """The keys of test-time augmentation, from which `TestTimeAugmentation.from_options` makes settings.

    All but `sizes` also apply if it is not enabled: `predict --tta` gives views and takes the rest from here.
    """

    section = "TEST.AUG"

    enabled: bool = key("ENABLED")
    views: tuple[str, ...] = key("VIEWS", test=_not_views)
    sizes: SizeViewOptions | None = part(SizeViewOptions, when=lambda cfg: cfg.TEST.AUG.ENABLED)
    mode: str = key("MODE", choices=(AUTO, *MODES))
    method: str = key("METHOD", choices=(AUTO, *FusionOptions.choices("method")))
    threshold: float | None = key("THRESHOLD", at_least=0, at_most=1)
    nms_threshold: float = key("MODEL.ROI_HEADS.NMS_THRESH_TEST", above=0, at_most=1)
    min_views: int = key("MIN_VIEWS", at_least=1)
    masks: str = key("MASKS", choices=FusionOptions.choices("masks"))

    def check(self, problems: Problems) -> None:
        if self.sizes is not None and not self.views and not self.sizes.min_sizes:
            problems.add("TEST.AUG.VIEWS", "there are no views: give some, or TEST.AUG.MIN_SIZES")
        name = problems.cfg.MODEL.META_ARCHITECTURE
        architecture = ARCHITECTURES.get(name)
        finds_boxes = architecture is not None and architecture.finds_boxes and problems.cfg.MODEL.MASK_ON
        if self.enabled and self.mode == MERGE_THEN_MASK and not finds_boxes:
            problems.add("TEST.AUG.MODE", f"{name} cannot predict masks for merged boxes: set fuse")
        if self.enabled and self.mode == AVERAGE_MAPS and (architecture is None or not architecture.averages_maps):
            problems.add("TEST.AUG.MODE", f"{name} predicts no maps: set auto, or fuse")
        try:
            self.fusion()
        except DataError as error:
            problems.add("TEST.AUG.METHOD", str(error))

    def fusion(self) -> FusionOptions:
        """How boxes are fused (and, if detections are fused, masks); Detectron2's views are merged as it does."""
        method, threshold = self.method, self.threshold
        if method == AUTO:
            method = "nms" if self.enabled and not self.views else "wbf"
        if threshold is None:
            threshold = self.nms_threshold if method == "nms" else _WBF_THRESHOLD
        # Merged boxes have no masks yet; soft_nms keeps each detection with its own mask.
        own_masks = self.mode == MERGE_THEN_MASK or (self.mode == AUTO and method == "soft_nms")
        return FusionOptions(
            method=method,
            threshold=threshold,
            min_members=self.min_views,
            masks="best" if own_masks else self.masks,
            source="TEST.AUG",
        )


@dataclass(frozen=True)
class TestTimeAugmentation:
    """How the views of an image, and several models, are combined.

    views: each is given to every model. mode: "merge_then_mask": the boxes of all views are merged first, then mask
    probabilities of the merged boxes are averaged over the views. "fuse": every view detects boxes and masks, which are
    fused. "average_maps": the maps of all views are averaged, and objects are made from the mean. "auto": the first if
    all models that provide masks find boxes first, the third if all predict the same maps, else the second. fusion: how
    boxes (in "fuse" also masks) are fused, unused in "average_maps"; its `mask_threshold` is applied to averaged masks.
    max_detections: largest number of objects per image, best first; 0 for all.

    Raises:
        ConfigError: contradictory settings.
    """

    __test__ = False  # pytest would collect a class whose name begins with Test

    views: Sequence[View] = (PLAIN,)
    mode: str = AUTO
    fusion: FusionOptions = field(  # as TEST.AUG for views given by name
        default_factory=lambda: FusionOptions(method="wbf", threshold=_WBF_THRESHOLD, masks="mean")
    )
    max_detections: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        if not self.views:
            raise ConfigError("test-time augmentation needs at least one view")
        if self.mode not in (AUTO, *MODES):
            raise ConfigError(f"the mode of test-time augmentation is {self.mode!r}; expected {', '.join(MODES)}")
        if self.mode == MERGE_THEN_MASK and self.fusion.overlap == "mask_iou":
            raise ConfigError(
                f"{self.fusion.source}: overlap is mask_iou, but {MERGE_THEN_MASK} merges boxes before there are "
                f"masks; use box_iou, or the mode {FUSE}"
            )

    @classmethod
    def from_options(cls, options: AugmentationOptions) -> TestTimeAugmentation:
        """Read TEST.AUG; if it is not enabled, the unchanged image is the only view."""
        views: Sequence[View] = (PLAIN,)
        if options.sizes is not None and options.views:
            views = parse_views(options.views)
        elif options.sizes is not None:
            views = detectron2_views(options.sizes.min_sizes, options.sizes.max_size, options.sizes.flip)
        return cls(views, options.mode, options.fusion(), options.detections_per_image or 0)

    @property
    def is_plain(self) -> bool:
        """Whether the only view is the unchanged image."""
        return self.views == (PLAIN,)

    def replace(self, **changes: Any) -> TestTimeAugmentation:
        """Return these settings with some of them changed."""
        return dataclasses.replace(self, **changes)

    def resolved(self, takes_boxes: bool, gives_maps: bool = False) -> TestTimeAugmentation:
        """Return these settings with `auto` replaced by the mode that the models support.

        takes_boxes: whether all models that provide masks accept any boxes (`Segmenter.takes_boxes`). gives_maps:
        whether all models predict maps that can be averaged.
        """
        if self.mode != AUTO:
            return self
        return self.replace(mode=MERGE_THEN_MASK if takes_boxes else AVERAGE_MAPS if gives_maps else FUSE)

    def describe(self) -> dict[str, Any]:
        """Return plain values for the provenance."""
        about = {"views": [view.name for view in self.views], "mode": self.mode}
        if self.mode == AVERAGE_MAPS:
            return about
        fusion = {name: value for name, value in self.fusion.to_dict().items() if name not in ("classes", "weights")}
        return {**about, "fusion": fusion}
