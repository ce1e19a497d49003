"""detseg's own data keys: INPUT, DATASETS, DATALOADER."""

from __future__ import annotations

from detseg.config.key import Key
from detseg.config.kinds import Kind

DATA_KEYS: dict[str, Key] = {
    "INPUT.CHANNELS": Key(
        [],
        "Channels of a multi-channel image that the model sees, in this order: 0-based indices, or names of an "
        "OME-TIFF's channels; `[]` takes the image as it is, and repeats a gray image if MODEL.PIXEL_MEAN has "
        "three values.",
        Kind("any", (1,)),
    ),
    "INPUT.PIXEL_SIZE": Key(
        0.0,
        "Micrometres: images are rescaled to pixels of this size before INPUT.MIN_SIZE_* and crops, in training "
        "and prediction alike, from each image's own pixel size, which must be known; 0 is off.",
    ),
    "INPUT.OBJECT_SIZE": Key(
        0.0,
        "Pixels at the network's input: images are resized so that their typical object has this diameter, the "
        "median of sqrt(width x height) of the boxes, instead of by INPUT.MIN_SIZE_*. Training takes it from the "
        "labels; prediction and validation estimate it for each image (docs/inference.md); 0 is off.",
    ),
    "INPUT.GRAYSCALE": Key(False, "Replace RGB by its luma before scaling, so that a stain's colour does not matter."),
    "INPUT.CLAHE": Key(
        0.0,
        "Clip limit of a contrast-limited adaptive histogram equalisation of every image, after scaling and "
        "inversion, in training and prediction alike; 2 is usual, 0 is off.",
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
        "Crop (INPUT.CROP.*) after resizing and zoom; False crops first and resizes the crop, as Detectron2 does. "
        "With True, training has the scale of testing if INPUT.MIN_SIZE_TRAIN is not 0.",
    ),
    "INPUT.CROP.PAD": Key(
        False,
        "Pad images that are smaller than INPUT.CROP.SIZE, each at a random position, as large-scale jitter does; "
        "False uses them whole. Needs INPUT.CROP.TYPE `absolute` and AFTER_RESIZE.",
    ),
    "INPUT.CROP.ON_OBJECTS": Key(
        0.0, "Probability that the crop is placed around a random object of the image; otherwise it may be anywhere."
    ),
    "INPUT.CROP.BALANCE_POWER": Key(
        0.0,
        "How strongly ON_OBJECTS prefers rare classes: 0 not at all, 1 all classes of the training data equally often.",
    ),
    "INPUT.MIN_VISIBLE": Key(
        0.0,
        "Objects of which cropping and rotation leave a smaller share of the area are dropped, and what is left "
        "is ignored.",
    ),
    "INPUT.BORDER": Key(
        "constant",
        "What fills the area outside the image after rotations, shifts and padding: `constant` (the image's "
        "median, background) or `reflect` (the mirrored image; the losses ignore it, because its objects have no "
        "masks).",
    ),
    "INPUT.RANDOM_ROTATE90": Key(False, "Rotate training images by a random multiple of 90 degrees."),
    "INPUT.RANDOM_INVERT": Key(0.0, "Probability that a training image's intensities are inverted."),
    "INPUT.RANDOM_STAIN": Key(
        0.0,
        "Standard deviation of a random 3 x 3 mixing matrix of the channels' optical densities around the "
        "identity, which gives other stains and tints: for half of the images as dyes on a bright background, for "
        "half as fluorescence on a dark one; gray images become coloured. RGB only.",
    ),
    "INPUT.RANDOM_BRIGHTNESS": Key(
        0.0, "Half range of a random change of brightness, as a fraction of the range of intensities."
    ),
    "INPUT.RANDOM_CONTRAST": Key(
        0.0, "Half range of a random change of contrast: 0.2 multiplies by 0.8..1.2 about the image's mean."
    ),
    "INPUT.RANDOM_SCALE": Key(
        [1.0, 1.0], "Smallest and largest random zoom of a training image, relative to its resized size."
    ),
    "INPUT.RANDOM_SCALE_SAMPLING": Key(
        "log_uniform",
        "How the zoom is drawn: `log_uniform` (half and double equally likely) or `uniform` (as large-scale jitter).",
    ),
    "INPUT.RANDOM_AFFINE.PROBABILITY": Key(
        1.0, "Probability of the affine transform that the other RANDOM_AFFINE keys describe."
    ),
    "INPUT.RANDOM_AFFINE.ROTATION": Key(0.0, "Half range of the rotation angle, degrees; 180 for all directions."),
    "INPUT.RANDOM_AFFINE.SHEAR": Key(0.0, "Half range of the shear angle, degrees."),
    "INPUT.RANDOM_AFFINE.STRETCH": Key(
        1.0, "Largest ratio by which one direction is stretched relative to the other, with areas kept; 1 for none."
    ),
    "INPUT.RANDOM_AFFINE.TRANSLATE": Key(0.0, "Half range of a shift, as a fraction of height and width."),
    "INPUT.RANDOM_ELASTIC.PROBABILITY": Key(
        1.0, "Probability of the elastic deformation that the other RANDOM_ELASTIC keys describe."
    ),
    "INPUT.RANDOM_ELASTIC.MAGNITUDE": Key(
        0.0,
        "Standard deviation of elastic displacements along each axis, in pixels of the training sample; 0 for none.",
    ),
    "INPUT.RANDOM_ELASTIC.SPACING": Key(
        64.0,
        "Distance of the control points of the elastic deformation, in pixels of the training sample; a smaller "
        "one deforms more locally.",
    ),
    "INPUT.ALBUMENTATIONS": Key(
        [],
        "Intensity augmentation by Albumentations: a list of `{name, p, params}`, and `{name, p, transforms}` for "
        "OneOf and the like. docs/augmentation.md.",
        Kind("plain", (1,)),
    ),
    "INPUT.PSEUDO.RANDOM_BRIGHTNESS": Key(
        0.0, "Like INPUT.RANDOM_BRIGHTNESS, applied in addition to the images of DATASETS.PSEUDO."
    ),
    "INPUT.PSEUDO.RANDOM_CONTRAST": Key(
        0.0, "Like INPUT.RANDOM_CONTRAST, applied in addition to the images of DATASETS.PSEUDO."
    ),
    "INPUT.PSEUDO.ALBUMENTATIONS": Key(
        [],
        "Like INPUT.ALBUMENTATIONS, applied in addition to the images of DATASETS.PSEUDO.",
        Kind("plain", (1,)),
    ),
    "INPUT.COPY_PASTE.PROBABILITY": Key(
        0.0,
        "Probability that objects of another sample are pasted into a training sample; 0 is off. docs/augmentation.md.",
    ),
    "INPUT.COPY_PASTE.LAST_ITER": Key(
        0, "Nothing is pasted after this iteration: first with copy-paste, then training as usual. 0: never stop."
    ),
    "INPUT.COPY_PASTE.SOURCES": Key(
        ["train"],
        "Where objects come from: `train` (other images of the training data), `image` (the image itself), "
        "`pseudo` (DATASETS.PSEUDO) and further data sets (catalog names or COCO files; classes are matched by "
        "name, objects of other classes left out).",
    ),
    "INPUT.COPY_PASTE.PSEUDO_SCORE": Key(0.9, "Lowest score of objects that are pasted from `pseudo`."),
    "INPUT.COPY_PASTE.SOURCE_WEIGHTS": Key(
        [], "Relative frequency of each of the SOURCES; `[]`: all equal.", Kind("float", (1,))
    ),
    "INPUT.COPY_PASTE.GROUP_BY": Key(
        "",
        "Objects come only from images with the same value of this image-level field of the COCO file (such as "
        "`group`); empty: from all images.",
    ),
    "INPUT.COPY_PASTE.BALANCE_POWER": Key(
        0.0,
        "How strongly rare classes are preferred, in the choice of images and of objects: 0 not at all, 1 all "
        "classes equally likely.",
    ),
    "INPUT.COPY_PASTE.MAX_OBJECTS": Key(
        50,
        "Largest number of objects pasted into a sample; the number is drawn uniformly from 1 to this. 0: as many "
        "as there are.",
    ),
    "INPUT.COPY_PASTE.PLACE": Key(
        "kept",
        "`kept`: objects stay where they are in their own sample, after its own random crop, zoom and flips "
        "(Ghiasi et al. 2020); `free`: each is placed anywhere inside the sample.",
    ),
    "INPUT.COPY_PASTE.MAX_OVERLAP": Key(
        0.3,
        "An object is not pasted if more than this share of its pixels would cover others, or if more than this "
        "share of any object would be hidden by pasted ones; 1: no limit.",
    ),
    "INPUT.COPY_PASTE.MIN_VISIBLE": Key(
        0.3, "Objects of which a smaller share is left after pasting are dropped, and what is left of them is ignored."
    ),
    "INPUT.COPY_PASTE.SOFT_EDGE": Key(
        0.0,
        "Standard deviation, in pixels of the sample, of the Gaussian that blends the edges of pasted objects; 0: "
        "hard edges.",
    ),
    "INPUT.COPY_PASTE.MARGIN": Key(
        0,
        "Pixels of background that are pasted around an object, such as its halo in phase contrast, where there "
        "is no other object.",
    ),
    "INPUT.COPY_PASTE.MATCH_GRAY": Key(
        False,
        "Shift the intensities of every pasted object so that the background around it matches that of its new place.",
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
        "Additional training sets, named like those of DATASETS.TRAIN. With `train_net --fold` they are used in "
        "every fold and never validated on. Images that are also validated on are refused.",
        Kind("str", (1,)),
    ),
    "DATASETS.TRAIN_WEIGHTS": Key(
        [],
        "Relative frequency of the images of each set of DATASETS.TRAIN, then EXTRA_TRAIN, whatever the sizes of "
        "the sets; `[]`: every image of every set is equally frequent.",
        Kind("float", (1,)),
    ),
    "DATASETS.PSEUDO": Key(
        [],
        "COCO files of pseudo-labels (`detseg pseudo_label label`) to train with; `{fold}` in a name stands for "
        "the fold that is left out. They are never validated on, and are refused if their teachers have seen a "
        "validation image.",
        Kind("str", (1,)),
    ),
    "DATASETS.PSEUDO_RATIO": Key(
        [1, 1],
        "Ratio in every batch of images of DATASETS.TRAIN and EXTRA_TRAIN to images of DATASETS.PSEUDO, whatever "
        "their numbers.",
    ),
    "DATASETS.PSEUDO_CONFIDENCE": Key(
        [],
        "Losses of pseudo-labels that are weighted by confidence: `class` and `box` (by score), `mask` (by "
        "quality, or score), `pixels` (the mask loss of every pixel by 1 - u, u = 1 - 2 abs(p - 0.5), of soft "
        "masks). Native R-CNNs only.",
        Kind("str", (1,)),
    ),
    "DATASETS.PSEUDO_BACKGROUND": Key(
        1.0,
        "Factor on the class losses of background far from all objects of a pseudo-labelled image: the teacher "
        "may have missed an object there. Native R-CNNs only.",
    ),
    "DATASETS.LOSS_WEIGHTS": Key(
        [],
        "Factor on all losses of the images of each set, in the order DATASETS.TRAIN, EXTRA_TRAIN, PSEUDO; `[]`: "
        "1. Native R-CNNs only.",
        Kind("float", (1,)),
    ),
    "DATASETS.FOLDS": Key(
        "",
        "Index of the folds of DATASETS.TRAIN, a CSV or YAML file (see `detseg split`); empty: the field `fold` "
        "of the images.",
    ),
    "DATASETS.FOLD": Key(
        -1,
        "Train without this fold of DATASETS.TRAIN and validate on it, with the annotations of DATASETS.TEST if "
        "that has the same images; -1: no folds. Set by `train_net --fold`.",
    ),
    "DATALOADER.BALANCE_BY": Key(
        "",
        "Makes all values of this image-level field of the COCO file (such as `group`) equally frequent, or, with "
        "`category`, all classes; empty: every image is equally frequent.",
    ),
    "DATALOADER.BALANCE_POWER": Key(1.0, "Strength of BALANCE_BY: 0 no balancing, 1 all values equally frequent."),
    "DATALOADER.CACHE": Key(
        "none",
        "Caches decoded and scaled training images with their masks: `memory` (shared by all loader processes, "
        "deleted after the training) or `disk` (kept, and shared by all trainings).",
    ),
    "DATALOADER.CACHE_SIZE": Key(
        8.0, "Largest size of DATALOADER.CACHE, in GB; further images are read from their files."
    ),
    "DATALOADER.CACHE_FOLDER": Key(
        "", "Folder of the `disk` cache; empty: `samples` in `$DETSEG_CACHE`, else in `~/.cache/detseg`."
    ),
}
