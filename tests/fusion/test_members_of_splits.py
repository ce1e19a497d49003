"""Predictions of one cross-validation are fused and tuned; those of several, or of models that saw the images, not."""

from __future__ import annotations

import numpy as np
import pytest

from detseg.cli.main import main
from detseg.coco.json_files import annotations_of, write_coco
from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec


def squares(number: int, **provenance) -> Predictions:
    """One object in image `number`."""
    mask = np.zeros((20, 20), dtype=bool)
    mask[2 : 9 + number, 3:12] = True
    rle = rle_codec.encode_mask(mask)
    box = np.array([[3, 2, 12, 9 + number]])
    return Predictions(
        number, f"{number}.png", 20, 20, box, np.full(1, 0.9), np.zeros(1), rles=[rle], provenance=provenance
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    """oof.json of six images in three folds; write(name, provenances) writes another file of these images."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, provenances: list[dict]) -> str:
        write_predictions(name, [squares(n, **provenance) for n, provenance in enumerate(provenances)], ["cell"])
        return name

    write("oof.json", [{"fold": n % 3, "in_training": False} for n in range(6)])
    images = [{"id": n, "file_name": f"{n}.png", "height": 20, "width": 20} for n in range(6)]
    annotations = []
    for n in range(6):
        annotations += annotations_of(squares(n).rles, [1], image_id=n, first_id=n + 1)
    write_coco("gt.json", images=images, annotations=annotations, categories=[{"id": 1, "name": "cell"}])
    (tmp_path / "wbf.yaml").write_text("method: wbf\n")
    return write


def fuse(other: str) -> int:
    return main(["fuse", "--inputs", "oof.json", other, "--output", "f.json", "--overwrite"])


def tune(*files: str) -> int:
    fusion = ["--fusion", "wbf.yaml"] if len(files) > 1 else []
    words = ["--ground-truth", "gt.json", "--output", "post.yaml", "--overwrite", *fusion]
    return main(["tune_thresholds", "--predictions", *files, "--bootstrap", "0", "--rounds", "1", *words])


def test_members_of_the_same_folds_are_fused_also_under_other_numbers(files, caplog):
    files("same.json", [{"fold": n % 3} for n in range(6)])
    files("renumbered.json", [{"fold": 2 - n % 3, "in_training": False} for n in range(6)])
    files("unseen.json", [{"in_training": False}] * 6)
    for name in ("same.json", "renumbered.json", "unseen.json"):
        assert fuse(name) == 0, name
        assert tune("oof.json", name) == 0, name
    assert "does not record" not in caplog.text


@pytest.mark.parametrize(
    ("provenances", "said"),
    [
        ([{"fold": n // 2} for n in range(6)], "1.png: fold 1 in oof.json, fold 0 in other.json"),
        (
            [{"fold": 0, "in_training": n % 3 != 0} for n in range(6)],
            "trained with 4 images that oof.json has out of fold",
        ),
        ([{"in_training": n == 4} for n in range(6)], "4.png: fold 1 in oof.json"),
    ],
)
def test_other_splits_and_models_that_saw_the_images_are_refused(files, capsys, provenances, said):
    other = files("other.json", provenances)
    commands = (lambda: fuse(other), lambda: tune("oof.json", other), lambda: tune(other, "oof.json"))
    for command in commands:
        assert command() == 2
        printed = capsys.readouterr().err
        assert "oof.json" in printed
        assert "other.json" in printed
        if command is not commands[-1]:  # where the other file is the first, it is the one that is compared with
            assert said in printed


def test_what_does_not_say_how_it_was_made_is_said_and_taken(files, caplog):
    other = files("old.json", [{}] * 6)
    assert fuse(other) == 0
    assert "old.json does not record which images its model was trained with (0.png, ...)" in caplog.text
    assert tune("oof.json", other) == 0


def test_a_fused_file_still_says_that_a_member_saw_the_image(files):
    files("a.json", [{"in_training": False}] * 6)
    files("b.json", [{"in_training": n == 0} for n in range(6)])
    assert main(["fuse", "--inputs", "a.json", "b.json", "--output", "f.json"]) == 0
    assert [image.provenance.get("in_training") for image in read_predictions("f.json")] == [True] + [False] * 5


def test_tuning_on_images_that_were_trained_with_is_warned_of(files, caplog):
    seen = files("seen.json", [{"in_training": n < 2} for n in range(6)])
    assert tune(seen) == 0
    assert "2 of 6 images were predicted by models that were trained with them (0.png, ...)" in caplog.text
