"""A training step of a model on one random clip: forward, backward and optimiser."""

import math
from pathlib import Path
from typing import Any

import torch

from nsa_lab.bench.measure import Measurement, Point, bench_device, memory_mib, now
from nsa_lab.config import ExperimentConfig, load_config
from nsa_lab.data import Example, Turn, load_tokenizer, pack
from nsa_lab.data.chat import VIDEO_TOKEN, encode_chat
from nsa_lab.data.positions import mrope_positions
from nsa_lab.layout import MERGE
from nsa_lab.model.checkpoint import bare_model
from nsa_lab.training.schedule import build_optimizer
from nsa_lab.training.score import score_answers

FRAME_TOKENS = 64
ANSWER = "red"


def measure_step(tree: dict[str, Any], point: Point, repeats: int) -> Measurement:
    """Build the model and time forward, backward and optimiser on a random clip, in this process."""
    config = load_config(None, tree)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    device = bench_device(config)
    tokenizer = load_tokenizer(config.data.tokenizer, Path(config.data.cache_dir))
    torch.manual_seed(config.seed)
    model = bare_model(config, tokenizer).to(device).train()
    optimizer, _ = build_optimizer(model, config.training)
    batch = {
        k: v.to(device) if hasattr(v, "to") else v
        for k, v in random_batch(point.video_tokens, tokenizer, config).items()
    }
    bf16 = config.training.precision.startswith("bf16")

    def step() -> float:
        started = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = score_answers(model, batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return now(device) - started

    base = memory_mib(device, peak=False)
    step()
    seconds = min(step() for _ in range(repeats))
    return Measurement(seconds, memory_mib(device, peak=True) - base, base)


def random_batch(video_tokens: int, tokenizer: Any, config: ExperimentConfig) -> dict[str, Any]:
    """One sample of random pixels with `video_tokens` tokens, a question and an answer, packed for training."""
    frames = video_tokens // FRAME_TOKENS
    side = MERGE * math.isqrt(FRAME_TOKENS)
    grid = torch.tensor([[frames, side, side]])
    turns = [Turn("Which colour came first?", ANSWER)]
    chat = encode_chat(turns, video_tokens, tokenizer, config.data.system_prompt)
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
