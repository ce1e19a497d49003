"""detseg's configuration as Detectron2's."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, get_cfg

from detseg.config import Config
from detseg.detectron2.imports import extend, flatten


def to_cfg_node(cfg: Config) -> CfgNode:
    """Return Detectron2's configuration with the values of `cfg`, frozen; keys that only detseg has are left out.

    MODEL.DEVICE is the CPU: the engine moves the model itself.
    """
    node = get_cfg()
    for name in cfg.MODEL.IMPORTS:
        extend(node, name)
    values = cfg.flatten()
    for key, default in list(flatten(node)):
        if key in values:
            _set(node, key, tuple(values[key]) if isinstance(default, tuple) else values[key])
    node.MODEL.DEVICE = "cpu"
    node.freeze()
    return node


def _set(node: CfgNode, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
