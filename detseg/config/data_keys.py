"""detseg's own keys of data: INPUT, DATASETS, DATALOADER."""

from __future__ import annotations

from detseg.config.key import Key
from detseg.config.kinds import Kind

DATA_KEYS: dict[str, Key] = {
    "INPUT.CHANNELS": Key(
        [],
        "Which channels of a multi-channel image the model sees, in this order: 0-based indices, or names of an "
        "OME-TIFF's channels; `[]` takes the image as it is, a gray image repeated where MODEL.PIXEL_MEAN has "
        "three values.",
        Kind("any", (1,)),
    ),
    "INPUT.PIXEL_SIZE": Key(
        0.0,
        "Micrometres: images are brought to pixels of this size before INPUT.MIN_SIZE_* and crops, in training and "
        "prediction alike, each by its own pixel size, which must be known; 0 leaves them as they are.",
    ),
    "INPUT.OBJECT_SIZE": Key(
        0.0,
        "Pixels at the network: images are resized so that their typical object has this diameter, the median of "
        "sqrt(width x height) of the boxes; in place of INPUT.MIN_SIZE_*. Training takes it from the labels, "
        "prediction and validation estimate it, image by image (docs/inference.md); 0 is off.",
    ),
    "INPUT.GRAYSCALE": Key(False, "Replace RGB by its luma before scaling, so that a stain's colour does not matter."),
    "INPUT.CLAHE": Key(
        0.0,
        "Limit of a contrast limited adaptive histogram equalisation of every image, after scaling and inversion, in "
        "training and prediction alike; 2 is usual, 0 is off.",
    ),
    "INPUT.SCALING": Key(
        "none",
        "How intensities are brought to 0..255: `none` (as in the file), `percentile` (the image's own "
        "INPUT.SCALING_PERCENTILES) or `fixed` (INPUT.SCALING_RANGE).",
    ),
    "INPUT.SCALING_PERCENTILES": Key(
        [0.5, 99.5], "Percentiles of the image's intensities that become 0 and 255 when INPUT.SCALING is `percentile`."
    ),
    "INPUT.SCALING_RANGE": Key([0.0, 65535.0], "Intensities that become 0 and 255 when INPUT.SCALING is `fixed`."),
    "INPUT.INVERT": Key(
        "none",
        "`auto` inverts an image whose background is brighter than its objects (median above mid-range), in training "
        "and prediction alike; `none` leaves images as they are.",
    ),
    "INPUT.CROP.AFTER_RESIZE": Key(
        False,
        "Cut the crop (INPUT.CROP.*) out of the resized and zoomed image; False cuts first and resizes the crop, as "
        "Detectron2. True keeps the scale of training that of testing where INPUT.MIN_SIZE_TRAIN is not 0.",
    ),
    "INPUT.CROP.PAD": Key(
        False,
        "Pad images that are smaller than INPUT.CROP.SIZE to it, each at a random place, as large-scale jitter does; "
        "False uses them whole. Needs INPUT.CROP.TYPE `absolute` and AFTER_RESIZE.",
    ),
    "INPUT.CROP.ON_OBJECTS": Key(
        0.0, "Probability that the crop is placed around a random object of the image; else it may be anywhere."
    ),
    "INPUT.CROP.BALANCE_POWER": Key(
        0.0, "How far ON_OBJECTS prefers rare classes: 0 not at all, 1 all classes of the training data equally often."
    ),
    "INPUT.MIN_VISIBLE": Key(
        0.0,
        "Objects of which crop and turn leave a smaller share of the area are dropped, and what is left is ignored.",
    ),
    "INPUT.BORDER": Key(
        "constant",
        "What is seen where turns, shifts and padding leave the image: `constant` (the image's median, background) or "
        "`reflect` (the image mirrored; the losses ignore it, for its objects have no masks).",
    ),
    "INPUT.RANDOM_ROTATE90": Key(False, "Turn training images by a random multiple of 90 degrees."),
    "INPUT.RANDOM_INVERT": Key(0.0, "Probability that a training image's intensities are inverted."),
    "INPUT.RANDOM_STAIN": Key(
        0.0,
        "Standard deviation of a random 3 x 3 mixture of the channels' optical densities around none: other stains and "
        "tints, of half of the images on the dark ground of fluorescence, of half on the bright ground of dyes; gray "
        "images become coloured. For RGB.",
    ),
    "INPUT.RANDOM_BRIGHTNESS": Key(
        0.0, "Half range of a random change of brightness, as a fraction of the range of intensities."
    ),
    "INPUT.RANDOM_CONTRAST": Key(
        0.0, "Half range of a random change of contrast: 0.2 multiplies by 0.8..1.2 about the image's mean."
    ),
    "INPUT.RANDOM_SCALE": Key(
        [1.0, 1.0], "Smallest and largest random zoom of a training image on top of its resized size."
    ),
    "INPUT.RANDOM_SCALE_SAMPLING": Key(
        "log_uniform",
        "How the zoom is drawn: `log_uniform` (half and double equally likely) or `uniform` (as large-scale jitter).",
    ),
    "INPUT.RANDOM_AFFINE.PROBABILITY": Key(1.0, "Probability of the affine change of the keys beside it."),
    "INPUT.RANDOM_AFFINE.ROTATION": Key(0.0, "Half range of a turn by any angle, degrees; 180 for all directions."),
    "INPUT.RANDOM_AFFINE.SHEAR": Key(0.0, "Half range of a shear, degrees."),
    "INPUT.RANDOM_AFFINE.STRETCH": Key(
        1.0, "Largest ratio of stretching one direction to squeezing the other one, areas kept; 1 for none."
    ),
    "INPUT.RANDOM_AFFINE.TRANSLATE": Key(0.0, "Half range of a shift, as a fraction of height and width."),
    "INPUT.RANDOM_ELASTIC.PROBABILITY": Key(1.0, "Probability of the elastic bend of the keys beside it."),
    "INPUT.RANDOM_ELASTIC.MAGNITUDE": Key(
        0.0,
        "Standard deviation of elastic displacements along each axis, in pixels of the training sample; 0 for none.",
    ),
    "INPUT.RANDOM_ELASTIC.SPACING": Key(
        64.0,
        "Distance of the elastic bend's control points, in pixels of the training sample; smaller bends more locally.",
    ),
    "INPUT.ALBUMENTATIONS": Key(
        [],
        "Changes of intensities by Albumentations: a list of `{name, p, params}`, and `{name, p, transforms}` for "
        "OneOf and the like. docs/augmentation.md.",
        Kind("plain", (1,)),
    ),
    "INPUT.PSEUDO.RANDOM_BRIGHTNESS": Key(
        0.0, "As INPUT.RANDOM_BRIGHTNESS, a further change of the images of DATASETS.PSEUDO."
    ),
    "INPUT.PSEUDO.RANDOM_CONTRAST": Key(
        0.0, "As INPUT.RANDOM_CONTRAST, a further change of the images of DATASETS.PSEUDO."
    ),
    "INPUT.PSEUDO.ALBUMENTATIONS": Key(
        [],
        "As INPUT.ALBUMENTATIONS, further changes of the images of DATASETS.PSEUDO.",
        Kind("plain", (1,)),
    ),
    "INPUT.COPY_PASTE.PROBABILITY": Key(
        0.0,
        "Probability that objects of another sample are pasted upon a training sample; 0 is off. docs/augmentation.md.",
    ),
    "INPUT.COPY_PASTE.LAST_ITER": Key(
        0, "Nothing is pasted after so many iterations: first with copy-paste, then training as usual. 0: to the end."
    ),
    "INPUT.COPY_PASTE.SOURCES": Key(
        ["train"],
        "Where objects come from: `train` (other images of the training data), `image` (the image itself), `pseudo` "
        "(DATASETS.PSEUDO) and further data sets (catalog names or COCO files; classes matched by name, others left "
        "out).",
    ),
    "INPUT.COPY_PASTE.PSEUDO_SCORE": Key(0.9, "Least score of the objects that are pasted from `pseudo`."),
    "INPUT.COPY_PASTE.SOURCE_WEIGHTS": Key(
        [], "How often each of the SOURCES is drawn, relative to each other; `[]` equally often.", Kind("float", (1,))
    ),
    "INPUT.COPY_PASTE.GROUP_BY": Key(
        "",
        "Objects come only from images with the same value of this image-level field of the COCO file (such as "
        "`group`); empty: from all.",
    ),
    "INPUT.COPY_PASTE.BALANCE_POWER": Key(
        0.0,
        "How far rare classes are preferred, in the choice of images and of objects: 0 not at all, 1 all classes "
        "equally likely.",
    ),
    "INPUT.COPY_PASTE.MAX_OBJECTS": Key(
        50, "Most objects that are pasted upon a sample; how many is drawn evenly from 1 on. 0: as many as there are."
    ),
    "INPUT.COPY_PASTE.PLACE": Key(
        "kept",
        "`kept`: objects stay where they are in their own sample, after its own random crop, zoom and flips (Ghiasi et "
        "al. 2020); `free`: each is placed anywhere inside the sample.",
    ),
    "INPUT.COPY_PASTE.MAX_OVERLAP": Key(
        0.3,
        "Greatest share of an object, pasted or there before, by which it and the others may overlap: what would cover "
        "more is not pasted. 1: no limit.",
    ),
    "INPUT.COPY_PASTE.MIN_VISIBLE": Key(
        0.3, "Objects of which a smaller share is left after pasting are dropped, and what is left of them is ignored."
    ),
    "INPUT.COPY_PASTE.SOFT_EDGE": Key(
        0.0,
        "Standard deviation, in pixels of the sample, of the Gaussian that blends pasted objects in; 0: hard edges.",
    ),
    "INPUT.COPY_PASTE.MARGIN": Key(
        0,
        "Pixels of background around an object that are pasted along with it, such as its halo in phase contrast, "
        "where no other object is.",
    ),
    "INPUT.COPY_PASTE.MATCH_GRAY": Key(
        False,
        "Shift the intensities of every pasted object so that the background around it agrees with that of its new "
        "place.",
    ),
    "DATASETS.IMAGE_ROOT": Key(
        "",
        "Folder that the images' file names are relative to; empty: the JSON's `info.image_root`, else its own folder.",
    ),
    "DATASETS.CLASSES": Key(
        [],
        "Names of the classes in order; `[]` takes the data's categories. Their number must be "
        "MODEL.ROI_HEADS.NUM_CLASSES.",
        Kind("str", (1,)),
    ),
    "DATASETS.EXTRA_TRAIN": Key(
        [],
        "Further data sets to train with, as DATASETS.TRAIN: with `train_net --fold` in every fold, and none is "
        "validated on. Images that are also validated on are refused.",
        Kind("str", (1,)),
    ),
    "DATASETS.TRAIN_WEIGHTS": Key(
        [],
        "How often the images of each set of DATASETS.TRAIN, then of EXTRA_TRAIN, come, relative to each other, "
        "whatever the sets' sizes; `[]` every image of every set equally often.",
        Kind("float", (1,)),
    ),
    "DATASETS.PSEUDO": Key(
        [],
        "COCO files of pseudo-labels (`detseg pseudo_label label`) to train with; `{fold}` in a name stands for the "
        "fold that is left out. They are never validated on, and are refused where their teachers have seen what is.",
        Kind("str", (1,)),
    ),
    "DATASETS.PSEUDO_RATIO": Key(
        [1, 1],
        "Images of DATASETS.TRAIN and EXTRA_TRAIN to images of DATASETS.PSEUDO in every batch, whatever their numbers.",
    ),
    "DATASETS.PSEUDO_CONFIDENCE": Key(
        [],
        "Losses of pseudo-labels that their confidence is a factor of: `class` and `box` (score), `mask` (quality, or "
        "score), `pixels` (mask loss of every pixel by 1 - u, u = 1 - 2 abs(p - 0.5), of soft masks). Native R-CNNs.",
        Kind("str", (1,)),
    ),
    "DATASETS.PSEUDO_BACKGROUND": Key(
        1.0,
        "Factor on the class losses of background that is far from all objects of an image of pseudo-labels: the "
        "teacher may have missed one there. Native R-CNNs.",
    ),
    "DATASETS.LOSS_WEIGHTS": Key(
        [],
        "Factor on all losses of the images of each set of DATASETS.TRAIN, then EXTRA_TRAIN, then PSEUDO; `[]`: 1. "
        "Native R-CNNs.",
        Kind("float", (1,)),
    ),
    "DATASETS.FOLDS": Key(
        "",
        "Index of the folds of DATASETS.TRAIN, a CSV or YAML (see `detseg split`); empty: the field `fold` of the "
        "images.",
    ),
    "DATASETS.FOLD": Key(
        -1,
        "Train without this fold of DATASETS.TRAIN and validate on it, by its annotations in DATASETS.TEST where that "
        "has the same images; -1: no folds. `train_net --fold` sets it.",
    ),
    "DATALOADER.BALANCE_BY": Key(
        "",
        "Show every value of this image-level field of the COCO file equally often (such as `group`), or, with "
        "`category`, every class; empty: every image equally often.",
    ),
    "DATALOADER.BALANCE_POWER": Key(1.0, "Strength of BALANCE_BY: 0 not at all, 1 all values equally often."),
    "DATALOADER.CACHE": Key(
        "none",
        "Keep training images, decoded and scaled, with their masks: `memory` (shared by all loader processes, gone "
        "with the training) or `disk` (kept, and shared by all trainings).",
    ),
    "DATALOADER.CACHE_SIZE": Key(
        8.0, "Most that DATALOADER.CACHE holds, in GB; images beyond are read from their files."
    ),
    "DATALOADER.CACHE_FOLDER": Key(
        "", "Folder of the `disk` cache; empty: `samples` in `$DETSEG_CACHE`, else in `~/.cache/detseg`."
    ),
}
