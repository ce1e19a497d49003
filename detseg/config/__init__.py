"""The configuration: known keys with defaults, loading with `_BASE_` and overrides, validation, dump and hash."""

from detseg.config.loading import (
    config_hash,
    config_name,
    dump_config,
    get_default_config,
    load_config,
    load_flat_config,
)
from detseg.config.node import Config
from detseg.config.schema import DEFAULT_OUTPUT_DIR

__all__ = [
    "DEFAULT_OUTPUT_DIR",
    "Config",
    "config_hash",
    "config_name",
    "dump_config",
    "get_default_config",
    "load_config",
    "load_flat_config",
]
