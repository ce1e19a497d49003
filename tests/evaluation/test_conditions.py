"""Tests between conditions: known answers, ties, and few or no units."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.evaluation.conditions import differences, holm, kruskal_wallis


def test_two_conditions_without_overlap() -> None:
    (one,) = differences({"area": {"control": np.arange(1.0, 6), "drug": np.arange(11.0, 16)}})
    assert (one.units, one.medians, one.difference) == ((5, 5), (3, 13), 10)
    assert one.p == pytest.approx(2 / 252), "exact: two of the 252 orders are this extreme"
    assert one.least_p == pytest.approx(one.p)
    assert one.rank_biserial == 1
    assert 6 <= one.low < 10 < one.high <= 14


def test_ties_of_few_units_are_counted_exactly() -> None:
    (one,) = differences({"area": {"a": np.ones(4), "b": np.full(3, 2.0)}})
    assert one.p == pytest.approx(2 / 35), "the normal approximation says 0.014"
    (one,) = differences({"area": {"a": np.array([1.0, 2, 2]), "b": np.array([2.0, 2, 3])}})
    assert one.p == pytest.approx(12 / 20)


def test_the_sign_is_that_of_the_second_condition() -> None:
    (one,) = differences({"area": {"a": np.arange(11.0, 16), "b": np.arange(1.0, 6)}})
    assert (one.difference, one.rank_biserial) == (-10, -1)


def test_holm_steps_down_and_leaves_out_what_was_not_tested() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, np.nan, 0.03, 0.005]) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert not len(holm([]))


def test_all_comparisons_are_corrected_together() -> None:
    rng = np.random.default_rng(0)
    groups = {name: rng.normal(shift, 1, 12) for name, shift in (("a", 0), ("b", 0), ("c", 3))}
    found = differences({"area": groups, "objects_per_image": groups})
    assert len(found) == 6
    by_pair = {(one.measure, one.first, one.second): one for one in found}
    assert by_pair["area", "a", "c"].p_holm == pytest.approx(6 * by_pair["area", "a", "c"].p, rel=0.7)
    assert by_pair["area", "a", "c"].p_holm < 0.01 < by_pair["area", "a", "b"].p_holm
    assert kruskal_wallis(groups) < 0.001


def test_too_few_units_give_no_interval_and_none_no_test() -> None:
    values = {"area": {"a": np.array([1.0, 2]), "b": np.array([5.0, np.nan, 6, 7]), "c": np.array([np.nan])}}
    few, none, _ = differences(values)
    assert few.units == (2, 3)
    assert np.isnan(few.low)
    assert few.least_p == pytest.approx(0.2)
    assert np.isnan([none.p, none.difference, none.p_holm]).all()
    assert np.isnan(kruskal_wallis({"a": np.ones(3), "b": np.ones(3)})), "all alike"
    assert np.isnan(kruskal_wallis({"a": np.arange(3.0), "b": np.zeros(0)}))
