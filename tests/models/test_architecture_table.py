"""The table of architectures says what the models are."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from small_sams import save_small_sam

from detseg.config import load_flat_config
from detseg.models.table import ARCHITECTURES, ModelOptions, build_native, num_classes, options_of

FEW_KEYS = {"MODEL.MASK_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 2, "MODEL.RESNETS.NORM": "BN"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_the_table_says_is_what_the_model_gives(name: str, tmp_path: Path) -> None:
    keys = FEW_KEYS | {"MODEL.META_ARCHITECTURE": name}
    needs_weights = "MODEL.SAM.NAME" in options_of(name).rules()
    if needs_weights:
        pytest.importorskip("transformers")
        keys |= {"MODEL.SAM.NAME": str(save_small_sam(tmp_path))}
    cfg = load_flat_config(keys)
    with nullcontext() if needs_weights else torch.device("meta"):
        model = build_native(cfg)
    assert model.takes_boxes == ARCHITECTURES[name].finds_boxes
    assert hasattr(model, "map_names") == ARCHITECTURES[name].averages_maps
    assert model.gives_soft_masks == ARCHITECTURES[name].soft_masks
    assert num_classes(cfg) == 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_limits_are_keys_of_the_architecture(name: str) -> None:
    assert set(ARCHITECTURES[name].limits) <= set(options_of(name).rules()) | set(ModelOptions.rules())
