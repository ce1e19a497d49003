"""The formats that detseg reads and writes: one row each, from which the commands are made.

`detseg prepare NAME` reads data of a format, `detseg export --format NAME` writes it. A new reader is one file with a
subclass of `reader.Reader`, and one row here. Readers and writers are imported when they are needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Option:
    """An option of `detseg prepare FORMAT`: its flag, and further arguments of argparse's `add_argument`.

    Its value is passed to the reader as the keyword argument `name`.
    """

    def __init__(self, flag: str, **settings: Any) -> None:
        self.flag, self.settings = flag, settings
        self.name: str = settings.get("dest") or flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Writer:
    """One format of `detseg export`.

    function: `module:name` in this package. ending: of files after the name of the image, or, for a format with one
    table of all images, the name of the table. is_table: which of both. has_overlaps: whether every object keeps its
    pixels if objects overlap. has_classes: whether the file has the class of an object.
    """

    description: str
    function: str
    ending: str
    is_table: bool = False
    has_overlaps: bool = False
    has_classes: bool = True

    def load(self) -> Callable[..., None]:
        return _load(self.function)


@dataclass(frozen=True)
class Format:
    """summary: one line for the list of formats. description: text of `detseg prepare FORMAT --help`.

    reader: `module:name` in this package, empty for a format that is only written. options: of the reader. writers:
    name in `detseg export --format` -> writer.
    """

    summary: str
    reader: str = ""
    description: str = ""
    options: tuple[Option, ...] = ()
    writers: Mapping[str, Writer] = field(default_factory=dict)

    def load_reader(self) -> Callable[..., Any]:
        return _load(self.reader)


def _load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def _path(flag: str, help: str, *, metavar: str = "PATH", required: bool = False) -> Option:
    return Option(flag, type=Path, required=required, metavar=metavar, help=help)


def _class_name(default: str, help: str = "name of the class") -> Option:
    return Option("--classes", dest="class_name", default=default, metavar="NAME", help=f"{help} (default: {default})")


def _allow_empty(which: str) -> Option:
    return Option("--allow-empty", action="store_true", help=f"{which} have no objects")


def _annotated(what: str) -> tuple[Option, ...]:
    """Options of the readers of images with one annotation file each (`annotated_images.AnnotatedImages`)."""
    return (
        _path("--source", f"folder or zip archive of images and {what}", required=True),
        _path("--annotations", f"folder or zip archive of {what}, if it is a different one"),
        _allow_empty(f"images without {what}"),
    )


_UNPACKED = "Images in a folder stay where they are; those in an archive are unpacked to OUTPUT/images."
_OWN_SPLIT = "Images in folders train, val and test keep this split."

FORMATS = {
    "label_images": Format(
        "images and label images",
        "label_images:LabelImages",
        "Images and label images: 0 is background, every other value is one object. The images stay where they are.",
        (
            _path(
                "--images", "folder or zip archive of PNG, JPEG, TIFF, BMP or NPY; including subfolders", required=True
            ),
            _path(
                "--labels",
                "the same for label images (PNG, TIFF or NPY; 8, 16 or 32 bit), named like the images",
                required=True,
            ),
            Option(
                "--label-suffix",
                help="suffix of the image's name in the label's, such as _cells in 7_cells.png; default: none, or one "
                "of _mask, _masks, _label, _labels",
            ),
            _class_name("cell"),
            Option(
                "--background",
                type=int,
                metavar="NUMBER",
                help="a value that is background like 0, if the background is stored as an object",
            ),
            Option(
                "--split-regions",
                action="store_true",
                help="make an object of every connected component of a value: for masks of all objects together (0/1, "
                "0/255) in which objects do not touch",
            ),
            _allow_empty("images without label image"),
        ),
        {
            "labels": Writer(
                "label image, TIFF of 16 or 32 bits", "label_images:write_tiff", ".tif", has_classes=False
            ),
            "npy": Writer("label image, NumPy array", "label_images:write_npy", ".npy", has_classes=False),
        },
    ),
    "coco": Format(
        "COCO files: check, join and split them, or remove what is wrong in them",
        "coco_file:CocoFile",
        "Check COCO files and their images, and write them in parts or (--split 1) as all.json. Polygons become "
        "RLEs, ids are renumbered. The images stay where they are.",
        (
            Option(
                "--annotations",
                type=Path,
                nargs="+",
                required=True,
                metavar="FILE",
                help="COCO file; several are joined, if they have the same classes and no image in common",
            ),
            _path("--image-root", "folder of its images, if it differs from that in the file", metavar="DIR"),
            Option(
                "--last-part",
                action="store_true",
                help="use only the last part of every file name, for images that are now all in one folder",
            ),
            Option(
                "--iscrowd",
                choices=("keep", "clear"),
                default="keep",
                help="annotations marked as crowd (CVAT marks everything painted with its brush): keep (default), as "
                "regions to be ignored; clear, as objects",
            ),
        ),
    ),
    "dsb2018": Format(
        "the Data Science Bowl 2018 as downloaded",
        "dsb2018:Dsb2018",
        f"stage1_train of the Data Science Bowl 2018, a folder or the zip archive itself. {_UNPACKED}",
        (
            _path("--source", "folder or zip with ID/images/ID.png, ID/masks/*.png", required=True),
            _path(
                "--run-lengths",
                "masks from stage1_train_labels.csv or the stage-1 solution instead of masks/*.png; images may then "
                "also be ID.png in one folder",
                metavar="CSV",
            ),
            _class_name("nucleus"),
            _allow_empty("images without masks, or without a row in the CSV,"),
        ),
        {
            "dsb2018": Writer(
                "the DSB 2018's table of masks",
                "dsb2018:write_dsb2018",
                "stage1_train_labels.csv",
                is_table=True,
                has_overlaps=True,
                has_classes=False,
            )
        },
    ),
    "sartorius": Format(
        "the Sartorius competition as downloaded",
        "sartorius:Sartorius",
        "train.csv and train/*.png of the Sartorius competition, a folder or the zip archive itself: classes shsy5y, "
        "astro and cort, stratified by cell_type unless another column of train.csv is given; images of "
        f"train_semi_supervised, if present, go to unlabelled.json. {_UNPACKED}",
        (
            _path("--source", "folder or zip with train.csv and train/*.png", required=True),
            _allow_empty("images without a row in train.csv"),
        ),
        {
            "sartorius": Writer(
                "the Sartorius competition's train.csv",
                "sartorius:write_sartorius",
                "train.csv",
                is_table=True,
                has_overlaps=True,
            )
        },
    ),
    "livecell": Format(
        "LIVECell as downloaded, with its official split",
        "livecell:LiveCell",
        "LIVECell (its COCO files, and its images in a folder or images.zip), with the official split, and with the "
        f"cell type of every image as its group. {_UNPACKED}",
        (
            _path(
                "--source",
                "folder that contains livecell_coco_train.json, ..., at any depth",
                metavar="DIR",
                required=True,
            ),
            _path("--images", "folder or zip archive of the images (default: SOURCE/images or .zip)"),
            Option(
                "--cell-type",
                metavar="TYPE",
                help="the official split of one cell type: A172, BT474, BV2, Huh7, MCF7, ...",
            ),
            Option(
                "--percent",
                type=int,
                choices=(2, 4, 5, 25, 50),
                help="the official training file with this percentage of the images",
            ),
        ),
    ),
    "bbbc039": Format(
        "BBBC039 as downloaded, with its published lists",
        "bbbc039:Bbbc039",
        "BBBC039 (images.zip, masks.zip and metadata.zip, unpacked or not), with the published lists of 100, 50 and 50 "
        f"images. Reports whether the test images have the published number of nuclei. {_UNPACKED}",
        (
            _path("--source", "folder with images, masks and metadata (or .zip)", metavar="DIR", required=True),
            _class_name("nucleus"),
            _allow_empty("images without mask"),
        ),
    ),
    "stranger_sections": Format(
        "images with one class mask each",
        "class_masks:ClassMasks",
        "Stranger Sections 2 (NAME.JPG with NAME_gt.npy), or other images with a class mask each (.npy, .png or "
        ".tif): every connected component of a class is one object. Images in folders without any mask go to "
        f"unlabelled.json. {_OWN_SPLIT}",
        (
            *_annotated("masks"),
            Option(
                "--classes",
                dest="class_names",
                nargs="+",
                default=("inertinite", "vitrinite", "liptinite"),
                metavar="NAME",
                help="classes of the values 1, 2, ... (default: inertinite vitrinite liptinite)",
            ),
            Option(
                "--label-suffix",
                default="_gt",
                help="suffix of the image's name in the mask's (default: %(default)s)",
            ),
            Option(
                "--ignore-value", type=int, metavar="N", help="value of pixels that are neither object nor background"
            ),
        ),
        {
            "class_masks": Writer(
                "class mask, NumPy array, as used by Stranger Sections",
                "class_masks:write_class_masks",
                "_pred.npy",
            )
        },
    ),
    "cellpose": Format(
        "images with Cellpose masks",
        "cellpose:Cellpose",
        "Images with Cellpose masks (NAME_seg.npy, or NAME_masks.png or .tif). Nothing in a _seg.npy is executed. "
        f"{_OWN_SPLIT}",
        (*_annotated("masks"), _class_name("cell")),
        {
            "cellpose": Writer("Cellpose's NAME_seg.npy", "cellpose:write_seg_npy", "_seg.npy", has_classes=False),
            "cellpose_masks": Writer(
                "Cellpose's NAME_masks.tif", "cellpose:write_masks", "_masks.tif", has_classes=False
            ),
        },
    ),
    "imagej": Format(
        "images with ImageJ regions",
        "imagej:ImageJRegions",
        "Images with ImageJ regions (NAME.zip, NAME_rois.zip or NAME.roi, as saved by its ROI manager). A pixel "
        "belongs to a region that contains its centre. With --classes-from map:FILE the groups of the regions (or "
        "their names, "
        f"without a group) determine the classes. {_OWN_SPLIT}",
        (*_annotated("regions"), _class_name("cell")),
        {"imagej": Writer("zip of ImageJ regions", "imagej:write_rois", "_rois.zip", has_overlaps=True)},
    ),
    "geojson": Format(
        "images with QuPath GeoJSON files",
        "geojson:GeoJson",
        "Images with QuPath GeoJSON files (NAME.geojson). Classes are the classifications; regions of the class "
        "Ignore* are neither object nor background. A pixel belongs to an object that contains its centre. "
        f"{_OWN_SPLIT}",
        (
            *_annotated("GeoJSON files"),
            _class_name("cell", "class of objects without classification"),
            Option(
                "--object-types",
                nargs="+",
                default=(),
                metavar="TYPE",
                choices=("annotation", "detection", "cell", "tile", "tma_core", "root"),
                help="use only objects of these types (default: annotation, detection and cell)",
            ),
            Option("--nuclei", action="store_true", help="use the nuclei of cells instead of their outlines"),
        ),
        {"geojson": Writer("QuPath's GeoJSON", "geojson:write_geojson", ".geojson", has_overlaps=True)},
    ),
    "measurements": Format(
        "measurements of objects",
        writers={
            "csv": Writer(
                "table of measurements",
                "measurements:write_measurements",
                "measurements.csv",
                is_table=True,
                has_overlaps=True,
            )
        },
    ),
}

WRITERS = {name: writer for row in FORMATS.values() for name, writer in row.writers.items()}

# Formats of labels that are detected by their files (`detect.tell_format`) -> description of these files.
TOLD = {
    "label_images": "label images (PNG, TIFF, NPY), one per image",
    "coco": "one COCO file (.json or .json.gz)",
    "imagej": "regions of ImageJ (.roi, or .zip of these), one per image",
    "geojson": "QuPath's .geojson, one per image",
    "cellpose": "Cellpose's _seg.npy, one per image",
}
