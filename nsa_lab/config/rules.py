"""Rules across fields: what is refused, and what is allowed but said."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from nsa_lab.attention.backends import BACKENDS
from nsa_lab.attention.methods import METHODS
from nsa_lab.baselines import REDUCERS
from nsa_lab.config.identity import defaults
from nsa_lab.config.schema import AttentionConfig, ExperimentConfig, ModelConfig
from nsa_lab.config.sizes import is_run, model_size
from nsa_lab.config.tree import flatten, layer_attention, parse_layer_range, read_settings, to_dict
from nsa_lab.errors import Problem
from nsa_lab.files import unfit_for_a_folder
from nsa_lab.layout import FRAMES_AS, FRAMES_PER_PATCH
from nsa_lab.plugin import at, in_use, problems_of, settings, switched_on
from nsa_lab.tasks import TASKS, task_settings

POSITIVE = (
    "tasks.fps",
    "data.fps",
    "data.max_frames",
    "data.min_pixels",
    "data.max_pixels",
    "data.max_tokens",
    "training.batch_size",
    "training.accumulate",
    "training.learning_rate",
    "training.val_every",
    "training.checkpoint_every",
    "training.log_every",
    "training.devices",
    "training.context_parallel",
)
NOT_NEGATIVE = (
    "seed",
    "tasks.seed",
    "training.steps",
    "training.warmup_steps",
    "training.weight_decay",
    "training.gradient_clip",
    "training.activation_offload",
    "data.workers",
    "data.memory_cache_mib",
)
SEEDS = ("seed", "tasks.seed")
MOST_HOST_GIB = 2**20
MAX_SEED = 2**32 - 1
FRACTIONS = ("training.min_learning_rate_ratio", "training.beta1", "training.beta2")


def broken_rules(config: ExperimentConfig, layers: int | None) -> list[Problem]:
    """Every broken rule of a well-typed config, whose model has `layers` decoder layers; None: not known here."""
    return [
        *_name_rules(config),
        *_number_rules(config),
        *_model_rules(config),
        *_attention_rules(config.attention, layers),
        *_data_rules(config),
        *_task_rules(config),
        *_context_parallel_rules(config),
    ]


def notices(config: ExperimentConfig) -> list[str]:
    """What is allowed but worth saying before a run starts."""
    method, own = METHODS[config.attention.method], settings(config.attention, "method")
    said = [notice for name, tokens in clip_tokens(config).items() for notice in method.notices(own, name, tokens)]
    said += [f"{key}={value} is read by nothing that is chosen" for key, value in _misplaced(config)]
    return said + [
        f"{key}={value} is not read: model.path={config.model.path} holds weights, whose shape is stored beside them"
        for key, value in _shape_beside_weights(config.model)
    ]


def _misplaced(config: ExperimentConfig) -> Iterator[tuple[str, Any]]:
    """Settings other than their defaults that nothing reads, in sections that are read and on, or of a kind not chosen
    there."""
    read, usual = read_settings(config), defaults()
    sections = {key.rpartition(".")[0] for key in read}
    for key, value in flatten(to_dict(config)).items():
        section = key.rpartition(".")[0]
        off = read.get(f"{section}.enabled") is False
        beside = f"{section.rpartition('.')[0]}.kind" in read
        if key in usual.keys() - read.keys() and value != usual[key] and (section in sections or beside) and not off:
            yield key, value


def _shape_beside_weights(model: ModelConfig) -> Iterator[tuple[str, Any]]:
    """Settings of shape other than their defaults, where the weights to start from come with a shape of their own.

    Beside the folder of a run a shape other than its own is refused.
    """
    if model.path is None or is_run(model.path):
        return
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name != "path" and value != field.default:
            yield f"model.{field.name}", value


def enabled_tasks(config: ExperimentConfig) -> dict[str, Any]:
    """The settings of the tasks that are switched on, by name."""
    return {name: task_settings(config.tasks, name) for name in switched_on(config.tasks)}


def shown_frames(config: ExperimentConfig, frames: int) -> int:
    """How many of a clip's `frames` the model is shown, by data.fps and data.max_frames."""
    return min(int(frames * min(1.0, config.data.fps / config.tasks.fps)), config.data.max_frames)


def clip_grids(config: ExperimentConfig) -> dict[str, tuple[int, int]]:
    """How many temporal patches one clip has, as the model is shown it, and tokens each, of each task that is on."""
    per_token = FRAMES_AS[config.data.frames_as]
    return {
        name: (
            -(-shown_frames(config, task.frames) // per_token),
            TASKS[name].video_tokens(dataclasses.replace(task, frames=FRAMES_PER_PATCH)),
        )
        for name, task in enabled_tasks(config).items()
    }


def clip_tokens(config: ExperimentConfig) -> dict[str, int]:
    """Video tokens of one clip, as the model is shown it, of each task that is switched on."""
    return {name: frames * size for name, (frames, size) in clip_grids(config).items()}


def _task_rules(config: ExperimentConfig) -> Iterator[Problem]:
    for name, task in enabled_tasks(config).items():
        yield from at(f"tasks.{name}", TASKS[name].problems(task, config.tasks))
    budget = config.training.tokens_per_batch
    if budget is None or budget <= 0 or config.tasks.fps <= 0:
        return
    for name, tokens in clip_tokens(config).items():
        if tokens >= budget:
            reason = f"{budget} holds no clip of tasks.{name}, which has {tokens} video tokens besides its text"
            yield Problem("training.tokens_per_batch", f"{reason}; raise it")


def _name_rules(config: ExperimentConfig) -> Iterator[Problem]:
    if unfit := unfit_for_a_folder(config.name):
        yield Problem("name", f"{config.name!r} cannot name a run's folder: {unfit}")


def single_numbers(config: ExperimentConfig) -> Iterator[Problem]:
    """Numbers that can be wrong whatever else is set."""
    endless = {k: v for k, v in flatten(to_dict(config)).items() if isinstance(v, float) and not math.isfinite(v)}
    if endless:
        yield from (Problem(path, f"{value} is not a finite number") for path, value in endless.items())
        return
    for path in POSITIVE:
        if _get(config, path) <= 0:
            yield Problem(path, f"{_get(config, path)} is not positive")
    for path in NOT_NEGATIVE:
        if _get(config, path) < 0:
            yield Problem(path, f"{_get(config, path)} is negative; use 0 or more")
    for path in SEEDS:
        if _get(config, path) > MAX_SEED:
            yield Problem(path, f"{_get(config, path)} is more than the largest seed, {MAX_SEED}")
    for path in FRACTIONS:
        if not 0 <= _get(config, path) <= 1:
            yield Problem(path, f"{_get(config, path)} is outside 0 to 1")


def _number_rules(config: ExperimentConfig) -> Iterator[Problem]:
    yield from single_numbers(config)
    budget = config.training.tokens_per_batch
    if budget is not None and budget <= 0:
        yield Problem("training.tokens_per_batch", f"{budget} is not positive; leave it null for batch_size samples")
    training = config.training
    if training.activation_offload > 0 and not (training.activation_checkpointing and training.recompute == "auto"):
        yield Problem(
            "training.activation_offload",
            f"{training.activation_offload:g} GiB of the host are taken by training.recompute=auto (now "
            f"{training.recompute}) with training.activation_checkpointing=true (now "
            f"{str(training.activation_checkpointing).lower()}) alone; set both, or leave it 0",
        )
    if training.activation_offload > MOST_HOST_GIB:
        yield Problem(
            "training.activation_offload",
            f"{training.activation_offload:g} GiB are more than a host has; use {MOST_HOST_GIB} or less",
        )
    if config.training.threads is not None and config.training.threads < 1:
        yield Problem("training.threads", f"{config.training.threads} is not positive; leave it null for all cores")


def _model_rules(config: ExperimentConfig) -> Iterator[Problem]:
    size = model_size(config.model)
    for field in (
        "hidden_size",
        "intermediate_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "vision_layers",
    ):
        if getattr(size, field) < 1:
            yield Problem(f"model.{field}", f"{getattr(size, field)} is not positive")
            return
    if size.num_heads % size.num_kv_heads:
        yield Problem(
            "model.num_heads",
            f"{size.num_heads} heads do not divide over {size.num_kv_heads} key/value heads; change num_kv_heads",
        )
    if size.hidden_size % size.num_heads:
        yield Problem("model.hidden_size", f"{size.hidden_size} does not divide over {size.num_heads} heads")
    elif size.head_dim % 16:
        yield Problem(
            "model.hidden_size",
            f"{size.hidden_size} over {size.num_heads} heads gives a head dim of {size.head_dim}; "
            "M-RoPE's three sections need a multiple of 16",
        )
    if size.vision_hidden_size % (4 * size.vision_heads):
        yield Problem(
            "model.vision_hidden_size",
            f"{size.vision_hidden_size} is not a multiple of {4 * size.vision_heads} ({size.vision_heads} heads)",
        )


def beyond_the_last_layer(attention: AttentionConfig, layers: int) -> Iterator[Problem]:
    """Layer overrides, and layers of the reducer, that a model of `layers` decoder layers does not have."""
    reducer = attention.reducer
    yield from at("attention.reducer", REDUCERS[reducer.kind].beyond(settings(reducer), layers))
    for key in attention.layers:
        if parse_layer_range(key)[1] >= layers:
            yield Problem(f"attention.layers.{key}", f"the model has layers 0 to {layers - 1}; shorten the range")


def _attention_rules(attention: AttentionConfig, layers: int | None) -> Iterator[Problem]:
    yield from _layer_rules(attention, "attention")
    yield from at("attention.reducer", problems_of(attention.reducer, "kind", attention))
    if layers is not None:
        yield from beyond_the_last_layer(attention, layers)
    for key in attention.layers:
        layer = layer_attention(attention, parse_layer_range(key)[0])
        yield from _layer_rules(layer, f"attention.layers.{key}")
        if layer.reducer != attention.reducer:
            yield Problem(f"attention.layers.{key}.reducer", "is one for the whole model; set attention.reducer")


def _layer_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    if attention.text_window is not None and attention.text_window < 1:
        yield Problem(
            f"{path}.text_window", f"{attention.text_window} holds no token; use 1 or more, or null for all tokens"
        )
    yield from at(path, problems_of(attention, "method", attention))


def _context_parallel_rules(config: ExperimentConfig) -> Iterator[Problem]:
    size, attention = config.training.context_parallel, config.attention
    layers = [layer_attention(attention, parse_layer_range(key)[0]) for key in attention.layers]
    used = [(name, plugin.divisible) for own in (attention, *layers) for _, name, plugin in in_use(own)]
    used += [(own.backend, BACKENDS[own.backend].divisible) for own in (attention, *layers) if own.backend != "auto"]
    whole = dict.fromkeys(name for name, divisible in used if not divisible)
    if size > 1 and whole:
        yield Problem(
            "training.context_parallel", f"{size} processes cannot share a sample under {', '.join(whole)}; set it to 1"
        )


def _data_rules(config: ExperimentConfig) -> Iterator[Problem]:
    tasks = enabled_tasks(config)
    data = config.data
    if not tasks and data.annotations is None:
        yield Problem("tasks", "nothing to train on; enable a task (tasks.needle.enabled=true) or set data.annotations")
    if tasks and data.annotations is not None:
        yield Problem("data.annotations", f"stands beside the task {', '.join(tasks)}; choose one source of samples")
    if (data.annotations is None) != (data.videos is None):
        lonely, missing = ("annotations", "videos") if data.videos is None else ("videos", "annotations")
        yield Problem(f"data.{missing}", f"is not set, but data.{lonely} is; give both")
    for name, frames in (("fewest_frames", data.fewest_frames), ("most_frames", data.most_frames)):
        if frames is not None and frames < 1:
            yield Problem(f"data.{name}", f"{frames} is not positive; leave it null to keep videos of any length")
    if data.fewest_frames and data.most_frames and data.fewest_frames > data.most_frames:
        yield Problem("data.fewest_frames", f"{data.fewest_frames} is more than data.most_frames={data.most_frames}")
    if data.min_pixels > data.max_pixels:
        yield Problem("data.min_pixels", f"{data.min_pixels} is more than data.max_pixels={data.max_pixels}")


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config
