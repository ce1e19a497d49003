"""What must hold between the keys of sampling, copy-paste and the cache of training data."""

from __future__ import annotations

from detseg.config.problems import Problems

_OWN_SOURCES = ("train", "image")


def check_training_data(problems: Problems) -> None:
    """Add what is wrong with DATASETS.TRAIN_WEIGHTS, DATALOADER.SAMPLER_TRAIN, CACHE and INPUT.COPY_PASTE."""
    _check_sampling(problems)
    _check_copy_paste(problems)
    problems.one_of("DATALOADER.CACHE", ("none", "memory", "disk"))
    problems.within("DATALOADER.CACHE_SIZE", above=0)


def _check_sampling(problems: Problems) -> None:
    cfg = problems.cfg
    if cfg.DATASETS.TRAIN_WEIGHTS:
        problems.length("DATASETS.TRAIN_WEIGHTS", len(cfg.DATASETS.TRAIN))
        problems.within("DATASETS.TRAIN_WEIGHTS", above=0)
    if cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return
    problems.within("DATALOADER.REPEAT_THRESHOLD", 0, 1)
    if not cfg.DATALOADER.REPEAT_THRESHOLD:
        problems.add(
            "DATALOADER.REPEAT_THRESHOLD",
            "expected the share of images below which a class counts as rare, such as 0.1, for "
            "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler; at 0 it would repeat nothing",
        )
    if cfg.DATALOADER.BALANCE_BY:
        problems.add("DATALOADER.BALANCE_BY", 'expected "" beside RepeatFactorTrainingSampler: one of them decides')


def _check_copy_paste(problems: Problems) -> None:
    section = "INPUT.COPY_PASTE"
    keys = problems.cfg[section]
    problems.within(f"{section}.PROBABILITY", 0, 1)
    problems.one_of(f"{section}.PLACE", ("kept", "free"))
    for name in ("BALANCE_POWER", "MAX_OVERLAP", "MIN_VISIBLE"):
        problems.within(f"{section}.{name}", 0, 1)
    for name in ("LAST_ITER", "MAX_OBJECTS"):
        problems.within(f"{section}.{name}", 0)
    for name in ("SOFT_EDGE", "MARGIN"):
        problems.within(f"{section}.{name}", 0, 50)
    if not keys.SOURCES or not all(name.strip() for name in keys.SOURCES):
        problems.add(f"{section}.SOURCES", f"expected at least one of {', '.join(_OWN_SOURCES)} and names of data sets")
    elif len(set(keys.SOURCES)) != len(keys.SOURCES):
        problems.add(f"{section}.SOURCES", "expected names that differ; SOURCE_WEIGHTS says how often each is drawn")
    if keys.SOURCE_WEIGHTS:
        problems.length(f"{section}.SOURCE_WEIGHTS", len(keys.SOURCES))
        problems.within(f"{section}.SOURCE_WEIGHTS", above=0)
