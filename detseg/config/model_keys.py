"""detseg's own keys of models: MODEL."""

from __future__ import annotations

from detseg.config.key import Key
from detseg.config.kinds import Kind

MODEL_KEYS: dict[str, Key] = {
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
        "right already less), `dice` (one value per class, however rare it is).",
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
    "MODEL.EMBEDDING.LOSS_WEIGHT": Key(
        0.2, "Factor on the embedding's loss, which is many times larger than those of foreground and seeds."
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
}
