"""Segment Anything through transformers: one embedding per window, masks for many prompts.

Symbols: B prompts of one window, S the side of the square that the network sees, s that of its masks.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from detseg.data.augment.resampling import resize_image
from detseg.errors import ConfigError, WeightsError, first_line
from detseg.models.prompted.options import INSTALL
from detseg.models.prompted.prompts import Prompts
from detseg.models.weights.files import is_safetensors, read_weights

# `model_type` of a checkpoint's config.json -> its class in transformers. Checkpoints of SAM 2 are of its video model,
# which contains the image model.
CLASSES = {
    "sam": "SamModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
    "edgetam": "EdgeTamModel",
    "edgetam_video": "EdgeTamModel",
}
# ImageNet statistics of RGB in 0..255, with which all were trained.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
Embedding = list[Tensor]


class Promptable(Protocol):
    """Predicts masks for prompts."""

    def embed(self, window: np.ndarray) -> Embedding:
        """Return the embedding of a window (h, w, 3) uint8 RGB, computed once for all its prompts."""

    def masks(
        self, embedding: Embedding, prompts: Prompts, size: tuple[int, int], multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, M, s, s) of masks of the window's square, positive inside, and their expected IoU (B, M).

        prompts: in pixels of the window. size: (height, width) of the window. multimask: M is 3 instead of 1.
        """


class Sam(nn.Module):
    """A SAM, SAM 2 or EdgeTAM of transformers. Its encoders are never trained; `mask_decoder` may be."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        self.side = int(net.config.prompt_encoder_config.image_size)

    @torch.no_grad()
    def embed(self, window: np.ndarray) -> Embedding:
        """See Promptable. The window is resized to a longer side of S, and padded with zeros."""
        device = next(self.net.parameters()).device
        scale = self.side / max(window.shape[:2])
        height, width = (max(round(edge * scale), 1) for edge in window.shape[:2])
        pixels = torch.from_numpy(np.array(resize_image(window, height, width))).to(device).float()
        padded = pixels.new_zeros(1, 3, self.side, self.side)
        normal = (pixels - pixels.new_tensor(_MEAN)) / pixels.new_tensor(_STD)
        padded[0, :, :height, :width] = normal.permute(2, 0, 1)
        embedding = self.net.get_image_embeddings(padded)
        return [embedding] if isinstance(embedding, Tensor) else list(embedding)

    def masks(
        self, embedding: Embedding, prompts: Prompts, size: tuple[int, int], multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """See Promptable."""
        device = next(self.net.parameters()).device
        scale = self.side / max(size)
        given: dict[str, Any] = {}
        if prompts.points is not None:
            # The network adds the half pixel that its coordinate convention lacks.
            given["input_points"] = torch.from_numpy(prompts.points * np.float32(scale) - np.float32(0.5))[None]
            given["input_labels"] = torch.from_numpy(prompts.labels.astype(np.int32))[None]
        if prompts.boxes is not None:
            given["input_boxes"] = torch.from_numpy(prompts.boxes * np.float32(scale) - np.float32(0.5))[None]
        given = {name: value.to(device) for name, value in given.items()}
        one = len(embedding) == 1
        found = self.net(image_embeddings=embedding[0] if one else embedding, multimask_output=multimask, **given)
        return found.pred_masks[0].float(), found.iou_scores[0].float()

    def train_decoder(self) -> None:
        """Make the mask decoder trainable, except the parts that SAM 2 uses before there is a prompt."""
        self.net.mask_decoder.requires_grad_(True)
        for name in ("conv_s0", "conv_s1"):
            if hasattr(self.net.mask_decoder, name):
                getattr(self.net.mask_decoder, name).requires_grad_(False)


def load_sam(source: str) -> Sam:
    """Load a SAM, on the CPU and in evaluation mode.

    Args:
        source: a folder with config.json and *.safetensors as transformers saves them; such a .safetensors file, with
            its config.json next to it; or a name on the Hugging Face hub (facebook/sam-vit-base), which is read from
            its cache, or downloaded.

    Raises:
        ConfigError: transformers is not installed. WeightsError: the weights are not available, or not those of a SAM.
    """
    try:
        transformers = import_module("transformers")
    except ImportError as error:
        raise ConfigError(f"{INSTALL} ({error})") from None
    path = Path(source).expanduser()
    file = path if path.is_file() else None
    if file is not None and not is_safetensors(file):
        raise WeightsError(
            f"{source}: expected a .safetensors file; others (.pth, .pt, .bin) may execute code when they are read and "
            "are refused. transformers converts them: convert_sam_to_hf.py in its models/sam, then save_pretrained"
        )
    folder = path if path.is_dir() else _from_hub(source) if file is None else file.parent
    net_class, config = _class_of(folder, source, transformers)
    # Suppress progress bars and advice of the package: errors are raised below.
    logging = transformers.utils.logging
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if file is None:
            given = {"pretrained_model_name_or_path": str(folder), "use_safetensors": True, "local_files_only": True}
        else:
            given = {"pretrained_model_name_or_path": None, "state_dict": read_weights(file).state}
        net, report = net_class.from_pretrained(config=config, dtype=torch.float32, output_loading_info=True, **given)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{source}: cannot be read as weights of SAM: {str(error).strip()[:300]}") from None
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
    missing = [name for name in report["missing_keys"] if "positional_embedding" not in name]
    if missing:
        raise WeightsError(f"{source}: has no {', '.join(sorted(missing)[:3])}: these are not the weights of a SAM")
    return Sam(net).eval()


def _from_hub(name: str) -> Path:
    """Return the folder of a named checkpoint, from the hub's cache or downloaded."""
    reason = "there is no such file or folder"
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        hub = import_module("huggingface_hub")
        try:
            return Path(hub.snapshot_download(name, allow_patterns=list(_FILES)))
        except (OSError, ValueError) as error:  # network errors and invalid names
            reason = f"it is not in the cache and cannot be downloaded ({first_line(error)})"
    raise WeightsError(
        f"the weights of Segment Anything {name!r} are not available: {reason}. On a machine with internet access:  "
        "`hf download facebook/sam-vit-base config.json model.safetensors --local-dir sam-vit-base` (or sam-vit-huge, "
        "sam2.1-hiera-tiny, a smaller one such as nielsr/slimsam-50-uniform); copy the folder here and give it: "
        "MODEL.SAM.NAME PATH/sam-vit-base, --sam PATH/sam-vit-base"
    )


def _class_of(folder: Path, source: str, transformers: Any) -> tuple[Any, Any]:
    """Return the class of a checkpoint, and its configuration."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = content["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(
            f"{source}: there is no config.json next to the weights, which identifies the SAM; get it from the same "
            "source as the weights"
        ) from None
    if kind not in CLASSES:
        raise WeightsError(f"{source}: is a {kind}; expected one of {', '.join(CLASSES)}")
    net_class = getattr(transformers, CLASSES[kind], None)
    if net_class is None:
        raise ConfigError(f"{source}: transformers {transformers.__version__} has no {CLASSES[kind]}: update it")
    return net_class, net_class.config_class.from_dict({**content, "model_type": net_class.config_class.model_type})


def square_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge logits (B, s, s) of a window's square to the window's pixels, (B, h, w)."""
    side = max(size)
    return nn.functional.interpolate(logits[:, None], (side, side), mode="bilinear")[:, 0, : size[0], : size[1]]


def best_masks(logits: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
    """Return, of masks (B, M, s, s), those with the greatest expected IoU (B, M): (B, s, s) and (B,)."""
    best = quality.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return logits[rows, best], quality[rows, best]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 1 or 3) of any dtype as uint8; values outside 0..255 are rescaled to it.

    Raises ConfigError for other numbers of channels.
    """
    if image.shape[2] not in (1, 3):
        raise ConfigError(
            f"Segment Anything needs RGB or grayscale images, but the model's have {image.shape[2]} channels; choose "
            "one or three with INPUT.CHANNELS"
        )
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255:
            image = (image.astype(np.float32) - low) * np.float32(255 / max(high - low, 1e-12))
        image = np.rint(image).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
