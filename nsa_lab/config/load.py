"""Load a config: defaults < `extends:` file < file < overrides, with every fault reported at once."""

import copy
import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsa_lab.config.rules import broken_rules
from nsa_lab.config.schema import AttentionConfig, ExperimentConfig
from nsa_lab.config.values import fault, unknown_key, widened
from nsa_lab.errors import ConfigError, NsaLabError, Problem

Overrides = Sequence[str] | Mapping[str, Any]


def load_config(path: str | Path | None = None, overrides: Overrides = ()) -> ExperimentConfig:
    """The validated config of `path` with `overrides` on top.

    Overrides are `key=value` strings or a mapping from dotted keys to values. Raises ConfigError with one line per
    unknown key, wrong type, bad choice or broken rule; NsaLabError where a file cannot be read.
    """
    root = OmegaConf.structured(ExperimentConfig)
    problems: list[Problem] = []
    for layer in [*_file_layers(path), _as_tree(overrides)]:
        _apply(root, layer, "", problems)
    _check_layer_overrides(root.attention, problems)
    if problems:
        raise ConfigError(problems)
    config = typing.cast(ExperimentConfig, OmegaConf.to_object(root))
    problems = broken_rules(config)
    if problems:
        raise ConfigError(problems)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, lists and scalars."""
    return dataclasses.asdict(config)


def to_yaml(config: ExperimentConfig) -> str:
    """The resolved config as YAML; `load_config` on it gives an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def layer_attention(attention: AttentionConfig, layer: int) -> AttentionConfig:
    """The attention config of decoder layer `layer`, its overrides applied and `layers` emptied."""
    root = OmegaConf.structured(dataclasses.replace(attention, layers={}))
    problems: list[Problem] = []
    for key, override in sorted((str(k), v) for k, v in attention.layers.items()):
        first, last = parse_layer_range(key)
        if first <= layer <= last:
            _apply(root, override, f"attention.layers.{key}", problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(AttentionConfig, OmegaConf.to_object(root))


def attention_from_dict(tree: Mapping[str, Any]) -> AttentionConfig:
    """An AttentionConfig from plain dicts, as stored in a checkpoint. Raises ConfigError like `load_config`."""
    root = OmegaConf.structured(AttentionConfig)
    problems: list[Problem] = []
    _apply(root, tree, "attention", problems)
    _check_layer_overrides(root, problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(AttentionConfig, OmegaConf.to_object(root))


def parse_layer_range(key: str) -> tuple[int, int]:
    """`"0-3"` as (0, 3) and `"7"` as (7, 7). Raises ValueError on anything else."""
    first, dash, last = key.partition("-")
    span = int(first), int(last if dash else first)
    if span[0] > span[1] or span[0] < 0:
        raise ValueError(key)
    return span


def _file_layers(path: str | Path | None, seen: tuple[Path, ...] = ()) -> Iterator[dict[str, Any]]:
    if path is None:
        return
    file = Path(path)
    if file.resolve() in seen:
        raise NsaLabError(f"{file}: `extends` goes round in a circle; remove one of the links")
    tree = _read_yaml(file)
    parent = tree.pop("extends", None)
    if parent is not None:
        yield from _file_layers(file.parent / str(parent), (*seen, file.resolve()))
    yield tree


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else "; check the path"
        raise NsaLabError(f"config file {file} does not exist{hint}")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file)) if file.read_text().strip() else {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise NsaLabError(f"config file {file} is not readable YAML: {reason}; correct the file") from error
    if not isinstance(tree, dict):
        raise NsaLabError(f"config file {file} holds a {type(tree).__name__}, not keys and values; see `nsa-lab show`")
    return typing.cast(dict[str, Any], tree)


def _as_tree(overrides: Overrides) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = [_parse_override(text) for text in overrides]
    tree: dict[str, Any] = {}
    for key, value in pairs:
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise NsaLabError(f"override {key}: {parent} was given a value before; give it once")
        node[leaf] = value
    return tree


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise NsaLabError(f"override {text!r} is not key=value; write for example training.steps=200")
    try:
        parsed = OmegaConf.from_dotlist([f"x={value}"])
        return key, OmegaConf.to_container(parsed)["x"]  # type: ignore[index,call-overload]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise NsaLabError(f"override {text!r} cannot be parsed: {reason}; quote the value") from error


def _apply(node: DictConfig, tree: Any, path: str, problems: list[Problem]) -> None:
    """Set the leaves of `tree` on the structured `node`, collecting what does not fit."""
    if not isinstance(tree, Mapping):
        problems.append(
            Problem(path or "config", f"{tree!r} is not a mapping; expected keys {', '.join(map(str, node))}")
        )
        return
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in node:
            problems.append(Problem(where, unknown_key(key, [str(k) for k in node])))
        elif _is_section(node, key):
            _apply(node[key], value, where, problems)
        elif key == "layers" and isinstance(value, Mapping):
            node[key] = _merge(OmegaConf.to_container(node[key]), value)
        elif key == "layers":
            problems.append(Problem(where, f"{value!r} is not a mapping from layer ranges ('7', '0-3') to settings"))
        else:
            _set_leaf(node, key, value, where, problems)


def _is_section(node: DictConfig, key: str) -> bool:
    return isinstance(node[key], DictConfig) and key != "layers"


def _set_leaf(node: DictConfig, key: str, value: Any, where: str, problems: list[Problem]) -> None:
    expected = typing.get_type_hints(typing.cast(type, OmegaConf.get_type(node)))[key]
    value = widened(value, expected)
    wrong = fault(value, expected)
    if wrong:
        problems.append(Problem(where, wrong))
    else:
        node[key] = value


def _merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    merged = dict(old)
    for key, value in new.items():
        merged[str(key)] = _merge(merged.get(str(key)), value)
    return merged


def _check_layer_overrides(attention: DictConfig, problems: list[Problem]) -> None:
    for key, override in sorted((str(k), v) for k, v in attention.layers.items()):
        where = f"attention.layers.{key}"
        try:
            parse_layer_range(key)
        except ValueError:
            problems.append(Problem(where, f"{key!r} is not a layer range; write '7' or '0-3'"))
            continue
        probe = copy.deepcopy(attention)
        probe.layers = {}
        _apply(
            probe,
            OmegaConf.to_container(override) if isinstance(override, DictConfig) else override,
            where,
            problems,
        )
        if probe.layers:
            problems.append(Problem(f"{where}.layers", "layer overrides cannot be nested; list each range at the top"))
