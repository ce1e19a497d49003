"""fit: from two folders to a trained model, by other commands, which are printed; what is done is not done again."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from detseg.cli import fit_steps
from detseg.cli.main import main
from detseg.coco.json_files import annotations_of, write_coco
from detseg.errors import DataError
from detseg.formats.detect import tell_format
from detseg.structures.label_layers import LabelLayers

QUICK = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "0"),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "TEST.OVERLAYS", "0", "SEED", "5"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "8", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.FPN.OUT_CHANNELS", "8"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of 64 x 64 pixels, 8 bits, and its labels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((64, 64), dtype=np.uint16)
    for number in range(1, 7):
        y, x = rng.integers(0, 52, 2)
        labels[y : y + 10, x : x + 11] = number
    image = (40 + 130 * (labels > 0) + rng.normal(0, 8, labels.shape)).clip(0, 255).astype(np.uint8)
    return image, labels


def write_images(count: int, folders: tuple[str, ...] = ("",), *, deep: bool = False) -> None:
    for number in range(count):
        image, labels = draw(number)
        folder = folders[number % len(folders)]
        for top, array in (("images", image.astype(np.uint16) * 100 if deep else image), ("labels", labels)):
            path = Path(top, folder, f"cell_{number}.tif" if deep else f"cell_{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, array) if deep else Image.fromarray(array).save(path)


def fit(*words: str, output: str = "out", labels: str = "labels") -> int:
    given = ["--images", "images", "--labels", labels, "--output", output, "--minutes", "1"]
    return main(["fit", *given, *words, *QUICK])


def names_of(path: str | Path) -> list[str]:
    return sorted(row["file_name"] for row in json.loads(Path(path).read_text())["images"])


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_two_folders_become_a_model_scores_pictures_and_a_line_that_predicts(here, capsys, deep):
    write_images(5, deep=deep)
    assert fit() == 0
    said = capsys.readouterr().out
    commands = re.findall(r"^\$ detseg (\w+)", said, re.M)
    assert commands == ["prepare", "inspect_data", "split", "train_net", "visualize"]
    assert not re.search("^(next|or|then):", said, re.M), "the steps that come next are fit's own"
    assert "object AP" in said.split("visualize")[-1], "the scores stand at the end, where they are seen"
    pictures = list((here / "out" / "pictures").iterdir())
    assert [path.stem for path in pictures] == [Path(name).stem for name in names_of("out/suggested_split/val.json")]
    line = said.strip().splitlines()[-1]
    words = shlex.split(line.replace("NEW_IMAGES", "images").replace("NEW_LABELS", "new"))
    assert words[0] == "detseg"
    assert main(words[1:]) == 0
    assert len(list((here / "new").iterdir())) == 5


def test_every_printed_command_can_be_typed_and_does_the_same(here, capsys):
    write_images(4)
    assert fit() == 0
    said = capsys.readouterr().out
    lines = [line.replace("out/", "by_hand/") for line in re.findall(r"^\$ detseg (.*)", said, re.M)]
    for line in lines:
        if not line.startswith("split"):  # inspect_data runs it
            assert main(shlex.split(line)) == 0
    by_fit, by_hand = (json.loads(Path(f"{name}/run/final_metrics.json").read_text()) for name in ("out", "by_hand"))
    assert by_fit["object_ap"] == by_hand["object_ap"]
    weights = [torch.load(f"{name}/run/checkpoints/best.pth")["model"] for name in ("out", "by_hand")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_what_is_done_is_not_done_again_unless_something_changed(here, capsys):
    write_images(4)
    assert fit() == 0
    weights = (here / "out/run/checkpoints/best.pth").stat().st_mtime_ns
    capsys.readouterr()
    assert fit() == 0
    said = capsys.readouterr().out
    assert said.count("already done: ") == 4
    assert "object AP" in said
    assert (here / "out/run/checkpoints/best.pth").stat().st_mtime_ns == weights
    # Another image: a training would be replaced, and nothing is touched until that is asked for.
    write_images(5)
    assert fit() == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (here / "out/run/checkpoints/best.pth").stat().st_mtime_ns == weights
    assert fit("--overwrite") == 0
    assert len(names_of("out/data/all.json")) == 5
    assert (here / "out/run/checkpoints/best.pth").stat().st_mtime_ns != weights
    # Settings of the training change the training and what follows alone.
    capsys.readouterr()
    assert fit("--overwrite", "SOLVER.BASE_LR", "0.0005") == 0
    assert capsys.readouterr().out.count("already done: ") == 2


def test_killed_in_the_training_the_same_command_goes_on_and_after_a_signal_says_so(here):
    write_images(4)
    words = [sys.executable, "-m", "detseg", "fit", "--images", "images", "--labels", "labels", "--output", "out"]
    words += ["--minutes", "1", *QUICK, "SOLVER.MAX_ITER", "40000", "SOLVER.CHECKPOINT_PERIOD", "2"]

    def run_until_a_checkpoint(number: signal.Signals) -> tuple[int, str, str]:
        before = _modified()
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while _modified() == before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        said, errors = process.communicate()
        return process.returncode, said, errors

    assert run_until_a_checkpoint(signal.SIGKILL)[0] == -signal.SIGKILL
    status, said, errors = run_until_a_checkpoint(signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert said.count("already done: ") == 2
    assert "$ python -m detseg train_net --resume --config out/suggested.yaml OUTPUT_DIR out/run" in said
    assert "resumed after iteration" in errors
    assert f"to continue, run the same command:\n  python -m detseg {shlex.join(words[3:])}" in said


def _modified() -> int:
    path = Path("out/run/checkpoints/last.pth")
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_dry_run_prints_the_commands_and_writes_nothing(here, capsys):
    write_images(3)
    assert fit("--dry-run", "--z", "max", "--validation", "0.5", "--test", "0.2") == 0
    said = capsys.readouterr().out
    assert re.findall(r"^\$ detseg (\w+)", said, re.M) == ["prepare", "inspect_data", "train_net", "visualize"]
    assert "--z max" in said
    assert "--fractions 0.3 0.5 0.2" in said
    assert "suggested_split/test.json" in said
    assert "SOLVER.MAX_ITER 2" in said
    assert not (here / "out").exists()


def test_folders_of_the_images_keep_their_split(here):
    write_images(6, ("train", "val", "test"))
    assert fit() == 0
    assert names_of("out/data/val.json") == ["val/cell_1.png", "val/cell_4.png"]
    pictures = sorted(path.name for path in (here / "out/pictures").rglob("*.png"))
    assert [name[-10:] for name in pictures] == ["cell_2.png", "cell_5.png"], "of test, which nothing was chosen on"


def test_images_named_for_validation_are_not_trained_on(here, capsys):
    write_images(6)
    Path("list.txt").write_text("# plate 2\ncell_5\n")
    assert fit("--validation", "images/cell_[01].png", "--test", "list.txt") == 0
    parts = {name: names_of(f"out/data/{name}.json") for name in ("train", "val", "test")}
    assert parts["val"] == ["cell_0.png", "cell_1.png"]
    assert parts["test"] == ["cell_5.png"]
    assert parts["train"] == ["cell_2.png", "cell_3.png", "cell_4.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--validation", "1.5"], "1.5 for validation or test: expected a share"),
        (["--validation", "0.5", "--test", "0.5"], "leave no image for training"),
        (["--validation", "none*.png"], "no labelled images of images"),
        (["--validation", "images"], "none is left for training"),
        (["--test", "images/cell_0.png"], "list them for both"),
        (["--validation", "images/cell_0.png", "--test", "images/cell_0.png"], "for --validation and for --test"),
        (["--minutes", "0"], "--minutes"),
        (["SOLVER.MAX_ITR", "3"], "did you mean SOLVER.MAX_ITER"),
        (["OUTPUT_DIR", "x"], "fit sets it"),
        (["--iscrowd", "clear"], "which has no --iscrowd (of coco)"),
        (["--format", "geojson"], "NAME.geojson"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(here, capsys, words, said):
    write_images(3)
    assert fit(*words) == 2
    assert said.lower() in capsys.readouterr().err.lower()
    assert not (here / "out").exists()


def test_too_few_images_are_refused_and_two_do(here, capsys):
    write_images(1)
    assert fit() == 2
    assert "1 image has labels; expected 2 or more" in capsys.readouterr().err
    assert not (here / "out").exists()
    write_images(2)
    assert fit() == 0


def test_an_output_of_something_else_and_a_full_disk_are_refused(here, capsys, monkeypatch):
    write_images(3)
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine")
    assert fit() == 2
    assert "contains something other" in capsys.readouterr().err
    monkeypatch.setattr(fit_steps, "FREE_BYTES", 10**18)
    assert fit(output="elsewhere") == 2
    assert "GB are free there" in capsys.readouterr().err
    assert not (here / "elsewhere").exists()


def test_images_without_labels_and_labels_without_images_are_named(here, capsys):
    write_images(4)
    Path("labels/cell_2.png").unlink()
    Path("images/cell_3.png").unlink()
    assert fit() == 2
    told = capsys.readouterr()
    assert "cell_2.png: has no label image" in told.err
    assert "cell_3.png: has no image of this name" in told.err
    assert "stopped in step 1 of 4" in told.out
    # The corrected command continues, without --overwrite: nothing was trained.
    assert fit("--skip-bad") == 0


def test_labels_that_are_no_objects_stop_before_the_training(here, capsys):
    write_images(4)
    for path in Path("labels").iterdir():
        mask = (np.array(Image.open(path)) > 0).astype(np.uint8) * 255
        Image.fromarray(mask).save(path)
    assert fit() == 2
    told = capsys.readouterr()
    assert "--split-regions" in told.err
    assert "$ detseg train_net" not in told.out
    assert fit() == 2, "also when the inspection was done before"
    assert fit("--split-regions", "--dry-run") == 0, "finished steps are no obstacle to the corrected command"


def test_labels_without_any_object_stop_before_the_training(here, capsys):
    write_images(3)
    for path in Path("labels").iterdir():
        Image.fromarray(np.zeros((64, 64), dtype=np.uint8)).save(path)
    assert fit() == 2
    told = capsys.readouterr()
    assert "there is nothing to learn" in told.err
    assert "$ detseg train_net" not in told.out


def test_a_coco_file_and_regions_of_imagej_are_told_and_trained(here, capsys):
    write_images(4)
    rows, annotations = [], []
    for number in range(4):
        layers = LabelLayers.from_label_image(draw(number)[1].astype(np.int32))
        rows.append({"id": number + 1, "file_name": f"cell_{number}.png", "height": 64, "width": 64})
        ids = [1] * len(layers)
        annotations += annotations_of(layers.to_rles(), ids, image_id=number + 1, first_id=len(annotations) + 1)
    write_coco(Path("my.json"), images=rows, annotations=annotations, categories=[{"id": 1, "name": "cell"}])
    assert fit(labels="my.json") == 0
    assert "$ detseg prepare coco --annotations my.json --image-root images" in capsys.readouterr().out
    words = ["--input", "my.json", "--format", "imagej", "--output", "regions"]
    assert main(["export", *words]) == 0
    assert fit(labels="regions", output="second") == 0
    assert "$ detseg prepare imagej --source images --annotations regions" in capsys.readouterr().out
    assert len(names_of("second/data/all.json")) == 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.tif", "b.png"], "label_images"),
        (["a_rois.zip", "b.roi"], "imagej"),
        (["a.geojson", "measurements.json"], "geojson"),
        (["a_seg.npy"], "cellpose"),
        (["all.json", "readme.txt", ".hidden.png"], "coco"),
    ],
)
def test_the_format_is_told_by_the_files(tmp_path, files, expected):
    (tmp_path / "labels").mkdir()
    for name in files:
        (tmp_path / "labels" / name).touch()
    kind, path = tell_format(tmp_path, tmp_path / "labels")
    assert kind == expected
    assert path == (tmp_path / "labels" / "all.json" if kind == "coco" else tmp_path / "labels")


def test_labels_beside_the_images_are_told_by_their_names(tmp_path):
    for name in ("a.png", "b.png", "a_masks.png"):
        (tmp_path / name).touch()
    assert tell_format(tmp_path, tmp_path)[0] == "label_images"
    (tmp_path / "a_masks.png").rename(tmp_path / "a_cells.png")
    assert tell_format(tmp_path, tmp_path, "_cells")[0] == "label_images"
    with pytest.raises(DataError, match="NAME_mask, NAME_masks"):
        tell_format(tmp_path, tmp_path)


@pytest.mark.parametrize("files", [["a.png", "b.geojson"], ["a.txt"], [], ["a.json", "b.json"]])
def test_what_cannot_be_told_is_refused_with_the_choices(tmp_path, files):
    (tmp_path / "labels").mkdir()
    for name in files:
        (tmp_path / "labels" / name).touch()
    with pytest.raises(DataError, match="--format") as refused:
        tell_format(tmp_path, tmp_path / "labels")
    assert "cellpose" in str(refused.value)


@pytest.mark.parametrize("which", ["images", "labels"])
@pytest.mark.parametrize(("there", "message"), [(False, "there is no such file or folder"), (True, "is empty")])
def test_a_wrong_or_empty_folder_is_named(tmp_path, capsys, which, there, message):
    """Not as a format that cannot be told."""
    paths = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    for name, path in paths.items():
        if name != which or there:
            path.mkdir()
        if name != which:
            (path / "a.png").write_bytes(b"x")
    words = ["fit", "--images", str(paths["images"]), "--labels", str(paths["labels"])]
    assert main([*words, "--output", str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert f"{paths[which]}: " in said
    assert message in said
    assert f"expected the {which}" in said
    assert not (tmp_path / "o").exists()
