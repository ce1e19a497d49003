"""A checkpoint knows the images that it was trained with by their content."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from detseg.coco.records import ImageRecord
from detseg.data.trained_images import TrainedImages, was_in_training


def record(path: Path, **metadata) -> ImageRecord:
    return ImageRecord(1, path.name, path, 0, 0, metadata)


def test_images_are_known_by_content_and_plane(tmp_path: Path) -> None:
    """Files of one size that differ only in the middle, as images with a black border do."""
    for number in range(3):
        content = np.zeros(200_000, dtype=np.uint8)
        content[100_000] = number
        content.tofile(tmp_path / f"{number}.npy")
    shutil.copyfile(tmp_path / "0.npy", tmp_path / "renamed.npy")
    trained = TrainedImages.of_records([record(tmp_path / "0.npy"), record(tmp_path / "1.npy", plane={"z": 1})])
    assert record(tmp_path / "renamed.npy") in trained
    assert record(tmp_path / "2.npy") not in trained
    assert record(tmp_path / "1.npy", plane={"z": 1}) in trained
    assert record(tmp_path / "1.npy", plane={"z": 2}) not in trained
    again = TrainedImages.from_stored(torch.from_numpy(trained.keys))
    assert record(tmp_path / "renamed.npy") in again
    both = again | TrainedImages.of_records([record(tmp_path / "2.npy")])
    assert record(tmp_path / "2.npy") in both
    assert (again | None).keys.tolist() == again.keys.tolist()


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"a")
    (tmp_path / "b.npy").write_bytes(b"b")
    seen, other = (TrainedImages.of_records([record(tmp_path / name)]) for name in ("a.npy", "b.npy"))
    image = record(tmp_path / "a.npy")
    assert was_in_training(image, [other, seen]) is True
    assert was_in_training(image, [seen, None]) is True
    assert was_in_training(image, [other, None]) is None
    assert was_in_training(image, [other]) is False
    assert was_in_training(record(tmp_path / "gone.npy"), [other]) is None
    for stored in (None, "text", [1, 2], torch.zeros(2), torch.zeros((2, 2), dtype=torch.int64)):
        assert TrainedImages.from_stored(stored) is None
