from __future__ import annotations

from detseg.coco.catalog import set_names
from detseg.engine.evaluation import spread_evenly, without_nones
from detseg.runs.fold_runs import results_table


def test_images_are_spread_evenly_over_a_set() -> None:
    assert spread_evenly(10, 4) == [0, 3, 6, 9]
    assert spread_evenly(3, 5) == [0, 1, 2]
    assert spread_evenly(3, 0) == [0, 1, 2]
    assert spread_evenly(0, 4) == []


def test_short_names_of_data_sets_are_unique() -> None:
    paths = ["synthetic_val", "a/val.json", r"b\val.json", "c d/my cells.json.gz"]
    assert set_names(paths) == ["synthetic_val", "val", "val_2", "my_cells"]


def test_what_was_not_computed_is_left_out() -> None:
    assert without_nones({"a": None, "b": 0, "c": {"d": None, "e": 1}}) == {"b": 0, "c": {"e": 1}}


def test_table_has_a_row_for_all_classes_groups_and_sets() -> None:
    row = {"object_ap": 0.5, "objects": 7}
    table = results_table(
        {**row, "per_class": {"a": row, "b": {"object_ap": None}}, "per_group": {"g": row}, "datasets": {"v": row}}
    )
    starts = [line[:8].strip() for line in table.splitlines()[2:]]
    assert starts == ["all", "class a", "class b", "group g", "set v"]
    assert "0.5000" in table
    assert "-" in table.splitlines()[4]
