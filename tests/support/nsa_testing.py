"""Helpers for tests: samples of products, small layouts, random heads, tiny models and packed batches."""

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from nsa_lab.layout import TokenLayout, layout_from_token_ids

VIDEO = 9
TEXT = 1

Shape = tuple[int, tuple[int, int, int], int]
"""Text tokens before, (frames, height, width) of the video in tokens, text tokens after."""

ODD_SHAPES: tuple[Shape, ...] = ((3, (3, 3, 3), 4), (0, (1, 1, 1), 2), (5, (0, 0, 0), 0), (2, (4, 2, 3), 5))
"""A ragged tail, one token, an empty video, and a second video."""

requires_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TINY = {
    "name": "tiny",
    "tasks.needle.enabled": True,
    "tasks.needle.frames": 8,
    "tasks.needle.train_clips": 10,
    "tasks.needle.val_clips": 4,
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.vision_hidden_size": 32,
    "attention.partition.block_size": 4,
    "attention.branches.selection.block_count": 2,
    "attention.branches.window.size": 4,
    "training.steps": 8,
    "training.batch_size": 3,
    "training.val_every": 4,
    "training.checkpoint_every": 3,
    "training.log_every": 1,
    "training.warmup_steps": 2,
    "tracking.enabled": False,
}
"""Settings of a training that takes about a second."""


def covering(rows: Sequence[Mapping[str, Hashable]], together: int = 2) -> list[int]:
    """Which few of `rows` hold every pair of values that two columns take together anywhere in `rows`.

    With `together` 1, every value of a column. Greedy: the row with most pairs that are still missing, the first of a
    fixed shuffling where several have. The same rows give the same choice, in ascending order; rows of one column are
    all needed.
    """
    pairs = [set(combinations(sorted(row.items()), min(together, len(row)))) for row in rows]
    shuffled = random.Random(0).sample(range(len(rows)), len(rows))
    missing = set().union(*pairs)
    kept = []
    while missing:
        best = max(shuffled, key=lambda row: len(pairs[row] & missing))
        missing -= pairs[best]
        kept.append(best)
    return sorted(kept)


def token_layout(shapes: Sequence[Shape]) -> TokenLayout:
    """Samples of `shapes` packed into one row."""
    ids: list[int] = []
    positions: list[int] = []
    grids: list[list[int]] = []
    for before, (t, h, w), after in shapes:
        sample = [TEXT] * before + [VIDEO] * (t * h * w) + [TEXT] * after
        ids += sample
        positions += range(len(sample))
        if t * h * w:
            grids.append([t, 2 * h, 2 * w])
    grid_thw = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
    return layout_from_token_ids(torch.tensor([ids]), VIDEO, grid_thw, text_positions=torch.tensor([positions]))


def make_partition(kind: str, context: Any, block_size: int, seed: int = 0, **settings: Any) -> Any:
    """What the partitioner `kind` makes of `context` and random features of 16 dims."""
    from nsa_lab.partition import PartitionConfig, build_partitioner

    config = PartitionConfig(kind=kind, block_size=block_size, **settings)  # type: ignore[arg-type]
    features = torch.randn(len(context.segment), 16, generator=torch.Generator().manual_seed(seed))
    device = context.segment.device
    return build_partitioner(config, 16).to(device)(context, features.to(device))


@dataclass(frozen=True)
class Heads:
    """Random q [Tq, H, D], k and v [T, G, D] that take gradients."""

    q: Tensor
    k: Tensor
    v: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v


def random_heads(queries: int, keys: int, heads: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> Heads:
    """heads is (H, G, D)."""
    generator = torch.Generator().manual_seed(seed)
    h, g, d = heads
    q, k, v = (torch.randn(n, m, d, dtype=dtype, generator=generator) for n, m in ((queries, h), (keys, g), (keys, g)))
    return Heads(q.requires_grad_(), k.requires_grad_(), v.requires_grad_())


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Relative error in the 2-norm, with names; NaN never passes."""
    scale = expected.double().norm().item()
    error = (actual.double() - expected.double()).norm().item() / max(scale, 1e-12)
    assert error <= tolerance, f"{what}: relative error {error:.3e} > {tolerance:.1e}"


def tiny_config(*overrides: str) -> Any:
    """A config whose model builds in milliseconds: 2 layers, 4 heads over 2, head dim 16."""
    from nsa_lab.config import load_config

    small = (
        "tasks.needle.enabled=true",
        "model.num_layers=2",
        "attention.partition.block_size=4",
        "attention.branches.window.size=6",
    )
    return load_config(None, [*small, "attention.branches.selection.block_count=3", *overrides])


def stored_run(folder: Any, config: Any, model: Any) -> str:
    """The folder of a run of `config` that ended with the weights of `model`, as a training leaves it."""
    from nsa_lab.config import to_yaml
    from nsa_lab.model.trained import CHECKPOINTS, LAST, PARTS

    (folder / CHECKPOINTS).mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    parts: dict[str, Any] = {name: [{}] if kind is list else kind() for name, kind in PARTS.items()}
    checkpoint = parts | {"state_dict": weights, "loops": {"fit_loop": {}}, "global_step": 1}
    torch.save(checkpoint, folder / CHECKPOINTS / LAST)
    return str(folder)


def tiny_tokenizer(cache_dir: Any) -> Any:
    """The offline tokenizer, built in `cache_dir`."""
    from nsa_lab.data.tokenizer import load_tokenizer

    return load_tokenizer("offline", cache_dir)


def model_batch(model: Any, shapes: Sequence[Shape], seed: int = 0) -> dict[str, Any]:
    """A packed batch of random text and pixels for `model`, frames a second apart."""
    from nsa_lab.data.positions import mrope_positions

    generator = torch.Generator().manual_seed(seed)
    ids, positions, grids, text_positions = [], [], [], []
    for before, (t, h, w), after in shapes:
        words = torch.randint(20, 200, (before + t * h * w + after,), generator=generator)
        words[before : before + t * h * w] = model.config.video_token_id
        grid = torch.tensor([[t, 2 * h, 2 * w]] if t * h * w else [], dtype=torch.int64).reshape(-1, 3)
        ids.append(words)
        grids.append(grid)
        seconds = torch.arange(t if t * h * w else 0, dtype=torch.float64)
        is_video = words == model.config.video_token_id
        positions.append(mrope_positions(is_video, grid, seconds, positions=model.config.positions))
        text_positions.append(torch.arange(len(words)))
    input_ids, grid_thw = torch.cat(ids)[None], torch.cat(grids)
    patches = int(grid_thw.prod(1).sum())
    batch: dict[str, Any] = {
        "input_ids": input_ids,
        "position_ids": torch.cat([torch.cat(text_positions)[None], torch.cat(positions, 1)])[:, None],
        "mm_token_type_ids": (input_ids == model.config.video_token_id).long() * 2,
    }
    if patches:
        batch["pixel_values_videos"] = torch.randn(patches, 1176, generator=generator)
        batch["video_grid_thw"] = grid_thw
    return batch


def dense_qwen(model: Any) -> Any:
    """transformers' own Qwen2.5-VL with the weights that `model` shares with it."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    stored = model.config.to_dict() | {"model_type": "qwen2_5_vl"}
    stored["text_config"].pop("video_nsa")
    stored.pop("positions")
    qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(stored)).eval()
    shared = {k: v for k, v in model.state_dict().items() if ".sparse." not in k}
    qwen.load_state_dict(shared)
    return qwen


def published_positions(
    types: Sequence[int],
    images: Sequence[Sequence[int]],
    videos: Sequence[Sequence[int]],
    seconds: Sequence[float],
    tokens_per_second: float = 2,
) -> Tensor:
    """M-RoPE ids [3, L] by the rule under which Qwen2.5-VL was trained (transformers up to 5.2), token by token.

    types: 0 text, 1 image, 2 video; grids (t, h, w) in patches of 2 x 2 to a token; `seconds` a patch of a video.
    Whatever comes next begins one after the greatest of all ids before.
    """
    pending_images, pending_videos = iter(images), iter(zip(videos, seconds, strict=True))
    ids: list[list[int]] = []
    while len(ids) < len(types):
        start = max((max(token) for token in ids), default=-1) + 1
        if types[len(ids)] == 0:
            ids.append([start] * 3)
            continue
        (t, h, w), step = (next(pending_images), 0) if types[len(ids)] == 1 else next(pending_videos)
        for frame in range(t):
            for row in range(h // 2):
                ids += [[start + int(frame * step * tokens_per_second), start + row, start + c] for c in range(w // 2)]
    return torch.tensor(ids, dtype=torch.int64).reshape(-1, 3).T


def block_rule(
    block_count: int,
    initial_blocks: int = 0,
    local_blocks: int = 1,
    kind: str = "top_n",
    token_budget: int | None = None,
    query_tile: int = 1,
) -> Any:
    """The BlockRule whose rule is called `kind`."""
    from nsa_lab.attention.choice import BlockRule
    from nsa_lab.attention.select import RULES

    settings: dict[str, Any] = {"block_count": block_count} | (
        {"token_budget": token_budget} if kind == "token_budget" else {}
    )
    return BlockRule(RULES[kind](RULES[kind].Config(**settings)), initial_blocks, local_blocks, query_tile)


def compression_scorer() -> Any:
    """The scorer of NSA and the paper."""
    from nsa_lab.attention.dims import HeadDims
    from nsa_lab.attention.select import CompressionScorer

    return CompressionScorer(CompressionScorer.Config(), HeadDims(64, 4, 2, 16))


def gated_branches(attention: Any, dims: Any) -> Any:
    """The sparse part of a layer with these attention settings."""
    from nsa_lab.attention.sparse import GatedBranches
    from nsa_lab.plugin import settings

    return GatedBranches(settings(attention, "method"), attention.backend, dims)
