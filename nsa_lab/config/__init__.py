"""Configs: the schema, how one is loaded, and the rules that hold across fields."""

from nsa_lab.config.identity import config_hash, is_incidental
from nsa_lab.config.load import (
    attention_from_dict,
    flatten,
    layer_attention,
    load_config,
    parse_layer_range,
    to_dict,
    to_yaml,
)
from nsa_lab.config.schema import AttentionConfig, ExperimentConfig

__all__ = [
    "AttentionConfig",
    "ExperimentConfig",
    "attention_from_dict",
    "config_hash",
    "flatten",
    "is_incidental",
    "layer_attention",
    "load_config",
    "parse_layer_range",
    "to_dict",
    "to_yaml",
]
