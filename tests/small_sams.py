"""Small, randomly initialised networks of transformers' SAM classes, saved as checkpoints are, and objects for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from detseg.structures.mask_crop import MaskCrop

SIDE = 64
_PROMPTS = {"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 4}
_DECODER = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "num_attention_heads": 1,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2],
    "window_size_per_stage": [8, 4, 8, 4],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [2, 2],
}
_PYRAMID = {
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 16,
}
_VIT = {
    "hidden_size": 16,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "num_pos_feats": 8,
    "initializer_range": 0.02,
}
KINDS = ("sam", "sam2")


def save_small_sam(folder: Path, kind: str = "sam") -> Path:
    """Save a network of a kind below a folder and return its own; "sam2" says of itself what published ones do."""
    import transformers

    torch.manual_seed(0)
    if kind == "sam":
        config = transformers.SamConfig(
            vision_config=_VIT, prompt_encoder_config={**_PROMPTS, "patch_size": 8}, mask_decoder_config=_DECODER
        )
        net = transformers.SamModel(config)
    else:
        config = transformers.Sam2Config(
            vision_config={**_PYRAMID, "backbone_config": _HIERA},
            prompt_encoder_config={**_PROMPTS, "patch_size": 16},
            mask_decoder_config=_DECODER,
        )
        net = transformers.Sam2Model(config)
    net.save_pretrained(folder / kind)
    if kind == "sam2":
        file = folder / kind / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "sam2_video"}))
    return folder / kind


def rectangle(x0: int, y0: int, x1: int, y1: int) -> MaskCrop:
    return MaskCrop(np.ones((y1 - y0, x1 - x0), bool), x0, y0)
