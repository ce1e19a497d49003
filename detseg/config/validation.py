"""Combinations of values that cannot work, refused before any data is read."""

from __future__ import annotations

from detseg.config.node import Config


def check_combinations(cfg: Config) -> None:
    """Refuse what no engine could build or train."""


def validate_config(cfg: Config, *, training: bool = True) -> None:
    """Everything that training (or, with `training=False`, prediction) asks of a configuration."""
    check_combinations(cfg)
