"""Splits: the right sizes, strata kept, the same for ever."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detseg.curation.splits import read_split_lists, split_folds, split_fractions
from detseg.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(3, 300), st.integers(1, 6), st.integers(0, 99), st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.2), (1.0,)])
)
def test_parts_and_strata_have_their_share(
    count: int, num_groups: int, seed: int, fractions: tuple[float, ...]
) -> None:
    names = [f"image{index}" for index in range(count)]
    groups = {name: f"g{index % num_groups}" for index, name in enumerate(names)}
    parts = split_fractions(names, fractions, seed=seed, groups=groups)
    assert sorted(name for members in parts.values() for name in members) == sorted(names)
    sizes = Counter(groups.values())
    for fraction, members in zip(fractions, parts.values(), strict=True):
        assert members
        assert abs(len(members) - fraction * count) <= (1 if count > 3 else 1.1), "of three images one to each part"
        for group, size in Counter(groups[name] for name in members).items():
            assert abs(size - fraction * sizes[group]) <= 2


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 100), st.integers(2, 9), st.integers(0, 99))
def test_folds_are_disjoint_and_even(count: int, num_folds: int, seed: int) -> None:
    names = [f"image{index}" for index in range(count)]
    if num_folds > count:
        with pytest.raises(DataError, match="folds"):
            split_folds(names, num_folds, seed=seed)
        return
    groups = {name: "ab"[index % 2] for index, name in enumerate(names)}
    folds = split_folds(names, num_folds, seed=seed, groups=groups)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    for members in (folds, [[n for n in fold if groups[n] == "a"] for fold in folds]):
        sizes = [len(fold) for fold in members]
        assert max(sizes) - min(sizes) <= 1


def test_the_split_of_a_seed_never_changes() -> None:
    names = [f"image{index}" for index in range(10)]
    assert split_fractions(names, (0.6, 0.2, 0.2), seed=5) == split_fractions(names[::-1], (0.6, 0.2, 0.2), seed=5)
    assert split_fractions(names, (0.6, 0.2, 0.2), seed=5) == {
        "train": ["image0", "image1", "image3", "image4", "image5", "image7"],
        "val": ["image2", "image6"],
        "test": ["image8", "image9"],
    }
    assert split_fractions(names, (0.6, 0.2, 0.2), seed=6) != split_fractions(names, (0.6, 0.2, 0.2), seed=5)


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (0.5, 0.25, 0.15, 0.1), (1.2, -0.2), (0.7,)])
def test_fractions_that_are_none_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="fractions"):
        split_fractions(["a", "b", "c", "d"], fractions, seed=0)


def test_fewer_images_than_parts_are_refused() -> None:
    with pytest.raises(DataError, match="2 images cannot be split into 3 parts; --split 1"):
        split_fractions(["a", "b"], (0.7, 0.15, 0.15), seed=0)


@pytest.mark.parametrize("prefix", ["my", "my[1]"])
def test_given_lists_are_read_by_prefix_or_folder(tmp_path: Path, prefix: str) -> None:
    (tmp_path / f"{prefix}_train.txt").write_text("b\n\na # a note\n", encoding="utf-8")
    (tmp_path / f"{prefix}_val.txt").write_text("c\ngone\n", encoding="utf-8")
    parts, missing = read_split_lists(tmp_path / prefix, ["a", "b", "c", "d"])
    assert parts == {"train": ["b", "a"], "val": ["c"]}
    assert len(missing) == 1
    assert "gone" in missing[0]
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "val.txt").write_text("a\n", encoding="utf-8")
    assert read_split_lists(folder, ["a"])[0] == {"val": ["a"]}
    (folder / "test.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(DataError, match="listed twice"):
        read_split_lists(folder, ["a"])
    with pytest.raises(DataError, match="no lists found"):
        read_split_lists(tmp_path / "other", ["a"])


def test_the_dsb2018_lists_are_one_split_of_all_564_images() -> None:
    lists = [REPOSITORY / "datasets" / "splits" / f"dsb2018_{part}.txt" for part in ("train", "val", "test")]
    names = [path.read_text(encoding="utf-8").split() for path in lists]
    assert [len(part) for part in names] == [395, 85, 84]
    assert len({name for part in names for name in part}) == 564
