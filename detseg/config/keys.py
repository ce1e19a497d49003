"""detseg's own configuration keys: everything that Detectron2 does not have, with default and explanation.

`docs/configuration.md` is made from this list. A key whose default does not tell its type (an empty list) declares it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detseg.config.kinds import Kind


@dataclass(frozen=True)
class Key:
    """default: the value where no file sets it. explanation: what the key does, with units and legal values. kind: the
    type of the value; None reads it off the default.
    """

    default: Any
    explanation: str
    kind: Kind | None = None


OWN_KEYS: dict[str, Key] = {
    "MODEL.ENGINE": Key(
        "auto",
        "Which implementation trains and predicts: `detectron2` (Detectron2 itself), `native` (detseg's own R-CNN "
        "family on torch and torchvision) or `auto`: Detectron2 where it imports, knows the architecture and "
        "implements every key that is set, else native. Which one ran, and why, is stored in the run.",
    ),
    "MODEL.IMPORTS": Key(
        [],
        "Code of yours that adds architectures to Detectron2, as `module:function`: the module is imported, and "
        "`function(cfg)` adds its keys to Detectron2's configuration. Taken from configuration files only, and only "
        "from those named on the command line.",
        Kind("str", (1,)),
    ),
    "MODEL.FREEZE": Key(
        [],
        "Patterns of names of parameters that are not trained, such as `backbone.*` (`*` any text); a frozen BatchNorm "
        "keeps its statistics too. Beside MODEL.BACKBONE.FREEZE_AT.",
        Kind("str", (1,)),
    ),
    "MODEL.COMPILE": Key(
        False,
        "Train the backbone through torch.compile. Whether it computes the same is checked at the start; compiling "
        "takes minutes, and anew for other sizes of images: for long trainings with crops of one size, on a GPU.",
    ),
    "MODEL.TORCHVISION.NAME": Key(
        "maskrcnn_resnet50_fpn",
        "Which of torchvision's models MODEL.META_ARCHITECTURE `TorchvisionMaskRCNN` is: `maskrcnn_resnet50_fpn` or "
        "`maskrcnn_resnet50_fpn_v2`.",
    ),
    "MODEL.TIMM.NAME": Key(
        "tf_efficientnet_lite0",
        "The network of MODEL.BACKBONE.NAME `build_timm_fpn_backbone`: any of timm's that gives feature maps of images "
        "of any size (`timm.list_models()`). MODEL.FPN.IN_FEATURES says which it gives: `res1` is that of stride 2, "
        "`res2` of stride 4, to `res5` of stride 32.",
    ),
    "MODEL.TIMM.NORM": Key(
        "own",
        "`own`: its normalisations as they are, which train; `FrozenBN`: its BatchNorms keep the statistics, weights "
        "and biases of MODEL.WEIGHTS.",
    ),
    "MODEL.ROI_MASK_HEAD.BOUNDARY_WEIGHT": Key(
        0.0,
        "By how much more the cells of a mask at the object's boundary, one on either side of it, count in the mean of "
        "its loss; 0 is Detectron2's loss, 2 is a good start.",
    ),
    "MODEL.ROI_MASK_HEAD.QUALITY.ENABLED": Key(
        False,
        "Learn, beside every mask, how well it covers its object (IoU; Mask Scoring R-CNN). Predictions get this "
        "`quality`, and their scores are class score x quality; docs/inference.md. False is Detectron2's model.",
    ),
    "MODEL.ROI_MASK_HEAD.QUALITY.NUM_CONV": Key(
        4, "3 x 3 convolutions of the quality head, the last of stride 2; their NORM is that of the mask head."
    ),
    "MODEL.ROI_MASK_HEAD.QUALITY.CONV_DIM": Key(256, "Channels of these convolutions."),
    "MODEL.ROI_MASK_HEAD.QUALITY.NUM_FC": Key(2, "Fully connected layers after them."),
    "MODEL.ROI_MASK_HEAD.QUALITY.FC_DIM": Key(1024, "Channels of these layers."),
    "MODEL.ROI_MASK_HEAD.QUALITY.CLS_AGNOSTIC": Key(False, "One quality for all classes instead of one for each."),
    "MODEL.ROI_MASK_HEAD.QUALITY.LOSS_WEIGHT": Key(1.0, "Weight of the loss (mean squared error of the IoU)."),
    "MODEL.ROI_MASK_HEAD.QUALITY.RESCORE": Key(
        True,
        "False: predictions get no quality, and their scores are those of the classes, as if nothing judged the masks.",
    ),
    "MODEL.UNET.ENCODER": Key(
        "timm",
        "Of the U-Net systems: `timm`, the network MODEL.TIMM.NAME; `plain`, pairs of convolutions that learn from "
        "scratch, each followed by a maximum over 2 x 2 pixels; or `mit_b0` to `mit_b5`, the transformers of SegFormer "
        "in segmentation_models_pytorch, from scratch.",
    ),
    "MODEL.UNET.DECODER": Key(
        "Unet",
        "What joins the maps of a `timm` encoder: `Unet`, `UnetPlusPlus` or `MAnet` of segmentation_models_pytorch, "
        "`RefineNet`, or `Transposed`: transposed convolutions from the coarsest map alone.",
    ),
    "MODEL.UNET.CHANNELS": Key(
        [256, 128, 64, 32, 16],
        "Channels of the decoder's levels, coarsest first; as many as the encoder halves the image. A `plain` encoder "
        "has the same in reverse, and twice the first below them.",
    ),
    "MODEL.UNET.GUIDES": Key(
        [],
        "Channels computed from the gray values and added to the image: `edges` (length of the gradient), `contours` "
        "(difference of Gaussians: rims and halos), `contrast` (distance from the local mean in local standard "
        "deviations).",
        Kind("str", (1,)),
    ),
    "MODEL.UNET.ACTIVATION": Key("relu", "Of a `plain` network: `relu` or `elu`."),
    "MODEL.UNET.DROPOUT": Key(
        0.0, "Of a `plain` network: the share of values that are dropped between two convolutions."
    ),
    "MODEL.UNET.LOSSES": Key(
        ["cross_entropy", "dice"],
        "What the classes of pixels learn by, summed: `cross_entropy`, `focal` (cross-entropy that counts what is "
        "right already less), `dice` (one value a class, however rare it is).",
    ),
    "MODEL.UNET.CLASS_WEIGHTS": Key(
        [],
        "Weights of the classes of pixels in cross-entropy and focal loss, background first: two values for BinaryUNet "
        "and InstanceUNet, three for BoundaryUNet; `[]`: 1 each.",
        Kind("float", (1,)),
    ),
    "MODEL.UNET.THRESHOLD": Key(
        0.5, "Probability from which on a pixel belongs to an object; 0: the mean probability of the image."
    ),
    "MODEL.UNET.OBJECTS": Key(
        "components",
        "How BinaryUNet makes objects of its foreground: `components` (4-connected) or `watershed` on the distances "
        "from the background.",
    ),
    "MODEL.UNET.HEADS": Key(
        ["distance"],
        "InstanceUNet: what the network tells of every pixel besides foreground: `distance` to the edge of its object "
        "(1 in the middle), `boundary` between objects that touch, `flows` to the centre, `stars` (distances to the "
        "edge along rays).",
    ),
    "MODEL.UNET.OBJECTS_FROM": Key(
        "distance",
        "InstanceUNet: by which of HEADS pixels become objects: `distance` (watershed from its peaks, parted by a "
        "boundary head), `flows` (pixels that end at one place), `stars` (the best of overlapping star-convex shapes "
        "around the peaks of the distance, which it needs too).",
    ),
    "MODEL.UNET.RAYS": Key(32, "InstanceUNet: directions of `stars`, a multiple of 4."),
    "MODEL.UNET.BOUNDARY_WIDTH": Key(
        2,
        "BoundaryUNet, InstanceUNet's boundary head and PixelEmbedding's binary loss: pixels at the network of the "
        "boundary between two objects that touch, half of them from each.",
    ),
    "MODEL.UNET.SEED_DEPTH": Key(
        0.15,
        "InstanceUNet: two peaks of the distance map (1 in the middle of an object) are two objects where the lower "
        "one rises by this above the saddle between them.",
    ),
    "MODEL.EMBEDDING.SIZE": Key(8, "PixelEmbedding: numbers of the embedding of a pixel, a vector of length 1."),
    "MODEL.EMBEDDING.LOSS": Key(
        "contrastive",
        "How pairs of pixels are judged: `contrastive`, every pixel is to be nearer to those of its object than to all "
        "others; `binary`, whether two are of one object, and a head of three classes of pixels (background, inside, "
        "boundary between objects) on the embeddings in place of the heads of foreground and seeds.",
    ),
    "MODEL.EMBEDDING.SAMPLING": Key(
        "windowed",
        "Where the pixels of the pairs are drawn: `uniform`, anywhere on the objects of the image; `windowed`, in "
        "windows at random places, so that neighbours are told apart.",
    ),
    "MODEL.EMBEDDING.SAMPLES": Key(1024, "Pixels drawn in an image, of all windows together."),
    "MODEL.EMBEDDING.WINDOWS": Key(4, "Windows drawn in an image; each pixel is compared with those of its window."),
    "MODEL.EMBEDDING.WINDOW": Key(64, "Side of a window in pixels at the network: a few objects wide."),
    "MODEL.EMBEDDING.TEMPERATURE": Key(0.1, "Differences of cosines that matter to the loss."),
    "MODEL.EMBEDDING.SIMILARITY": Key(
        0.7, "Cosine from which on two pixels are of one object, in the binary loss and wherever objects are made."
    ),
    "MODEL.EMBEDDING.OBJECTS": Key(
        "growing",
        "How objects are made: `growing` from seeds at full resolution, in time linear in pixels; or by clusters of a "
        "coarse grid: `agglomerative` (average linkage of cosine distances), `mean_shift` or `hdbscan` (scikit-learn: "
        "`.[embedding]`).",
    ),
    "MODEL.EMBEDDING.SEEDS": Key(
        "head",
        "Seeds of `growing`: `head`, the map of distances to the edge (binary loss: the probability of the inside); "
        "`density`, how far the 3 x 3 pixels around each have its embedding.",
    ),
    "MODEL.EMBEDDING.SEED_THRESHOLD": Key(0.5, "Value of that map from which on a pixel belongs to a seed."),
    "MODEL.EMBEDDING.GRID": Key([160, 128], "Longer and shorter side of the grid on which clusters are sought."),
    "MODEL.SAM.NAME": Key(
        "facebook/sam-vit-base",
        "Which Segment Anything: a folder of transformers (config.json, model.safetensors), such a .safetensors file, "
        "or a name of the Hugging Face hub; of SAM, SAM 2 or EdgeTAM, of any size (docs/prompted.md).",
    ),
    "MODEL.SAM.PROMPTS": Key(["box", "point"], "What an object is prompted by: `box`, `point` or both."),
    "MODEL.SAM.POINTS": Key(1, "Points inside of each object, the deepest one first."),
    "MODEL.SAM.NEGATIVES": Key(4, "The most points on its nearest neighbours, which are not the object."),
    "MODEL.SAM.MULTIMASK": Key(
        False, "Three masks a prompt, of which the one counts that SAM thinks best: for points without boxes."
    ),
    "MODEL.SAM.TILE": Key(512, "Pixels of the image, along a side, that SAM sees at once, enlarged to its own size."),
    "MODEL.SAM.OVERLAP": Key(
        128, "Pixels that neighbouring tiles share; each object is drawn in the tile it is deepest in."
    ),
    "MODEL.SAM.BATCH": Key(64, "Prompts at once: the memory that they need is bounded by it."),
    "MODEL.SAM.MIN_QUALITY": Key(0.7, "The least IoU with its object that SAM itself expects of a mask that counts."),
    "MODEL.SAM.MIN_STABILITY": Key(
        0.8, "The least stability of such a mask: its pixels of logit above 1 by those above -1."
    ),
    "MODEL.SAM.MIN_OVERLAP": Key(
        0.5, "Its least IoU with the region that prompted it; of a box without mask, of both boxes."
    ),
    "MODEL.SAM.MIN_AREA": Key(1, "Pixels, the least of an object, whoever draws it."),
    "MODEL.SAM.MAX_AREA": Key(0, "Pixels, the most of an object; 0: no limit."),
    "MODEL.SAM.MIN_SHARPNESS": Key(
        0.0,
        "Objects with a less sharp edge are out of focus and dropped: an edge without blur has 0.97, one blurred by "
        "1, 2 and 4 pixels (standard deviation) 0.64, 0.34 and 0.15; 0 keeps all.",
    ),
    "MODEL.SAM.KEEP_LOST": Key(
        True, "An object whose mask does not pass keeps that of the first pass; False drops it."
    ),
    "MODEL.SAM.TRAIN_OBJECTS": Key(32, "The most objects of an image from which one pass of training learns."),
    "MODEL.SAM.CACHE": Key("", "Folder of the embeddings that training keeps; empty: `embeddings` of detseg's cache."),
    "MODEL.RESNETS.RADIX": Key(
        1,
        "Maps that each 3 x 3 convolution gives, between which attention chooses: 2 makes a ResNeSt, as in LIVECell's "
        "published weights, and implies AVD, AVG_DOWN and DEEP_STEM; 1 is a ResNet.",
    ),
    "MODEL.RESNETS.AVD": Key(False, "Blocks that halve the image do so by average pooling behind their 3 x 3."),
    "MODEL.RESNETS.AVG_DOWN": Key(False, "Shortcuts that halve the image do so by average pooling."),
    "MODEL.RESNETS.DEEP_STEM": Key(False, "Three 3 x 3 convolutions in the stem in place of one of 7 x 7."),
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
