"""What must hold between the keys of sizes, crops and random changes of training images."""

from __future__ import annotations

from detseg.config.problems import Problems

# A bend of more than this part of the distance of its control points would be cut off, lest it folds the image.
_LARGEST_BEND = 1 / 8


def check_augmentation(problems: Problems) -> None:
    """Add what is wrong with the INPUT keys of training images."""
    cfg = problems.cfg
    problems.one_of("INPUT.RANDOM_FLIP", ("none", "horizontal", "vertical", "both"))
    problems.one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", ("choice", "range"))
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        problems.add("INPUT.MIN_SIZE_TRAIN", "expected at least one size, or [0] for no resizing")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        problems.pair("INPUT.MIN_SIZE_TRAIN", 1, float("inf"), equal=True)
    for key in ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST"):
        problems.within(key, 0)
    for key in ("INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"):
        problems.within(key, 1)
    for key in ("INPUT.RANDOM_INVERT", "INPUT.RANDOM_BRIGHTNESS", "INPUT.RANDOM_CONTRAST"):
        problems.within(key, 0, 1)
    problems.pair("INPUT.RANDOM_SCALE", 0.05, 20, equal=True)
    problems.one_of("INPUT.RANDOM_SCALE_SAMPLING", ("log_uniform", "uniform"))
    problems.one_of("INPUT.BORDER", ("constant", "reflect"))
    problems.within("INPUT.MIN_VISIBLE", 0, 1)
    _check_crop(problems)
    _check_free_transforms(problems)


def _check_crop(problems: Problems) -> None:
    keys = problems.cfg.INPUT.CROP
    problems.one_of("INPUT.CROP.TYPE", ("relative", "relative_range", "absolute", "absolute_range"))
    problems.length("INPUT.CROP.SIZE", 2)
    problems.within("INPUT.CROP.ON_OBJECTS", 0, 1)
    problems.within("INPUT.CROP.BALANCE_POWER", 0, 1)
    if keys.TYPE.startswith("relative"):
        problems.within("INPUT.CROP.SIZE", most=1, above=0)
    elif keys.ENABLED and not all(isinstance(size, int) and size >= 1 for size in keys.SIZE):
        problems.add("INPUT.CROP.SIZE", f"expected [height, width] in pixels for INPUT.CROP.TYPE {keys.TYPE}")
    elif keys.ENABLED and keys.TYPE == "absolute_range":
        problems.pair("INPUT.CROP.SIZE", 1, float("inf"), equal=True)
    if keys.PAD and not (keys.TYPE == "absolute" and keys.AFTER_RESIZE):
        problems.add("INPUT.CROP.PAD", "needs INPUT.CROP.TYPE absolute and INPUT.CROP.AFTER_RESIZE True")
    for name in ("PAD", "ON_OBJECTS"):
        if keys[name] and not keys.ENABLED:
            problems.add(f"INPUT.CROP.{name}", "there is no crop: set INPUT.CROP.ENABLED True")
    if keys.BALANCE_POWER and not keys.ON_OBJECTS:
        problems.add("INPUT.CROP.BALANCE_POWER", "chooses among the objects of INPUT.CROP.ON_OBJECTS: set that above 0")


def _check_free_transforms(problems: Problems) -> None:
    for section in ("INPUT.RANDOM_AFFINE", "INPUT.RANDOM_ELASTIC"):
        problems.within(f"{section}.PROBABILITY", 0, 1)
    problems.within("INPUT.RANDOM_AFFINE.ROTATION", 0, 180)
    problems.within("INPUT.RANDOM_AFFINE.SHEAR", 0, 60)
    problems.within("INPUT.RANDOM_AFFINE.STRETCH", 1, 10)
    problems.within("INPUT.RANDOM_AFFINE.TRANSLATE", 0, 1)
    problems.within("INPUT.RANDOM_ELASTIC.SPACING", 4)
    problems.within("INPUT.RANDOM_ELASTIC.MAGNITUDE", 0)
    keys = problems.cfg.INPUT.RANDOM_ELASTIC
    if keys.MAGNITUDE > keys.SPACING * _LARGEST_BEND:
        problems.add(
            "INPUT.RANDOM_ELASTIC.MAGNITUDE",
            f"expected at most an eighth of INPUT.RANDOM_ELASTIC.SPACING ({keys.SPACING:g}), lest the image folds",
        )
