"""Artifacts: the files from a data set to a submission, identified by name, kind and hash, so that lineage is
traceable.

    data set -> model, thresholds, Predictions -> fused Predictions -> thresholds -> submission

The hash of a file (COCO file, checkpoint, Predictions file, YAML, CSV) is its `hash_file`, the first 16 digits of its
SHA-256. "NAME:HASH" appears in the `inputs` of a W&B run, and is also a W&B reference to the artifact, which has its
hash as an alias.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detseg.coco.catalog import load_dataset, resolve_dataset
from detseg.coco.dataset import CocoDataset
from detseg.coco.pairing import content_key
from detseg.data.folds import fold_name, pseudo_names, weights_name
from detseg.errors import DataError
from detseg.files.hashing import fingerprint, hash_file, sha256_of
from detseg.files.run_files import (
    FOLDS_RECORD,
    METRICS_FILE,
    OUT_OF_FOLD_TRUTH,
    POSTPROCESS_FILE,
    PREDICTIONS_FOLDER,
    RECORD,
)

if TYPE_CHECKING:
    from detseg.coco.dataset import ImageRecord
    from detseg.config import Config

DATASET, MODEL, PREDICTIONS = "dataset", "model", "predictions"
THRESHOLDS, SUBMISSION = "thresholds", "submission"
LAST = "last"
# Kinds that TRACKING.STORE may list; all others are small and always stored.
STORABLE = (DATASET, MODEL, LAST, PREDICTIONS)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """One version of something that a run reads or writes.

    kind: W&B's artifact type. name: shared by all versions. hash: 16 digits.
    files: name in the artifact -> the file whose content W&B stores.
    manifest: stored in place of content that W&B does not get; None for none.
    aliases: W&B's, in addition to the hash. metadata: plain values.
    """

    kind: str
    name: str
    hash: str
    files: Mapping[str, Path] = field(default_factory=dict)
    manifest: Mapping[str, Any] | None = None
    aliases: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """NAME:HASH."""
        return f"{self.name}:{self.hash}"


def file_artifact(
    kind: str,
    path: str | os.PathLike[str],
    *,
    beside: Sequence[Path] = (),
    stored: bool = True,
    aliases: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> Artifact:
    """Return the artifact of a file, or of all files in a folder, such as one of label images.

    beside: further files that belong to it. stored: False gives W&B a manifest only. Raises OSError if it cannot be
    read.
    """
    path = Path(path)
    name, about = artifact_name(path, kind), {"file": str(path), **(metadata or {})}
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = [{"file": file.relative_to(path).as_posix(), "content": f"{fingerprint(file):016x}"} for file in files]
        return _listed(kind, name, {"files": listed}, about)
    digest = hash_file(path)
    if not stored:
        manifest = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        return Artifact(kind, name, digest, manifest=manifest, aliases=aliases, metadata=about)
    files = {one.name: one for one in (path, *beside) if one.is_file()}
    return Artifact(kind, name, digest, files, aliases=aliases, metadata=about)


def dataset_artifact(dataset: CocoDataset, path: str | os.PathLike[str], *, copied: bool = False) -> Artifact:
    """Return the artifact of a COCO file: a manifest of its images and objects, without local paths.

    copied: W&B also stores the COCO file and the images.
    """
    path = Path(path)
    objects = dataset.table.is_object
    names = dataset.class_names
    per_class = {name: int((objects & (dataset.table.classes == index)).sum()) for index, name in enumerate(names)}
    rows = _image_rows(dataset.images)
    for index, row in enumerate(rows):
        row["objects"] = int(objects[dataset.table.rows(index)].sum())
    manifest = {"file": path.name, "sha256": sha256_of(path), "objects_per_class": per_class, "images": rows}
    files = {}
    if copied:
        files = {f"images/{record.file_name}": record.path for record in dataset.images if record.path.is_file()}
        files[path.name] = path
    about = {"file": str(path), "images": len(rows), "objects": sum(per_class.values()), "objects_per_class": per_class}
    return Artifact(DATASET, artifact_name(path, DATASET), hash_file(path), files, manifest, metadata=about)


def input_artifact(kind: str, path: str | os.PathLike[str]) -> Artifact:
    """Return the artifact of a file or folder that a command reads: one that W&B has, or a manifest."""
    if kind == DATASET and str(path).endswith((".json", ".json.gz")):
        return dataset_artifact(CocoDataset.load(path), path)
    return file_artifact(kind, path, stored=False)


def images_artifact(records: Sequence[ImageRecord], given: str | os.PathLike[str]) -> Artifact:
    """Return the artifact of images without a COCO file. given: the first --images argument, from which it is named."""
    about = {"file": str(given), "images": len(records)}
    return _listed(DATASET, artifact_name(Path(given), DATASET), {"images": _image_rows(records)}, about)


def artifact_name(path: Path, kind: str) -> str:
    """Return a name with characters that W&B accepts: folder and file, as `cells-val-dataset`; for files of a run also
    the run.
    """
    path = path.absolute()
    own = path.name if path.is_dir() else re.sub(r"(\.json)?(\.gz)?$|\.[A-Za-z]\w{1,4}$", "", path.name)
    parts = [path.parent.name, own]
    near = (path.parent, path.parent.parent)
    run = next((one for one in near if (one / RECORD).is_file() or (one / FOLDS_RECORD).is_file()), None)
    if run is not None:
        fold = [run.name] if re.fullmatch(r"fold\d+", run.name) else []
        base = run.parent if fold else run
        # Models of all folds are versions of one artifact, with different aliases.
        named = [] if kind == MODEL else [*fold, *([] if own in (*fold, Path(POSTPROCESS_FILE).stem) else [own])]
        parts = [base.parent.name, base.name, *named]
    name = "-".join(parts)
    return _plain(name if name.endswith(kind) else f"{name}-{kind}")[-128:].lstrip("-.")


def log_training_inputs(cfg: Config, run: Any) -> None:
    """Record the data sets of a training and its initial weights as inputs."""
    inputs = _data_sets(cfg)
    weights = weights_name(cfg)
    if weights and Path(weights).is_file():
        inputs.append(input_artifact(MODEL, weights))
    log_inputs(inputs, run)


def log_training_outputs(cfg: Config, folder: Path, summary: Mapping[str, Any], run: Any) -> None:
    """Log the outputs of a training in its run folder: models, chosen thresholds and Predictions files.

    summary: the final scores; its numbers describe the best model.
    """
    store, fold = cfg.TRACKING.STORE, cfg.DATASETS.FOLD
    numbers = {name: value for name, value in summary.items() if isinstance(value, (int, float))}
    scores = {name: value for name, value in numbers.items() if math.isfinite(value)}  # JSON has no NaN or infinity
    for kind, name in ((LAST, "last"), (MODEL, "best")):  # W&B's `latest` is then the best one
        if (path := folder / "checkpoints" / f"{name}.pth").is_file():
            # Models of all folds are versions of one artifact.
            alias = name if fold < 0 else fold_name(fold) if name == "best" else f"{fold_name(fold)}-{name}"
            about = scores if name == "best" else {}
            log_output(file_artifact(MODEL, path, stored=kind in store, aliases=[alias], metadata=about), run)
    for artifact in scored_outputs(folder, stored=PREDICTIONS in store):
        log_output(artifact, run)


def log_folds(cfg: Config, folder: Path, run: Any) -> None:
    """Log the joint results of all folds, with the data sets and the folds' Predictions files as inputs."""
    of_folds = sorted(folder.glob(f"fold*/{PREDICTIONS_FOLDER}/*.json.gz"))
    log_inputs([*_data_sets(cfg), *(input_artifact(PREDICTIONS, path) for path in of_folds)], run)
    for artifact in scored_outputs(folder, stored=PREDICTIONS in cfg.TRACKING.STORE):
        log_output(artifact, run)
    if (truth := folder / OUT_OF_FOLD_TRUTH).is_file():
        log_output(input_artifact(DATASET, truth), run)


def _data_sets(cfg: Config) -> list[Artifact]:
    names = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.EXTRA_TRAIN, *pseudo_names(cfg), *cfg.DATASETS.TEST])
    copied = DATASET in cfg.TRACKING.STORE
    return [
        dataset_artifact(load_dataset(name, cfg.DATASETS.IMAGE_ROOT), resolve_dataset(name).json, copied=copied)
        for name in names
    ]


def scored_outputs(folder: Path, *, stored: bool = True) -> Iterator[Artifact]:
    """The Predictions files in a run folder or a folder of folds, and the thresholds chosen on them."""
    for path in sorted([*folder.glob("*.json.gz"), *(folder / PREDICTIONS_FOLDER).glob("*.json.gz")]):
        yield file_artifact(PREDICTIONS, path, stored=stored)
    if (path := folder / POSTPROCESS_FILE).is_file():
        yield file_artifact(THRESHOLDS, path, beside=[folder / METRICS_FILE])


def log_output(artifact: Artifact, run: Any) -> None:
    """Log an artifact as an output of a W&B run, with its hash as an alias."""
    run.log_artifact(_to_wandb(artifact, Path(run.dir).parent), aliases=_aliases(artifact))


def log_inputs(artifacts: Sequence[Artifact], run: Any) -> None:
    """Record artifacts as inputs of a W&B run: by name and hash in its `inputs`, and as used artifacts."""
    inputs = {kind: list(references) for kind, references in dict(run.config).get("inputs", {}).items()}
    for artifact in artifacts:
        known = inputs.setdefault(artifact.kind, [])
        known += [artifact.reference] if artifact.reference not in known else []
    run.config.update({"inputs": inputs}, allow_val_change=True)
    for artifact in artifacts:
        _use(artifact, run)


def _use(artifact: Artifact, run: Any) -> None:
    import wandb

    if not run.offline:
        try:
            run.use_artifact(artifact.reference, type=artifact.kind)
            return
        except (wandb.errors.CommError, ValueError):  # no run has logged it
            run.use_artifact(_to_wandb(artifact, Path(run.dir).parent), aliases=_aliases(artifact))
    elif artifact.kind == DATASET:
        # In an offline run use_artifact raises TypeError, and log_artifact would record the data set as an output.
        # This is what use_artifact does online for a new artifact; it becomes an input when the run is synchronized.
        made = _to_wandb(artifact, Path(run.dir).parent)
        run._log_artifact(made, aliases=_aliases(artifact), is_user_created=True, use_after_commit=True)


def _to_wandb(artifact: Artifact, folder: Path) -> Any:
    """folder: of the W&B run. Files are kept there, so that they are unchanged when the run is synchronized."""
    import wandb

    metadata = {"hash": artifact.hash, **artifact.metadata}
    made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=metadata)
    kept = folder.absolute() / "artifacts" / artifact.name / artifact.hash
    for name, path in artifact.files.items():
        target = kept / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _keep(path, target, linked=artifact.kind in (MODEL, PREDICTIONS))
        made.add_file(str(target), name=name, policy="immutable", skip_cache=True)
    if artifact.manifest is not None:
        kept.mkdir(parents=True, exist_ok=True)
        (kept / MANIFEST).write_text(json.dumps(artifact.manifest, indent=1, ensure_ascii=False), encoding="utf-8")
        made.add_file(str(kept / MANIFEST), name=MANIFEST, policy="immutable", skip_cache=True)
    return made


def _keep(path: Path, target: Path, *, linked: bool) -> None:
    """linked: make a hard link; safe for files that detseg wrote, because it replaces files and never modifies them."""
    if linked:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:  # another disk, or a file system without links
            pass
    shutil.copy2(path, target)


def _aliases(artifact: Artifact) -> list[str]:
    return [*artifact.aliases, artifact.hash]


def _listed(kind: str, name: str, manifest: dict[str, Any], metadata: Mapping[str, Any]) -> Artifact:
    """Return the artifact of several files; its hash is that of the manifest."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    return Artifact(kind, name, digest, manifest=manifest, metadata=metadata)


def _image_rows(records: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """Return name, size in pixels and content hash of images; the hash of an unreadable image is None."""
    rows = []
    for record in records:
        try:
            content = f"{content_key(record):016x}"
        except DataError:
            content = None
        size = {"height": record.height, "width": record.width}
        rows.append({"file_name": record.file_name, **size, "content": content})
    return rows


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
