"""Configs as trees: plain settings put onto the schema, read back, and what of them is read at all."""

import copy
import dataclasses
import functools
import pickle
import threading
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nsa_lab.config.schema import AttentionConfig, ExperimentConfig
from nsa_lab.config.values import fault, unknown_key, widened
from nsa_lab.errors import ConfigError, Problem
from nsa_lab.plugin import unread

Kind = typing.TypeVar("Kind")
Arguments = typing.ParamSpec("Arguments")
Result = typing.TypeVar("Result")
MOST_REMEMBERED = 256

RENAMED = {
    "mode": "method (dense, or nsa for what was sparse)",
    "semantics": "method (nsa is the paper's, released the published code's)",
}
"""Settings of `attention` that have another name now."""


def _remembered(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function`, worked out once for equal arguments; each caller has an object of its own to change. Arguments that
    cannot be pickled are handed on each time."""
    known: dict[bytes, Result] = {}
    guard = threading.Lock()

    @functools.wraps(function)
    def call(*args: Arguments.args, **named: Arguments.kwargs) -> Result:
        try:
            key = pickle.dumps((args, named))
        except (pickle.PicklingError, TypeError, AttributeError):
            return function(*args, **named)
        with guard:
            if key not in known:
                made = copy.deepcopy(function(*args, **named))  # it may hold parts of its arguments
                if len(known) == MOST_REMEMBERED:
                    del known[next(iter(known))]
                known[key] = made
            return copy.deepcopy(known[key])

    return call


@_remembered
def schema_of(kind: type) -> DictConfig:
    """The settings of the dataclass `kind` at their defaults, to be set."""
    return OmegaConf.structured(kind)


_hints = functools.cache(typing.get_type_hints)


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, lists and scalars."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def read_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that something reads, by dotted key: those of the chosen kinds, and of what is switched on.

    A setting of `attention` is read when any layer reads it; one of `attention.layers` when its own layers do.
    """
    attention = config.attention
    layers: dict[int, set[str]] = {
        layer: _unread(layer_attention(attention, layer), "attention.") for layer in _edges(attention)
    }
    nowhere = _unread(config, "") & _common([_unread(attention, "attention."), *layers.values()])
    nowhere |= {key for key in _unread(config, "") if not key.startswith("attention.")}
    settings = {k: v for k, v in flatten(to_dict(config)).items() if not k.startswith("attention.layers")}
    read = {key: value for key, value in settings.items() if not _covered(key, nowhere)}
    for span, override in _overrides(attention):
        first, last = parse_layer_range(span)
        inside = _common([unread for layer, unread in layers.items() if first <= layer <= last])
        for key, value in flatten(override).items():
            if not _covered(f"attention.{key}", inside):
                read[f"attention.layers.{span}.{key}"] = value
    return read


@_remembered
def layer_attention(attention: AttentionConfig, layer: int) -> AttentionConfig:
    """The attention config of decoder layer `layer`, its overrides applied and `layers` emptied."""
    plain = dataclasses.replace(attention, layers={})
    spans = [(*parse_layer_range(key), key, override) for key, override in _overrides(attention)]
    mine = [(key, override) for first, last, key, override in spans if first <= layer <= last]
    if not mine:
        return plain
    root = OmegaConf.structured(plain)
    problems: list[Problem] = []
    for key, override in mine:
        apply(root, override, f"attention.layers.{key}", problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(AttentionConfig, OmegaConf.to_object(root))


@_remembered
def attention_from_dict(tree: Mapping[str, Any]) -> AttentionConfig:
    """An AttentionConfig from plain dicts, as stored in a checkpoint. Raises ConfigError like `load_config`."""
    root = schema_of(AttentionConfig)
    problems: list[Problem] = []
    apply(root, tree, "attention", problems)
    check_layer_overrides(root, problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(AttentionConfig, OmegaConf.to_object(root))


def read_dict(kind: type[Kind], tree: Mapping[str, Any], where: str) -> Kind:
    """The dataclass `kind` from plain dicts; `where` is the file they are from. Raises ConfigError, all faults at once:
    unknown keys, wrong types, and keys without a default that are not there."""
    root = schema_of(kind)
    problems: list[Problem] = []
    apply(root, tree, where, problems)
    problems += [Problem(where, f"{key} is missing") for key in sorted(OmegaConf.missing_keys(root) - set(tree))]
    if problems:
        raise ConfigError(problems)
    return typing.cast(Kind, OmegaConf.to_object(root))


def parse_layer_range(key: str) -> tuple[int, int]:
    """`"0-3"` as (0, 3) and `"7"` as (7, 7). Raises ValueError on anything else."""
    first, dash, last = key.partition("-")
    span = int(first), int(last if dash else first)
    if span[0] > span[1] or span[0] < 0:
        raise ValueError(key)
    return span


def apply(node: DictConfig, tree: Any, path: str, problems: list[Problem]) -> None:
    """Set the leaves of `tree` on the structured `node`, collecting what does not fit."""
    if not isinstance(tree, Mapping):
        expected = ", ".join(map(str, node))
        problems.append(Problem(path or "config", f"{tree!r} is not a mapping; expected keys {expected}"))
        return
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in list(node):  # `in node` leaves out keys that have no default
            problems.append(Problem(where, _unknown(key, node)))
        elif _is_section(node, key):
            apply(node[key], value, where, problems)
        elif key == "layers" and isinstance(value, Mapping):
            node[key] = merged(OmegaConf.to_container(node[key]), value)
        elif key == "layers":
            problems.append(Problem(where, f"{value!r} is not a mapping from layer ranges ('7', '0-3') to settings"))
        else:
            _set_leaf(node, key, value, where, problems)


def check_layer_overrides(attention: DictConfig, problems: list[Problem]) -> None:
    """Collect what is wrong with the keys and settings of `layers`."""
    for key, override in sorted((str(k), v) for k, v in attention.layers.items()):
        where = f"attention.layers.{key}"
        try:
            parse_layer_range(key)
        except ValueError:
            problems.append(Problem(where, f"{key!r} is not a layer range; write '7' or '0-3'"))
            continue
        probe = copy.deepcopy(attention)
        probe.layers = {}
        plain = OmegaConf.to_container(override) if isinstance(override, DictConfig) else override
        apply(probe, plain, where, problems)
        if probe.layers:
            problems.append(Problem(f"{where}.layers", "layer overrides cannot be nested; list each range at the top"))


def _overrides(attention: AttentionConfig) -> list[tuple[str, Any]]:
    return sorted((str(key), value) for key, value in attention.layers.items())


def _edges(attention: AttentionConfig) -> set[int]:
    """Layers among which every combination of overrides occurs: where a range begins, and where one has ended."""
    spans = [parse_layer_range(key) for key, _ in _overrides(attention)]
    return {first for first, _ in spans} | {last + 1 for _, last in spans}


def _unread(section: Any, path: str) -> set[str]:
    """Dotted keys at or below `section` that nothing reads; a key stands for all that is below it."""
    gone = unread(section)
    below: Iterator[tuple[str, Any]] = ((f.name, getattr(section, f.name)) for f in dataclasses.fields(section))
    found = {f"{path}{name}" for name in gone}
    for name, value in below:
        if name not in gone and dataclasses.is_dataclass(value):
            found |= _unread(value, f"{path}{name}.")
    return found


def _common(sets: list[set[str]]) -> set[str]:
    return set.intersection(*sets)


def _covered(key: str, unread_keys: set[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[: n + 1]) in unread_keys for n in range(len(parts)))


def _is_section(node: DictConfig, key: str) -> bool:
    return not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig) and key != "layers"


def _unknown(key: Any, node: DictConfig) -> str:
    if key in RENAMED and OmegaConf.get_type(node) is AttentionConfig:
        return f"is called {RENAMED[key]} now"
    return unknown_key(key, [str(k) for k in node])


def _set_leaf(node: DictConfig, key: str, value: Any, where: str, problems: list[Problem]) -> None:
    expected = _hints(typing.cast(type, OmegaConf.get_type(node)))[key]
    value = widened(value, expected)
    wrong = fault(value, expected)
    if wrong:
        problems.append(Problem(where, wrong))
    else:
        node[key] = value


def merged(old: Any, new: Any) -> Any:
    """`new` over `old`, key by key where both are mappings."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    both = dict(old)
    for key, value in new.items():
        both[str(key)] = merged(both.get(str(key)), value)
    return both
