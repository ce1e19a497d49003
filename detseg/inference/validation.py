"""The configuration keys that every prediction reads, validated before weights are read."""

from __future__ import annotations

from dataclasses import dataclass

from detseg.config import Config
from detseg.config.options import Options, Problems, part
from detseg.data.augment.random_geometry import RandomCrop
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.engines.choice import EngineChoice
from detseg.engines.validation import validate
from detseg.inference.tiling import Tiling
from detseg.inference.tta import NO_SHORT_VIEWS, AugmentationOptions, TestTimeAugmentation
from detseg.models.base import Segmenter
from detseg.models.map_segmenter import MapSegmenter


def _crops_have_one_size(cfg: Config) -> bool:
    return cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute"


@dataclass(frozen=True)
class InferenceOptions(Options):
    """Options of a Predictor. crop: None unless the training used crops of one size that contained whole objects."""

    preprocess: ImagePreprocess = part(ImagePreprocess)
    size: TestSizeOptions = part(TestSizeOptions)
    augmentation: AugmentationOptions = part(AugmentationOptions)
    crop: RandomCrop | None = part(RandomCrop, when=_crops_have_one_size)

    def check(self, problems: Problems) -> None:
        if self.size.object_size and any(
            view.short for view in TestTimeAugmentation.from_options(self.augmentation).views
        ):
            problems.add("TEST.AUG.VIEWS", NO_SHORT_VIEWS)

    def tiling(self, model: Segmenter) -> Tiling:
        """Return the tiling for a model."""
        if isinstance(model, MapSegmenter) and model.reach is not None:
            return Tiling.for_reach(model.reach)
        largest = model.largest_object
        return Tiling.for_objects(largest if self.crop is None else min(largest, *self.crop.size))


# Options that every prediction reads, including evaluations during training.
PREDICTION: tuple[type[Options], ...] = (InferenceOptions,)


def validate_for_prediction(cfg: Config) -> EngineChoice:
    """Check the keys that a model and its prediction read, not those of training only. Return the engine.

    Raises:
        ConfigError: all problems, each with its key and origin.
    """
    return validate(cfg, PREDICTION, training=False)
