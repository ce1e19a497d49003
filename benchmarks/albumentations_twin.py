"""The phase contrast preset with copy-paste as one writes it with Albumentations: one mask for each object.

For benchmarks/augmentation.py. Transforms and probabilities are those of configs/_base_/augment_phase_contrast.yaml;
copy-paste is NumPy over stacks of masks, as the public implementations of Ghiasi et al. (2020) have it.
"""

from __future__ import annotations

from typing import Any

import albumentations as A
import cv2
import numpy as np

# Image (H, W, 1) uint8, masks (N, H, W) uint8, classes (N,)
MaskSample = tuple[np.ndarray, np.ndarray, np.ndarray]


class MaskPolicy:
    """Geometry, copy-paste and intensities of samples (image, masks, classes).

    entries: INPUT.ALBUMENTATIONS, made by Albumentations here, too. max_objects, max_overlap, min_visible: as
    INPUT.COPY_PASTE.
    """

    def __init__(
        self,
        entries: list[dict[str, Any]],
        *,
        short_edge: int,
        size: int,
        max_objects: int,
        max_overlap: float,
        min_visible: float,
        seed: int,
    ) -> None:
        self._geometry = A.Compose(
            [
                A.SmallestMaxSize(short_edge),
                A.RandomScale((-0.2, 0.25), p=1.0),
                A.RandomCrop(size, size, pad_if_needed=True),
                A.Affine(rotate=(-45, 45), shear=(-5, 5), scale=(0.93, 1.07), p=0.5),
                A.ElasticTransform(alpha=100, sigma=10, approximate=True, p=0.2),
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.5),
                A.RandomRotate90(p=1.0),
            ],
            seed=seed,
        )
        self._intensities = A.Compose(
            [A.RandomBrightnessContrast(0.1, 0.25, p=1.0), *(_build(entry) for entry in entries)], seed=seed
        )
        self._max_objects = max_objects
        self._max_overlap = max_overlap
        self._min_visible = min_visible
        self._rng = np.random.default_rng(seed)

    def __call__(self, target: MaskSample, source: MaskSample | None) -> MaskSample:
        """Return a training sample, with objects of `source` where it is given."""
        image, masks, classes = self.geometry(*target)
        if source is not None:
            image, masks, classes = self.paste((image, masks, classes), self.geometry(*source))
        image = self._intensities(image=image)["image"]
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2), masks, classes

    def geometry(self, image: np.ndarray, masks: np.ndarray, classes: np.ndarray) -> MaskSample:
        """Change image and masks; objects without pixels are dropped."""
        changed = self._geometry(image=image, masks=list(masks))  # a little faster than as one array
        masks = np.asarray(changed["masks"])
        left = masks.any(axis=(1, 2))
        return changed["image"].reshape(*changed["image"].shape[:2], 1), masks[left], classes[left]

    def paste(self, target: MaskSample, source: MaskSample) -> MaskSample:
        """Paste a random subset of objects that cover little of what is there."""
        image, masks, classes = target
        if not len(source[1]):
            return target
        count = self._rng.integers(1, min(self._max_objects, len(source[1])) + 1)
        image = image.copy()
        areas_before = masks.sum(axis=(1, 2))
        for index in self._rng.permutation(len(source[1])):
            new = source[1][index].astype(bool)
            covered = (masks[:, new] > 0).sum(axis=1)
            areas = masks.sum(axis=(1, 2))
            if (covered > self._max_overlap * areas).any() or covered.sum() > self._max_overlap * new.sum():
                continue
            alpha = cv2.GaussianBlur(new.astype(np.float32), (0, 0), 1.0)[:, :, None]
            image = (alpha * source[0] + (1 - alpha) * image).astype(np.uint8)
            masks = np.concatenate([masks * ~new, source[1][index][None]])
            classes = np.append(classes, source[2][index])
            areas_before = np.append(areas_before, new.sum())
            count -= 1
            if not count:
                break
        areas = masks.sum(axis=(1, 2))
        left = (areas > 0) & (areas >= self._min_visible * areas_before)
        return image, masks[left], classes[left]


def _build(entry: dict[str, Any]) -> Any:
    kind = getattr(A, entry["name"])
    inner = [_build(one) for one in entry.get("transforms", ())]
    return kind(*([inner] if inner else []), p=entry.get("p", 0.5), **entry.get("params", {}))
