"""Reducers in tests: packed batches, and what they must give, written down token by token for one sample at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.model import build_model, measure_budget
from nsa_testing import assert_close, tiny_config

TOLERANCE = 1e-5
"""Sines and cosines of the model are of float32."""

Part = int | tuple[int, int, int]
"""So many text tokens, or a video of frames x rows x columns in tokens."""

SAMPLES: dict[str, Sequence[Sequence[Part]]] = {
    "odd": [[3, (3, 3, 3), 4], [2, (1, 1, 1), 2], [4, (2, 5, 6), 5]],
    "long text": [[2, (2, 2, 3), 37], [29, (3, 1, 3), 1]],
    "two videos": [[3, (4, 2, 3), 5, (3, 3, 2), 8], [1, (2, 2, 2), 2]],
    "no video": [[5], [3, (2, 2, 3), 4]],
}
"""Packed samples: one frame, one token, frames of several windows of the tower; much text; two videos; none."""


def make_model(tokenizer: Any, *overrides: str) -> Any:
    """A dense model in float64 of 4 layers and 3 vision blocks, of which the first and the last see whole frames."""
    torch.manual_seed(0)
    base = ["model.num_layers=4", "model.vision_layers=3", "attention.method=dense"]
    model = build_model(tiny_config(*base, *overrides), tokenizer).eval().double()
    model.model.visual.fullatt_block_indexes = [0, 2]
    return model


@dataclass(frozen=True)
class Plain:
    """One sample: ids [T], M-RoPE positions [3, T], the patches of each video and its grid in tokens."""

    ids: Tensor
    positions: Tensor
    pixels: list[Tensor]
    grids: list[tuple[int, int, int]]

    def patches(self) -> Tensor:
        return torch.tensor([[t, 2 * h, 2 * w] for t, h, w in self.grids], dtype=torch.int64).reshape(-1, 3)


def sample_of(model: Any, parts: Sequence[Part], seed: int) -> Plain:
    """A sample of random words and pixels."""
    generator = torch.Generator().manual_seed(seed)
    grids = [part for part in parts if isinstance(part, tuple)]
    ids: list[int] = []
    for part in parts:
        video = [model.config.video_token_id] * math.prod(part) if isinstance(part, tuple) else []
        ids += video or torch.randint(20, 200, (part,), generator=generator).tolist()
    pixels = [torch.randn(4 * math.prod(grid), 1176, generator=generator, dtype=torch.float64) for grid in grids]
    plain = Plain(torch.tensor(ids), torch.empty(0), pixels, grids)
    positions, _ = model.model.get_rope_index(plain.ids[None], video_grid_thw=plain.patches())
    return Plain(plain.ids, positions[:, 0], pixels, grids)


def packed(samples: Sequence[Plain]) -> dict[str, Tensor]:
    """The samples as one packed row."""
    text = torch.cat([torch.arange(len(sample.ids)) for sample in samples])
    positions = torch.cat([sample.positions for sample in samples], 1)
    pixels = [video for sample in samples for video in sample.pixels]
    batch = {
        "input_ids": torch.cat([sample.ids for sample in samples])[None],
        "position_ids": torch.cat([text[None], positions])[:, None],
    }
    grids = torch.cat([sample.patches() for sample in samples])
    return batch | ({"pixel_values_videos": torch.cat(pixels), "video_grid_thw": grids} if pixels else {})


Alive = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, its input [T, hidden], attention [H, T, T] of the layer before) to [T] bool: the tokens that it has."""


@torch.no_grad()
def masked_decoder(model: Any, sample: Plain, x: Tensor, alive: Alive) -> tuple[Tensor, list[Tensor]]:
    """Logits [T, vocabulary] of dense attention from x [T, hidden], and the tokens that each layer has.

    Whoever was dropped is masked as a key and keeps its position; its own row means nothing. A text window counts those
    who are left.
    """
    decoder = model.model.language_model
    attention = torch.empty(0)
    has: list[Tensor] = []
    for number, layer in enumerate(decoder.layers):
        has.append(alive(number, x, attention))
        own = layer.self_attn
        normed = layer.input_layernorm(x)
        q, k, v = (p(normed).view(len(x), -1, own.head_dim) for p in (own.q_proj, own.k_proj, own.v_proj))
        q, k = (rotated(y, sample.positions, model.config.text_config) for y in (q, k))
        attention = x.new_zeros(q.shape[1], len(x), len(x))
        out = torch.zeros_like(q)
        is_video = sample.ids == model.config.video_token_id
        for row in range(len(x)):
            keys = [key for key in range(row + 1) if has[-1][key] or key == row]
            if own.design.text_window is not None and not is_video[row]:
                keys = keys[-own.design.text_window :]
            for head in range(q.shape[1]):
                group = head // (q.shape[1] // k.shape[1])
                logits = k[keys, group] @ q[row, head] / math.sqrt(own.head_dim)
                attention[head, row, keys] = logits.softmax(0)
                out[row, head] = attention[head, row, keys] @ v[keys, group]
        x = x + own.o_proj(out.flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(decoder.norm(x)), has


def rotated(x: Tensor, positions: Tensor, config: Any) -> Tensor:
    """x [T, H, D] after M-RoPE: each pair of dims turns by the time, row or column id of its section."""
    half, rope = x.shape[2] // 2, config.rope_parameters
    which = [axis for axis, size in enumerate(rope["mrope_section"]) for _ in range(size)]
    out = torch.empty_like(x)
    for dim in range(half):
        angle = positions[which[dim]].double() * rope["rope_theta"] ** (-dim / half)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        out[..., dim] = x[..., dim] * cos - x[..., dim + half] * sin
        out[..., dim + half] = x[..., dim + half] * cos + x[..., dim] * sin
    return out


@torch.no_grad()
def embedded(model: Any, sample: Plain) -> Tensor:
    """[T, hidden]: words, and each video as the tower makes it alone."""
    x = model.get_input_embeddings()(sample.ids)
    if sample.pixels:
        features = [
            model.model.get_video_features(pixels, grid[None]).pooler_output[0]
            for pixels, grid in zip(sample.pixels, sample.patches(), strict=True)
        ]
        x[sample.ids == model.config.video_token_id] = torch.cat(features)
    return x


def video_places(model: Any, sample: Plain) -> list[list[list[int]]]:
    """The places of each video's tokens, by frame."""
    places = (sample.ids == model.config.video_token_id).nonzero().flatten().tolist()
    videos = []
    for frames, rows, columns in sample.grids:
        size = rows * columns
        videos.append([places[frame * size : (frame + 1) * size] for frame in range(frames)])
        places = places[frames * size :]
    return videos


@torch.no_grad()
def seen_in_tower(model: Any, sample: Plain, video: int, block: int) -> tuple[list[list[float]], list[list[Tensor]]]:
    """By frame and token: the attention received in a block, and the mean key; frame by frame, head by head."""
    given: dict[str, Any] = {}
    attn = model.model.visual.blocks[block].attn

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        given["x"] = args[0] if args else kwargs["hidden_states"]
        given["rope"] = kwargs["position_embeddings"]

    handle = attn.register_forward_pre_hook(keep, with_kwargs=True)
    model.model.get_video_features(sample.pixels[video], sample.patches()[video][None])
    handle.remove()
    q, k, _ = attn.qkv(given["x"]).view(len(given["x"]), 3, attn.num_heads, -1).unbind(1)
    cos, sin = (angle[:, None].double() for angle in given["rope"])
    half = q.shape[2] // 2
    turned = [y * cos + torch.cat([-y[..., half:], y[..., :half]], -1) * sin for y in (q, k)]
    frames, rows, columns = sample.grids[video]
    received, keys = [], []
    for frame in range(frames):
        begin = 4 * frame * rows * columns
        patches = slice(begin, begin + 4 * rows * columns)
        got = torch.zeros(4 * rows * columns, dtype=torch.float64)
        for head in range(attn.num_heads):
            for query in turned[0][patches, head]:
                logits = turned[1][patches, head] @ query / math.sqrt(q.shape[2])
                got += logits.softmax(0) / (attn.num_heads * len(got))
        where = {token: number for number, token in enumerate(in_windows(rows, columns))}
        order = [4 * where[token] for token in range(rows * columns)]
        received.append([float(got[place : place + 4].mean()) for place in order])
        own = k[patches]
        keys.append([own[place : place + 4].mean((0, 1)) for place in order])
    return received, keys


def in_windows(rows: int, columns: int) -> list[int]:
    """The tokens of a frame in the tower's order: windows of 4 x 4, row by row."""
    return [
        row * columns + column
        for top in range(0, rows, 4)
        for left in range(0, columns, 4)
        for row in range(top, min(rows, top + 4))
        for column in range(left, min(columns, left + 4))
    ]


def strongest_of(score: Sequence[float], count: int) -> list[int]:
    """The `count` highest, of equal ones the earlier."""
    return sorted(sorted(range(len(score)), key=lambda n: (-score[n], n))[:count])


def kept_of(share: float, tokens: int) -> int:
    """As many as a share is, and one at least."""
    return min(tokens, max(1, round(share * tokens)))


Reference = Callable[[Any, Plain], tuple[Tensor, Alive]]
"""(model, sample) to the embeddings [T, hidden] that enter the decoder, merged ones included, and who is there."""


def assert_follows(model: Any, samples: Sequence[Plain], reference: Reference) -> float:
    """Logits of a packed batch are those of each sample under masks; the budget is a count on these.

    Returns the share of the video tokens that is kept, the mean over layers.
    """
    batch = packed(samples)
    with torch.no_grad():
        found = model(**batch, use_cache=False).logits[0]
    begin, pairs, kept, total = 0, 0.0, 0.0, 0
    for sample in samples:
        logits, has = masked_decoder(model, sample, *reference(model, sample))
        own = found[begin : begin + len(sample.ids)]
        assert_close(own[has[-1]], logits[has[-1]], TOLERANCE)
        assert not own[~has[-1]].any(), "a dropped token has no row"
        for video in video_places(model, sample):
            places = torch.tensor([place for frame in video for place in frame])
            counts = [int(alive[places].sum()) for alive in has]
            pairs += sum(n * (n + 1) / 2 for n in counts) / len(has)
            kept += sum(counts) / len(has)
            total += len(places)
        begin += len(sample.ids)
    budget = measure_budget(model, batch)
    assert math.isclose(budget["budget/keys_per_query"], pairs / total, rel_tol=1e-6)
    assert math.isclose(budget["budget/tokens_kept"], kept / total, rel_tol=1e-6)
    return kept / total
