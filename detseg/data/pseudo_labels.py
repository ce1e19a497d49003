"""Pseudo-labels in a training: the frequency of their images, the weight of each label, additional augmentation.

A pseudo-label file is a COCO file as written by `detseg pseudo_label label`: in addition to the usual fields its
annotations may have `score` and `quality`, both 0 to 1, and `soft_mask`, the probability of each pixel in a window.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_parsing import unpack_pixels
from detseg.config.options import Options, Problems, key, part
from detseg.data.augment.intensities import AlbumentationsPipeline
from detseg.data.augment.policy import TrainPolicy
from detseg.data.folds import FOLD_PLACE, empty_names
from detseg.data.sampling import PSEUDO_ORDER_STREAM, EpochOrder, MixedOrder, SamplingOptions
from detseg.errors import DataError
from detseg.structures.sample import BOX_LOSS, CLASS_LOSS, MASK_LOSS, Sample

# The losses that the confidence of a pseudo-label can be a factor of.
CONFIDENCE = ("class", "box", "mask", "pixels")


@dataclass(frozen=True)
class PseudoLabels(Options):
    """The data sets of DATASETS.PSEUDO, which come last among those of a training.

    ratio: images of labelled data sets to those with pseudo-labels. confidence: losses that are multiplied by an
    object's confidence: "class" and "box" by its score, "mask" by its quality (its score without one), "pixels" the
    mask loss of every pixel by 1 - u, u = 1 - 2 |p - 0.5| for its probability p. set_weights: factor on all losses of
    the images of each data set; empty for 1. background: factor on the class losses far from all objects of an image
    with pseudo-labels, where the teacher may have missed objects. brightness, contrast, pipeline: changes of
    intensities of these images, after those of all images (strong augmentation: Sohn et al. 2020, "FixMatch").
    """

    section = "DATASETS"

    names: tuple[str, ...] = key("PSEUDO", default=(), test=empty_names)
    ratio: tuple[int, int] = key("PSEUDO_RATIO", default=(1, 1), length=2, at_least=1)
    confidence: tuple[str, ...] = key("PSEUDO_CONFIDENCE", default=(), choices=CONFIDENCE)
    set_weights: tuple[float, ...] = key("LOSS_WEIGHTS", default=(), at_least=0)
    background: float = key("PSEUDO_BACKGROUND", default=1.0, at_least=0, at_most=1)
    num_sets: int = key("TRAIN", default=0, convert=len)
    num_extra_sets: int = key("EXTRA_TRAIN", default=0, convert=len)
    brightness: float = key("INPUT.PSEUDO.RANDOM_BRIGHTNESS", default=0.0, at_least=0, at_most=1)
    contrast: float = key("INPUT.PSEUDO.RANDOM_CONTRAST", default=0.0, at_least=0, at_most=1)
    pipeline: AlbumentationsPipeline = part(
        AlbumentationsPipeline, section="INPUT.PSEUDO", default=AlbumentationsPipeline()
    )

    def check(self, problems: Problems) -> None:
        if self.set_weights:
            problems.length("DATASETS.LOSS_WEIGHTS", self.num_labelled + len(self.names))
        if self.confidence and not self.names:
            problems.add("DATASETS.PSEUDO_CONFIDENCE", "there are no pseudo-labels: give DATASETS.PSEUDO, or set []")
        if self.background != 1 and not self.names:
            problems.add("DATASETS.PSEUDO_BACKGROUND", "there are no pseudo-labels: give DATASETS.PSEUDO, or set 1")
        if problems.training and problems.cfg.DATASETS.FOLD < 0 and any(FOLD_PLACE in name for name in self.names):
            problems.add("DATASETS.PSEUDO", f"{FOLD_PLACE} stands for a fold, but none is left out: train with --fold")

    @property
    def num_labelled(self) -> int:
        """The number of data sets before those of pseudo-labels."""
        return self.num_sets + self.num_extra_sets

    @property
    def intensities(self) -> TrainPolicy:
        """The changes of intensities of pseudo-labelled images; its geometry is the identity and not used."""
        return TrainPolicy(brightness=self.brightness, contrast=self.contrast, pipeline=self.pipeline)

    def is_pseudo(self, dataset: CocoDataset) -> np.ndarray:
        """Return which images (images,) bool have pseudo-labels."""
        return dataset.origins >= self.num_labelled if self.names else np.zeros(len(dataset), dtype=bool)

    def order(self, sampling: SamplingOptions, dataset: CocoDataset, seed: int) -> EpochOrder | MixedOrder:
        """Return the order of training images: both kinds by `sampling`, mixed by `ratio`."""
        is_pseudo = self.is_pseudo(dataset)
        if not is_pseudo.any():
            return sampling.order(dataset, seed)
        labelled, pseudo = np.flatnonzero(~is_pseudo), np.flatnonzero(is_pseudo)
        of_pseudo = dataclasses.replace(sampling, set_weights=())
        orders = (
            sampling.order(dataset.select(labelled), seed),
            of_pseudo.order(dataset.select(pseudo), seed, PSEUDO_ORDER_STREAM),
        )
        return MixedOrder(orders, (labelled, pseudo), self.ratio)

    def confidence_of(self, dataset: CocoDataset, index: int) -> tuple[str, ...]:
        """Return the losses that are weighted by confidence for image `index`."""
        return self.confidence if self.is_pseudo(dataset)[index] else ()

    def weigh_objects(self, sample: Sample, dataset: CocoDataset, index: int) -> Sample:
        """Return the sample of image `index` with weights of its objects and pixels.

        Raises DataError if an object has no score.
        """
        confidence = self.confidence_of(dataset, index)
        if not confidence:
            return sample
        objects = dataset.object_fields(index)
        weights = sample.weights_or_ones().copy()
        scores = np.array([_number(one, "score", sample.file_name, dataset.name) for one in objects])
        for name, column in (("class", CLASS_LOSS), ("box", BOX_LOSS)):
            if name in confidence:
                weights[:, column] = scores
        if "mask" in confidence:
            weights[:, MASK_LOSS] = [
                score if one.get("quality") is None else _number(one, "quality", sample.file_name, dataset.name)
                for one, score in zip(objects, scores, strict=True)
            ]
        certainty = np.full((sample.height, sample.width), 255, dtype=np.uint8)
        for one in objects if "pixels" in confidence else ():
            if one.get("soft_mask") is not None:
                _note_certainty(certainty, one["soft_mask"], f"{dataset.name}: image {sample.file_name}")
        return dataclasses.replace(
            sample, object_weights=weights, certainty=certainty if "pixels" in confidence else None
        )

    def weigh_image(self, sample: Sample, dataset: CocoDataset, index: int) -> Sample:
        """Return the sample of image `index` with the weights of its data set and background."""
        if self.set_weights:
            sample = dataclasses.replace(sample, weight=self.set_weights[int(dataset.origins[index])])
        if self.background != 1 and self.is_pseudo(dataset)[index]:
            sample = dataclasses.replace(sample, background_weight=self.background)
        return sample


NO_PSEUDO_LABELS = PseudoLabels()


def sure_objects(dataset: CocoDataset, least_score: float) -> CocoDataset:
    """Return pseudo-labels in which objects with lower scores are ignored regions.

    Raises DataError if an object has no score.
    """
    crowd = dataset.table.crowd.copy()
    for index, record in enumerate(dataset.images):
        rows = dataset.table.rows(index)
        is_unsure = [
            not is_crowd and _number(one, "score", record.file_name, dataset.name) < least_score
            for one, is_crowd in zip(dataset.table.decode(index), crowd[rows].tolist(), strict=True)
        ]
        crowd[rows] |= np.array(is_unsure, dtype=bool)
    return dataclasses.replace(dataset, table=dataclasses.replace(dataset.table, crowd=crowd))


def _number(annotation: dict, name: str, file_name: str, source: str) -> float:
    value = annotation.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise DataError(
        f"{source}: image {file_name}, annotation {annotation.get('id')}: its {name} is {str(value)[:40]}; expected a "
        "number from 0 to 1, as written by `detseg pseudo_label label`. Labels without scores have no confidence "
        "(set DATASETS.PSEUDO_CONFIDENCE []; INPUT.COPY_PASTE.PSEUDO_SCORE 0)"
    )


def _note_certainty(certainty: np.ndarray, soft_mask: dict, where: str) -> None:
    """Reduce the certainty (H, W) uint8 of the pixels in the window of a soft mask to 255 |2 p - 1|."""
    try:
        (x, y), (height, width) = soft_mask["at"], soft_mask["size"]
        window = certainty[y : y + height, x : x + width]
        if min(x, y) < 0 or window.shape != (height, width):
            raise ValueError(f"its window of {height} x {width} pixels at x {x}, y {y} is not inside the image")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: invalid soft mask: {error}") from None
    probability = unpack_pixels(soft_mask, (height, width)).astype(np.int16)
    np.minimum(window, np.abs(2 * probability - 255).astype(np.uint8), out=window)
