"""Embeddings of pixels as colours."""

import numpy as np
import pytest

from detseg.report.embedding import principal_colours


def test_objects_have_colours_of_their_own_and_the_background_is_dark() -> None:
    codes = np.eye(8, dtype=np.float32)[[0, 0, 1, 2, 3]]
    labels = np.zeros((20, 40), np.int64)
    for number in range(1, 5):
        labels[5:15, 10 * number - 9 : 10 * number - 1] = number
    embedding = codes[labels].transpose(2, 0, 1)
    colours = principal_colours(embedding, (labels > 0).astype(np.float32))
    assert (colours.shape, colours.dtype) == ((20, 40, 3), np.uint8)
    assert colours[labels == 0].max() == 0
    of_objects = {tuple(colours[labels == number][0]) for number in range(1, 5)}
    assert len(of_objects) == 4
    assert all(len(np.unique(colours[labels == number], axis=0)) == 1 for number in range(1, 5))
    shuffled = principal_colours(embedding[:, ::-1], (labels > 0).astype(np.float32)[::-1])
    assert np.array_equal(shuffled[::-1], colours), "the same embeddings, the same colours"


@pytest.mark.parametrize("size", [2, 3, 8])
def test_any_size_of_embedding_and_images_without_foreground(size: int) -> None:
    embedding = np.random.default_rng(0).normal(size=(size, 6, 7)).astype(np.float32)
    for foreground in (np.zeros((6, 7)), np.ones((6, 7))):
        assert principal_colours(embedding, foreground).shape == (6, 7, 3)
    assert principal_colours(embedding * 0, np.ones((6, 7))).max() == 0
