"""Balanced splits: groups whole, parts alike, the same for ever; folds in files and indices."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.curation.splits import split_groups
from detseg.data.folds import folds_of, write_index
from detseg.errors import DataError


def unevenness(features: np.ndarray, parts: np.ndarray, shares: list[float]) -> float:
    """The sum of squared differences of what parts have of the features, as shares, from what they should have."""
    sums = np.stack([features[parts == part].sum(axis=0) for part in range(len(shares))]) / features.sum(axis=0)
    return float(((sums - np.array(shares)[:, None]) ** 2).sum())


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(2, 60), st.integers(1, 20), st.sampled_from([[0.5, 0.5], [0.7, 0.2, 0.1]]))
def test_groups_stay_whole_and_no_part_is_empty(seed: int, count: int, num_groups: int, shares: list[float]):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, num_groups, count)
    features = rng.integers(0, 9, (count, 3)).astype(float)
    names = [f"{index}.png" for index in range(count)]
    if len(set(groups.tolist())) < len(shares):
        with pytest.raises(DataError, match="cannot be split into"):
            split_groups(features, groups, shares, seed=0, names=names)
        return
    parts = split_groups(features, groups, shares, seed=0, names=names)
    assert set(parts.tolist()) == set(range(len(shares)))
    for group in set(groups.tolist()):
        assert len(set(parts[groups == group].tolist())) == 1
    shuffled = rng.permutation(count)
    again = split_groups(features[shuffled], groups[shuffled], shares, seed=0, names=[names[i] for i in shuffled])
    assert again.tolist() == parts[shuffled].tolist(), "the order of the images decides nothing"


def test_parts_are_as_even_as_the_best_of_all_splits_of_a_small_set():
    rng = np.random.default_rng(3)
    features = np.column_stack([np.ones(10), rng.integers(1, 50, 10)]).astype(float)
    all_splits = [np.array([(number >> index) & 1 for index in range(10)]) for number in range(1, 2**10 - 1)]
    best = min(unevenness(features, parts, [0.5, 0.5]) for parts in all_splits)
    found = split_groups(features, np.arange(10), [0.5, 0.5], seed=1, names=[str(index) for index in range(10)])
    assert unevenness(features, found, [0.5, 0.5]) <= best + 1e-3


def test_real_sizes_are_balanced_better_than_by_chance_and_seeds_differ():
    rng = np.random.default_rng(0)
    objects = rng.lognormal(3, 1, 300).astype(int)
    kinds = rng.choice(3, 300, p=[0.8, 0.15, 0.05])
    features = np.column_stack([np.ones(300), objects, *(kinds == kind for kind in range(3))]).astype(float)
    groups, names = rng.integers(0, 70, 300), [str(index) for index in range(300)]
    shares = [0.2] * 5
    splits = [split_groups(features, groups, shares, seed=seed, names=names) for seed in range(3)]
    chance = min(unevenness(features, rng.integers(0, 5, 70)[groups], shares) for _ in range(50))
    assert max(unevenness(features, parts, shares) for parts in splits) < 0.25 * chance
    assert len({tuple(parts.tolist()) for parts in splits}) == 3


def images(names: list[str], **fields: list) -> list[ImageRecord]:
    metadata = [{key: values[index] for key, values in fields.items()} for index in range(len(names))]
    return [ImageRecord(i + 1, name, Path(name), 5, 5, data) for i, (name, data) in enumerate(zip(names, metadata))]  # noqa: B905


@pytest.mark.parametrize("suffix", ["csv", "yaml"])
def test_an_index_is_read_as_it_was_written(suffix: str, tmp_path: Path):
    rows = [
        {"file_name": name, "fold": fold, "note": "x"}
        for name, fold in (("a.png", 1), ("p/b.png", 0), ("ü.png", 1), ("t.png", None))
    ]
    write_index(tmp_path / f"folds.{suffix}", rows)
    records = images(["p/b.png", "a.png", "ü.png", "t.png"])
    assert folds_of(records, tmp_path / f"folds.{suffix}").tolist() == [0, 1, 1, -1], "held out: of no fold"
    with pytest.raises(DataError, match=r"image gone\.png has no fold"):
        folds_of(images(["a.png", "gone.png"]), tmp_path / f"folds.{suffix}")


def test_no_fold_may_be_written_as_minus_one(tmp_path: Path):
    (tmp_path / "folds.csv").write_text("file_name,fold\na,0\nb,1\nc,-1\nd,\n")
    assert folds_of(images(["a", "b", "c", "d"]), tmp_path / "folds.csv").tolist() == [0, 1, -1, -1]


def test_fields_and_broken_folds(tmp_path: Path):
    assert folds_of(images(["a", "b", "c"], fold=[1, 0, -1])).tolist() == [1, 0, -1]
    for folds, said in (([0, 2, 1.5], "is 1.5"), ([0, "1", 1], "is '1'"), ([0, 2, 2], "found the folds 0, 2")):
        with pytest.raises(DataError, match=said):
            folds_of(images(["a", "b", "c"], fold=folds))
    for name, text, said in (
        ("a.csv", "file_name,fold\na,0\na,1\n", "occurs twice"),
        ("b.csv", "file_name,fold\na,x\n", "'x'"),
        ("c.csv", "name,fold\na,0\n", "no column file_name"),
        ("d.yaml", "- a\n", "not an index of folds"),
        ("e.yaml", "0: a\n", "list of file names"),
        ("f.yaml", "0: [a]\n1: [a]\n", "occurs twice"),
        ("g.yaml", "0: [", "not valid YAML"),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            folds_of(images(["a"]), tmp_path / name)


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """A COCO file of 24 images on 8 plates, two classes; image 5 is a turned copy of image 0 of another plate."""
    rng = np.random.default_rng(0)
    rows, annotations = [], []
    pictures = [np.kron(rng.integers(0, 255, (6, 6)), np.ones((6, 6))).astype(np.uint8) for _ in range(24)]
    pictures[5] = np.rot90(pictures[0])
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"i{number}_t{number % 3}.png")
        name = f"i{number}_t{number % 3}.png"
        rows.append(
            {"id": number, "file_name": name, "height": 36, "width": 36, "plate": f"p{number // 3}", "x": "kept"}
        )
        for _ in range(1 + number % 4):
            x, y = rng.integers(0, 20, 2).tolist()
            polygon = [[x, y, x + 9, y, x + 9, y + 9, x, y + 9]]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1 + number % 2,
                    "segmentation": polygon,
                    "by": "me",
                }
            )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories, "licenses": [1]}))
    return path


def test_split_writes_folds_that_keep_groups_and_copies_together(plates: Path, capsys: pytest.CaptureFixture[str]):
    out = plates.parent / "out"
    words = ["split", str(plates), "--output", str(out), "--folds", "3", "--group-by", "plate"]
    assert main([*words, "--coco-files", "--holdout", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "near-duplicate pairs of images: 1" in printed
    assert "each is in one part" in printed
    whole, test = CocoDataset.load(out / "folds.json"), CocoDataset.load(out / "test.json")
    assert len(whole) + len(test) == 24
    assert len(test) == 6
    assert all("fold" not in record.metadata for record in test.images)
    part_of_plate: dict[str, set] = {}
    for record in [*whole.images, *test.images]:
        part_of_plate.setdefault(record.metadata["plate"], set()).add(record.metadata.get("fold", "test"))
    assert all(len(parts) == 1 for parts in part_of_plate.values())
    assert part_of_plate["p0"] == part_of_plate["p1"], "the copy binds their plates"
    whole.check_images_exist()

    raw = json.loads((out / "folds.json").read_text())
    original = {row["id"]: row for row in json.loads(plates.read_text())["annotations"]}
    assert all(row == original[row["id"]] for row in raw["annotations"])
    assert raw["licenses"] == [1]
    with open(out / "folds.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert {row["fold"] for row in rows} == {"0", "1", "2", ""}
    index = folds_of(CocoDataset.load(plates).images, out / "folds.csv")
    assert np.bincount(index + 1).tolist()[0] == 6
    for fold in range(3):
        train, val = (CocoDataset.load(out / f"fold{fold}_{part}.json") for part in ("train", "val"))
        assert {r.file_name for r in val.images} == {r.file_name for r in whole.images if r.metadata["fold"] == fold}
        assert len(train) + len(val) == len(whole)

    assert main([*words, "--coco-files"]) == 2, "nothing is replaced"
    assert main([*words, "--ignore-similar", "--overwrite", "--seed", "1", "--index", "yaml"]) == 0
    assert (out / "folds.yaml").is_file()


def test_fractions_patterns_and_tables(plates: Path, capsys: pytest.CaptureFixture[str]):
    out = plates.parent / "out"
    table = plates.parent / "wells.csv"
    table.write_text("image;well\n" + "".join(f"i{n}_t{n % 3};w{n % 5}\n" for n in range(24)))
    words = ["split", str(plates), "--output", str(out), "--similar", "0", "--overwrite"]
    assert main([*words, "--fractions", "0.7", "0.15", "0.15", "--table", str(table), "--group-by", "well"]) == 0
    parts = [CocoDataset.load(out / f"{part}.json") for part in ("train", "val", "test")]
    wells = [{int(record.file_name[1:].split("_")[0]) % 5 for record in part.images} for part in parts]
    assert sum(map(len, wells)) == 5
    assert main([*words, "--folds", "3", "--group-pattern", r"_t(\d)"]) == 0
    folds = {r.file_name[-5]: r.metadata["fold"] for r in CocoDataset.load(out / "folds.json").images}
    assert sorted(folds.values()) == [0, 1, 2]
    capsys.readouterr()
    for more, said in (
        (["--group-by", "well"], "24 of 24 images have no 'well'"),
        (["--group-pattern", "(", "--folds", "2"], "not a valid regular expression"),
        (["--group-pattern", "zzz"], "matches nothing"),
        (
            ["--folds", "9", "--group-by", "plate"],
            "24 images in 8 groups (near-duplicates are kept together) cannot be split into 9 parts",
        ),
        (["--fractions", "0.5", "0.6"], "--fractions"),
        (["--folds", "25"], "24 images cannot be split into 25 parts"),
        (["--folds", "1"], "--folds is 1"),
        (["--holdout", "1"], "--holdout"),
        (["--table", str(table)], "--table CSV needs --stratify-by or --group-by"),
        (["--group-by", "plate", "--key", "image"], "--key COLUMN needs --table"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err


def test_check_finds_what_leaks(plates: Path, capsys: pytest.CaptureFixture[str]):
    out = plates.parent / "out"
    words = ["split", str(plates), "--output", str(out), "--folds", "3", "--overwrite"]
    assert main([*words, "--group-by", "plate"]) == 0
    capsys.readouterr()
    assert main(["split", str(out / "folds.json"), "--check", "--group-by", "plate"]) == 0
    assert "no leaks between 3 parts with 24 images" in capsys.readouterr().out

    data = json.loads(plates.read_text())
    for name, numbers in (("one", range(3)), ("two", range(2, 24))):
        part = {**data, "images": [data["images"][n] for n in numbers], "annotations": []}
        (plates.parent / f"{name}.json").write_text(json.dumps(part))
    files = [str(plates.parent / f"{name}.json") for name in ("one", "two")]
    assert main(["split", *files, "--check", "--group-by", "plate"]) == 1
    report = capsys.readouterr().out
    assert "i2_t2.png is in" in report
    assert "group p0 is in" in report
    assert "rotated or mirrored" in report
    assert main(["split", str(plates), "--check"]) == 2
    assert "no field `fold`" in capsys.readouterr().err
    assert main(["split", *files, "--check", "--similar", "90"]) == 2, "it would find nothing"
