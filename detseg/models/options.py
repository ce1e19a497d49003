"""Keys of all models: image input and limits."""

from __future__ import annotations

from dataclasses import dataclass

from detseg.config.options import Options, Problems, key


@dataclass(frozen=True)
class ImageInputOptions(Options):
    """pixel_mean, pixel_std: one value for each channel. channel_order: for images with three channels."""

    pixel_mean: tuple[float, ...] = key("MODEL.PIXEL_MEAN", not_empty=True)
    pixel_std: tuple[float, ...] = key("MODEL.PIXEL_STD", above=0)
    channel_order: str = key("INPUT.FORMAT", choices=("BGR", "RGB"))

    def check(self, problems: Problems) -> None:
        channels = len(self.pixel_mean)
        if len(self.pixel_std) != channels:
            problems.add("MODEL.PIXEL_STD", f"expected as many values as MODEL.PIXEL_MEAN has ({channels})")


def _no_limit(value: int) -> str | None:
    return None if value == -1 or value >= 1 else "expected 1 or more, or -1 for no limit"


@dataclass(frozen=True)
class LimitOptions(Options):
    """detections_per_image: maximum number of objects in an image, None for no limit."""

    detections_per_image: int | None = key(
        "TEST.DETECTIONS_PER_IMAGE", test=_no_limit, convert=lambda value: None if value == -1 else value
    )
