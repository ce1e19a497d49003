"""What the tests of all packages share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and no verdict on speed: the tests must pass on a busy machine, too.
settings.register_profile(
    "detseg", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("detseg")

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each, before torch is imported; children inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Return the path of a file of real data, or skip the test, with the reason, where it is absent.

    The files lie in the folder that DETSEG_TEST_DATA names, else in `../shared/data` beside the checkout.
    """
    folder = Path(os.environ.get("DETSEG_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"needs the real data {name} in {folder} (or in the folder that DETSEG_TEST_DATA names)")
        return path

    return find


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: sums of several come in no fixed order, and two trainings would differ."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory) -> list[Path]:
    """Two run folders with small untrained models, as training leaves them; `last` has other weights than `best`."""
    import torch
    from tiny_networks import TINY_RCNN, as_words

    from detseg.config import dump_config, load_config
    from detseg.curation.synthetic import KINDS
    from detseg.engines.build import build_model
    from detseg.fusion.postprocess import Postprocess
    from detseg.runs.checkpoint import save_checkpoint

    few = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "TEST.DETECTIONS_PER_IMAGE": 12, "MODEL.ROI_HEADS.NUM_CLASSES": 3}
    few |= {"MODEL.RPN.PRE_NMS_TOPK_TEST": 100, "MODEL.RPN.POST_NMS_TOPK_TEST": 40}
    cfg = load_config("_base_/mask_rcnn_small_fpn.yaml", as_words(TINY_RCNN | few))
    runs = []
    for number in (1, 5):
        run = tmp_path_factory.mktemp("runs") / f"small{number}" / "001"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
        for name, seed in (("best", number), ("last", number + 1)):
            torch.manual_seed(seed)
            state = {"model": build_model(cfg).state_dict(), "config": cfg.flatten(), "classes": list(KINDS)}
            save_checkpoint(run / "checkpoints" / f"{name}.pth", {**state, "engine": "native", "iteration": 3})
        Postprocess(classes=KINDS, score_threshold=0.01, min_area=2).save(run / "postprocess.yaml")
        runs.append(run)
    return runs


@pytest.fixture(scope="session")
def small_run(two_runs) -> Path:
    """The first of the two: config.yaml, checkpoints/{best,last}.pth, postprocess.yaml."""
    return two_runs[0]


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Three small synthetic pictures of two sizes, a.png to c.png."""
    import cv2
    import numpy as np

    from detseg.curation.synthetic import make_image

    folder = tmp_path_factory.mktemp("images")
    for index, name in enumerate("abc"):
        image, _, _ = make_image((2, index), 64, 96 if index else 64, 6)
        assert cv2.imwrite(str(folder / f"{name}.png"), np.ascontiguousarray(image))
    return folder
