"""detseg's own keys of training and after it: SOLVER, SEMI, TEST, TRACKING."""

from __future__ import annotations

from detseg.config.key import Key
from detseg.config.kinds import Kind

TRAINING_KEYS: dict[str, Key] = {
    "SOLVER.OPTIMIZER": Key("SGD", "`SGD` (SOLVER.MOMENTUM, SOLVER.NESTEROV) or `AdamW` (SOLVER.BETAS)."),
    "SOLVER.BACKBONE_MULTIPLIER": Key(
        1.0, "Factor on the learning rate of the bottom-up network, pretrained while the heads are new; 0.1 is usual."
    ),
    "SOLVER.HEAD_WARMUP_ITERS": Key(
        0,
        "Iterations at the start in which only those parameters learn that MODEL.WEIGHTS did not give, so that new "
        "heads do not spoil what was pretrained.",
    ),
    "SOLVER.BETAS": Key([0.9, 0.999], "AdamW's two decay rates of the running averages."),
    "SOLVER.ACCUMULATE": Key(1, "Batches whose gradients are averaged before each step; an iteration is one step."),
    "SOLVER.EMA.ENABLED": Key(False, "Keep an exponential moving average of the weights, and evaluate and store it."),
    "SOLVER.EMA.DECAY": Key(0.999, "Part of the average that each step keeps."),
    "SOLVER.AMP.DTYPE": Key(
        "auto",
        "Number format of mixed precision when SOLVER.AMP.ENABLED: `bfloat16`, `float16` (CUDA only) or `auto` "
        "(bfloat16 where the device computes it fast, else float16 on CUDA and full precision on a CPU).",
    ),
    "SOLVER.CHECKPOINT_KEEP": Key(1, "How many of the newest periodic checkpoints are kept, beside the best one."),
    "SOLVER.LOG_PERIOD": Key(20, "Iterations between two lines of metrics."),
    "SEMI.UNLABELED": Key(
        [],
        "Images without labels, for a mean teacher: COCO files, catalog names, folders, globs and lists (.txt); their "
        "annotations are not looked at. `[]`: none, and the other SEMI keys do nothing. docs/semi_supervised.md.",
        Kind("str", (1,)),
    ),
    "SEMI.RATIO": Key(1, "Unlabelled images for each labelled one of a batch, 1 to 4."),
    "SEMI.BURN_IN": Key(1000, "Iterations of labelled images alone, before the teacher labels any."),
    "SEMI.TEACHER_START": Key(
        "average",
        "What the teacher is after the burn-in: the `average` of weights (SOLVER.EMA) as it is, or the `student`, from "
        "which the average then begins again.",
    ),
    "SEMI.WEIGHT": Key(2.0, "Factor on the losses of unlabelled images; 2 to 4 are usual."),
    "SEMI.RAMP": Key(500, "Iterations after the burn-in in which SEMI.WEIGHT grows from 0."),
    "SEMI.THRESHOLD": Key(
        [0.7],
        "Least score of the teacher's detections that are labels: one number, or one for each class. Above 1: none.",
    ),
    "SEMI.IGNORE_FROM": Key(
        [0.3],
        "From this score up to the threshold a detection is ignored, neither object nor background: one number, or one "
        "for each class.",
    ),
    "SEMI.ADAPT": Key(
        "none",
        "`counts` moves the thresholds so that labels are as dense, in each class, as in the labelled images; `none` "
        "leaves them.",
    ),
    "SEMI.ADAPT_RANGE": Key([0.5, 0.95], "The lowest and the highest threshold of SEMI.ADAPT `counts`."),
    "SEMI.BOX_GATE": Key(
        "jitter",
        "Labels that teach boxes: `jitter` (found again from boxes moved a little: SEMI.MAX_JITTER), `rpn` (a proposal "
        "agrees: SEMI.MIN_AGREEMENT), `always`, `never`.",
    ),
    "SEMI.MAX_JITTER": Key(0.02, "Greatest standard deviation of a stable box's edges, as a fraction of its sides."),
    "SEMI.MIN_AGREEMENT": Key(0.75, "Least IoU of a label with the teacher's best proposal for it."),
    "SEMI.MASK_SCORE": Key(0.0, "Least score of labels that teach masks; 0: all."),
    "SEMI.PIXEL_WEIGHTS": Key(
        True, "Pixels of whose mask the teacher is not sure count less in the mask loss: by abs(2 p - 1)."
    ),
    "SEMI.BACKGROUND": Key(
        1.0,
        "Factor on the class losses of background that is far from all labels of an image: the teacher may have missed "
        "an object there.",
    ),
    "SEMI.STRONG.BRIGHTNESS": Key(0.2, "As INPUT.RANDOM_BRIGHTNESS, in the student's view beside it."),
    "SEMI.STRONG.CONTRAST": Key(0.4, "As INPUT.RANDOM_CONTRAST, in the student's view beside it."),
    "SEMI.STRONG.BLUR": Key(1.5, "Greatest standard deviation of a blur of the student's view, pixels; half are."),
    "SEMI.STRONG.NOISE": Key(
        0.05, "Greatest standard deviation of noise in the student's view, as a fraction of the range; half have it."
    ),
    "SEMI.STRONG.ERASE": Key(3, "Most rectangles that are hidden in the student's view, and ignored; half lose any."),
    "TEST.EARLY_STOP_PATIENCE": Key(
        0, "Stop after this many evaluations without a better TEST.BEST_METRIC; 0 never stops early."
    ),
    "TEST.BEST_METRIC": Key(
        "auto",
        "The number, of final_metrics.json, by which the best checkpoint is chosen; `auto`: object_ap, or coco_bbox_ap "
        "where MODEL.MASK_ON is False.",
    ),
    "TEST.MAX_DETECTIONS_COCO": Key(
        0,
        "Detections of an image and class that COCO AP counts, best scores first; 0 counts all (COCO itself: 100).",
    ),
    "TEST.MAX_IMAGES_DURING_TRAINING": Key(
        0, "Images that evaluations during training use, spread evenly over the set; 0: all. The last takes all."
    ),
    "TEST.PRECISION": Key(
        "auto",
        "Number format of evaluations: `float32`, `bfloat16`, `float16`, with `_masks` of the mask head alone, or "
        "`auto`: the fastest whose object AP is at most 0.001 below that of float32, measured at the end of training.",
    ),
    "TEST.REPORT": Key(
        True,
        "Write report.html at the end of a training (docs/report.md); one of less than half a minute leaves it to "
        "`detseg report`.",
    ),
    "TEST.OVERLAYS": Key(16, "Images drawn at the end of training, ground truth beside prediction."),
    "TEST.AUG.VIEWS": Key(
        [],
        "Views of an image when TEST.AUG.ENABLED: `flips`, `eight`, or words joined by + such as `h+scale=1.25+clahe` "
        "(docs/inference.md). `[]`: Detectron2's TEST.AUG.MIN_SIZES, MAX_SIZE and FLIP, of the image at "
        "INPUT.MIN_SIZE_TEST.",
        Kind("str", (1,)),
    ),
    "TEST.AUG.MODE": Key(
        "auto",
        "`merge_then_mask`: boxes of all views are merged, then the masks that all views give them are averaged, as "
        "Detectron2 does. `fuse`: every view detects boxes and masks, which are fused. `auto`: the first where the "
        "model finds boxes before masks, else the second.",
    ),
    "TEST.AUG.METHOD": Key(
        "auto",
        "How boxes of several views become one: `nms` (the best stays), `wbf` (their mean) or `soft_nms`. `auto`: "
        "`nms` for Detectron2's views (TEST.AUG.VIEWS `[]`), as Detectron2, else `wbf`.",
    ),
    "TEST.AUG.THRESHOLD": Key(
        None,
        "Boxes of a class with a greater IoU than this are one object, for METHOD; `None`: for `nms` "
        "MODEL.ROI_HEADS.NMS_THRESH_TEST, as Detectron2, else 0.65.",
        Kind("float", optional=True),
    ),
    "TEST.AUG.MIN_VIEWS": Key(1, "Objects that fewer views have found are dropped."),
    "TEST.AUG.MASKS": Key(
        "mean",
        "Of TEST.AUG.MODE `fuse`: the mask of a fused object is the `best` one, a `vote` of pixels, or the `mean`.",
    ),
    "TRACKING.BACKENDS": Key(
        ["jsonl", "tensorboard"],
        "What receives the numbers and pictures of a training: `jsonl` (metrics.jsonl, always), `tensorboard`, `wandb` "
        "(docs/tracking.md).",
        Kind("str", (1,)),
    ),
    "TRACKING.PICTURES": Key(
        4, "Validation images, the same ones, that TensorBoard and W&B show at every evaluation; 0 to 108."
    ),
    "TRACKING.PROJECT": Key("", "W&B's project; empty: `detseg`. $WANDB_PROJECT wins."),
    "TRACKING.ENTITY": Key("", "W&B's user or team; empty: yours. $WANDB_ENTITY wins."),
    "TRACKING.GROUP": Key(
        "",
        "W&B's group of the run; empty: configuration and run folder, of folds the folder of all. Commands that read "
        "the run's files join it. $WANDB_RUN_GROUP wins.",
    ),
    "TRACKING.NAME": Key("", "W&B's name of the run; empty: configuration and run folder. $WANDB_NAME wins."),
    "TRACKING.TAGS": Key([], "W&B's tags of the run. $WANDB_TAGS wins.", Kind("str", (1,))),
    "TRACKING.MODE": Key(
        "auto",
        "W&B: `online`, `offline` (files, sent later by `wandb sync`), `disabled`, or `auto`: online where there is a "
        "key (`wandb login`), else offline. $WANDB_MODE wins.",
    ),
    "TRACKING.STORE": Key(
        ["model", "predictions"],
        "Files that W&B keeps: `model` (best.pth), `last` (last.pth), `predictions`, `dataset` (COCO files, images). "
        "Of what is not listed it gets manifests with hashes.",
        Kind("str", (1,)),
    ),
}
