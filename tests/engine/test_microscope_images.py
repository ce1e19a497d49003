"""OME-TIFF of four channels, slices and a pixel size: from the files to a trained model and measurements."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tiny_networks import TINY_RCNN, as_words

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.predictions_file import read_predictions
from detseg.config import load_config
from detseg.data.loader import LoaderOptions, TrainingStream
from detseg.images.planes import PlaneChoice
from detseg.inference.predictor import Predictor
from detseg.runs.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
CHANNELS = ["DAPI", "Actin", "Tubulin", "Brightfield"]
SIDE = 64
TINY = [
    *as_words(TINY_RCNN),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "SEED", 1),
    *("MODEL.PIXEL_MEAN", "[128.0, 128.0]", "MODEL.PIXEL_STD", "[60.0, 60.0]", "INPUT.PIXEL_SIZE", 0.5),
    *("INPUT.MIN_SIZE_TRAIN", "[0]", "INPUT.MIN_SIZE_TEST", 0, "INPUT.CROP.ENABLED", False),
    *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "[]", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0),
    *("TEST.EVAL_PERIOD", 0, "DATASETS.TEST", "[]"),
]


def write_stack(path: Path, seed: int, channel_names: list[str], pixel_size: float = 0.25) -> np.ndarray:
    """Write 4 channels x 3 slices of 16 bits with two bright squares in DAPI; return the label image."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((SIDE, SIDE), np.uint16)
    labels[8:24, 8:28], labels[36:56, 30:50] = 1, 2
    stack = rng.integers(100, 300, (3, 4, SIDE, SIDE)).astype(np.uint16)
    stack[seed % 3, channel_names.index("DAPI")] += (labels > 0).astype(np.uint16) * 3000
    metadata = {
        "axes": "ZCYX",
        "Channel": {"Name": channel_names},
        "PhysicalSizeX": pixel_size,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": pixel_size,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(path, stack, metadata=metadata, photometric="minisblack")
    return labels


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """images/{0,1}.ome.tif of unlike order of channels, labels/, and coco/all.json as the prepare command writes it."""
    folder = tmp_path_factory.mktemp("stacks")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for number, names in enumerate((CHANNELS, CHANNELS[::-1])):
        labels = write_stack(folder / "images" / f"{number}.ome.tif", number, names)
        tifffile.imwrite(folder / "labels" / f"{number}.ome.tif", labels, photometric="minisblack")
    words = ["--images", folder / "images", "--labels", folder / "labels", "--output", folder / "coco", "--split", 1]
    words += ["--z", "max", "--channels", "DAPI", "Tubulin", "--scaling", "percentile"]
    assert main(["prepare", "label_images", *map(str, words)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(prepared: Path) -> Path:
    """The run folder of two iterations."""
    folder = prepared / "run"
    words = ["--config", REPOSITORY / "configs" / "_base_" / "mask_rcnn_small_fpn.yaml", *TINY, "OUTPUT_DIR", folder]
    assert (
        main(["train_net", *map(str, words), "DATASETS.TRAIN", f"['{(prepared / 'coco' / 'all.json').as_posix()}']"])
        == 0
    )
    return folder


def test_the_coco_file_says_plane_pixel_size_channels_and_scaling(prepared: Path) -> None:
    content = json.loads((prepared / "coco" / "all.json").read_text())
    assert content["info"]["input"] == {"INPUT.CHANNELS": ["DAPI", "Tubulin"], "INPUT.SCALING": "percentile"}
    assert [image["plane"] for image in content["images"]] == [{"z": "max"}] * 2
    assert [image["pixel_size"] for image in content["images"]] == [0.25, 0.25]
    assert [image["channel_names"] for image in content["images"]] == [CHANNELS, CHANNELS[::-1]]


def test_training_follows_the_coco_file_and_the_checkpoint_keeps_it(run: Path) -> None:
    stored = load_checkpoint(run / "checkpoints" / "last.pth")["config"]
    assert stored["INPUT.CHANNELS"] == ["DAPI", "Tubulin"]
    assert stored["INPUT.SCALING"] == "percentile"
    assert stored["INPUT.PIXEL_SIZE"] == 0.5
    assert load_config(run / "config.yaml").INPUT.CHANNELS == ["DAPI", "Tubulin"]


def test_training_sees_the_named_channels_at_the_pixel_size_of_the_model(prepared: Path, run: Path) -> None:
    cfg = load_config(run / "config.yaml", ["INPUT.RANDOM_FLIP", "none"])
    dataset = CocoDataset.load(prepared / "coco" / "all.json")
    stream = TrainingStream.build(LoaderOptions.from_config(cfg), dataset, seed=0)
    for position in range(2):
        sample = stream[position]
        assert sample.image.shape == (SIDE // 2, SIDE // 2, 2)
        inside = sample.layers.masks().any(axis=0)
        # DAPI comes first whatever the order in the file, and from the slice that has it.
        assert sample.image[inside, 0].mean() > 200 > 100 > sample.image[~inside, 0].mean()


def test_prediction_of_plain_files_reads_the_pixel_size_and_export_measures_in_micrometres(
    prepared: Path, run: Path, tmp_path: Path
) -> None:
    output, folder = tmp_path / "p.json.gz", prepared / "images"
    words = ["--run", run, "--checkpoint", "last", "--raw", "--device", "cpu", "--images", folder, "--output", output]
    assert main(["predict", *map(str, words)]) == 2  # nobody said which slice
    assert main(["predict", *map(str, words), "--z", "max"]) == 0
    predictions = list(read_predictions(output))
    assert [one.pixel_size for one in predictions] == [(0.25, 0.25)] * 2
    assert all((one.height, one.width) == (SIDE, SIDE) and len(one) for one in predictions)
    words = ["--input", output, "--format", "csv", "--output", tmp_path / "csv"]
    assert main(["export", *map(str, words)]) == 0
    with open(tmp_path / "csv" / "measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(one) for one in predictions)
    for row in rows:
        assert float(row["area_um2"]) == pytest.approx(float(row["area_px"]) / 16)
        assert float(row["perimeter_um"]) == pytest.approx(float(row["perimeter_px"]) / 4)


def test_the_size_at_the_network_is_that_of_the_pixels(prepared: Path, run: Path) -> None:
    predictor = Predictor.from_run(run, device="cpu", checkpoint="last", postprocess=False)
    seen: list[tuple[int, ...]] = []
    predict = predictor.model.predict
    predictor.model.predict = lambda images, *sizes, **options: (
        seen.extend(i.shape for i in images),
        predict(images, *sizes, **options),
    )[1]
    facts = PlaneChoice(z="max").fields()
    predictor(prepared / "images" / "0.ome.tif", facts=facts)
    predictor(prepared / "images" / "0.ome.tif", facts={**facts, "pixel_size": [1.0, 0.5]})
    assert seen == [(SIDE // 2, SIDE // 2, 2), (SIDE * 2, SIDE, 2)]
