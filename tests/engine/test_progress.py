from __future__ import annotations

from detseg.engine.progress import LossWindow, describe_losses, format_seconds
from detseg.engine.state import BestScore


def test_window_means_and_state() -> None:
    window = LossWindow()
    window.add({"a": 1.0})
    window.add({"a": 3.0})
    copy = LossWindow()
    copy.load_state_dict(window.state_dict())
    assert copy.means() == {"a": 2.0}
    copy.clear()
    assert copy.count == 0


def test_texts_for_people() -> None:
    assert describe_losses(1.5, {"loss_cls": 1.0, "loss_mask": 0.5}) == "loss 1.500 (cls 1.000, mask 0.500)"
    assert format_seconds(3723.4) == "1:02:03"


def test_best_score_counts_what_did_not_improve() -> None:
    best = BestScore()
    assert [best.update(i, value) for i, value in ((1, 0.1), (2, 0.3), (3, 0.3), (4, None))] == [
        True,
        True,
        False,
        False,
    ]
    assert (best.value, best.iteration, best.last_evaluation, best.without_improvement) == (0.3, 2, 4, 2)
    assert best.exhausted(2)
    assert not best.exhausted(3)
    assert not best.exhausted(0)
    copy = BestScore()
    copy.load_state_dict(best.state_dict())
    assert copy == best


def test_an_undefined_first_score_is_kept_until_there_is_one() -> None:
    best = BestScore()
    assert best.update(1, None)
    assert best.update(2, 0.0)
