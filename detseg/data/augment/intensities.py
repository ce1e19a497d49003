"""Changes of intensities; each keeps dtype and range, and gets its numbers from the caller."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import random
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from detseg.config.kinds import shorten
from detseg.config.node import Config
from detseg.config.problems import Problems
from detseg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from detseg.config import Config


ValueRange = tuple[float, float]


def natural_range(image: np.ndarray) -> ValueRange:
    """Return the range of a dtype of whole numbers, or from the least to the greatest value of a float image."""
    if image.dtype.kind == "u":
        return 0.0, float(np.iinfo(image.dtype).max)
    return float(image.min()), float(image.max())


def change_intensities(image: np.ndarray, *, contrast: float, brightness: float, value_range: ValueRange) -> np.ndarray:
    """Return (image - mean) * contrast + mean + brightness * (high - low), cut to the range, of the same dtype.

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


# INPUT.ALBUMENTATIONS: changes of intensities by Albumentations, written in YAML; checked, and built.
#
# An entry is `{name, p, params}`, the name of a transform, its probability and its arguments, or `{name, p, transforms,
# params}` for one that holds others (OneOf, SomeOf, ...). Albumentations is imported when there is an entry.

KEY = "INPUT.ALBUMENTATIONS"
_FIELDS = ("name", "p", "params", "transforms")
_HOLDERS = ("OneOf", "SomeOf", "RandomOrder", "Sequential", "Compose")
# These move nothing, although Albumentations counts them among those that change masks.
_UNMOVED = ("CoarseDropout", "Erasing", "GridDropout", "PixelDropout", "XYMasking", "NoOp")
_OTHER_RANGE = {
    "Normalize": "the model normalizes by MODEL.PIXEL_MEAN and PIXEL_STD",
    "ToFloat": "types are converted as needed",
    "FromFloat": "types are converted as needed",
}
_GEOMETRY = (
    "INPUT.RANDOM_FLIP, RANDOM_ROTATE90, RANDOM_SCALE, RANDOM_AFFINE, RANDOM_ELASTIC and CROP are the geometry, for "
    "images and masks together"
)
_TRIAL_SIZE = (72, 80)


def is_installed() -> bool:
    """Whether Albumentations can be imported; it is not where detseg is installed for prediction alone."""
    try:
        return importlib.util.find_spec("albumentations") is not None
    except ValueError:  # somebody keeps it from being imported
        return False


def import_albumentations() -> ModuleType:
    """Import Albumentations without its look for a newer version on the web.

    Raises:
        ConfigError: it is missing or another version.
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


def check_intensity_transforms(problems: Problems) -> None:
    """Add what is wrong with INPUT.ALBUMENTATIONS; every transform is tried on an image such as it will get.

    Without Albumentations nothing is checked: a configuration of a training may be loaded where only predicted is.
    """
    entries = problems.cfg[KEY]
    if not entries or not is_installed():
        return
    try:
        wrong = _Builder(import_albumentations(), _trial_images(problems.cfg)).problems_of(entries)
    except ConfigError as error:
        wrong = [str(error)]
    # The value of this key is long: the message names the entry instead.
    problems.found += [f"{each} ({problems.cfg.origin(KEY)})" for each in wrong]


def build_intensity_transforms(entries: Sequence[Any]) -> Any:
    """Return entries as one albumentations.Compose.

    Raises:
        ConfigError: all that is wrong with them.
    """
    builder = _Builder(import_albumentations(), [])
    transforms = builder.build_all(entries, KEY)
    if builder.problems:
        raise ConfigError("\n".join(builder.problems))
    return builder.library.Compose(transforms)


def takes_image(entries: Sequence[Any], image: np.ndarray) -> bool:
    """Whether every transform takes an image (H, W, C) of this type and number of channels."""
    return not _Builder(import_albumentations(), [image]).problems_of(entries)


def _trial_images(cfg: Config) -> list[np.ndarray]:
    """Images (H, W, C) of the channels and types that the transforms will get."""
    gray = cfg.INPUT.GRAYSCALE or len(cfg.INPUT.CHANNELS) == 1
    channels = 1 if gray else max(len(cfg.MODEL.PIXEL_MEAN), 1)
    image = np.random.default_rng(0).integers(0, 256, (*_TRIAL_SIZE, channels), dtype=np.uint8)
    scaled = image.astype(np.float32) / 255
    # Without scaling, images are what the files have: 8 bits, or more as fractions of their range.
    return [image, scaled] if cfg.INPUT.SCALING == "none" else [scaled]


class _Builder:
    """Makes transforms of entries, and collects what is wrong with them."""

    def __init__(self, library: ModuleType, images: Sequence[np.ndarray]) -> None:
        self.library = library
        self.images = images
        self.problems: list[str] = []

    def problems_of(self, entries: Sequence[Any]) -> list[str]:
        self.build_all(entries, KEY)
        return self.problems

    def build_all(self, entries: Sequence[Any], place: str) -> list[Any]:
        built = [self._build(entry, f"{place}[{number}]") for number, entry in enumerate(entries)]
        return [transform for transform in built if transform is not None]

    def _build(self, entry: Any, place: str) -> Any:
        """Return the transform of one entry; None, with a problem noted, where there is none."""
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            return self._refuse(place, f"got {shorten(entry)}, expected {{name: ..., p: ..., params: {{...}}}}")
        name, p, params = entry["name"], entry.get("p"), entry.get("params", {})
        place = f"{place} {name}"
        unknown = [field for field in entry if field not in _FIELDS]
        if unknown:
            return self._refuse(place, f"unknown {', '.join(map(repr, unknown))}; fields are {', '.join(_FIELDS)}")
        if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1):
            return self._refuse(place, f"p is {shorten(p)}, expected a probability from 0 to 1")
        if not isinstance(params, dict):
            return self._refuse(place, f"params is {shorten(params)}, expected names with values")
        if "p" in params or "strict" in params:
            return self._refuse(place, "p stands beside name, not in params; strict is not chosen")
        arguments = {key: _tuples(value) for key, value in params.items()} | ({} if p is None else {"p": p})
        if name in _HOLDERS:
            return self._build_holder(name, entry, arguments, place)
        if "transforms" in entry:
            return self._refuse(place, f"holds no other transforms; those that do are {', '.join(_HOLDERS)}")
        return self._build_one(name, arguments, place)

    def _build_holder(self, name: str, entry: dict[str, Any], arguments: dict[str, Any], place: str) -> Any:
        inner = entry.get("transforms")
        if not isinstance(inner, list) or not inner:
            return self._refuse(place, "expected a list of other entries in `transforms`")
        before = len(self.problems)
        transforms = self.build_all(inner, f"{place}.transforms")
        if len(self.problems) > before:
            return None
        if name == "Compose":
            # Inside another pipeline both are the same; this one checks nothing again.
            name, arguments = "Sequential", {"p": 1.0} | arguments
        return self._made(lambda: getattr(self.library, name)(transforms, **arguments), place)

    def _build_one(self, name: str, arguments: dict[str, Any], place: str) -> Any:
        kind = self._class_of(name, place)
        if kind is None:
            return None
        known = [argument for argument in inspect.signature(kind).parameters if argument != "p"]
        for argument in arguments:
            if argument not in (*known, "p"):
                near = _nearest(argument, known) or f"; arguments are {', '.join(known)}"
                return self._refuse(place, f"unknown argument {argument!r}{near}")
        transform = self._made(lambda: kind(**arguments, strict=True), place)
        if transform is not None:
            for image in self.images:
                certain = self._made(lambda: kind(**(arguments | {"p": 1.0}), strict=True), place)
                if certain is None or not self._try(certain, image, place):
                    return None
        return transform

    def _class_of(self, name: str, place: str) -> type | None:
        """Return the class of a transform that changes intensities alone."""
        kind = getattr(self.library, name, None)
        is_transform = isinstance(kind, type) and issubclass(kind, self.library.BasicTransform)
        if not is_transform or name in ("BasicTransform", "ImageOnlyTransform", "DualTransform", "Transform3D"):
            near = _nearest(name, self._known())
            return self._refuse(place, f"Albumentations has no such transform{near}")
        if name in _OTHER_RANGE:
            return self._refuse(place, f"the range of intensities must stay as it is: {_OTHER_RANGE[name]}")
        if not issubclass(kind, self.library.ImageOnlyTransform) and name not in _UNMOVED:
            return self._refuse(place, f"may move pixels, and masks would stay where they are: {_GEOMETRY}")
        return kind

    def _known(self) -> list[str]:
        base = self.library.ImageOnlyTransform
        found = [name for name, kind in vars(self.library).items() if isinstance(kind, type) and issubclass(kind, base)]
        return [*found, *_UNMOVED, *_HOLDERS]

    def _try(self, transform: Any, image: np.ndarray, place: str) -> bool:
        """Whether the transform gives an image of the same type and shape."""
        pipeline = self.library.Compose([transform])
        pipeline.set_random_seed(0)
        what = f"images of {image.shape[2]} channel{'' if image.shape[2] == 1 else 's'} and type {image.dtype}"
        result = self._made(lambda: pipeline(image=image.copy())["image"], place, f"does not take {what}: ")
        if result is None:
            return False
        if (result.shape, result.dtype) != (image.shape, image.dtype):
            self._refuse(place, f"makes {result.dtype} {result.shape} of {what}; expected the same type and size")
            return False
        return True

    def _made(self, make: Callable[[], Any], place: str, before: str = "") -> Any:
        """Return what `make` makes; None, with a problem noted, where Albumentations refuses."""
        try:
            with warnings.catch_warnings():
                # Albumentations warns of arguments that it then replaces by others: nobody would notice.
                warnings.simplefilter("error", UserWarning)
                return make()
        except Exception as error:  # whatever a transform raises, of pydantic, OpenCV or its own
            return self._refuse(place, before + _one_line(error))

    def _refuse(self, place: str, reason: str) -> None:
        self.problems.append(f"{place}: {reason}")


def _tuples(value: Any) -> Any:
    """YAML's lists as the tuples that Albumentations asks for."""
    return tuple(_tuples(element) for element in value) if isinstance(value, list) else value


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    # pydantic ends every problem with the address of its documentation.
    words = words.split(" For further information visit")[0]
    return words if len(words) <= 300 else words[:300] + "..."


def _nearest(name: str, known: Sequence[str]) -> str:
    import difflib

    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean {lower[close[0]]}?" if close else ""


# Changes of intensities by Albumentations, with randomness that is a function of the sample's generator alone.


class IntensityPipeline:
    """The transforms of INPUT.ALBUMENTATIONS.

    entries: as the key has them; they were checked when the configuration was loaded. num_channels: of the model. The
    library is imported, and the transforms are made, with the first image: in every worker of a loader anew.
    """

    def __init__(self, entries: list[Any], num_channels: int = 3) -> None:
        self.entries = entries
        self.num_channels = num_channels

    @classmethod
    def from_config(cls, cfg: Config) -> IntensityPipeline:
        """Read INPUT.ALBUMENTATIONS."""
        return cls(cfg.INPUT.ALBUMENTATIONS, len(cfg.MODEL.PIXEL_MEAN))

    def __call__(self, image: np.ndarray, rng: np.random.Generator, value_range: tuple[float, float]) -> np.ndarray:
        """Return a changed image of the same size, dtype and range.

        image: (H, W, C) uint8, or uint16 or float32 within value_range, which Albumentations sees as fractions of it.
        Where a transform takes colour images only, one channel is repeated to as many as the model takes.
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
        # A transform that is skipped hands the image itself on: none may write into it.
        changed = self._transforms(image=np.array(image, order="C"))["image"].reshape(image.shape)
        if changed.dtype != image.dtype:
            raise DataError(f"INPUT.ALBUMENTATIONS made {changed.dtype} of an image of {image.dtype}")
        return changed

    @cached_property
    def _transforms(self) -> Any:
        return build_intensity_transforms(self.entries)

    @cached_property
    def _takes_gray(self) -> bool:
        ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64, 1)
        return takes_image(self.entries, ramp)

    def __getstate__(self) -> dict[str, Any]:
        return {"entries": self.entries, "num_channels": self.num_channels}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntensityPipeline):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash((json.dumps(self.entries, sort_keys=True), self.num_channels))
