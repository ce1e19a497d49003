"""What the tests of all rooms share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, and no verdict on speed: the tests must pass on a busy machine, too.
settings.register_profile(
    "detseg", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("detseg")

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
