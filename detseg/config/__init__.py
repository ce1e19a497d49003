"""The configuration: known keys with defaults, loading with `_BASE_` and overrides, validation, dump and hash."""

from detseg.config.differences import DEFAULT_OUTPUT_DIR
from detseg.config.loading import (
    config_hash,
    config_name,
    dump_config,
    get_default_config,
    load_config,
    load_flat_config,
)
from detseg.config.node import Config
from detseg.config.validation import validate_config

__all__ = [
    "DEFAULT_OUTPUT_DIR",
    "Config",
    "config_hash",
    "config_name",
    "dump_config",
    "get_default_config",
    "load_config",
    "load_flat_config",
    "validate_config",
]
