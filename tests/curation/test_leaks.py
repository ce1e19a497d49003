"""Images that are nearly the same are found however they are turned, lit or stored, and others are not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from detseg.curation.leaks import find_similar, groups_in_several_parts, join_groups, leaks, thumbnail


def cells(seed: int, height: int = 120, width: int = 160, count: int = 25) -> np.ndarray:
    """An image (H, W, 1) uint8 of bright disks."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 30, dtype=np.float32)
    for _ in range(count):
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        cv2.circle(image, centre, int(rng.integers(4, 12)), float(rng.integers(90, 220)), -1)
    return (
        (cv2.GaussianBlur(image, (0, 0), 1.5) + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)[..., None]
    )


def thumbnails(*images: np.ndarray) -> np.ndarray:
    return np.stack([thumbnail(image) for image in images])


def jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_GRAYSCALE)[..., None]


CHANGES = {
    "nothing": lambda image: image,
    "a quarter turn": lambda image: np.rot90(image),
    "a half turn": lambda image: np.rot90(image, 2),
    "three quarters": lambda image: np.rot90(image, 3),
    "a mirror": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "transposed": lambda image: image.transpose(1, 0, 2),
    "transposed the other way": lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    "brighter": lambda image: (image * 0.6 + 90).astype(np.uint8),
    "16 bits": lambda image: image.astype(np.uint16) * 180 + 500,
    "in colour": lambda image: np.repeat(image, 3, axis=2),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)[..., None],
    "jpeg": jpeg,
    "noise": lambda image: (image + np.random.default_rng(9).normal(0, 15, image.shape)).clip(0, 255).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255) ** 0.7).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_is_found(change: str):
    originals = [cells(seed) for seed in range(6)]
    changed = np.ascontiguousarray(CHANGES[change](originals[2]))
    pairs = find_similar(thumbnails(*originals, changed))
    assert [(pair.first, pair.second) for pair in pairs] == [(2, 6)]
    turned = any(word in change for word in ("turn", "quarters", "mirror", "upside", "transposed"))
    assert pairs[0].turned == turned
    assert 0.9 <= pairs[0].similarity <= 1


def test_different_images_are_not_alike():
    images = [cells(seed, count=count) for seed in range(60) for count in (3, 40)]
    assert find_similar(thumbnails(*images)) == []


def test_images_without_contrast_are_like_none():
    flat = np.full((20, 30, 1), 7, dtype=np.uint8)
    infinite = np.full((20, 30, 1), np.inf, dtype=np.float32)
    assert find_similar(thumbnails(flat, flat, infinite, cells(0))) == []
    assert find_similar(np.zeros((0, 64, 64), np.float16)) == []


def test_pairs_join_groups_in_chains():
    images = [cells(1), cells(2), cells(1)[::-1], cells(3), np.rot90(cells(2)), cells(4)]
    pairs = find_similar(thumbnails(*images))
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 2), (1, 4)]
    assert join_groups(["a", "b", "c", "c", "d", "e"], pairs).tolist() == [0, 1, 0, 0, 1, 2]
    assert join_groups(["a", "b", "a"], []).tolist() == [0, 1, 0]
    assert [(p.first, p.second) for p in leaks(pairs, ["x", "y", "x", "y", "x", "y"])] == [(1, 4)]
    assert groups_in_several_parts(["a", "b", "a"], [0, 0, 1]) == {"a": [0, 1]}
