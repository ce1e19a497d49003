"""Changes of intensities; each keeps dtype and range, and is deterministic given its parameters."""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from detseg.config.kinds import shorten
from detseg.config.options import Options, Problems, key
from detseg.errors import ConfigError, DataError, did_you_mean

# The minimum and maximum possible intensity of an image.
ValueRange = tuple[float, float]


def natural_range(image: np.ndarray) -> ValueRange:
    """Return the range of an integer dtype, or the minimum and maximum of a float image."""
    if image.dtype.kind == "u":
        return 0.0, float(np.iinfo(image.dtype).max)
    return float(image.min()), float(image.max())


def change_intensities(image: np.ndarray, *, contrast: float, brightness: float, value_range: ValueRange) -> np.ndarray:
    """Return (image - mean) * contrast + mean + brightness * (high - low), clipped to the range, with the same dtype.

    image: (H, W, C) uint8, uint16 or float32. contrast: a factor, 1 for none. brightness: a fraction of the range, 0
    for none.
    """
    low, high = value_range
    mean = float(image.mean(dtype=np.float64))
    shift = mean - mean * contrast + brightness * (high - low)
    if image.dtype == np.uint8:
        table = np.clip(np.arange(256) * contrast + shift, low, high)
        return np.rint(table).astype(np.uint8)[image]
    changed = np.clip(image.astype(np.float32) * np.float32(contrast) + np.float32(shift), low, high)
    return np.rint(changed).astype(image.dtype) if image.dtype.kind == "u" else changed.astype(np.float32)


def invert(image: np.ndarray, value_range: ValueRange) -> np.ndarray:
    """Return low + high - image, of the same dtype."""
    return image.dtype.type(value_range[0] + value_range[1]) - image


CLAHE_TILES = (8, 8)


def equalise(image: np.ndarray, limit: float, value_range: ValueRange) -> np.ndarray:
    """Contrast limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994) of an image (H, W, C).

    For RGB the lightness is equalised, otherwise each channel separately, in 256 levels. Dtype and range are kept.
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


# Minimum transmitted light, one level of 8 bits: for zero the optical density would be infinite.
_LEAST_LIGHT = 1 / 256


def mix_stains(image: np.ndarray, mixture: np.ndarray, value_range: ValueRange, *, on_dark: bool) -> np.ndarray:
    """Return an image whose channels' optical densities are mixed, clipped to the range, with the same dtype.

    Light I for white I0 has the density -log(I / I0), which is additive in the amounts of stains (Beer-Lambert law): a
    mixture of channels gives other stains, and white remains white.

    Args:
        image: (H, W, C) uint8, uint16 or float32.
        mixture: (C, C); channel j of the result has the density sum_i density_i * mixture[i, j], at least 0.
        value_range: of the image.
        on_dark: use the densities of the inverted image, so that a dark background stays dark and bright objects change
            their colour.
    """
    low, high = value_range
    if not high > low:
        return image
    light = (image.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))
    light = np.clip(1 - light if on_dark else light, _LEAST_LIGHT, 1)
    mixed = np.exp(-np.maximum(-np.log(light) @ mixture.astype(np.float32), 0))
    mixed = (1 - mixed if on_dark else mixed) * np.float32(high - low) + np.float32(low)
    return np.rint(mixed).astype(image.dtype) if image.dtype.kind == "u" else mixed.astype(np.float32)


# INPUT.ALBUMENTATIONS: changes of intensities by Albumentations, configured in YAML; validated, built and applied here.
#
# An entry is `{name, p, params}`, the name of a transform, its probability and its arguments, or `{name, p, transforms,
# params}` for one that contains others (OneOf, SomeOf, ...). Albumentations is imported only if there is an entry.

KEY = "INPUT.ALBUMENTATIONS"
_FIELDS = ("name", "p", "params", "transforms")
_HOLDERS = ("OneOf", "SomeOf", "RandomOrder", "Sequential", "Compose")
# These move no pixels, although Albumentations classifies them as transforms that change masks.
_UNMOVED = ("CoarseDropout", "Erasing", "GridDropout", "PixelDropout", "XYMasking", "NoOp")
_BASES = ("BasicTransform", "ImageOnlyTransform", "DualTransform", "Transform3D")
_OTHER_RANGE = {
    "Normalize": "the model normalizes by MODEL.PIXEL_MEAN and PIXEL_STD",
    "ToFloat": "types are converted as needed",
    "FromFloat": "types are converted as needed",
}
_GEOMETRY = (
    "INPUT.RANDOM_FLIP, RANDOM_ROTATE90, RANDOM_SCALE, RANDOM_AFFINE, RANDOM_ELASTIC and CROP change the geometry of "
    "images and masks together"
)
_TRIAL_SIZE = (72, 80)


@dataclass(frozen=True)
class AlbumentationsPipeline(Options):
    """The transforms of INPUT.ALBUMENTATIONS, with randomness from the sample's generator only.

    entries: value of the key. num_channels: of the model. The library is imported, and the transforms are built, with
    the first image, in every loader worker.
    """

    section = "INPUT"

    entries: Sequence[Any] = key("ALBUMENTATIONS", default=())
    num_channels: int = key("MODEL.PIXEL_MEAN", default=3, convert=len)

    def check(self, problems: Problems) -> None:
        """Try every transform on images with the channels and dtypes that it will get."""
        if not self.entries:
            return
        cfg = problems.cfg
        channels = 1 if cfg.INPUT.GRAYSCALE or len(cfg.INPUT.CHANNELS) == 1 else max(self.num_channels, 1)
        image = np.random.default_rng(0).integers(0, 256, (*_TRIAL_SIZE, channels), dtype=np.uint8)
        # Without scaling, images are as in the files: 8 bits, or more as fractions of their range.
        images = [image] if cfg.INPUT.SCALING == "none" else []
        try:
            build_transforms(self.entries, [*images, image.astype(np.float32) / 255])
        except ConfigError as error:
            # The value of this key is long, so the message names the entry instead.
            origin = cfg.origin(f"{self.section}.ALBUMENTATIONS")
            problems.found += [f"{line} ({origin})" for line in str(error).splitlines()]

    def __call__(self, image: np.ndarray, rng: np.random.Generator, value_range: ValueRange) -> np.ndarray:
        """Return a changed image of the same size, dtype and range.

        image: (H, W, C) uint8, or uint16 or float32 within value_range, which are passed as fractions of it. If a
        transform needs colour images, a single channel is repeated to the number of the model's channels.
        """
        if image.shape[2] == 1 and self.num_channels > 1 and not self._takes_gray:
            image = np.repeat(image, self.num_channels, axis=2)
        seed = int(rng.integers(2**63))
        self._transforms.set_random_state(np.random.default_rng(seed), random.Random(seed))
        if image.dtype == np.uint8:
            return self._apply(image)
        low, high = value_range
        scale = max(high - low, 1e-12)
        fractions = np.clip((image - np.float32(low)) * np.float32(1 / scale), 0, 1, dtype=np.float32)
        changed = np.clip(self._apply(fractions), 0, 1) * np.float32(scale) + np.float32(low)
        return np.rint(changed).astype(image.dtype) if image.dtype.kind == "u" else changed.astype(np.float32)

    def _apply(self, image: np.ndarray) -> np.ndarray:
        # A skipped transform returns the image itself: a copy protects it from being written to.
        changed = self._transforms(image=np.array(image, order="C"))["image"].reshape(image.shape)
        if changed.dtype != image.dtype:
            raise DataError(f"{KEY} converted to {changed.dtype} an image of {image.dtype}")
        return changed

    @cached_property
    def _transforms(self) -> Any:
        return build_transforms(self.entries)

    @cached_property
    def _takes_gray(self) -> bool:
        ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64, 1)
        try:
            build_transforms(self.entries, [ramp])
        except ConfigError:
            return False
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {"entries": self.entries, "num_channels": self.num_channels}  # transforms are made in each worker


def import_albumentations() -> ModuleType:
    """Import Albumentations without its online check for a newer version.

    Raises:
        ConfigError: it is missing or has another version.
    """
    setting = os.environ.get("NO_ALBUMENTATIONS_UPDATE")
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    except ImportError as error:
        raise ConfigError(f"{KEY} needs Albumentations ({error}): pip install 'albumentations>=2.0,<2.1'") from None
    finally:
        if setting is None:
            del os.environ["NO_ALBUMENTATIONS_UPDATE"]
        else:
            os.environ["NO_ALBUMENTATIONS_UPDATE"] = setting
    if not hasattr(albumentations.Compose, "set_random_state"):
        found = getattr(albumentations, "__version__", "unknown")
        raise ConfigError(f"{KEY} needs Albumentations 2.0, found {found}: pip install 'albumentations>=2.0,<2.1'")
    return albumentations


def build_transforms(entries: Sequence[Any], images: Sequence[np.ndarray] = ()) -> Any:
    """Return entries as one albumentations.Compose, after trying every transform on images (H, W, C) as it will get.

    Raises:
        ConfigError: all problems, one per line.
    """
    builder = _Builder(import_albumentations(), images)
    transforms = builder.build_all(entries, KEY)
    if builder.problems:
        raise ConfigError("\n".join(builder.problems))
    return builder.library.Compose(transforms)


class _RefusedError(Exception):
    """A problem of one entry."""


class _Builder:
    """Builds transforms from entries, and collects their problems."""

    def __init__(self, library: ModuleType, images: Sequence[np.ndarray]) -> None:
        self.library = library
        self.images = images
        self.problems: list[str] = []

    def build_all(self, entries: Sequence[Any], place: str) -> list[Any]:
        """Return the transforms of the entries without problems."""
        built = []
        for number, entry in enumerate(entries):
            name = entry.get("name") if isinstance(entry, dict) else None
            where = f"{place}[{number}] {name}" if isinstance(name, str) else f"{place}[{number}]"
            try:
                if not isinstance(name, str):
                    raise _RefusedError(f"got {shorten(entry)}, expected {{name: ..., p: ..., params: {{...}}}}")
                built.append(self._build(entry, name, where))
            except _RefusedError as error:
                self.problems.append(f"{where}: {error}")
        return built

    def _build(self, entry: dict[str, Any], name: str, place: str) -> Any:
        p, params = entry.get("p"), entry.get("params", {})
        unknown = [field for field in entry if field not in _FIELDS]
        if unknown:
            raise _RefusedError(f"unknown {', '.join(map(repr, unknown))}; fields are {', '.join(_FIELDS)}")
        if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1):
            raise _RefusedError(f"p is {shorten(p)}, expected a probability from 0 to 1")
        if not isinstance(params, dict):
            raise _RefusedError(f"params is {shorten(params)}, expected a mapping")
        if "p" in params or "strict" in params:
            raise _RefusedError("p is a field next to name, not one of params; strict is always True")
        arguments = {name: _tuples(value) for name, value in params.items()} | ({} if p is None else {"p": p})
        if name not in _HOLDERS:
            if "transforms" in entry:
                raise _RefusedError(f"contains no other transforms; those that do are {', '.join(_HOLDERS)}")
            return self._build_one(name, arguments)
        inner = entry.get("transforms")
        if not isinstance(inner, list) or not inner:
            raise _RefusedError("expected a list of other entries in `transforms`")
        transforms = self.build_all(inner, f"{place}.transforms")
        if len(transforms) < len(inner):
            return None  # the problems have been recorded
        if name == "Compose":
            # Nested in another pipeline both are the same; Sequential repeats no checks.
            name, arguments = "Sequential", {"p": 1.0} | arguments
        with _refusing():
            return getattr(self.library, name)(transforms, **arguments)

    def _build_one(self, name: str, arguments: dict[str, Any]) -> Any:
        library = self.library
        kind = getattr(library, name, None)
        if not isinstance(kind, type) or not issubclass(kind, library.BasicTransform) or name in _BASES:
            known = [name for name, one in vars(library).items() if _is_a(one, library.ImageOnlyTransform)]
            near = did_you_mean(name, [*known, *_UNMOVED, *_HOLDERS])
            raise _RefusedError(f"Albumentations has no such transform{near}")
        if name in _OTHER_RANGE:
            raise _RefusedError(f"the range of intensities must not change: {_OTHER_RANGE[name]}")
        if not issubclass(kind, library.ImageOnlyTransform) and name not in _UNMOVED:
            raise _RefusedError(f"may move pixels, but masks would not be moved: {_GEOMETRY}")
        known = [argument for argument in inspect.signature(kind).parameters if argument != "p"]
        for argument in arguments:
            if argument not in (*known, "p"):
                near = did_you_mean(argument, known) or f"; arguments are {', '.join(known)}"
                raise _RefusedError(f"unknown argument {argument!r}{near}")
        with _refusing():
            transform = kind(**arguments, strict=True)
        for image in self.images:
            with _refusing():
                pipeline = library.Compose([kind(**(arguments | {"p": 1.0}), strict=True)])
                pipeline.set_random_seed(0)
            what = f"images of {image.shape[2]} channel{'' if image.shape[2] == 1 else 's'} and type {image.dtype}"
            with _refusing(f"does not accept {what}: "):
                result = pipeline(image=image.copy())["image"]
            if (result.shape, result.dtype) != (image.shape, image.dtype):
                raise _RefusedError(
                    f"converts {what} to {result.dtype} {result.shape}; expected the same dtype and size"
                )
        return transform


@contextlib.contextmanager
def _refusing(before: str = "") -> Iterator[None]:
    """Convert exceptions of Albumentations to a problem of the entry."""
    try:
        with warnings.catch_warnings():
            # Albumentations warns about arguments that it replaces; such a warning would be overlooked.
            warnings.simplefilter("error", UserWarning)
            yield
    except Exception as error:  # of pydantic, OpenCV or the transform itself
        words = " ".join(str(error).split()) or type(error).__name__
        # pydantic ends every message with the URL of its documentation.
        words = words.split(" For further information visit")[0]
        raise _RefusedError(before + (words if len(words) <= 300 else words[:300] + "...")) from None


def _is_a(one: Any, base: type) -> bool:
    return isinstance(one, type) and issubclass(one, base)


def _tuples(value: Any) -> Any:
    """Convert YAML lists to the tuples that Albumentations expects."""
    return tuple(_tuples(element) for element in value) if isinstance(value, list) else value
