"""A kernel of two small models."""

from __future__ import annotations

from pathlib import Path

import pytest

from detseg.fusion.options import FusionOptions
from detseg.fusion.postprocess import Postprocess
from detseg.submission.kernel.bundle import KernelOptions, build_kernel
from detseg.submission.kernel.facts import find_competition


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
