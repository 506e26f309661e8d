"""Every knob of nsa-lab, with its default. A YAML file and the command line hold only differences.

The settings of plug-ins stand in their own files; here is what holds them together. The defaults of `attention` are the
paper's (arXiv 2510.02295, section 4: blocks of 64, 32 selected, window 256).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nsa_lab.attention.backends import BACKENDS
from nsa_lab.attention.methods import METHODS
from nsa_lab.baselines import ReducerConfig
from nsa_lab.layout import FRAMES_AS
from nsa_lab.plugin import chosen
from nsa_lab.tasks import TasksConfig


@chosen(method=METHODS)
@dataclass
class AttentionConfig:
    """One decoder layer's attention. `layers` overrides any of these by layer range ("0-3", "7").

    `text_window` lets text rows see only the last tokens of their sample: a probe, under which what happened long ago
    reaches an answer only through the video rows' own attention.
    """

    method: str = "nsa"
    text_window: int | None = None
    reducer: ReducerConfig = field(default_factory=ReducerConfig)
    backend: Literal["auto", *BACKENDS] = "auto"  # type: ignore[valid-type]
    layers: dict[str, Any] = field(default_factory=dict)

    if TYPE_CHECKING:  # the settings of the methods

        def __getattr__(self, name: str) -> Any: ...


@dataclass
class ModelConfig:
    """`size` names a shape; the rest changes it.

    `path` is where to start from: a run's folder, or a folder or hub id of Qwen2.5-VL or VideoNSA weights. Shape and
    layers are then what is stored there. Of a run, the design, the tokenizer and data.positions too, unless set.
    `compile` trains RMSNorm, rotary embedding and MLPs under torch.compile; `auto` does so on a GPU where it pays, and
    says so.
    """

    size: Literal["nano", "micro", "mini", "3b", "7b", "32b", "72b"] = "nano"
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
    compile: Literal["auto", "true", "false"] = "auto"


@dataclass
class DataConfig:
    """Where samples come from and how a video becomes tokens.

    `annotations` (JSON or JSONL in LLaVA-Video-178K's form) and `videos` (the folder its paths are relative to)
    replace the tasks; `absolute_videos` lets rows name files elsewhere by absolute paths. Pixels are per frame.
    Validation is on `val_annotations`; without them, on a fixed tenth of the videos, which is not trained on.
    `fewest_frames` and `most_frames` keep those rows of `annotations` whose videos have so many frames at `fps`, before
    `max_frames` caps them (the paper: 350 to 550 at 4); what is validated on apart or evaluated is not concerned.
    `frames_as` lays the frames out as one `video`, two of them in a token, or as `images`, each between two marks and
    without a time: twice the tokens, and how VideoNSA's released training had them.
    `drop` is a list of videos and rows that are left out, as `nsa-lab data check` writes it.
    `blind` shows grey frames, to measure what the questions give away.
    `positions` says where text goes on after a video: `qwen`, as the published weights were trained, or `transformers`,
    as transformers counts since 5.3 (nsa_lab/data/positions.py).
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
    positions: Literal["qwen", "transformers"] = "qwen"
    cache_dir: str = ".cache/nsa-lab"
    memory_cache_mib: int = 1024
    workers: int = 0
    blind: bool = False
    on_bad_sample: Literal["error", "skip"] = "error"
    absolute_videos: bool = False
    drop: str | None = None
    fewest_frames: int | None = None
    most_frames: int | None = None
    frames_as: Literal[*FRAMES_AS] = "video"  # type: ignore[valid-type]


@dataclass
class TrainingConfig:
    """The optimiser's schedule, in optimiser steps; with `steps` 0 the model is validated as it starts, and no more.

    `tokens_per_batch` fills a batch with samples of up to so many tokens in all, video and text, in place of
    `batch_size` samples; of these validation's batches then are. `accumulate` batches are a step, as ever.
    `recompute` is what activation_checkpointing computes again in a decoder layer: all of it (`full`), all but
    attention and the narrow products (`selective`), or what the GPU has no room for (`auto`).
    `activation_offload` is what `auto` may take of this host's memory besides, in GiB a process.
    `context_parallel` of the processes share each sample, whose rows they divide.
    `memory_history` remembers on a GPU which code holds its memory, to be written down when there is none left: 2
    microseconds a tensor, which `auto` spends on models of a billion parameters or more.
    """

    steps: int = 300
    batch_size: int = 16
    accumulate: int = 1
    tokens_per_batch: int | None = None
    learning_rate: float = 1e-3
    min_learning_rate_ratio: float = 0.1
    warmup_steps: int = 20
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"] = "32-true"
    activation_checkpointing: bool = False
    recompute: Literal["full", "selective", "auto"] = "full"
    activation_offload: float = 0.0
    memory_history: Literal["auto", "true", "false"] = "auto"
    val_every: int = 100
    checkpoint_every: int = 100
    log_every: int = 10
    resume: bool = True
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    context_parallel: int = 1
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
