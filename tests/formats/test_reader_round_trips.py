"""What export writes, the readers read again without losing a pixel: every form, with holes, pieces and classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readers_for_tests import HEIGHT, WIDTH, expected_masks, labels_of, masks_by_class, run, write_image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset

NAMES = {4: "a", 7: "b", 9: "b", 300: "a"}


def noise_labels(seed: int) -> np.ndarray:
    """Objects of random pixels: many pieces, holes, and pixels that touch at corners alone."""
    return np.random.default_rng(seed).integers(0, 5, (HEIGHT, WIDTH)).astype(np.uint16)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, dict[str, list[tuple[str, bytes]]]]:
    """A folder with images, a COCO file of two classes of them, and the masks of every image."""
    (tmp_path / "labels" / "sub").mkdir(parents=True)
    labels = {
        "a": labels_of(),
        "sub/b": labels_of(3),
        "noise": noise_labels(0),
        "empty": np.zeros((HEIGHT, WIDTH), np.uint16),
    }
    for name, values in labels.items():
        write_image(tmp_path / "images" / f"{name}.png")
        Image.fromarray(values).save(tmp_path / "labels" / f"{name}.png")
    rule = {**NAMES, 1: "a", 2: "b", 3: "a"}
    (tmp_path / "map.yaml").write_text("".join(f"{number}: {name}\n" for number, name in rule.items()))
    words = ("--images", tmp_path / "images", "--labels", tmp_path / "labels", "--split", "1")
    assert run("prepare label_images", tmp_path / "coco", *words, "--classes-from", f"map:{tmp_path / 'map.yaml'}") == 0
    return tmp_path, {f"{name}.png": expected_masks(values, rule) for name, values in labels.items()}


def masks_of(path: Path) -> dict[str, list[tuple[str, bytes]]]:
    dataset = CocoDataset.load(path)
    return {record.file_name: masks_by_class(dataset, index) for index, record in enumerate(dataset.images)}


def without_classes(masks: dict[str, list[tuple[str, bytes]]]) -> dict[str, list[bytes]]:
    return {name: sorted(pixels for _, pixels in found) for name, found in masks.items()}


@pytest.mark.parametrize(
    ("form", "command", "classes"),
    [
        ("geojson", ["prepare geojson"], None),
        ("imagej", ["prepare imagej"], "map"),
        ("cellpose", ["prepare cellpose"], "table"),
        ("cellpose_masks", ["prepare cellpose"], "table"),
        ("labels", ["prepare label_images"], "table"),
        ("npy", ["prepare label_images"], "table"),
    ],
)
def test_no_pixel_and_no_class_is_lost(
    prepared: tuple[Path, dict[str, list[tuple[str, bytes]]]], form: str, command: list[str], classes: str | None
) -> None:
    folder, expected = prepared
    words = ["--input", folder / "coco" / "all.json", "--format", form, "--output", folder / "exported"]
    assert main(["export", *map(str, words)]) == 0
    if command == ["prepare label_images"]:
        options = ["--images", folder / "images", "--labels", folder / "exported"]
    else:
        options = ["--source", folder / "images", "--annotations", folder / "exported", "--allow-empty"]
    if classes == "map":
        (folder / "groups.yaml").write_text("1: a\n2: b\n")
        options += ["--classes-from", f"map:{folder / 'groups.yaml'}"]
    elif classes == "table":
        options += ["--classes-from", f"csv:{folder / 'exported' / 'objects.csv'}:class"]
    assert run(command[0], folder / "again", *options, "--split", "1") == 0
    found = masks_of(folder / "again" / "all.json")
    assert without_classes(found) == without_classes(expected)
    assert found == expected


def test_the_tables_of_competitions_are_read_again(
    prepared: tuple[Path, dict[str, list[tuple[str, bytes]]]],
) -> None:
    folder, expected = prepared
    words = ["--input", folder / "coco" / "all.json", "--format", "dsb2018", "--output", folder / "exported"]
    assert main(["export", *map(str, words)]) == 0
    options = ["--source", folder / "images", "--run-lengths", folder / "exported" / "stage1_train_labels.csv"]
    # Such a table has no rows for images without objects.
    assert run("prepare dsb2018", folder / "again", *options, "--split", "1", "--skip-bad") == 0
    labelled = {name: masks for name, masks in expected.items() if masks}
    assert without_classes(masks_of(folder / "again" / "all.json")) == without_classes(labelled)
