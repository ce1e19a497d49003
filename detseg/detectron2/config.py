"""Conversion of detseg's configuration to Detectron2's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from detectron2.config import CfgNode, get_cfg

from detseg.config import Config
from detseg.errors import ConfigError

# MODEL.IMPORTS: user code that registers architectures with Detectron2 and adds their keys to its configuration.


def added_keys(names: Sequence[str]) -> dict[str, Any]:
    """Run the functions in MODEL.IMPORTS; return the keys that they add or whose defaults they change, by dotted name.

    Raises:
        ConfigError: a name is not `module:function`, the module or function does not exist, or it fails.
    """
    before = dict(flatten(get_cfg()))
    node = get_cfg()
    for name in names:
        extend(node, name)
    return {key: value for key, value in flatten(node) if key not in before or _plain(before[key]) != _plain(value)}


def extend(node: CfgNode, name: str) -> None:
    """Import one `module:function` and call it with Detectron2's configuration; raises like `added_keys`."""
    module_name, separator, function_name = name.partition(":")
    if not separator or not module_name or not function_name:
        raise ConfigError(
            f"MODEL.IMPORTS has {name!r}; expected module:function, such as "
            "detectron2.projects.point_rend:add_pointrend_config"
        )
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"MODEL.IMPORTS names {name!r}, which cannot be imported ({error}); put its folder into PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"MODEL.IMPORTS names {name!r}, but {module_name} has no function {function_name}")
    try:
        function(node)
    except Exception as error:  # user code may raise anything
        raise ConfigError(f"MODEL.IMPORTS: {name} failed: {type(error).__name__}: {error}") from error


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values of a Detectron2 configuration by dotted name."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any) -> Any:
    return [_plain(element) for element in value] if isinstance(value, (list, tuple)) else value


def to_cfg_node(cfg: Config) -> CfgNode:
    """Return Detectron2's configuration with the values of `cfg`, frozen; detseg's own keys are left out.

    MODEL.DEVICE is cpu, because the engine moves the model itself.
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
