"""detseg's own model keys: MODEL."""

from __future__ import annotations

from detseg.config.key import Key
from detseg.config.kinds import Kind

MODEL_KEYS: dict[str, Key] = {
    "MODEL.ENGINE": Key(
        "auto",
        "Which implementation trains and predicts: `detectron2` (Detectron2 itself), `native` (detseg's own R-CNN "
        "family on torch and torchvision) or `auto`: Detectron2 if it can be imported, knows the architecture and "
        "implements every key that is set, else native. Which one ran, and why, is stored in the run.",
    ),
    "MODEL.IMPORTS": Key(
        [],
        "Your code that adds architectures to Detectron2, as `module:function`: the module is imported, and "
        "`function(cfg)` adds its keys to Detectron2's configuration. Read only from configuration files that are "
        "named on the command line.",
        Kind("str", (1,)),
    ),
    "MODEL.FREEZE": Key(
        [],
        "Name patterns of parameters that are not trained, such as `backbone.*` (`*` matches any text); a frozen "
        "BatchNorm also keeps its statistics. In addition to MODEL.BACKBONE.FREEZE_AT.",
        Kind("str", (1,)),
    ),
    "MODEL.COMPILE": Key(
        False,
        "Train the backbone through torch.compile. Whether it gives the same results is checked at the start. "
        "Compiling takes minutes, again for every new image size: for long trainings with crops of one size, on a "
        "GPU.",
    ),
    "MODEL.TORCHVISION.NAME": Key(
        "maskrcnn_resnet50_fpn",
        "Which of torchvision's models MODEL.META_ARCHITECTURE `TorchvisionMaskRCNN` is: `maskrcnn_resnet50_fpn` or "
        "`maskrcnn_resnet50_fpn_v2`.",
    ),
    "MODEL.TIMM.NAME": Key(
        "tf_efficientnet_lite0",
        "The network of MODEL.BACKBONE.NAME `build_timm_fpn_backbone`: any timm network that gives feature maps "
        "for images of any size (`timm.list_models()`). MODEL.FPN.IN_FEATURES selects them: `res1` has stride 2, "
        "`res2` stride 4, up to `res5` with stride 32.",
    ),
    "MODEL.TIMM.NORM": Key(
        "own",
        "`own`: the network's own normalization, trained; `FrozenBN`: its BatchNorms keep the statistics, weights "
        "and biases of MODEL.WEIGHTS.",
    ),
    "MODEL.ROI_MASK_HEAD.BOUNDARY_WEIGHT": Key(
        0.0,
        "Additional weight in the mask loss of the cells at the object's boundary, one on either side; 0 is "
        "Detectron2's loss, 2 is a good start.",
    ),
    "MODEL.ROI_MASK_HEAD.QUALITY.ENABLED": Key(
        False,
        "Also predict how well every mask covers its object (IoU; Mask Scoring R-CNN). Predictions get this "
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
        "False: predictions get no quality, and keep their class scores, as if there were no quality head.",
    ),
    "MODEL.UNET.ENCODER": Key(
        "timm",
        "Encoder of the U-Net systems: `timm`, the network MODEL.TIMM.NAME; `plain`, pairs of convolutions with 2 "
        "x 2 max pooling, trained from scratch; or `mit_b0` to `mit_b5`, the transformers of SegFormer in "
        "segmentation_models_pytorch, from scratch.",
    ),
    "MODEL.UNET.DECODER": Key(
        "Unet",
        "Decoder on the feature maps of the encoder: `Unet`, `UnetPlusPlus` or `MAnet` of "
        "segmentation_models_pytorch, `RefineNet`, or `Transposed`: transposed convolutions from the coarsest map "
        "only.",
    ),
    "MODEL.UNET.CHANNELS": Key(
        [256, 128, 64, 32, 16],
        "Channels of the decoder's levels, coarsest first; one for each time that the encoder halves the image. A "
        "`plain` encoder has the same in reverse, and twice the first below them.",
    ),
    "MODEL.UNET.GUIDES": Key(
        [],
        "Channels that are computed from the gray values and added to the image: `edges` (gradient magnitude), "
        "`contours` (difference of Gaussians: rims and halos), `contrast` (difference from the local mean in "
        "local standard deviations).",
        Kind("str", (1,)),
    ),
    "MODEL.UNET.ACTIVATION": Key("relu", "Activation of a `plain` network: `relu` or `elu`."),
    "MODEL.UNET.DROPOUT": Key(0.0, "Dropout rate of a `plain` network, between two convolutions."),
    "MODEL.UNET.LOSSES": Key(
        ["cross_entropy", "dice"],
        "Losses of the classes of pixels, summed: `cross_entropy`, `focal` (cross-entropy that reduces the weight "
        "of pixels that are already right), `dice` (one value per class, however rare it is).",
    ),
    "MODEL.UNET.CLASS_WEIGHTS": Key(
        [],
        "Weights of the classes of pixels in cross-entropy and focal loss, background first: two values for "
        "BinaryUNet and InstanceUNet, three for BoundaryUNet; `[]`: 1 each.",
        Kind("float", (1,)),
    ),
    "MODEL.UNET.THRESHOLD": Key(
        0.5, "Lowest probability at which a pixel belongs to an object; 0: the mean probability of the image."
    ),
    "MODEL.UNET.OBJECTS": Key(
        "components",
        "How BinaryUNet makes objects from its foreground: `components` (4-connected) or `watershed` on the "
        "distance from the background.",
    ),
    "MODEL.UNET.HEADS": Key(
        ["distance"],
        "InstanceUNet: what the network predicts for every pixel besides foreground: `distance` to the edge of "
        "its object (1 in the middle), `boundary` between touching objects, `flows` to the centre, `stars` "
        "(distances to the edge along rays).",
    ),
    "MODEL.UNET.OBJECTS_FROM": Key(
        "distance",
        "InstanceUNet: the head that makes the objects: `distance` (watershed from its peaks, split by a boundary "
        "head if there is one), `flows` (pixels that arrive at one point), `stars` (the best of overlapping "
        "star-convex shapes around the peaks of the distance, which it also needs).",
    ),
    "MODEL.UNET.RAYS": Key(32, "InstanceUNet: number of directions of `stars`, a multiple of 4."),
    "MODEL.UNET.BOUNDARY_WIDTH": Key(
        2,
        "BoundaryUNet, InstanceUNet's boundary head and PixelEmbedding's binary loss: width of the boundary "
        "between two touching objects, in pixels at the network's input, half of it in each object.",
    ),
    "MODEL.UNET.SEED_DEPTH": Key(
        0.15,
        "InstanceUNet: two peaks of the distance map (1 in the middle of an object) are two objects if the lower "
        "one rises by at least this above the saddle between them.",
    ),
    "MODEL.EMBEDDING.SIZE": Key(8, "PixelEmbedding: length of the embedding of a pixel, a vector of norm 1."),
    "MODEL.EMBEDDING.LOSS": Key(
        "contrastive",
        "Loss on pairs of pixels. `contrastive`: every pixel should be nearer to those of its object than to all "
        "others. `binary`: whether two pixels are of one object; a head of three classes of pixels (background, "
        "inside, boundary between objects) on the embeddings then replaces the heads of foreground and seeds.",
    ),
    "MODEL.EMBEDDING.LOSS_WEIGHT": Key(
        0.2, "Weight of the embedding loss, which is many times larger than those of foreground and seeds."
    ),
    "MODEL.EMBEDDING.SAMPLING": Key(
        "windowed",
        "Where the pixels of the pairs are sampled: `uniform`, anywhere on the objects of the image; `windowed`, "
        "in windows at random places, so that neighbours are separated.",
    ),
    "MODEL.EMBEDDING.SAMPLES": Key(1024, "Pixels sampled per image, in all windows together."),
    "MODEL.EMBEDDING.WINDOWS": Key(4, "Windows sampled per image; each pixel is compared with those of its window."),
    "MODEL.EMBEDDING.WINDOW": Key(64, "Side of a window in pixels at the network's input: a few objects wide."),
    "MODEL.EMBEDDING.TEMPERATURE": Key(0.1, "Temperature of the loss: differences of cosines of this size matter."),
    "MODEL.EMBEDDING.SIMILARITY": Key(
        0.7, "Lowest cosine at which two pixels are of one object, in the binary loss and wherever objects are made."
    ),
    "MODEL.EMBEDDING.OBJECTS": Key(
        "growing",
        "How objects are made: `growing` from seeds at full resolution, in time linear in pixels; or as clusters "
        "on a coarse grid: `agglomerative` (average linkage of cosine distances), `mean_shift` or `hdbscan` "
        "(scikit-learn: `.[embedding]`).",
    ),
    "MODEL.EMBEDDING.SEEDS": Key(
        "head",
        "Seeds of `growing`: `head`, from the map of distances to the edge (binary loss: the probability of the "
        "inside); `density`, from the similarity of each pixel's embedding to those of the 3 x 3 pixels around "
        "it.",
    ),
    "MODEL.EMBEDDING.SEED_THRESHOLD": Key(0.5, "Lowest value of that map at which a pixel belongs to a seed."),
    "MODEL.EMBEDDING.GRID": Key([160, 128], "Longer and shorter side of the grid on which embeddings are clustered."),
    "MODEL.SAM.NAME": Key(
        "facebook/sam-vit-base",
        "Which Segment Anything: a folder of transformers (config.json, model.safetensors), such a .safetensors "
        "file, or a name on the Hugging Face hub; SAM, SAM 2 or EdgeTAM, of any size (docs/prompted.md).",
    ),
    "MODEL.SAM.PROMPTS": Key(["box", "point"], "Prompts for an object: `box`, `point` or both."),
    "MODEL.SAM.POINTS": Key(1, "Points inside each object, the deepest one first."),
    "MODEL.SAM.NEGATIVES": Key(4, "Largest number of negative points on the nearest neighbours of an object."),
    "MODEL.SAM.MULTIMASK": Key(
        False,
        "SAM predicts three masks per prompt, of which the one that it rates best is used: for points without boxes.",
    ),
    "MODEL.SAM.TILE": Key(
        512, "Side of the tiles that SAM sees, in pixels of the image; they are enlarged to its own size."
    ),
    "MODEL.SAM.OVERLAP": Key(
        128, "Pixels by which neighbouring tiles overlap; each object is drawn in the tile in which it lies deepest."
    ),
    "MODEL.SAM.BATCH": Key(64, "Prompts that are decoded at once; bounds their memory."),
    "MODEL.SAM.MIN_QUALITY": Key(0.7, "Lowest IoU with its object that SAM itself predicts of a mask that is used."),
    "MODEL.SAM.MIN_STABILITY": Key(
        0.8, "Lowest stability of a SAM mask: its number of pixels with a logit above 1, divided by that above -1."
    ),
    "MODEL.SAM.MIN_OVERLAP": Key(
        0.5, "Lowest IoU of a SAM mask with the region that prompted it; for a box without mask, of both boxes."
    ),
    "MODEL.SAM.MIN_AREA": Key(1, "Smallest area of an object, pixels, whichever model drew it."),
    "MODEL.SAM.MAX_AREA": Key(0, "Largest area of an object, pixels; 0: no limit."),
    "MODEL.SAM.MIN_SHARPNESS": Key(
        0.0,
        "Objects with a less sharp edge are out of focus and dropped: an edge without blur has 0.97, one blurred "
        "by 1, 2 and 4 pixels (standard deviation) 0.64, 0.34 and 0.15; 0 keeps all.",
    ),
    "MODEL.SAM.KEEP_LOST": Key(
        True, "An object whose SAM mask does not pass the gates keeps the first model's mask; False drops it."
    ),
    "MODEL.SAM.TRAIN_OBJECTS": Key(32, "Largest number of objects of an image that one training pass uses."),
    "MODEL.SAM.CACHE": Key("", "Folder in which training caches embeddings; empty: `embeddings` in detseg's cache."),
    "MODEL.RESNETS.RADIX": Key(
        1,
        "Number of feature maps per 3 x 3 convolution between which attention chooses: 2 makes a ResNeSt, as in "
        "LIVECell's published weights, and implies AVD, AVG_DOWN and DEEP_STEM; 1 is a ResNet.",
    ),
    "MODEL.RESNETS.AVD": Key(
        False, "Blocks that halve the resolution do so by average pooling after their 3 x 3 convolution."
    ),
    "MODEL.RESNETS.AVG_DOWN": Key(False, "Shortcuts that halve the resolution do so by average pooling."),
    "MODEL.RESNETS.DEEP_STEM": Key(False, "Three 3 x 3 convolutions in the stem instead of one of 7 x 7."),
}
