"""Load a config: defaults < `extends:` file < file < overrides, with every fault reported at once."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsa_lab.config.identity import ADDED_AS
from nsa_lab.config.rules import broken_rules, single_numbers
from nsa_lab.config.schema import ExperimentConfig, ModelConfig
from nsa_lab.config.sizes import RUN_CONFIG, decoder_layers, is_run, model_size, no_such_folder
from nsa_lab.config.tree import apply, check_layer_overrides, merged, read_settings, schema_of, to_dict, unflatten
from nsa_lab.errors import ConfigError, NsaLabError, Problem, short
from nsa_lab.redact import hide, keep

Overrides = Sequence[str] | Mapping[str, Any]
Tree = Mapping[str, Any]


def load_config(path: str | Path | None = None, overrides: Overrides = ()) -> ExperimentConfig:
    """The validated config of `path` with `overrides` on top.

    Overrides are `key=value` strings or a mapping from dotted keys to values. Where model.path is the folder of a run,
    the model's shape, tokenizer, design and positions are that run's, below everything else. Raises ConfigError with
    one line per unknown key, wrong type, bad choice, broken rule, or shape or tokenizer other than that run's;
    NsaLabError where a file cannot be read.
    """
    layers = [*_file_layers(path), _as_tree(overrides)]
    start = _named_start(layers)
    if start is not None and (fault := no_such_folder(start)):
        raise ConfigError([Problem("model.path", fault)])
    if start is None or not is_run(start):
        return _validated(layers)
    run = load_saved_config(Path(start) / RUN_CONFIG)
    config = _validated([_taken_over(run), *layers])
    if problems := list(unlike(config, run)):
        raise ConfigError(problems)
    return config


def load_saved_config(path: str | Path, overrides: Overrides = ()) -> ExperimentConfig:
    """The config that a run saved at `path`, with `overrides` on top; raises as `load_config`.

    A saved config says every setting there was. What it does not say was as the setting was added (ADDED_AS), whatever
    its default is now.
    """
    return _validated([unflatten(ADDED_AS), *_file_layers(path), _as_tree(overrides)])


def shape_source(model: ModelConfig) -> ModelConfig:
    """Who says what shape `model` has: itself, or of the runs that it goes back to the first. Raises NsaLabError."""
    if model.path is not None and is_run(model.path):
        return shape_source(load_saved_config(Path(model.path) / RUN_CONFIG).model)
    return model


def _named_start(layers: Sequence[Tree]) -> str | None:
    """model.path, before anything is checked; None where it is no text."""
    models = [layer["model"] for layer in layers if isinstance(layer.get("model"), Mapping)]
    named = [model["path"] for model in models if "path" in model]
    return named[-1] if named and isinstance(named[-1], str) else None


def _taken_over(run: ExperimentConfig) -> Tree:
    """What a model that starts from the weights of `run` is, unless told otherwise."""
    shape = {key: value for key, value in to_dict(run.model).items() if key != "path"}
    data = {"tokenizer": run.data.tokenizer, "positions": run.data.positions}
    return {"model": shape, "attention": to_dict(run.attention), "data": data}


def unlike(config: ExperimentConfig, run: ExperimentConfig) -> Iterator[Problem]:
    """What cannot be other than it was where the weights of `run` were trained."""
    mine, theirs = to_dict(config.model), to_dict(run.model)
    other = [key for key in mine if key != "path" and mine[key] != theirs[key]]
    sizes = model_size(config.model), model_size(run.model)
    pairs = {f"model.{key}": (mine[key], getattr(sizes[1], key, theirs[key])) for key in other if sizes[0] != sizes[1]}
    if config.data.tokenizer != run.data.tokenizer:
        pairs["data.tokenizer"] = (config.data.tokenizer, run.data.tokenizer)
    for key, (here, there) in pairs.items():
        yield Problem(key, f"{here} is set, but model.path={config.model.path} was trained with {there}; leave it out")


def _validated(layers: Sequence[Tree]) -> ExperimentConfig:
    root = schema_of(ExperimentConfig)
    problems: list[Problem] = []
    for layer in layers:
        apply(root, layer, "", problems)
    check_layer_overrides(root.attention, problems)
    if problems:
        raise ConfigError([*problems, *_other_numbers(root, {problem.path for problem in problems})])
    config = typing.cast(ExperimentConfig, OmegaConf.to_object(root))
    problems = broken_rules(config, decoder_layers(shape_source(config.model)))
    if problems:
        raise ConfigError(problems)
    if config.tracking.uri:
        config.tracking.uri = keep(config.tracking.uri)
    return config


def _other_numbers(root: typing.Any, faulty: set[str]) -> Iterator[Problem]:
    """What is wrong with numbers besides `faulty` settings, which stand at their defaults in `root`."""
    root.attention.layers = {}  # as they were written, and perhaps no objects
    config = typing.cast(ExperimentConfig, OmegaConf.to_object(root))
    return (problem for problem in single_numbers(config) if problem.path not in faulty)


def to_yaml(config: ExperimentConfig) -> str:
    """The settings that are read, as YAML; `load_config` on it gives a config of the same hash.

    No password is among them.
    """
    return hide(yaml.safe_dump(unflatten(read_settings(config)), sort_keys=False, width=float("inf")))


def _file_layers(path: str | Path | None, seen: tuple[Path, ...] = ()) -> Iterator[dict[str, Any]]:
    if path is None:
        return
    file = Path(path)
    if file.resolve() in seen:
        raise NsaLabError(f"{file}: `extends` goes round in a circle; remove one of the links")
    tree = read_yaml(file)
    parent = tree.pop("extends", None)
    if parent is not None:
        yield from _file_layers(file.parent / str(parent), (*seen, file.resolve()))
    yield tree


def read_yaml(file: Path) -> dict[str, Any]:
    """The tree of a YAML file. Raises NsaLabError where it does not exist, or holds anything but keys and values."""
    if file.is_dir():
        raise NsaLabError(f"config file {file} is a folder; name a YAML file in it")
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else "; check the path"
        raise NsaLabError(f"config file {file} does not exist{hint}")
    try:
        tree = OmegaConf.to_container(OmegaConf.load(file)) if file.read_text().strip() else {}
    except (yaml.YAMLError, ValueError, OSError, RecursionError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise NsaLabError(f"config file {file} is not readable YAML: {reason}; correct the file") from error
    if not isinstance(tree, dict):
        raise NsaLabError(f"config file {file} holds a {type(tree).__name__}, not keys and values; see `nsa-lab show`")
    return typing.cast(dict[str, Any], tree)


def _as_tree(overrides: Overrides) -> dict[str, Any]:
    pairs = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    tree: dict[str, Any] = {}
    for key, value in pairs.items():
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise NsaLabError(f"override {key}: {parent} was given a value before; give it once")
        node[leaf] = merged(node.get(leaf), value)
    return tree


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """`key=value` strings as dotted keys and values, the last one of a key counting. Raises NsaLabError."""
    return dict(_parse_override(text) for text in texts)


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise NsaLabError(f"override {text!r} is not key=value; write for example training.steps=200")
    try:
        parsed = OmegaConf.from_dotlist([f"x={value}"])
        return key, OmegaConf.to_container(parsed)["x"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, ValueError, RecursionError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise NsaLabError(f"override {short(text)} cannot be parsed: {reason}; quote the value") from error
