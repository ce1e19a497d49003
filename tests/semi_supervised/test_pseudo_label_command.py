"""`pseudo_label label`: as a user types it, also wrongly."""

from __future__ import annotations

import json

import pytest
from pseudo_cases import predicted, square, write_file, write_images

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset


@pytest.fixture
def folder(tmp_path):
    folds = {f"t{n}.png": {"fold": n % 2, "plate": f"P{n}"} for n in range(4)}
    cells = {name: [(square(0), 0)] for name in folds}
    labelled = write_images(tmp_path, "folds.json", cells, folds, seed=1)
    names = {"P1_A1.png": [], "P9_A1.png": []}
    write_images(tmp_path / "unlabelled", "unlabelled.json", names, seed=2)
    found = [
        predicted(name, [square(0), square(1)], [0.9, 0.4], image_id=number)
        for number, name in enumerate(names, start=1)
    ]
    write_file(tmp_path / "p.json.gz", found, saw=labelled.select([0, 2]))
    return tmp_path


def label(folder, *words) -> int:
    given = ["--predictions", folder / "p.json.gz", "--output", folder / "pseudo.json"]
    given += [] if "--images" in words else ["--images", folder / "unlabelled" / "unlabelled.json"]
    return main(["pseudo_label", "label", *map(str, [*given, *words])])


def test_a_fold_in_one_command(folder, capsys) -> None:
    assert label(folder, "--labelled", folder / "folds.json", "--fold", 1, "score=0.8") == 0
    assert "objects  2 kept, 2 ignored, 0 dropped" in capsys.readouterr().out
    loaded = CocoDataset.load(folder / "pseudo.json")
    assert loaded.num_objects == 2
    assert loaded.info["pseudo_labels"]["gates"]["score"] == 0.8
    page = (folder / "pseudo.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6  # two kept, two ignored, two images
    assert label(folder, "--labelled", folder / "folds.json", "--fold", 1) == 2
    assert "exist already" in capsys.readouterr().err


def test_the_model_of_another_fold_is_refused(folder, capsys) -> None:
    assert label(folder, "--labelled", folder / "folds.json", "--fold", 0) == 2
    assert "trained with 2 of the 2 validation images" in capsys.readouterr().err
    assert not (folder / "pseudo.json").exists()


def test_plain_images_get_their_fields_from_their_names(folder) -> None:
    words = ["--images", folder / "unlabelled", "--labelled", folder / "folds.json", "--fold", 1]
    words += ["--apart", "plate", "--field-pattern", "(?P<plate>P[0-9]+)_"]
    assert label(folder, *words) == 0
    rows = json.loads((folder / "pseudo.json").read_text(encoding="utf-8"))
    assert [row["file_name"] for row in rows["images"]] == ["P9_A1.png"]
    assert [row["kind"] for row in rows["left_out"]] == ["same plate as a validation image"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no-validation", "--output", "a.txt"], "expected a name that ends in .json"),
        (["--fold", "1"], "--fold K refers to --labelled FILE"),
        (["--no-validation", "scores=0.5"], "unknown setting 'scores'"),
        (["--no-validation", "--folds", "folds.csv"], "--folds FILE goes with --fold K"),
        (["--no-validation", "--field-pattern", "("], "is not a regular expression"),
        (["--no-validation", "--field-pattern", "P"], "has no named group"),
        (["--no-validation", "--precision", "0.9"], "precision needs the labelled images"),
        (["--no-validation", "--precision", "2"], "precision is 2.0, expected a fraction"),
    ],
)
def test_wrong_words_are_told(folder, capsys, words, message) -> None:
    assert label(folder, *words) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "pseudo.json").exists()


def test_a_file_without_anything_sure_is_written_and_said(folder, capsys) -> None:
    assert label(folder, "--no-validation", "score=1", "ignore_score=0.95") == 0
    assert "nothing to learn" in capsys.readouterr().out
    assert len(CocoDataset.load(folder / "pseudo.json")) == 0
    assert "Images left out" in (folder / "pseudo.html").read_text(encoding="utf-8")


def test_folds_of_several_files_by_an_index(folder, capsys) -> None:
    write_images(folder / "more", "more.json", {f"m{n}.png": [(square(0), 0)] for n in (0, 1)}, seed=5)
    index = folder / "folds.csv"
    index.write_text("file_name,fold\n" + "".join(f"t{n}.png,{n % 2}\n" for n in range(4)) + "m0.png,0\nm1.png,1\n")
    words = ["--labelled", folder / "folds.json", folder / "more" / "more.json", "--folds", index]
    assert label(folder, *words, "--fold", 1) == 0
    assert label(folder, *words, "--fold", 0, "--overwrite") == 2
    assert "trained with 2 of the 3 validation images" in capsys.readouterr().err


def test_what_is_validated_on_has_to_be_said(folder, capsys) -> None:
    with pytest.raises(SystemExit):
        label(folder)
    assert "--fold --validation --no-validation is required" in capsys.readouterr().err
