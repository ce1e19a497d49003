"""Pictures, and a kernel of two small models."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detseg.curation.synthetic import make_image
from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.submission.kernel.bundle import KernelOptions, build_kernel
from detseg.submission.kernel.facts import find_competition


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Three pictures of two sizes, a.png to c.png."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, name in enumerate("abc"):
        image, _, _ = make_image((2, index), 64, 96 if index else 64, 6)
        assert cv2.imwrite(str(folder / f"{name}.png"), np.ascontiguousarray(image))
    return folder


@pytest.fixture(scope="session")
def kernel_folder(two_runs, tmp_path_factory) -> Path:
    """A kernel of two models with two views each, for Sartorius."""
    folder = tmp_path_factory.mktemp("kernels") / "kernel"
    options = KernelOptions(
        runs=[str(run) for run in two_runs],
        competition=find_competition("sartorius"),
        owner="somebody",
        fusion=FusionOptions(method="wbf", masks="mean"),
        postprocess=Postprocess.load(two_runs[0] / "postprocess.yaml"),
        views=["none", "h"],
    )
    build_kernel(options, folder)
    return folder
