"""`detseg convert_weights`: convert weights of any kind to safetensors, or to .pth for Detectron2."""

from __future__ import annotations

import argparse
from pathlib import Path

from detseg.errors import WeightsError

DESCRIPTION = (
    "Convert weights (a .pth, .pkl or .safetensors file, detectron2://, catalog://, torchvision://, "
    "timm://, package://, https://, wandb://) to a .safetensors file, or to a .pth file that Detectron2 "
    "loads. Names become Detectron2's, or timm's for timm networks."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="the weights: a file or an address")
    parser.add_argument("output", metavar="OUTPUT", help="NAME.safetensors or NAME.pth")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--names", action="store_true", help="also list names and shapes")


def run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from detseg.files.atomic import check_free
    from detseg.models.pretrained import is_named
    from detseg.models.weights import resolve_weights
    from detseg.models.weights.files import WRITTEN_SUFFIXES, is_backbone_alone, read_weights, write_weights
    from detseg.models.weights.names import detectron2_names

    output = Path(arguments.output)
    if output.suffix.lower() not in WRITTEN_SUFFIXES:  # checked before anything is downloaded
        raise WeightsError(f"{output}: expected a name that ends in {' or '.join(WRITTEN_SUFFIXES)}")
    check_free(output, overwrite=arguments.overwrite)
    path = resolve_weights(arguments.source)
    named = detectron2_names(read_weights(path), path.name)
    if is_named(arguments.source):  # recorded, so that loading can check the input settings
        named = replace(named, origin=arguments.source)
    write_weights(output, named)
    numbers = sum(value.numel() for value in named.state.values())
    kind = "a backbone" if is_backbone_alone(named.state) or is_named(arguments.source) else "a model"
    print(f"{output}: {kind}, {len(named.state)} entries, {numbers / 1e6:.2f} million numbers")
    if named.origin:
        print(f"  from {named.origin}; docs/weights.md says which input it needs")
    if arguments.names:
        for name, value in sorted(named.state.items()):
            print(f"  {name}  {tuple(value.shape)}")
    return 0
