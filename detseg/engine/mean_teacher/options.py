"""The keys of a mean teacher (SEMI.*), their legal values, and where the defaults come from."""

from __future__ import annotations

from dataclasses import dataclass

from detseg.config.options import Options, Problems, key, part
from detseg.data.augment.strong import StrongChanges

GATES = ("jitter", "rpn", "always", "never")


@dataclass(frozen=True)
class PseudoLabelOptions(Options):
    """What of the teacher's detections the student learns, and how much.

    A detection is sure from the score `thresholds` of its class on: a label. From `ignore_from` on it is neither object
    nor background, below it is nothing. Unbiased Teacher (Liu et al. 2021) takes 0.7; Soft Teacher (Xu et al. 2021)
    0.9, and background by the teacher's own certainty, for which the ignored range stands here. adapt: "counts" moves
    the thresholds, within `adapt_range`, so that the teacher finds as many objects of each class, by area, as the
    labelled images have (as Noisy Boundaries, Wang et al. 2022, choose theirs); "none" leaves them.

    box_gate: which labels teach boxes. "jitter" (Soft Teacher, its default and 0.02): those whose box the heads find
    again from boxes moved by up to 6 % of its sides, with a standard deviation of at most `max_jitter` of them. "rpn":
    those of which a proposal has an IoU of at least `min_agreement`. "always", or "never" (Unbiased Teacher).

    mask_score: least score, times mask quality where the model has such a head, of labels that teach masks; their mask
    loss is multiplied by the quality (PAIS, Hu et al. 2023, and Polite Teacher, Filipiak et al. 2022, treat masks by
    their quality, apart from classes). pixel_weights: the mask loss of
    a pixel is multiplied by |2 p - 1|, p the teacher's probability: its boundary counts least (Noisy Boundaries).
    background: factor on the class losses of background far from all labels, see DATASETS.PSEUDO_BACKGROUND (Soft
    Teacher weighs background by the teacher's probability of it).
    """

    section = "SEMI"

    num_classes: int = key("MODEL.ROI_HEADS.NUM_CLASSES")
    thresholds: tuple[float, ...] = key("THRESHOLD", not_empty=True, above=0)
    ignore_from: tuple[float, ...] = key("IGNORE_FROM", not_empty=True, above=0)
    adapt: str = key("ADAPT", choices=("none", "counts"))
    adapt_range: tuple[float, float] = key("ADAPT_RANGE", length=2)
    box_gate: str = key("BOX_GATE", choices=GATES)
    max_jitter: float = key("MAX_JITTER", above=0)
    min_agreement: float = key("MIN_AGREEMENT", above=0, at_most=1)
    mask_score: float = key("MASK_SCORE", at_least=0)
    pixel_weights: bool = key("PIXEL_WEIGHTS")
    background: float = key("BACKGROUND", at_least=0, at_most=1)

    def check(self, problems: Problems) -> None:
        for name, values in (("THRESHOLD", self.thresholds), ("IGNORE_FROM", self.ignore_from)):
            if len(values) not in (1, self.num_classes):
                expected = f"expected one number, or one for each of MODEL.ROI_HEADS.NUM_CLASSES ({self.num_classes})"
                problems.add(f"SEMI.{name}", expected)
                return
        if any(unsure > sure for unsure, sure in zip(self.per_class(self.ignore_from), self.least, strict=True)):
            least = "SEMI.THRESHOLD" if self.adapt == "none" else "the lower end of SEMI.ADAPT_RANGE"
            problems.add("SEMI.IGNORE_FROM", f"what is unsure has lower scores than what is sure: at most {least}")
        problems.pair("SEMI.ADAPT_RANGE", 0, 1)

    def per_class(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """Return a number for each class."""
        return values * self.num_classes if len(values) == 1 else values

    @property
    def least(self) -> tuple[float, ...]:
        """The lowest that the threshold of each class can become."""
        own = self.per_class(self.thresholds)
        return own if self.adapt == "none" else tuple(min(one, self.adapt_range[0]) for one in own)


@dataclass(frozen=True)
class MeanTeacherOptions(Options):
    """A mean teacher (Tarvainen and Valpola 2017): its data, its schedule, and its labels.

    The teacher is the average of SOLVER.EMA: a decay of 0.999 (Soft Teacher) to 0.9996 (Unbiased Teacher).

    unlabeled: COCO files, names of the catalog, folders, globs and lists of images; their annotations are not looked
    at. ratio: unlabelled images for each labelled one of a batch; 1 in Unbiased Teacher, 4 in Soft Teacher with few
    labels. burn_in: iterations of labelled images alone, before; 2,000 of 180,000 in Unbiased Teacher, and a training
    of its own in Guided Distillation (Berrada et al. 2024). start: what the teacher is then: "average" as it is
    (Guided Distillation), or the "student" (Unbiased Teacher). weight: factor on the losses of unlabelled images, 2 to
    4 (4 in both Teachers, 2 in MixPL, Chen et al. 2023); ramp: iterations after the burn-in in which it grows from 0.
    """

    section = "SEMI"

    unlabeled: tuple[str, ...] = key("UNLABELED")
    ratio: int = key("RATIO", at_least=1, at_most=4)
    burn_in: int = key("BURN_IN", at_least=0)
    start: str = key("TEACHER_START", choices=("average", "student"))
    weight: float = key("WEIGHT", above=0)
    ramp: int = key("RAMP", at_least=0)
    labels: PseudoLabelOptions = part(PseudoLabelOptions)
    changes: StrongChanges = part(StrongChanges)

    def check(self, problems: Problems) -> None:
        cfg = problems.cfg
        if not problems.training:
            return
        if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
            expected = "a teacher labels images for MODEL.META_ARCHITECTURE GeneralizedRCNN only; set []"
            problems.add("SEMI.UNLABELED", expected)
        for name, wanted, why in (
            ("SOLVER.EMA.ENABLED", True, "the average of the weights is the teacher of SEMI.UNLABELED"),
            ("MODEL.MASK_ON", True, "a teacher's labels (SEMI.UNLABELED) are masks"),
            ("MODEL.COMPILE", False, "a teacher (SEMI.UNLABELED) does not run through torch.compile"),
            ("INPUT.OBJECT_SIZE", 0.0, "images without labels (SEMI.UNLABELED) do not tell the size of their objects"),
        ):
            if cfg[name] != wanted:
                problems.add(name, f"{why}: set {wanted}")
        if self.burn_in >= cfg.SOLVER.MAX_ITER:
            expected = f"the training ends before, SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: set less"
            problems.add("SEMI.BURN_IN", expected)

    def weight_at(self, iteration: int) -> float:
        """Return the factor on the losses of unlabelled images in an iteration (0-based) after the burn-in."""
        done = iteration - self.burn_in + 1
        return self.weight * min(done / self.ramp, 1.0) if self.ramp else self.weight
