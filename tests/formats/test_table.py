"""The table of formats: every row loads, its options are those of its reader, and a row makes a command."""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readers_for_tests import expected_masks, labels_of, masks_by_class, run, write_image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.formats import table
from detseg.formats.reader import FoundObjects, Reader, image_names, objects_of_labels
from detseg.images.reading import decode_label_image


@pytest.mark.parametrize("name", [name for name, row in table.FORMATS.items() if row.reader])
def test_the_options_of_a_row_are_what_its_reader_takes(name: str) -> None:
    row = table.FORMATS[name]
    reader = row.load_reader()
    assert issubclass(reader, Reader)
    assert not inspect.isabstract(reader)
    options = {option.name: option.settings for option in row.options}
    inspect.signature(reader.__init__).bind(None, **options)
    needed = {
        parameter.name
        for parameter in list(inspect.signature(reader.__init__).parameters.values())[1:]
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    given = {name for name, settings in options.items() if settings.get("required") or "default" in settings}
    assert needed <= given


@pytest.mark.parametrize("name", table.WRITERS)
def test_every_writer_loads(name: str) -> None:
    assert callable(table.WRITERS[name].load())


def test_help_lists_the_formats_and_the_options_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((["--help"], list(table.FORMATS)[:-1]), (["geojson", "--help"], ["--nuclei", "--output"])):
        with pytest.raises(SystemExit) as leave:
            main(["prepare", *words])
        assert leave.value.code == 0
        said = capsys.readouterr().out
        assert all(word in said for word in expected)
    with pytest.raises(SystemExit) as leave:
        main(["prepare", "tables"])
    assert leave.value.code == 2
    assert "label_images" in capsys.readouterr().err


class CellMasks(Reader):
    """The example of the docstring of `Reader`."""

    def __init__(self, source: Path, *, class_name: str) -> None:
        super().__init__(source)
        self.class_names = [class_name]
        images = [file for file in self.files.names if not file.endswith("_cells.png")]
        self.file_of = image_names(images, self.problems)

    def find_objects(self, name: str, height: int, width: int) -> FoundObjects:
        mask = self.files.read(f"{name}_cells.png")
        return objects_of_labels(decode_label_image(mask, f"{name}_cells.png"), name, height, width)


def test_a_class_and_a_row_make_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("detseg.formats.cell_masks")
    module.CellMasks = CellMasks
    monkeypatch.setitem(sys.modules, module.__name__, module)
    options = (
        table.Option("--source", type=Path, required=True),
        table.Option("--classes", dest="class_name", default="cell"),
    )
    row = table.Format("images with masks", "cell_masks:CellMasks", options=options)
    monkeypatch.setitem(table.FORMATS, "cell_masks", row)
    for index, name in enumerate(("a", "sub/b")):
        write_image(tmp_path / "cells" / f"{name}.png", index)
        Image.fromarray(labels_of(index)).save(tmp_path / "cells" / f"{name}_cells.png")
    words = ("--source", tmp_path / "cells", "--classes", "nucleus", "--split", "1")
    assert run("prepare cell_masks", tmp_path / "out", *words) == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert [masks_by_class(dataset, n) for n in range(2)] == [expected_masks(labels_of(n), "nucleus") for n in range(2)]
    # What is wrong with one image is reported for it, as in every reader.
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "cells" / "a_cells.png")
    assert run("prepare cell_masks", tmp_path / "other", *words) == 2
    assert run("prepare cell_masks", tmp_path / "other", *words, "--skip-bad") == 0
    assert [record.file_name for record in CocoDataset.load(tmp_path / "other" / "all.json").images] == ["sub/b.png"]
