"""Build the folder for the `kaggle` commands: a data set (or model) with wheels and weights, and the notebook.

kernel/data/      dataset-metadata.json, or model-instance-metadata.json; manifest.json, detseg-*.whl and other
                  wheels, model1.safetensors, model1.yaml (its training configuration, for reading), fusion.yaml,
                  postprocess.yaml
kernel/model/     model-metadata.json, if the data become a Kaggle Model
kernel/notebook/  kernel-metadata.json, the notebook
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detseg.errors import ConfigError, DataError
from detseg.files.atomic import whole_folder
from detseg.files.hashing import sha256_of
from detseg.files.run_files import POSTPROCESS_FILE
from detseg.fusion.options import FusionOptions, check_weights
from detseg.fusion.postprocess import Postprocess
from detseg.submission.kernel.facts import SLUG, Competition, kaggle_facts
from detseg.submission.kernel.inputs import MANIFEST
from detseg.submission.kernel.notebook import make_notebook
from detseg.submission.kernel.wheels import add_missing_packages, write_own_wheel
from detseg.version import __version__

logger = logging.getLogger(__name__)

DATA, MODEL, NOTEBOOK = "data", "model", "notebook"
FORMAT = "detseg kernel 1"


@dataclass(frozen=True)
class KernelOptions:
    """The content of a kernel.

    runs: run folders of trained models. fusion: how they are fused. postprocess: None takes that of a single run.
    views: of every model, as arguments of `predict --tta`; None takes TEST.AUG of each. weights: one per run, or empty
    for 1 each. owner: user name on Kaggle. title: of the notebook, 5 to 50 characters; slugs are derived from it.
    as_model: upload the data as a Kaggle Model instead of a data set. wheels: additional pure-Python wheels. hours:
    None takes the competition's.
    """

    runs: Sequence[str]
    competition: Competition
    owner: str
    fusion: FusionOptions
    postprocess: Postprocess | None = None
    views: Sequence[str] | None = None
    weights: Sequence[float] = ()
    title: str = ""
    as_model: bool = False
    wheels: Sequence[Path] = ()
    hours: float | None = None


def build_kernel(options: KernelOptions, output: Path) -> dict[str, Any]:
    """Write the folder of a kernel atomically; return the manifest.

    Raises:
        ConfigError, DataError: options that contradict each other, or a name that Kaggle does not accept.
        RunError, WeightsError: a run that cannot predict, or not with the packages of Kaggle.
    """
    title = options.title or f"detseg {options.competition.slug}"[:50].strip("- ")
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if not 5 <= len(title) <= 50 or not SLUG.fullmatch(slug):
        raise ConfigError(f"--title {title!r}: expected 5 to 50 letters and digits, as Kaggle requires")
    if not SLUG.fullmatch(options.owner.lower()):
        raise ConfigError(f"--owner {options.owner!r}: expected your Kaggle user name, as in the URL of your profile")
    with whole_folder(output) as temporary:
        data = temporary / DATA
        data.mkdir()
        manifest = _write_data(options, data)
        _write_metadata(options, temporary, title, slug)
        notebook = temporary / NOTEBOOK
        values = {
            "title": title,
            "version": __version__,
            "slug": options.competition.slug,
            "members": f"{len(options.runs)} model{'s' * (len(options.runs) > 1)}",
            "hours": f"{options.hours or options.competition.hours:g}",
            "manifest": sha256_of(data / MANIFEST),
        }
        (notebook / f"{slug}.ipynb").write_text(make_notebook(values), encoding="utf-8")
    return manifest


def _write_data(options: KernelOptions, folder: Path) -> dict[str, Any]:
    """Write wheels, weights, settings and the manifest; return the manifest."""
    from detseg.config import dump_config, load_flat_config
    from detseg.inference.loading import find_checkpoint, find_run_folder
    from detseg.inference.precision import AUTO, FULL
    from detseg.runs.checkpoint import export_checkpoint

    weights = check_weights(options.weights or options.fusion.weights, "--model-weights") or (1.0,) * len(options.runs)
    if len(weights) != len(options.runs):
        raise ConfigError(f"{len(weights)} weights for {len(options.runs)} runs; give one per run")
    members: list[dict[str, Any]] = []
    classes: list[str] = []
    postprocess = options.postprocess
    for number, (name, weight) in enumerate(zip(options.runs, weights, strict=True), start=1):
        run = find_run_folder(Path(name))
        file = folder / f"model{number}.safetensors"
        about = export_checkpoint(find_checkpoint(run), file)
        cfg = load_flat_config(about["config"])
        (folder / f"model{number}.yaml").write_text(dump_config(cfg), encoding="utf-8")
        found = list(about.get("classes") or cfg.DATASETS.CLASSES)
        if number > 1 and found != classes:
            raise ConfigError(
                f"{run} has the classes {', '.join(found)}, the first run {', '.join(classes)}; give runs with "
                "the same classes in the same order"
            )
        classes = found
        # A precision measured on the training machine says nothing about Kaggle's; a choice of float32 is kept.
        precision = FULL if cfg.TEST.PRECISION == FULL else AUTO
        views = None if options.views is None else list(options.views)
        member = {"weights": file.name, "run": "/".join(run.parts[-2:]), "weight": weight}
        members.append({**member, "views": views, "precision": precision})
        if postprocess is None and len(options.runs) == 1 and (run / POSTPROCESS_FILE).is_file():
            postprocess = Postprocess.load(run / POSTPROCESS_FILE)
    if postprocess is None:
        raise ConfigError(
            "there are no thresholds, so all detections are submitted: give --postprocess FILE from tune_thresholds "
            "for these models, views and fusion"
        )
    named = classes or list(postprocess.classes)
    postprocess.for_classes(named).save(folder / "postprocess.yaml", "Applied to the fused predictions of every image.")
    options.fusion.for_classes(named).of_members(len(members)).save(folder / "fusion.yaml", "How models are fused.")
    write_own_wheel(folder)
    for wheel in options.wheels:
        if not wheel.name.endswith("-none-any.whl"):
            raise DataError(f"--wheel {wheel}: expected a pure-Python wheel, with a name that ends in -none-any.whl")
        shutil.copy(wheel, folder)
    imports = add_missing_packages([folder / member["weights"] for member in members], folder, options.wheels)
    manifest = {
        "format": FORMAT,
        "detseg": __version__,
        "competition": options.competition.to_plain(),
        "classes": named,
        "members": members,
        "imports": imports,
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _write_metadata(options: KernelOptions, folder: Path, title: str, slug: str) -> None:
    """Write the JSON files for the `kaggle` commands."""
    facts = kaggle_facts()
    owner, data = options.owner.lower(), f"{slug[:42].rstrip('-')}-weights"
    sources: dict[str, list[str]] = {"dataset_sources": [], "model_sources": [], "kernel_sources": []}
    if options.as_model:
        framework = facts["model"]["framework"]
        sources["model_sources"] = [f"{owner}/{data}/{framework}/default/1"]
        model = {"ownerSlug": owner, "title": f"{title[:42]} weights", "slug": data, "isPrivate": True}
        _write_json(folder / MODEL / "model-metadata.json", {**model, "subtitle": "", "description": ""})
        instance = {"ownerSlug": owner, "modelSlug": data, "instanceSlug": "default", **facts["model"]}
        _write_json(folder / DATA / "model-instance-metadata.json", {**instance, "fineTunable": False, "overview": ""})
    else:
        sources["dataset_sources"] = [f"{owner}/{data}"]
        about = {"title": f"{title[:42]} weights", "id": f"{owner}/{data}", **facts["dataset"]}
        _write_json(folder / DATA / "dataset-metadata.json", about)
    kernel = {"id": f"{owner}/{slug}", "title": title, "code_file": f"{slug}.ipynb", **facts["kernel"], **sources}
    kernel["competition_sources"] = [options.competition.slug]
    _write_json(folder / NOTEBOOK / "kernel-metadata.json", kernel)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
