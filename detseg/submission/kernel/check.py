"""Run a kernel locally as Kaggle would, and compare its CSV with that of the commands.

The notebook runs in a process and a virtual environment of its own: without network, with only the packages of Kaggle's
image, and with inputs where Kaggle puts them, in every known layout, below a temporary /kaggle (`KAGGLE_ROOT`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detseg.errors import DataError, RunError
from detseg.files.atomic import json_object
from detseg.files.table import read_table
from detseg.submission.formats import image_files
from detseg.submission.kernel import guard
from detseg.submission.kernel.bundle import DATA, NOTEBOOK
from detseg.submission.kernel.facts import Competition, kaggle_facts
from detseg.submission.kernel.inputs import MANIFEST
from detseg.submission.kernel.push import read_metadata
from detseg.submission.kernel.wheels import with_this_detseg

# Runs the code cells of a notebook one by one; the value of a cell's last line is printed, as Jupyter does.
_RUNNER = """
import ast, json, sys
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]), f"cell {number}")
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), namespace)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
        if value is not None:
            print(value)
"""


@dataclass(frozen=True)
class Checked:
    """Result of one run of the notebook. problems: empty if its CSV equals that of the commands. rows, objects: their
    numbers in that CSV.
    """

    layout: str
    problems: tuple[str, ...]
    rows: int
    objects: int
    log: str


@dataclass(frozen=True)
class _Built:
    """The folder of a kernel, as written by `build_kernel`."""

    folder: Path
    manifest: dict[str, Any]
    metadata: dict[str, Any]
    competition: Competition

    @classmethod
    def read(cls, folder: Path) -> _Built:
        try:
            manifest = json_object(folder / DATA / MANIFEST)
            metadata = read_metadata(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: not a kernel written by build_kernel ({error})") from None
        return cls(folder, manifest, metadata, Competition.from_plain(manifest.get("competition"), str(folder)))

    def places(self) -> dict[str, dict[str, str]]:
        """The possible places of this kernel's inputs below /kaggle/input, by name of the layout."""
        is_model = bool(self.metadata["model_sources"])
        source = [*self.metadata["model_sources"], *self.metadata["dataset_sources"]][0]
        owner, data = source.split("/")[:2]
        names = {"competition": self.competition.slug, "owner": owner, "data": data}
        return {
            name: {kind: place.format(**names) for kind, place in layout.items()}
            for name, layout in kaggle_facts()["layouts"].items()
            if (name == "model") == is_model
        }


def check_kernel(
    folder: Path, images: Path | None = None, *, layouts: Sequence[str] = (), python: str = sys.executable
) -> list[Checked]:
    """Run the notebook of a kernel once for every layout of the inputs.

    Args:
        folder: from `build_kernel`.
        images: folder of images to use as test images; None draws three synthetic ones.
        layouts: names of layouts; empty for all that are possible for this kernel.
        python: the interpreter whose packages the notebook sees, as far as Kaggle has them.

    Raises DataError for a folder that is no kernel, or has no images. RunError if the commands fail, or the virtual
    environment cannot be created.
    """
    built = _Built.read(folder)
    known = built.places()
    if unknown := [name for name in layouts if name not in known]:
        raise DataError(f"--layout {unknown[0]}: expected one of {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="detseg_kernel_") as temporary:
        work = Path(temporary)
        if images is None:
            _draw_images(work / "images")
        files = image_files(images or work / "images")
        if not files:
            raise DataError(f"--images {images}: this folder has no images")
        expected = _expected(built, files, work)
        environment = _make_environment(work / "environment", built, python)
        return [
            _check_layout(built, files, expected, name, places, environment, work / name)
            for name, places in known.items()
            if not layouts or name in layouts
        ]


def _draw_images(folder: Path) -> None:
    from PIL import Image

    from detseg.curation.synthetic import make_image

    folder.mkdir()
    for number, size in enumerate(((96, 128), (128, 128), (96, 128))):
        Image.fromarray(make_image((7, number), *size, 8)[0].squeeze()).save(folder / f"cells{number}.png")


def _expected(built: _Built, files: Sequence[Path], work: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV from predict, fuse and make_submission."""
    folder = work / "commands"
    folder.mkdir()
    data = (built.folder / DATA).resolve()
    sample = folder / "sample.csv"
    sample.write_text(_sample(built.competition, files), encoding="utf-8")
    (folder / "images.txt").write_text("".join(f"{path.resolve()}\n" for path in files), encoding="utf-8")
    members = built.manifest["members"]
    soft = _needs_soft_masks(data)
    predicted = []
    for member in members:
        output = f"{member['weights']}.json.gz"
        words = ["predict", "--weights", data / member["weights"], "--images", "images.txt", "--raw", "--no-summary"]
        words += ["--device", "cpu", "--precision", member["precision"], "--output", output]
        words += ["--soft-masks"] if soft else []
        _command([*words, *(["--tta", *member["views"]] if member["views"] else [])], folder, allowed=(0, 1))
        predicted.append(output)
    postprocess = ["--postprocess", data / "postprocess.yaml"]
    final = predicted[0]
    if len(members) > 1:
        final = "fused.json.gz"
        weights = [str(member["weight"]) for member in members]
        words = ["fuse", "--inputs", *predicted, "--config", data / "fusion.yaml", "--weights", *weights]
        _command([*words, *postprocess, "--output", final], folder)
        postprocess = []
    words = ["make_submission", "--predictions", final, "--format", built.competition.layout.name, *postprocess]
    _command([*words, "--images", "sample.csv", "--output", "submission.csv"], folder)
    return _rows(folder / "submission.csv")


def _needs_soft_masks(data: Path) -> bool:
    from detseg.fusion.options import FusionOptions
    from detseg.fusion.postprocess import Postprocess

    settings = FusionOptions.load(data / "fusion.yaml"), Postprocess.load(data / "postprocess.yaml")
    return any(one.needs_soft_masks for one in settings)


def _command(words: Sequence[Any], folder: Path, allowed: Sequence[int] = (0,)) -> None:
    line = [sys.executable, "-m", "detseg", *map(str, words)]
    done = subprocess.run(line, cwd=folder, env=with_this_detseg(), capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        raise RunError(f"{' '.join(line[2:])}\nends with {done.returncode}:\n{done.stderr.strip()[-2000:]}")


def _sample(competition: Competition, files: Sequence[Path]) -> str:
    rows = "".join(f"{path.stem},\n" for path in files)
    return f"{competition.layout.key},{competition.layout.runs}\n{rows}"


def _rows(path: Path) -> list[dict[str, str]]:
    return [row.values for row in read_table(path, []).rows]


def _make_environment(folder: Path, built: _Built, python: str) -> Path:
    """Create an environment that sees the packages of another one, limited to those of Kaggle; return its Python."""
    if python == sys.executable:
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    else:
        done = subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], capture_output=True, check=False)
        if done.returncode:
            raise RunError(f"--python {python}: cannot make an environment: {done.stderr.decode(errors='replace')}")
    own = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    paths = (
        "import json, site, sysconfig; print(json.dumps([sysconfig.get_paths()['purelib'], *site.getsitepackages()]))"
    )
    parents = json.loads(subprocess.run([python, "-c", paths], capture_output=True, check=True).stdout)
    site = Path(json.loads(subprocess.run([str(own), "-c", paths], capture_output=True, check=True).stdout)[0])
    tops = ["detseg", *built.manifest["imports"]]
    text = Path(guard.__file__).read_text(encoding="utf-8")
    (site / "_kaggle_guard.py").write_text(f"{text}\ninstall({[*kaggle_facts()['packages']]!r}, {tops!r})\n", "utf-8")
    # .pth files are read in alphabetical order: the guard checks what this one adds.
    (site / "a_packages.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(parents)), encoding="utf-8")
    (site / "b_guard.pth").write_text("import _kaggle_guard\n", encoding="utf-8")
    return own


def _check_layout(
    built: _Built,
    files: Sequence[Path],
    expected: Sequence[dict[str, str]],
    layout: str,
    places: dict[str, str],
    python: Path,
    root: Path,
) -> Checked:
    """Lay out the inputs, run the notebook, compare its CSV."""
    _lay_out(built, files, root / "input", places)
    working = root / "working"
    working.mkdir()
    before = _fingerprint(root / "input")
    notebook = next((built.folder / NOTEBOOK).glob("*.ipynb")).resolve()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "KAGGLE_IS_COMPETITION_RERUN")
    }
    environment |= {"KAGGLE_ROOT": str(root), "CUDA_VISIBLE_DEVICES": "", "PYTHONNOUSERSITE": "1"}
    line = [*_without_network(), str(python), "-c", _RUNNER, str(notebook)]
    done = subprocess.run(line, cwd=working, env=environment, capture_output=True, text=True, check=False)
    log, problems, found = done.stdout + done.stderr, [], []
    output = working / "submission.csv"
    if done.returncode:
        problems.append(f"the notebook failed: {(log.strip().splitlines() or ['?'])[-1]}")
    if not output.is_file():
        problems.append("the notebook wrote no submission.csv")
    else:
        found = _rows(output)
        pairs = zip(found, expected, strict=False)
        different = [number for number, (own, other) in enumerate(pairs, start=2) if own != other]
        if different:
            problems.append(f"{len(different)} rows differ from those of the commands, first in line {different[0]}")
        if len(found) != len(expected):
            problems.append(f"{len(found)} rows, the commands give {len(expected)}")
    if _fingerprint(root / "input") != before:
        problems.append("the notebook changed its inputs, which are read-only on Kaggle")
    for path in [root / "input", *(root / "input").rglob("*")]:  # so that they can be removed
        if path.is_dir():
            path.chmod(0o755)
    empty = ("", built.competition.layout.empty)
    objects = sum(row[built.competition.layout.runs] not in empty for row in found)
    return Checked(layout, tuple(problems), len(found), objects, log)


def _lay_out(built: _Built, files: Sequence[Path], inputs: Path, places: dict[str, str]) -> None:
    """Copy images and data to where Kaggle has them, read-only, next to decoys that must not be mistaken for them."""
    test = built.competition.tests[-1]
    competition = inputs / places["competition"]
    folder = competition / test.images
    is_nested = built.competition.layout.name == "dsb2018"
    for path in files:
        place = folder / path.stem / "images" if is_nested else folder
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    (competition / test.sample).write_text(_sample(built.competition, files), encoding="utf-8")
    (competition / "train.csv").write_text("id,annotation\nx,1 1\n", encoding="utf-8")
    other = inputs / "a-data-set-of-somebody"
    other.mkdir()
    (other / test.sample).write_text("row,target\n1,0\n", encoding="utf-8")
    (other / MANIFEST).write_text("{}", encoding="utf-8")
    shutil.copytree(built.folder / DATA, inputs / places["data"])
    for path in [*inputs.rglob("*"), inputs]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _without_network() -> list[str]:
    """Return a command prefix that removes the network, for child processes too; empty if the system has none, and
    only the guard refuses connections."""
    words = ["unshare", "--map-root-user", "--net"]
    if shutil.which(words[0]) is None:
        return []
    return words if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else []
