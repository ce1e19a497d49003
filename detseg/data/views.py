"""Two views of every unlabelled image, with the exact map between them: weak for the teacher, strong for its student.

The weak view has the crop and size of training without other augmentation. The strong view has all of the training
augmentation of it, and more. Both are resampled once from the image itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detseg.coco.records import ImageRecord
from detseg.data.augment.geometric import GeometricMap, map_sample
from detseg.data.augment.policy import TrainPolicy
from detseg.data.augment.random_geometry import RandomAffine, RandomElastic, whole_pixels
from detseg.data.augment.strong import StrongChanges
from detseg.data.preprocess import ImagePreprocess, size_at_pixel_size
from detseg.data.sampling import VIEW_STREAM, EpochOrder
from detseg.images.reading import read_picture
from detseg.structures.sample import Sample


@dataclass(frozen=True)
class Views:
    """Two views of one image.

    weak: (h, w, C), for the teacher. strong: for the student, without annotations; `ignore` marks what its changes
    hide. geometry: from the strong view's pixels to the weak view's.
    """

    weak: np.ndarray
    strong: Sample
    geometry: GeometricMap


class ViewStream:
    """An endless stream of views; `make(position)` is a function of (seed, position) only. The source of a TrainLoader.

    records: the images, whose sizes may be unknown. preprocess, policy: of the labelled training. changes: additional
    ones of the strong view.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        *,
        preprocess: ImagePreprocess,
        policy: TrainPolicy,
        changes: StrongChanges,
        seed: int,
    ) -> None:
        self.records = list(records)
        self.preprocess = preprocess
        self.policy = policy
        self.changes = changes
        self.seed = seed
        self.order = EpochOrder(len(self.records), seed)
        self._weak = dataclasses.replace(
            policy,
            scales=(1.0, 1.0),
            affine=RandomAffine(),
            elastic=RandomElastic(),
            flip="none",
            rotate90=False,
        )

    def make(self, position: int) -> Views:
        """Return the views at a position, with a single channel not yet repeated, as workers send them."""
        rng = np.random.default_rng((self.seed, VIEW_STREAM, position))
        record = self.records[self.order[position]]
        image, facts = read_picture(record.path, record.metadata)
        image = self.preprocess.prepare(image, source=record.file_name, facts=facts)
        whole = Sample(image, image_id=record.image_id, file_name=record.file_name, metadata=facts)
        weak, strong = self.draw(whole, rng)
        view = map_sample(whole, strong, border=self.policy.border)
        value_range = self.preprocess.value_range(image)
        view = self.policy.photometry(view, rng, value_range)
        changed, hidden = self.changes(view.image, rng, value_range)
        ignored = [mask for mask in (view.ignore, hidden) if mask is not None]
        view = dataclasses.replace(
            view, image=changed, ignore=functools.reduce(np.logical_or, ignored) if ignored else None
        )
        return Views(weak.apply_image(image, self.policy.border), view, strong.seen_from(weak))

    def draw(self, whole: Sample, rng: np.random.Generator) -> tuple[GeometricMap, GeometricMap]:
        """Draw the maps to the weak and the strong view of an image."""
        height, width = whole.height, whole.width
        size = size_at_pixel_size(height, width, whole.metadata, self.policy.pixel_size, source=whole.file_name)
        weak = self._weak.draw_geometry(height, width, rng, size=size)
        zoom = self.policy.draw_zoom(rng)
        strong = weak.resize(whole_pixels(weak.height * zoom), whole_pixels(weak.width * zoom))
        if zoom > 1:  # no more pixels than the weak view
            top, left = (
                int(rng.integers(zoomed - shown + 1))
                for zoomed, shown in ((strong.height, weak.height), (strong.width, weak.width))
            )
            strong = strong.window(top, left, weak.height, weak.width)
        return weak, self.policy.turn_and_bend(strong, rng)

    def expand(self, views: Views) -> Views:
        """Convert the result of `make` to the model's input."""
        strong = dataclasses.replace(views.strong, image=self.preprocess.expand(views.strong.image))
        return dataclasses.replace(views, weak=self.preprocess.expand(views.weak), strong=strong)

    def file_name(self, position: int) -> str:
        """Return the file name of the image at a position."""
        return str(self.records[self.order[position]].path)
