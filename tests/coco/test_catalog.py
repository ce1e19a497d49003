"""Names of data sets: found, or refused with the names that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from detseg.coco.catalog import find_dataset, load_dataset, read_catalog, resolve_dataset
from detseg.coco.json_files import write_coco
from detseg.errors import DataError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets of one's own."""
    monkeypatch.setenv("DETSEG_DATASETS", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def write_empty(path: Path) -> None:
    images = [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}]
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    write_coco(path, images=images, annotations=[], categories=categories)


def test_the_catalog_that_comes_with_detseg_knows_its_sets(home: Path) -> None:
    names = {"synthetic_cells_train", "synthetic_cells_val", "dsb2018_train", "dsb2018_val", "dsb2018_test"}
    assert names <= set(read_catalog())


def test_paths_are_relative_to_the_working_folder_then_to_the_datasets(home: Path, tmp_path: Path) -> None:
    write_empty(home / "mine.json")
    assert resolve_dataset("mine.json").json == home / "mine.json"
    write_empty(tmp_path / "mine.json")
    assert resolve_dataset("mine.json").json.resolve() == tmp_path / "mine.json"
    assert resolve_dataset(home / "mine.json").json == home / "mine.json"


def test_an_unknown_name_lists_the_known_ones_and_a_missing_set_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(DataError, match=r"no data set 'dsb2018'.*dsb2018_test, dsb2018_train.*synthetic_cells_val"):
        resolve_dataset("dsb2018")
    with pytest.raises(DataError, match=r"dsb2018_val is missing.*val\.json.*prepare\.py label_images"):
        resolve_dataset("dsb2018_val")


def test_a_catalog_of_ones_own_adds_names_with_root_and_class_order(home: Path) -> None:
    entry = "- {name: own, json: sets/own.json, image_root: pictures, classes: [two, one]}\n"
    (home / "catalog.yaml").write_text(entry, encoding="utf-8")
    write_empty(home / "sets" / "own.json")
    dataset = load_dataset("own")
    assert dataset.class_names == ["two", "one"]
    assert dataset.images[0].path == home / "pictures" / "a.png"
    (home / "other").mkdir()
    assert load_dataset("own", "other").images[0].path == home / "other" / "a.png"
    with pytest.raises(DataError, match=r"IMAGE_ROOT: there is no folder absent"):
        load_dataset("own", "absent")


@pytest.mark.parametrize(
    "text", ["a: b", "- name: 5", "- {name: a}", "- {name: a, json: b, jsn: c}", "- [", "- {name: a, generate: magic}"]
)
def test_a_broken_catalog_is_refused(home: Path, text: str) -> None:
    (home / "catalog.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="catalog"):
        resolve_dataset("a")


def test_a_set_that_is_drawn_says_who_draws_it(home: Path) -> None:
    with pytest.raises(DataError, match=r"synthetic_cells_train is missing.*train\.json.*make_missing_sets"):
        resolve_dataset("synthetic_cells_train")
    entry = find_dataset("synthetic_cells_val")
    assert (entry.generator, entry.json.name) == ("synthetic", "val.json")
    assert entry.json.parent == find_dataset("synthetic_cells_train").json.parent


def test_generated_sets_name_their_part_and_aliases_end(home: Path) -> None:
    (home / "catalog.yaml").write_text("- {name: own, generate: synthetic}\n", encoding="utf-8")
    with pytest.raises(DataError, match="generate needs split"):
        find_dataset("own")
    (home / "catalog.yaml").write_text("- {name: own, json: a, options: &o {a: [*o]}}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"catalog\.yaml:1: \*o refers to itself"):
        find_dataset("own")


@pytest.mark.parametrize(
    "entry",
    ["json: 3", "json: a.json, image_root: [a]", "json: a, classes: 5", "generate: [x]", "json: a, options: {1: 2}"],
)
def test_values_of_another_kind_are_refused(home: Path, entry: str) -> None:
    (home / "catalog.yaml").write_text(f"- {{name: own, {entry}}}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"catalog\.yaml: entry number 0 \(own\): .* is .*; expected (a |names)"):
        find_dataset("own")
