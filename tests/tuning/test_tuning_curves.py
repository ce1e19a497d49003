"""The plot of tuned settings is a picture, whatever the values are."""

from __future__ import annotations

import cv2
import pytest

from detseg.report.tuning_curves import draw_tuning_curves
from detseg.tuning.space import Coordinate
from detseg.tuning.tuning import Curve


def curve(setting, points, chosen, part=None):
    return Curve(Coordinate(setting, part, ()), points, chosen)


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [curve("max_area", [(None, 0.5), (100, 0.4), (900, 0.6)], 900)],
        [curve("max_area", [(None, 0.5)], None, "a"), curve("max_area", [(None, 0.5), (3, 0.1)], None, "b")],
        [curve(f"setting {number}", [(0.1, 0.2), (0.2, 0.3)], 0.2) for number in range(5)],
        [curve("score_threshold", [], 0.5)],
        [curve("image_class", [("keep", 0.5), ("relabel", 0.4), ("settings", 0.6)], "settings")],
        # One value is asked for where the classes still have their own.
        [curve("score_threshold", [(0.5, 0.1)], {"a": 0.4, "b": 0.6})],
    ],
)
def test_a_picture_of_any_curves(tmp_path, curves):
    draw_tuning_curves(tmp_path / "curves.png", curves, "object_ap")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert min(picture.shape[:2]) > 300
    draw_tuning_curves(tmp_path / "again.png", curves, "object_ap")
    assert (cv2.imread(str(tmp_path / "again.png")) == picture).all()
