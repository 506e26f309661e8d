"""Configs: the schema, how one is loaded, and the rules that hold across fields."""

from nsa_lab.config.identity import as_added, config_hash, identity, is_incidental
from nsa_lab.config.load import load_config, load_saved_config, shape_source, to_yaml
from nsa_lab.config.schema import AttentionConfig, ExperimentConfig
from nsa_lab.config.sizes import is_run
from nsa_lab.config.tree import (
    attention_from_dict,
    flatten,
    layer_attention,
    parse_layer_range,
    read_settings,
    to_dict,
    unflatten,
)

__all__ = [
    "AttentionConfig",
    "ExperimentConfig",
    "as_added",
    "attention_from_dict",
    "config_hash",
    "flatten",
    "identity",
    "is_incidental",
    "is_run",
    "layer_attention",
    "load_config",
    "load_saved_config",
    "parse_layer_range",
    "read_settings",
    "shape_source",
    "to_dict",
    "to_yaml",
    "unflatten",
]
