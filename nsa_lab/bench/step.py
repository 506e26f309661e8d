"""A training step of a model on one random clip: forward, backward and optimiser."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

from nsa_lab.bench.measure import Measurement, Point, memory_mib, now
from nsa_lab.config import ExperimentConfig, load_config
from nsa_lab.data import Example, Turn, load_tokenizer, pack
from nsa_lab.data.chat import VIDEO_TOKEN, encode_chat
from nsa_lab.data.positions import mrope_positions
from nsa_lab.layout import MERGE
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.checkpoint import bare_config
from nsa_lab.model.fresh import random_model
from nsa_lab.origin import training_device
from nsa_lab.training.build import build_module
from nsa_lab.training.ranks import Ranks
from nsa_lab.training.schedule import build_optimizer
from nsa_lab.training.score import score_answers

FRAME_TOKENS = 64
ANSWER = "red"


@dataclass(frozen=True)
class Step:
    """A model and a random batch for it, on the device that the config asks for; `run` is a training step on it."""

    model: VideoNSAForConditionalGeneration
    batch: dict[str, Any]
    optimizer: torch.optim.Optimizer | None
    device: torch.device
    autocast: bool

    def run(self) -> float:
        """Forward, backward and, where there is one, optimiser; its seconds."""
        started = now(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = score_answers(self.model, self.batch).loss
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        return now(self.device) - started


def measure_step(tree: dict[str, Any], point: Point, repeats: int) -> Measurement:
    """Build the model and time forward, backward and optimiser on a random clip, in this process."""
    step = build_step(tree, point)
    base = memory_mib(step.device, peak=False)
    step.run()
    seconds = min(step.run() for _ in range(repeats))
    return Measurement(seconds, memory_mib(step.device, peak=True) - base, base)


def build_step(tree: dict[str, Any], point: Point, optimizer: bool = True, answer: str = ANSWER) -> Step:
    """The model as it trains (model.compile, training.activation_checkpointing, precision), with random weights.

    Where several processes measure together, they share the weights, and the clip as training.context_parallel says.
    """
    config = load_config(None, tree)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    device = training_device(config.training.accelerator)
    tokenizer = load_tokenizer(config.data.tokenizer, Path(config.data.cache_dir))
    ranks = Ranks.of(config.training)
    module = build_module(config, tokenizer, partial(_random_model, device=device), ranks)
    if ranks.world > 1:
        module.split(init_device_mesh(device.type, (ranks.world,)))
    model = module.model.to(device)
    if device.type == "cuda":  # each weight was drawn in float32
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batch = random_batch(point.video_tokens, tokenizer, config, answer)
    own_rows = module.group.divide(batch) if module.group else batch
    batch = {k: v.to(device) if hasattr(v, "to") else v for k, v in own_rows.items()}
    own = build_optimizer(model, config.training)[0] if optimizer else None
    return Step(model, batch, own, device, config.training.precision == "bf16-mixed")


def _random_model(config: ExperimentConfig, tokenizer: Any, device: torch.device) -> VideoNSAForConditionalGeneration:
    return random_model(bare_config(config, tokenizer), config.training, device)


def random_batch(video_tokens: int, tokenizer: Any, config: ExperimentConfig, answer: str = ANSWER) -> dict[str, Any]:
    """One sample of random pixels with `video_tokens` tokens, a question and `answer`, packed for training."""
    frames = video_tokens // FRAME_TOKENS
    side = MERGE * math.isqrt(FRAME_TOKENS)
    grid = torch.tensor([[frames, side, side]])
    turns = [Turn("Which colour came first?", answer)]
    chat = encode_chat(turns, [video_tokens], tokenizer, config.data.system_prompt)
    is_video = chat.input_ids == tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    seconds = torch.arange(frames, dtype=torch.float64) * 2 / config.data.fps
    example = Example(
        input_ids=chat.input_ids,
        labels=chat.labels,
        position_ids=mrope_positions(is_video, grid, seconds, positions=config.data.positions),
        pixel_values=torch.randn(frames * side * side, 1176, generator=torch.Generator().manual_seed(config.seed)),
        grid_thw=grid,
        answer_index=chat.answer_index,
        task="bench",
        token_types=is_video.long() * 2,
    )
    return pack([example])
