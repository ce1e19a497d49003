"""The wheels that are uploaded with the notebook: detseg's own, and those of packages that Kaggle's image lacks."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from detseg.config.own_files import own_folder
from detseg.errors import DataError, RunError
from detseg.submission.kernel import guard
from detseg.submission.kernel.facts import kaggle_facts
from detseg.version import __version__

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[2]
_TIME = (2026, 1, 1, 0, 0, 0)  # of all files, so that the wheel is reproducible
# Predicts one image with every model of a data set.
_TRIAL = """
import sys
from pathlib import Path
import numpy as np
from detseg.inference.predictor import Predictor
for path in sys.argv[1:]:
    predictor = Predictor.from_checkpoint(Path(path), device="cpu")
    preprocess = predictor.detector.models[0].preprocess
    if not preprocess.channels:
        predictor(np.full((64, 64, preprocess.num_channels), 100, np.uint8))
"""


def write_own_wheel(folder: Path) -> Path:
    """Write the wheel of the running detseg, from a checkout or an installation, with configurations and tables.

    No build tool is needed, and the same files give the same bytes.
    """
    files = {path.relative_to(_PACKAGE.parent).as_posix(): path for path in _files_of(_PACKAGE)}
    files |= {
        f"detseg/configs/{path.relative_to(root).as_posix()}": path
        for root in [own_folder("configs")]
        for path in root.rglob("*.yaml")
    }
    files |= {f"detseg/datasets/{path.name}": path for path in own_folder("datasets").glob("*.yaml")}
    about = f"detseg-{__version__}.dist-info"
    content = {name: path.read_bytes() for name, path in sorted(files.items())}
    content[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: detseg\nVersion: {__version__}\n".encode()
    content[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: detseg\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{about}/entry_points.txt"] = b"[console_scripts]\ndetseg = detseg.cli.main:console\n"
    record = ""
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    content[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    path = folder / f"detseg-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in content.items():
            wheel.writestr(zipfile.ZipInfo(name, _TIME), data, zipfile.ZIP_DEFLATED)
    return path


def with_this_detseg() -> dict[str, str]:
    """Return the environment of a process that imports the running detseg, not another installed one."""
    paths = [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _files_of(package: Path) -> list[Path]:
    found = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(package).parts)]


def add_missing_packages(weights: Sequence[Path], folder: Path, given: Sequence[Path] = ()) -> list[str]:
    """Put the pure-Python wheels that the models need and Kaggle's image lacks into a folder; return their import
    names.

    The models predict an image in a process that can import only what the image has. Each missing package is fetched by
    pip, in the version installed here, until prediction works. given: wheels provided by the user.

    Raises DataError for packages that are not pure Python. RunError if a model cannot predict for another reason.
    """
    tops = [name for path in given for name in _tops_of(path)]
    while True:
        allowed = [*kaggle_facts()["packages"], *tops]
        program = f"{Path(guard.__file__).read_text(encoding='utf-8')}\ninstall({allowed!r}, {['detseg', *tops]!r})\n"
        words = [sys.executable, "-c", program + _TRIAL, *map(str, weights)]
        done = subprocess.run(words, env=with_this_detseg(), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return tops
        # Many packages try optional imports: the missing module is that of the error, or of one that led to it.
        missed = re.findall(r"No module named '(\w+)", done.stderr)
        distributions = metadata.packages_distributions()
        needed = next((name for name in reversed(missed) if name in distributions and name not in tops), None)
        if needed is None:
            raise RunError(f"the models cannot predict with the packages of Kaggle:\n{done.stderr.strip()[-2000:]}")
        path = _fetch(distributions[needed][0], folder)
        logger.info("Kaggle's image has no %s: %s goes with the data set", needed, path.name)
        tops += [needed, *_tops_of(path)]


def _fetch(distribution: str, folder: Path) -> Path:
    """Fetch the pure-Python wheel of a package, in the version installed here."""
    before = set(folder.glob("*.whl"))
    pinned = f"{distribution}=={metadata.version(distribution)}"
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", pinned]
    done = subprocess.run([*words, "--dest", str(folder)], capture_output=True, text=True, check=False)
    found = sorted(set(folder.glob("*.whl")) - before)
    if done.returncode or not found:
        reason = done.stderr.strip().splitlines()[-1:] or ["no wheel"]
        raise DataError(f"{pinned} is needed and cannot be fetched ({reason[0]}); give its wheel: --wheel FILE")
    if not found[0].name.endswith("-none-any.whl"):
        found[0].unlink()
        raise DataError(f"{pinned} is needed, is not in Kaggle's image, and is compiled: no notebook can install it")
    return found[0]


def _tops_of(wheel: Path) -> list[str]:
    """Return the top-level import names of a wheel."""
    try:
        with zipfile.ZipFile(wheel) as file:
            names = file.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel}: not a wheel ({error})") from None
    tops = {name.partition("/")[0].removesuffix(".py") for name in names if name.endswith(".py")}
    return sorted(top for top in tops if top.isidentifier())
