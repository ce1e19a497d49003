"""Suggestions on the length of training and the batch size on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from detseg.curation.inspection.advice import Suggestion

# DSB2018's 2,800 iterations of 4 crops (configs/dsb2018) show each part of an image 16 times, and 200,000 objects; its
# scores hardly rise after half of that. The quickstart shows 45,000.
VIEWS, OBJECT_VIEWS = 30, 50_000
FEWEST, MOST, BATCH = 400, 10_000, 4
# Fraction of the time; evaluations, figures and checkpoints take the rest.
TRAINING_SHARE = 0.75
EVALUATIONS = 4
# Most images in an evaluation during training.
MOST_EVALUATED = 50


@dataclass(frozen=True)
class Machine:
    """The training machine: name of the device, processor cores, bytes of free memory, None if unknown."""

    device: str
    cores: int
    memory: int | None = None


@dataclass(frozen=True)
class Speed:
    """Cost of one image in training: seconds, and bytes of memory, None if unknown."""

    seconds: float
    memory: int | None = None


@dataclass(frozen=True)
class Workload:
    """images, validation: numbers of images. windows: crops that cover all training images. objects: mean per crop."""

    images: int
    validation: int
    windows: float
    objects: float


def advise_training(
    work: Workload, machine: Machine, speed: Speed | None, *, minutes: float, pretrained: bool = False
) -> Suggestion:
    """Suggest batch size, iterations and periods. speed: None if not measured. minutes: available training time."""
    batch, reasons = BATCH, []
    seconds = speed.seconds if speed else 1.0
    if speed and speed.memory and machine.memory:
        while batch > 1 and batch * speed.memory > machine.memory / 2:
            batch //= 2
        reasons.append(f"one takes {speed.memory / 1e9:.1f} GB of {machine.memory / 1e9:.0f} GB of free memory")
    affordable = TRAINING_SHARE * minutes * 60 / seconds  # images
    # More steps with smaller batches are better than few steps.
    while batch > 1 and affordable / batch < FEWEST:
        batch //= 2
    wanted = max(VIEWS * work.windows, OBJECT_VIEWS / max(work.objects, 1.0)) / batch
    wanted = min(max(wanted, FEWEST), MOST)
    iterations = _rounded(max(min(wanted, affordable / batch), 10))
    period = -(-iterations // EVALUATIONS)
    keys = {
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": min(500 if pretrained else 100, iterations // 10),
        **({"SOLVER.HEAD_WARMUP_ITERS": min(200, iterations // 20)} if pretrained else {}),
        "SOLVER.CHECKPOINT_PERIOD": period,
        # Averages over about a fifth of the training.
        "SOLVER.EMA.ENABLED": True,
        "SOLVER.EMA.DECAY": round(min(max(1 - 4.5 / iterations, 0.8), 0.999), 4),
        "SOLVER.AMP.ENABLED": True,
        "TEST.EVAL_PERIOD": period if work.validation else 0,
        **({"TEST.MAX_IMAGES_DURING_TRAINING": MOST_EVALUATED} if work.validation > MOST_EVALUATED else {}),
        "DATALOADER.NUM_WORKERS": min(machine.cores - 1, 4),
    }
    how = f"measured: {seconds:.2g} s per image" if speed else "not measured: 1 s per image is assumed"
    reasons.insert(0, "the learning rate is meant for 4" if batch == BATCH else "4 would be too many")
    took = iterations * batch * seconds / 60
    advice = f"{iterations:,} iterations of {batch} image{'s' if batch > 1 else ''}: about {duration(took)}."
    reason = (
        f"On {machine.device}, {machine.cores} processor core{'s' if machine.cores > 1 else ''} ({how}); evaluations "
        f"are extra. {work.windows:.0f} crops cover all {work.images} training images; {wanted:,.0f} iterations would "
        f"show each {VIEWS} times and {OBJECT_VIEWS:,} objects (at least {FEWEST}, at most {MOST:,}). "
        f"{duration(minutes)} (--minutes) suffice for {affordable / batch:,.0f}. Images per iteration: "
        f"{'; '.join(reasons)}. Evaluated {EVALUATIONS} times."
    )
    return Suggestion("training", advice, reason, keys)


def duration(minutes: float) -> str:
    """Format a duration: 40 seconds, 25 minutes, 3.5 hours."""
    if minutes < 1.5:
        return f"{max(minutes * 60, 1):.0f} seconds"
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"


def _rounded(value: float) -> int:
    """Return a number with two digits not above `value`."""
    power = 10 ** max(len(str(int(value))) - 2, 0)
    return int(value // power * power)
