"""detseg's own keys for training and afterwards: SOLVER, SEMI, TEST, TRACKING."""

from __future__ import annotations

from detseg.config.key import Key
from detseg.config.kinds import Kind

TRAINING_KEYS: dict[str, Key] = {
    "SOLVER.OPTIMIZER": Key("SGD", "`SGD` (SOLVER.MOMENTUM, SOLVER.NESTEROV) or `AdamW` (SOLVER.BETAS)."),
    "SOLVER.BACKBONE_MULTIPLIER": Key(
        1.0,
        "Factor on the learning rate of the bottom-up network, for pretrained networks with new heads; 0.1 is usual.",
    ),
    "SOLVER.HEAD_WARMUP_ITERS": Key(
        0,
        "Iterations at the start in which only parameters that MODEL.WEIGHTS did not provide are trained, so that "
        "new heads do not spoil the pretrained ones.",
    ),
    "SOLVER.BETAS": Key([0.9, 0.999], "AdamW's decay rates of its two running averages."),
    "SOLVER.ACCUMULATE": Key(
        1, "Batches whose gradients are averaged before each optimizer step; an iteration is one step."
    ),
    "SOLVER.EMA.ENABLED": Key(False, "Keep an exponential moving average of the weights, and evaluate and store it."),
    "SOLVER.EMA.DECAY": Key(0.999, "Decay of the moving average."),
    "SOLVER.AMP.DTYPE": Key(
        "auto",
        "Number format of mixed precision with SOLVER.AMP.ENABLED: `bfloat16`, `float16` (CUDA only) or `auto` "
        "(bfloat16 if the device computes it fast, else float16 on CUDA and full precision on a CPU).",
    ),
    "SOLVER.CHECKPOINT_KEEP": Key(
        1, "How many of the newest periodic checkpoints are kept, in addition to the best one."
    ),
    "SOLVER.LOG_PERIOD": Key(20, "Iterations between two log lines of metrics."),
    "SEMI.UNLABELED": Key(
        [],
        "Images without labels, for a mean teacher: COCO files, catalog names, folders, globs and lists (.txt); "
        "their annotations are ignored. `[]`: no mean teacher, and the other SEMI keys have no effect. "
        "docs/semi_supervised.md.",
        Kind("str", (1,)),
    ),
    "SEMI.RATIO": Key(1, "Unlabelled images for each labelled one of a batch, 1 to 4."),
    "SEMI.BURN_IN": Key(1000, "Iterations with labelled images only, before the teacher labels any."),
    "SEMI.TEACHER_START": Key(
        "average",
        "The teacher after the burn-in: the `average` of weights (SOLVER.EMA) so far, or the `student`, from "
        "which the average then starts again.",
    ),
    "SEMI.WEIGHT": Key(2.0, "Factor on the losses of unlabelled images; 2 to 4 are usual."),
    "SEMI.RAMP": Key(500, "Iterations after the burn-in in which SEMI.WEIGHT grows from 0."),
    "SEMI.THRESHOLD": Key(
        [0.7],
        "Lowest score of the teacher's detections that become labels: one number, or one for each class. Above 1: "
        "none.",
    ),
    "SEMI.IGNORE_FROM": Key(
        [0.3],
        "Detections with a score from this up to the threshold are ignored, neither object nor background: one "
        "number, or one for each class.",
    ),
    "SEMI.ADAPT": Key(
        "none",
        "`counts` adjusts the thresholds so that labels are as dense, in each class, as in the labelled images; "
        "`none` keeps them.",
    ),
    "SEMI.ADAPT_RANGE": Key([0.5, 0.95], "Lowest and highest threshold of SEMI.ADAPT `counts`."),
    "SEMI.BOX_GATE": Key(
        "jitter",
        "Which labels train boxes: `jitter` (those found again from slightly moved boxes: SEMI.MAX_JITTER), `rpn` "
        "(those with which a proposal agrees: SEMI.MIN_AGREEMENT), `always`, `never`.",
    ),
    "SEMI.MAX_JITTER": Key(
        0.02, "Largest standard deviation of the edges of a stable box, as a fraction of its sides."
    ),
    "SEMI.MIN_AGREEMENT": Key(0.75, "Lowest IoU of a label with the teacher's best proposal for it."),
    "SEMI.MASK_SCORE": Key(0.0, "Lowest score of labels that train masks; 0: all."),
    "SEMI.PIXEL_WEIGHTS": Key(True, "Weight pixels in the mask loss by the teacher's certainty, abs(2 p - 1)."),
    "SEMI.BACKGROUND": Key(
        1.0,
        "Factor on the class losses of background far from all labels of an image: the teacher may have missed an "
        "object there.",
    ),
    "SEMI.STRONG.BRIGHTNESS": Key(0.2, "Additional INPUT.RANDOM_BRIGHTNESS of the student's view."),
    "SEMI.STRONG.CONTRAST": Key(0.4, "Additional INPUT.RANDOM_CONTRAST of the student's view."),
    "SEMI.STRONG.BLUR": Key(
        1.5, "Largest standard deviation of the blur of the student's view, pixels; half of the views are blurred."
    ),
    "SEMI.STRONG.NOISE": Key(
        0.05,
        "Largest standard deviation of the noise in the student's view, as a fraction of the range; half of the "
        "views have it.",
    ),
    "SEMI.STRONG.ERASE": Key(
        3,
        "Largest number of rectangles that are hidden in the student's view, and ignored; half of the views have some.",
    ),
    "TEST.EARLY_STOP_PATIENCE": Key(
        0, "Stop after this many evaluations without a better TEST.BEST_METRIC; 0 never stops early."
    ),
    "TEST.BEST_METRIC": Key(
        "auto",
        "The score in final_metrics.json by which the best checkpoint is chosen; `auto`: object_ap, or "
        "coco_bbox_ap with MODEL.MASK_ON False.",
    ),
    "TEST.MAX_DETECTIONS_COCO": Key(
        0,
        "Detections per image and class that COCO AP counts, best scores first; 0 counts all (COCO's own limit is "
        "100).",
    ),
    "TEST.MAX_IMAGES_DURING_TRAINING": Key(
        0,
        "Images that evaluations during training use, spread evenly over the set; 0: all. The final evaluation "
        "uses all.",
    ),
    "TEST.PRECISION": Key(
        "auto",
        "Number format of evaluations: `float32`, `bfloat16`, `float16`, the latter two also with `_masks` for "
        "the mask head only, or `auto`: the fastest whose object AP is at most 0.001 below that of float32, "
        "measured at the end of training.",
    ),
    "TEST.REPORT": Key(
        True,
        "Write report.html at the end of a training (docs/report.md), unless it took less than half a minute "
        "(`detseg report` then writes it).",
    ),
    "TEST.OVERLAYS": Key(16, "Images drawn at the end of training, ground truth beside prediction."),
    "TEST.AUG.VIEWS": Key(
        [],
        "Views of an image with TEST.AUG.ENABLED: `flips`, `eight`, or words joined by + such as "
        "`h+scale=1.25+clahe` (docs/inference.md). `[]`: Detectron2's TEST.AUG.MIN_SIZES, MAX_SIZE and FLIP, from "
        "the image at INPUT.MIN_SIZE_TEST.",
        Kind("str", (1,)),
    ),
    "TEST.AUG.MODE": Key(
        "auto",
        "`merge_then_mask`: boxes of all views are merged, then the masks of all views for these boxes are "
        "averaged, as in Detectron2. `fuse`: every view detects boxes and masks, which are fused. `auto`: the "
        "first if the model finds boxes before masks, else the second.",
    ),
    "TEST.AUG.METHOD": Key(
        "auto",
        "How boxes of several views are combined: `nms` (the best is kept), `wbf` (their mean) or `soft_nms`. "
        "`auto`: `nms` for Detectron2's views (TEST.AUG.VIEWS `[]`), as in Detectron2, else `wbf`.",
    ),
    "TEST.AUG.THRESHOLD": Key(
        None,
        "Boxes of a class with a greater IoU are one object, for METHOD; `None`: MODEL.ROI_HEADS.NMS_THRESH_TEST "
        "for `nms`, as in Detectron2, else 0.65.",
        Kind("float", optional=True),
    ),
    "TEST.AUG.MIN_VIEWS": Key(1, "Objects found in fewer views are dropped."),
    "TEST.AUG.MASKS": Key(
        "mean",
        "For TEST.AUG.MODE `fuse`: the mask of a fused object is the `best` one, a `vote` of pixels, or the `mean`.",
    ),
    "TRACKING.BACKENDS": Key(
        ["jsonl", "tensorboard"],
        "Where the numbers and pictures of a training are logged: `jsonl` (metrics.jsonl, always), `tensorboard`, "
        "`wandb` (docs/tracking.md).",
        Kind("str", (1,)),
    ),
    "TRACKING.PICTURES": Key(
        4,
        "Number of validation images that TensorBoard and W&B show at every evaluation, always the same ones; 0 "
        "to 108.",
    ),
    "TRACKING.PROJECT": Key("", "W&B's project; empty: `detseg`. $WANDB_PROJECT overrides it."),
    "TRACKING.ENTITY": Key("", "W&B's user or team; empty: yours. $WANDB_ENTITY overrides it."),
    "TRACKING.GROUP": Key(
        "",
        "W&B's group of the run; empty: configuration and run folder; for folds their common folder. Commands "
        "that read the run's files join it. $WANDB_RUN_GROUP overrides it.",
    ),
    "TRACKING.NAME": Key("", "W&B's name of the run; empty: configuration and run folder. $WANDB_NAME overrides it."),
    "TRACKING.TAGS": Key([], "W&B's tags of the run. $WANDB_TAGS overrides them.", Kind("str", (1,))),
    "TRACKING.MODE": Key(
        "auto",
        "W&B's mode: `online`, `offline` (files, sent later by `wandb sync`), `disabled`, or `auto`: online if "
        "there is a key (`wandb login`), else offline. $WANDB_MODE overrides it.",
    ),
    "TRACKING.STORE": Key(
        ["model", "predictions"],
        "Files that W&B stores: `model` (best.pth), `last` (last.pth), `predictions`, `dataset` (COCO files, "
        "images). For other files it gets manifests with hashes.",
        Kind("str", (1,)),
    ),
}
