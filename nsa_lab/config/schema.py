"""Every knob of nsa-lab, with its default. A YAML file and the command line hold only differences.

The defaults of `attention` are the paper's (arXiv 2510.02295, section 4: blocks of 64, 32 selected, window 256).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from nsa_lab.config.plugins import plugin_names


@dataclass
class TileConfig:
    """Space-time tiles: the shapes that layers take in turn, and how many frames a tile may span at most."""

    cycle: str = "time row cube"
    max_frames: int = 8


@dataclass
class RouterConfig:
    """The learned router: weight of its ratio loss, and how many layers share one (null: all)."""

    loss_weight: float = 0.03
    group_size: int | None = None


@dataclass
class ClusterConfig:
    """Content clusters: how many share one closed segment of `blocks` x `block_size` tokens; a power of two."""

    blocks: int = 4


@dataclass
class PartitionConfig:
    """How video tokens are cut into blocks, in tokens. Kinds are the lines of `nsa_lab.partition.PARTITIONERS`.

    `block_size` is the length (uniform, shifted), the cap (frame, tile, cluster) or the mean length to aim for
    (scene, router and the controls made from scene), which then lies between `min_size` (scene and its controls) and
    `max_size` (null: twice the block size). `phase` shortens the first block of `shifted` (null: by half); `seed`
    shuffles `random_like`.
    """

    kind: Literal[plugin_names("partition", "PARTITIONERS")] = "uniform"  # type: ignore[valid-type]
    block_size: int = 64
    max_size: int | None = None
    min_size: int = 1
    phase: int | None = None
    seed: int = 0
    tile: TileConfig = field(default_factory=TileConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass
class CompressorConfig:
    """How one block becomes one key and one value. `mlp_hidden` is the width of the `mlp` compressor."""

    kind: Literal["mean", "mlp"] = "mean"
    mlp_hidden: int = 64


@dataclass
class CompressionConfig:
    """Attention over one pooled key per closed block. `log_length_bias` adds log n of the block to its logit."""

    enabled: bool = True
    log_length_bias: bool = False


@dataclass
class SelectionConfig:
    """Attention over the tokens of the best blocks; forced blocks count towards `block_count` and `token_budget`.

    `top_n` takes `block_count` blocks by score. `token_budget` takes blocks by score per token while their lengths sum
    to at most `token_budget`, never more than `block_count`: for blocks of unequal length. `query_tile` neighbouring
    queries of a frame share one choice of blocks; above 1 the layer is causal frame by frame.
    """

    enabled: bool = True
    block_count: int = 32
    initial_blocks: int = 0
    local_blocks: int = 1
    scorer: Literal["compression"] = "compression"
    rule: Literal["top_n", "token_budget"] = "top_n"
    token_budget: int | None = None
    query_tile: int = 1


@dataclass
class WindowConfig:
    """Attention over the last `size` tokens, the query's own included."""

    enabled: bool = True
    size: int = 256


@dataclass
class BranchesConfig:
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    window: WindowConfig = field(default_factory=WindowConfig)


@dataclass
class GateConfig:
    """How branches are weighed. `value` is the weight of `fixed`; the learned kinds start at 0.5 (softmax: 1/R)."""

    kind: Literal["mlp", "linear", "softmax", "constant", "fixed"] = "mlp"
    temperature: float = 1.0
    value: float = 1.0


@dataclass
class AttentionConfig:
    """One decoder layer's attention. `layers` overrides any of these by layer range ("0-3", "7").

    `text_window` lets text rows see only the last tokens of their sample: a probe, under which what happened long ago
    reaches an answer only through the video rows' own attention.
    """

    mode: Literal["sparse", "dense"] = "sparse"
    semantics: Literal["paper"] = "paper"
    context: Literal["video", "all"] = "video"
    text_window: int | None = None
    backend: Literal["auto", "reference", "torch", "triton", "fla"] = "auto"
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    branches: BranchesConfig = field(default_factory=BranchesConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    layers: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """`size` names a shape, `path` a checkpoint (folder or hub id) to start from; the rest changes the shape."""

    size: Literal["nano", "micro", "mini", "3b", "7b"] = "nano"
    path: str | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    vision_hidden_size: int | None = None
    vision_layers: int | None = None
    initializer_range: float | None = None
    rope_theta: float | None = None


@dataclass
class TaskConfig:
    """The clips of a task. `frames` is their length; `noise` is a pixel standard deviation in [0, 1]."""

    enabled: bool = False
    frames: int = 64
    width: int = 56
    height: int = 56
    noise: float = 0.05
    distractors: int = 2
    train_clips: int = 512
    val_clips: int = 128


@dataclass
class NeedleConfig(TaskConfig):
    """A rare event of `event_frames` frames somewhere in a long clip."""

    event_frames: int = 2
    questions: int = 1


@dataclass
class OrderConfig(TaskConfig):
    """Which of two events came first. `events` flashes of distinct colours, one question per disjoint pair."""

    events: int = 4
    event_frames: int = 4
    questions: int = 2


@dataclass
class ScenesConfig(TaskConfig):
    """Scenes of very different length, hard cuts; in frames, one lasts at least `shortest_frames`, and the last
    `closing_frames` show none."""

    frames: int = 40
    noise: float = 0.02
    distractors: int = 0
    train_clips: int = 1024
    val_clips: int = 256
    scenes: int = 4
    shortest_frames: int = 2
    closing_frames: int = 8


@dataclass
class RecallConfig(ScenesConfig):
    """In which scene was the white flash? It lasts `event_frames` frames up to its whole scene."""

    event_frames: int = 2


@dataclass
class DurationConfig(ScenesConfig):
    """Which scene lasted longest, by at least `lead_frames` frames?"""

    lead_frames: int = 4


@dataclass
class TasksConfig:
    """The procedural tasks to train on. `seed` draws the clips, apart from the training seed; `fps` is their rate."""

    seed: int = 0
    fps: float = 2.0
    needle: NeedleConfig = field(default_factory=NeedleConfig)
    order: OrderConfig = field(default_factory=OrderConfig)
    recall: RecallConfig = field(default_factory=RecallConfig)
    duration: DurationConfig = field(default_factory=DurationConfig)


@dataclass
class DataConfig:
    """Where samples come from and how a video becomes tokens.

    `annotations` (JSON or JSONL in LLaVA-Video-178K's form) and `videos` (the folder its paths are relative to)
    replace the tasks. Pixels are per frame. `blind` shows grey frames, to measure what the questions give away.
    """

    annotations: str | None = None
    videos: str | None = None
    val_annotations: str | None = None
    tokenizer: str = "offline"
    system_prompt: str = "You are a helpful assistant."
    fps: float = 2.0
    max_frames: int = 768
    min_pixels: int = 784
    max_pixels: int = 50176
    max_tokens: int = 65536
    cache_dir: str = ".cache/nsa-lab"
    memory_cache_mib: int = 1024
    workers: int = 0
    blind: bool = False
    on_bad_sample: Literal["error", "skip"] = "error"


@dataclass
class TrainingConfig:
    """The optimiser's schedule, in optimiser steps."""

    steps: int = 300
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    min_learning_rate_ratio: float = 0.1
    warmup_steps: int = 20
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "32-true"
    activation_checkpointing: bool = False
    val_every: int = 100
    checkpoint_every: int = 100
    log_every: int = 10
    resume: bool = True
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    threads: int | None = None


@dataclass
class TrackingConfig:
    """`uri` is any MLflow tracking URI; by default a SQLite file in the output folder."""

    enabled: bool = True
    uri: str | None = None
    experiment: str = "nsa-lab"


@dataclass
class OutputConfig:
    """The folder that holds runs, studies and the default MLflow store."""

    dir: str = "runs"


@dataclass
class ExperimentConfig:
    name: str = "unnamed"
    seed: int = 0
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
