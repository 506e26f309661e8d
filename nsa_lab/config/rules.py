"""Rules across fields: what is refused, and what is allowed but said."""

import math
from collections.abc import Iterator
from typing import Any

from nsa_lab.config.partition_rules import longest_block, partition_rules
from nsa_lab.config.schema import AttentionConfig, ExperimentConfig, TaskConfig
from nsa_lab.config.sizes import FRAMES_PER_PATCH, TOKEN_PIXELS, model_size
from nsa_lab.config.task_rules import task_rules
from nsa_lab.errors import Problem

POSITIVE = (
    "tasks.fps",
    "data.fps",
    "data.max_frames",
    "data.min_pixels",
    "data.max_pixels",
    "data.max_tokens",
    "training.steps",
    "training.batch_size",
    "training.accumulate",
    "training.learning_rate",
    "training.val_every",
    "training.checkpoint_every",
    "training.log_every",
    "training.devices",
)
NOT_NEGATIVE = (
    "seed",
    "tasks.seed",
    "training.warmup_steps",
    "training.weight_decay",
    "training.gradient_clip",
    "data.workers",
    "data.memory_cache_mib",
)
SEEDS = ("seed", "tasks.seed")
MAX_SEED = 2**32 - 1
FRACTIONS = ("training.min_learning_rate_ratio", "training.beta1", "training.beta2")


def broken_rules(config: ExperimentConfig) -> list[Problem]:
    """Every broken rule of a well-typed config."""
    return [
        *_number_rules(config),
        *_model_rules(config),
        *_attention_rules(config),
        *_data_rules(config),
        *(problem for name, task in enabled_tasks(config).items() for problem in task_rules(task, f"tasks.{name}")),
    ]


def notices(config: ExperimentConfig) -> list[str]:
    """What is allowed but worth saying before a run starts."""
    said = []
    for name, task in enabled_tasks(config).items():
        tokens = video_tokens(task)
        blocks = -(-tokens // config.attention.partition.block_size)
        count = config.attention.branches.selection.block_count
        selection = config.attention.branches.selection
        if config.attention.mode == "dense" or not selection.enabled:
            continue
        if selection.token_budget is not None and selection.token_budget >= tokens:
            said.append(
                f"attention.branches.selection.token_budget={selection.token_budget} holds all {tokens} tokens of a"
                f" {name} clip: selection reads every past token there"
            )
        elif selection.token_budget is None and count > blocks:
            said.append(
                f"attention.branches.selection.block_count={count} is more than the {blocks} blocks of a {name} clip"
                f" ({tokens} tokens): selection reads every past token there"
            )
    return said


def enabled_tasks(config: ExperimentConfig) -> dict[str, TaskConfig]:
    """The tasks switched on, by name."""
    tasks: dict[str, TaskConfig] = {
        "needle": config.tasks.needle,
        "order": config.tasks.order,
        "recall": config.tasks.recall,
        "duration": config.tasks.duration,
    }
    return {name: task for name, task in tasks.items() if task.enabled}


def video_tokens(task: TaskConfig) -> int:
    """Video tokens of one clip of a task."""
    return (task.frames // FRAMES_PER_PATCH) * (task.height // TOKEN_PIXELS) * (task.width // TOKEN_PIXELS)


def _number_rules(config: ExperimentConfig) -> Iterator[Problem]:
    # Imported here because load.py imports this module.
    from nsa_lab.config.load import flatten, to_dict

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


def _attention_rules(config: ExperimentConfig) -> Iterator[Problem]:
    # Imported here because load.py imports this module.
    from nsa_lab.config.load import layer_attention, parse_layer_range

    yield from _layer_rules(config.attention, "attention")
    layers = model_size(config.model).num_layers
    for key in config.attention.layers:
        first, last = parse_layer_range(key)
        if last >= layers:
            yield Problem(f"attention.layers.{key}", f"the model has layers 0 to {layers - 1}; shorten the range")
        yield from _layer_rules(layer_attention(config.attention, first), f"attention.layers.{key}")


def _layer_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    branches = attention.branches
    yield from partition_rules(attention, f"{path}.partition")
    if attention.compressor.mlp_hidden < 1:
        yield Problem(f"{path}.compressor.mlp_hidden", f"{attention.compressor.mlp_hidden} is not positive")
    if attention.gate.temperature <= 0:
        yield Problem(f"{path}.gate.temperature", f"{attention.gate.temperature} is not positive")
    if attention.text_window is not None and attention.text_window < 1:
        yield Problem(
            f"{path}.text_window", f"{attention.text_window} holds no token; use 1 or more, or null for all tokens"
        )
    if attention.mode == "dense":
        return
    if not (branches.compression.enabled or branches.selection.enabled or branches.window.enabled):
        yield Problem(f"{path}.branches", f"all branches are off; enable one, or set {path}.mode=dense")
    if branches.window.enabled and branches.window.size < 1:
        yield Problem(
            f"{path}.branches.window.size",
            f"a window of {branches.window.size} holds no token; use 1 or more or {path}.branches.window.enabled=false",
        )
    if branches.selection.enabled:
        yield from _selection_rules(attention, f"{path}.branches.selection")
    if attention.compressor.kind == "mlp" and not branches.compression.enabled:
        yield Problem(
            f"{path}.compressor.kind",
            "'mlp' learns only through the compression branch, which is off; use mean or enable the branch",
        )


def _selection_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    selection = attention.branches.selection
    forced = selection.initial_blocks + selection.local_blocks
    for field in ("initial_blocks", "local_blocks"):
        if getattr(selection, field) < 0:
            yield Problem(f"{path}.{field}", f"{getattr(selection, field)} is negative; use 0 or more")
    if selection.query_tile < 1:
        yield Problem(f"{path}.query_tile", f"{selection.query_tile} is not positive; 1 lets each query choose alone")
        return
    # A tile's local blocks reach from its first query to its last.
    spanned = -(-(selection.query_tile - 1) // max(1, attention.partition.block_size)) if selection.local_blocks else 0
    if selection.block_count < 1:
        yield Problem(f"{path}.block_count", f"{selection.block_count} is not positive")
    elif selection.block_count < forced:
        yield Problem(
            f"{path}.block_count",
            f"{selection.block_count} is less than the {forced} forced blocks (initial_blocks + local_blocks)",
        )
    elif selection.block_count < forced + spanned:
        yield Problem(
            f"{path}.query_tile",
            f"{selection.query_tile} queries can span {spanned} more blocks than one, {forced + spanned} forced blocks "
            f"in all, more than block_count={selection.block_count}; lower query_tile or raise block_count",
        )
    yield from _token_budget_rules(attention, forced + spanned, path)


def _token_budget_rules(attention: AttentionConfig, forced: int, path: str) -> Iterator[Problem]:
    selection, longest = attention.branches.selection, longest_block(attention.partition)
    if selection.rule != "token_budget":
        if selection.token_budget is not None:
            yield Problem(f"{path}.token_budget", f"stands beside rule={selection.rule}; set {path}.rule=token_budget")
    elif selection.token_budget is None:
        yield Problem(f"{path}.token_budget", "is not set, but rule=token_budget needs it: tokens per query and group")
    elif selection.token_budget < max(1, forced * longest):
        yield Problem(
            f"{path}.token_budget",
            f"{selection.token_budget} tokens do not hold the {forced} forced blocks of up to {longest} tokens each",
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
    if data.min_pixels > data.max_pixels:
        yield Problem("data.min_pixels", f"{data.min_pixels} is more than data.max_pixels={data.max_pixels}")


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config
