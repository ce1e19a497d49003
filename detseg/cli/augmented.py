"""`detseg visualize --augmented N`: contact sheets of training samples as the network sees them."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.errors import ConfigError

# Options of `visualize` that do not apply.
_OTHERS = (
    "images",
    "image_root",
    "predictions",
    "ground_truth",
    "postprocess",
    "score_threshold",
    "limit",
    "embedding",
)


def draw_augmented(arguments: argparse.Namespace) -> None:
    """Draw the first N samples of a training with this configuration, and print where they are."""
    from detseg.config import load_config
    from detseg.data.loader import LoaderOptions, TrainingStream
    from detseg.engine.data_sets import load_training_set
    from detseg.engines.validation import run_imports
    from detseg.files.atomic import check_free
    from detseg.progress import ProgressBar
    from detseg.report.contact_sheets import PER_SHEET, contact_sheet
    from detseg.report.overlays import write_png

    count = arguments.augmented
    _check(arguments)
    cfg = load_config(arguments.config, arguments.overrides, imports=run_imports)
    if not cfg.DATASETS.TRAIN:
        raise ConfigError('DATASETS.TRAIN: expected the training data: ["catalog name or COCO file"]')
    options = LoaderOptions.from_config(cfg)  # validated before any data are read; model and engine do not matter here
    dataset = load_training_set(cfg)
    seed = max(cfg.SEED, 0) if arguments.seed is None else arguments.seed
    stream = TrainingStream.build(options, dataset, seed)
    sheets = _sheet_names(Path(arguments.output), count, PER_SHEET)
    check_free(*sheets, overwrite=arguments.overwrite)
    value_range = (0.0, 255.0) if cfg.INPUT.SCALING != "none" else None
    with ProgressBar(total=count, desc="drawing", unit="sample") as progress:
        for number, path in enumerate(sheets):
            samples = []
            for position in range(number * PER_SHEET, min((number + 1) * PER_SHEET, count)):
                samples.append(stream[position])
                progress.update()
            caption = f"{cfg.source or 'default configuration'}, seed {seed}"
            picture = contact_sheet(samples, class_names=dataset.class_names, value_range=value_range, caption=caption)
            write_png(path, picture)
    names = sheets[0].name if len(sheets) == 1 else f"{sheets[0].name} to {sheets[-1].name}"
    print(f"{count} samples in {Path(arguments.output) / names}")


def _check(arguments: argparse.Namespace) -> None:
    given = [f"--{name.replace('_', '-')}" for name in _OTHERS if getattr(arguments, name)]
    if given:
        raise ConfigError(
            f"--augmented draws the training data of --config (DATASETS.TRAIN); {', '.join(given)} cannot be given too"
        )
    if arguments.augmented < 1:
        raise ConfigError(f"--augmented is {arguments.augmented}; expected 1 or more samples")
    if arguments.config is None:
        raise ConfigError("--augmented needs --config FILE, for example configs/quickstart/mask_rcnn.yaml")
    if arguments.seed is not None and arguments.seed < 0:
        raise ConfigError(f"--seed is {arguments.seed}; expected 0 or more")


def _sheet_names(folder: Path, count: int, per_sheet: int) -> list[Path]:
    number = -(-count // per_sheet)
    if number == 1:
        return [folder / "augmented.png"]
    digits = len(str(number))
    return [folder / f"augmented_{index:0{digits}}.png" for index in range(1, number + 1)]
