"""`detseg visualize --embedding RUN`: draw the pixel embeddings of a PixelEmbedding model as colours."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.errors import ConfigError

# Options of `visualize` that do not apply.
_OTHERS = ("predictions", "ground_truth", "postprocess", "score_threshold", "numbers", "config", "overrides")


def draw_embeddings(arguments: argparse.Namespace) -> None:
    """Draw the embeddings of images, and print where they are."""
    from detseg.files.atomic import check_free
    from detseg.images.reading import read_picture
    from detseg.inference.image_list import find_images
    from detseg.inference.image_model import InputImage
    from detseg.inference.predictor import Predictor
    from detseg.progress import ProgressBar
    from detseg.report.drawing import display_scale, resize_display, to_display
    from detseg.report.embedding import principal_colours
    from detseg.report.layout import Panel, compose
    from detseg.report.overlays import overlay_names, write_png

    given = [f"--{name.replace('_', '-')}" for name in _OTHERS if getattr(arguments, name)]
    if given:
        raise ConfigError(f"--embedding draws what a model gives to pixels; {', '.join(given)} cannot be given too")
    if not arguments.images:
        raise ConfigError("give the images: --images DIR, GLOB or COCO.json")
    if arguments.limit < 0:
        raise ConfigError(f"--limit is {arguments.limit}; expected 1 or more, or 0 for all")
    records = find_images(arguments.images, image_root=arguments.image_root).records
    if 0 < arguments.limit < len(records):
        records = [records[number * len(records) // arguments.limit] for number in range(arguments.limit)]
    pictures = [Path(arguments.output, name) for name in overlay_names(records)]
    check_free(*pictures, overwrite=arguments.overwrite)
    source = Path(arguments.embedding)
    predictor = Predictor.from_checkpoint(source) if source.is_file() else Predictor.from_run(source, postprocess=False)
    names = getattr(predictor.model, "map_names", ())
    places = [index for index, name in enumerate(names) if name.startswith("embedding")]
    if not places:
        raise ConfigError(f"{source}: its model has no embeddings; --embedding needs a PixelEmbedding")
    for record, path in ProgressBar(list(zip(records, pictures, strict=True)), desc="drawing", unit="image"):
        image, facts = read_picture(record.path, record.metadata)
        prepared = predictor.detector.prepare(InputImage(image, facts, record.file_name))
        (maps,) = predictor.detector.maps([prepared])
        colours = principal_colours(maps[places], maps[names.index("foreground")])
        scale = display_scale(*colours.shape[:2])
        panels = [
            Panel(resize_display(to_display(image), scale), "Image"),
            Panel(resize_display(colours, scale), "Embedding", "three principal components"),
        ]
        write_png(path, compose(panels, record.file_name, ()))
    print(f"{len(pictures)} pictures in {arguments.output}, for example {pictures[-1].name}")
