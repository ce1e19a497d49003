"""Replace the masks of objects by those of SAM: gates that new masks must pass, and resolution of overlaps.

Works in pixels of one image, for any first pass: a U-Net's regions, a detector's masks or boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detseg.models.paste import quantise
from detseg.models.prompted.options import GateOptions, RefineOptions
from detseg.models.prompted.prompts import Prompts, make_prompts
from detseg.models.prompted.sam import Promptable, as_rgb, best_masks, square_logits
from detseg.models.prompted.sharpness import sharpness
from detseg.models.prompted.windows import windows_of_boxes
from detseg.structures import rle as rle_codec
from detseg.structures.boxes import box_iou
from detseg.structures.mask_crop import EMPTY, MaskCrop, boxes_of_crops, paint
from detseg.structures.predictions import Predictions, move_window, soft_mask_windows
from detseg.structures.windows import Window

# Logits in this range are near the edge: a mask is stable if few of its pixels are.
STABILITY_OFFSET = 1.0
# Minimum fraction of an object that must be left after overlaps are resolved.
_LEAST_LEFT = 0.5
ABOUT = "sam"


@dataclass(frozen=True)
class Drawn:
    """A mask by SAM: 255 x probability (h, w) uint8 within the box of `crop`, and its quality measures."""

    crop: MaskCrop
    probability: np.ndarray
    quality: float
    stability: float


def refine(
    sam: Promptable, image: np.ndarray, objects: Predictions, options: RefineOptions, *, soft_masks: bool = False
) -> Predictions:
    """Return the objects of an image (H, W, C), in their order, with masks by SAM, without overlaps.

    A mask that fails a gate is rejected: its object keeps its previous mask, or is dropped if it had none or
    `keep_lost` is False. Objects out of focus are dropped. Scores and classes are unchanged. If objects overlap, masks
    by SAM take precedence, then higher scores; an object that loses half of its pixels is dropped. The numbers of new,
    kept and dropped masks are in the provenance, under "sam".
    """
    crops = None if objects.rles is None else rle_codec.decode_crops(objects.rles)
    rgb = as_rgb(image)
    drawn: list[Drawn | None] = [None] * len(objects)
    for index, one in _draw(sam, rgb, objects.boxes, crops, options):
        before = None if crops is None else crops[index]
        if _passes(one, objects.boxes[index], before, options.gates):
            drawn[index] = one
    kept = [EMPTY] * len(objects) if crops is None or not options.gates.keep_lost else crops
    final = [before if one is None else one.crop for one, before in zip(drawn, kept, strict=True)]
    stays = np.array([_fits(crop, options.gates) for crop in final], dtype=bool)
    if options.gates.sharpness:
        stays[stays] = sharpness(rgb, [final[i] for i in np.flatnonzero(stays)]) >= options.gates.sharpness
    is_drawn = np.array([one is not None for one in drawn], dtype=bool)
    order = np.lexsort((-objects.scores, ~is_drawn))
    labels, left = paint(final, order[stays[order]], objects.height, objects.width, fraction=_LEAST_LEFT)
    chosen = np.flatnonzero(left)
    visible = [_visible(labels, final[index], index + 1) for index in chosen]
    result = dataclasses.replace(
        objects.select(chosen),
        boxes=boxes_of_crops(visible),
        rles=rle_codec.encode_crops(visible, objects.height, objects.width),
        soft_masks=None,
    )
    if soft_masks:
        result.soft_masks = _soft_masks(objects, chosen, drawn, visible)
    numbers = {"drawn": int(is_drawn[chosen].sum()), "kept": int((~is_drawn[chosen]).sum())}
    result.provenance[ABOUT] = {**numbers, "dropped": len(objects) - len(chosen)}
    return result


def _draw(
    sam: Promptable, rgb: np.ndarray, boxes: np.ndarray, crops: Sequence[MaskCrop] | None, options: RefineOptions
) -> Iterator[tuple[int, Drawn]]:
    """Yield the index of every object with SAM's mask for it: window by window, prompts in batches."""
    prompts = make_prompts(boxes, crops, options.prompts)
    height, width = rgb.shape[:2]
    for window, indices in windows_of_boxes(height, width, boxes, tile=options.tile, overlap=options.overlap):
        x0, y0, x1, y1 = window
        embedding = sam.embed(np.ascontiguousarray(rgb[y0:y1, x0:x1]))
        for start in range(0, len(indices), options.batch):
            batch = indices[start : start + options.batch]
            yield from zip(batch.tolist(), _masks(sam, embedding, prompts, batch, window, options), strict=True)


@torch.inference_mode()
def _masks(
    sam: Promptable, embedding: list, prompts: Prompts, batch: np.ndarray, window: Window, options: RefineOptions
) -> Iterator[Drawn]:
    x0, y0, x1, y1 = window
    size = (y1 - y0, x1 - x0)
    logits, quality = best_masks(*sam.masks(embedding, prompts.within(batch, window), size, options.multimask))
    full = square_logits(logits, size)
    sure, possible = ((full > offset).sum(dim=(1, 2)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
    stability = (sure / possible.clamp(min=1)).tolist()
    for mask, one_quality, one_stability in zip(full.cpu(), quality.tolist(), stability, strict=True):
        crop = MaskCrop((mask > 0).numpy(), 0, 0).tight()
        probability = quantise(mask.sigmoid().numpy()[crop.window])
        yield Drawn(crop.moved(x0, y0), probability, one_quality, one_stability)


def _passes(drawn: Drawn, box: np.ndarray, before: MaskCrop | None, gates: GateOptions) -> bool:
    """Whether a mask may replace that of its object, of which a mask or only a box XYXY is known."""
    if drawn.quality < gates.quality or drawn.stability < gates.stability or not _fits(drawn.crop, gates):
        return False
    if before is None:
        overlap = float(box_iou(boxes_of_crops([drawn.crop]), box[None])[0, 0])
    else:
        shared = drawn.crop.shared_pixels(before)
        overlap = shared / max(drawn.crop.area + before.area - shared, 1)
    return overlap >= gates.overlap


def _fits(crop: MaskCrop, gates: GateOptions) -> bool:
    return crop.area >= gates.min_area and (not gates.max_area or crop.area <= gates.max_area)


def _visible(labels: np.ndarray, crop: MaskCrop, label: int) -> MaskCrop:
    return MaskCrop(labels[crop.window] == label, crop.x0, crop.y0).tight()


def _soft_masks(
    objects: Predictions, chosen: np.ndarray, drawn: Sequence[Drawn | None], visible: Sequence[MaskCrop]
) -> list[np.ndarray]:
    """Return the soft masks of the visible parts: SAM's, or those that the object had."""
    windows = soft_mask_windows(objects.boxes, objects.height, objects.width).tolist()
    soft = []
    for index, crop in zip(chosen.tolist(), visible, strict=True):
        one = drawn[index]
        if one is not None:
            soft.append(move_window(one.probability, one.crop.box, crop.box))
        elif objects.soft_masks is not None:
            soft.append(move_window(objects.soft_masks[index], windows[index], crop.box))
        else:
            soft.append(crop.mask.astype(np.uint8) * 255)
    return soft
