"""Files in vendor formats, CZI, LIF and ND2, read by bioio's readers, which the extra `microscopes` installs.

Only requested parts are decoded: an image is a lazy array of which a part is computed; a colour CZI is read whole.
bioio-czi has the GPL and is imported only here, when a CZI file is opened.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detseg.errors import DataError
from detseg.files.reading import check_regular
from detseg.images.pixel_source import PlaneSource, readable
from detseg.images.planes import PlaneChoice
from detseg.images.size import check_size
from detseg.structures.sample import FIELD, pixel_size_field

# Suffix -> module of the reader ("": none), and how to export the file from the vendor's program without it.
READERS = {
    ".czi": ("bioio_czi", "ZEN: File > Export/Import > Export, OME-TIFF"),
    ".lif": ("bioio_lif", "LAS X: right click on the image > Export Image, TIFF with OME metadata"),
    ".nd2": ("bioio_nd2", "NIS-Elements: File > Export > ND Document as TIFF"),
    ".vsi": ("", "cellSens or OlyVIA: File > Save as > TIFF"),
}
SUFFIXES = tuple(READERS)
_FIJI = "Fiji: File > Import > Bio-Formats, then File > Save As > OME-TIFF"


def is_microscope_file(path: Path) -> bool:
    """Whether a file has a vendor format, by its suffix."""
    return path.suffix.lower() in READERS


def has_reader(path: Path) -> bool:
    """Whether the reader of this format is installed."""
    module, _ = READERS[path.suffix.lower()]
    return bool(module) and importlib.util.find_spec(module) is not None


def open_microscope_file(path: Path, fields: Mapping[str, Any]) -> PlaneSource:
    """Open one image of a file. Facts are its pixel size and channel names, if the file has them.

    Raises:
        DataError: the reader is not installed, or there is none; the file cannot be read; it has several images
            ("scenes") and none is chosen; see PlaneSource.
    """
    with readable(str(path)):
        check_regular(path)
        if not path.exists():
            raise DataError("there is no such file; check the path and the image root")
        reader = _reader(path)
        choice = PlaneChoice.from_fields(fields)
        scenes = [str(scene) for scene in reader.scenes]
        if choice.scene is None and len(scenes) > 1:
            shown = ", ".join(f"{number} {name}" for number, name in enumerate(scenes[:10]))
            raise DataError(
                f"the file has {len(scenes)} images (scenes: {shown}{', ...' if len(scenes) > 10 else ''}); choose "
                'one with --scene N (in a COCO file the field "plane": {"scene": 0}), or export each as OME-TIFF'
            )
        if choice.scene is not None and choice.scene >= len(scenes):
            last = len(scenes) - 1
            raise DataError(f"scene {choice.scene} is chosen, but the file has {len(scenes)} (0 to {last})")
        reader.set_scene(choice.scene or 0)
        is_bgr = path.suffix.lower() == ".czi" and "S" in reader.dims.order
        kind = "mosaic_xarray" if "M" in reader.dims.order else "xarray"  # assembles the tiles of a mosaic
        if is_bgr:
            # bioio-czi 3.0 returns the first colour for all three when it reads lazily.
            check_size(reader.dims.Y, reader.dims.X * math.prod(reader.dims.shape[:-3]))
        array = getattr(reader, f"{kind}{'' if is_bgr else '_dask'}_data")
        lazy, lock = array.data, threading.Lock()

        def get(index: tuple[Any, ...]) -> np.ndarray:
            with lock:  # reads share one file position
                return np.asarray(lazy[index] if is_bgr else lazy[index].compute(scheduler="synchronous"))

        source = _Source(get, lazy.shape, "".join(map(str, array.dims)), name=str(path), fields=fields)
        source.is_bgr = is_bgr
        source.facts = {**_facts(reader, source.num_channels, source.plane.channel), **fields}
        return source


class _Source(PlaneSource):
    """CZI stores the colours of a pixel in the order blue, green, red."""

    is_bgr = False

    def meaning(self, array: np.ndarray) -> np.ndarray:
        return array[:, :, 2::-1] if self.is_bgr and array.shape[2] >= 3 else array


def _reader(path: Path) -> Any:
    module, export = READERS[path.suffix.lower()]
    kind = path.suffix[1:].upper()
    exports = f"export it as OME-TIFF ({export}; or {_FIJI})"
    if not module:
        raise DataError(f"{kind} files cannot be read: {exports}")
    try:
        reader = importlib.import_module(module).Reader
    except ImportError:
        package = module.replace("_", "-")
        raise DataError(
            f"reading {kind} needs the package {package}: pip install {package}, or for all vendors "
            f"pip install 'detseg[microscopes]'; or {exports}"
        ) from None
    # One image per chunk; the reader's default would decode all slices for one.
    return reader(str(path)) if module == "bioio_nd2" else reader(str(path), chunk_dims=["Y", "X", "S"])


def _facts(reader: Any, num_channels: int, channel: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    sizes = reader.physical_pixel_sizes  # micrometres
    if sizes.Y and sizes.X and sizes.Y > 0 and sizes.X > 0:
        facts[FIELD] = pixel_size_field((float(sizes.Y), float(sizes.X)))
    names = [str(name) for name in reader.channel_names or ()]
    if channel == "C" and len(names) == num_channels == len(set(names)):
        facts["channel_names"] = names
    return facts
