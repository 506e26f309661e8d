"""Which tokens of a batch are video and which are text, in packed order.

Shape legend of nsa-lab: B rows of a batch, S samples, T tokens, H query heads, G key/value heads, D head dim,
N blocks, L longest block, R branches. "Packed" means: samples one after another, padding dropped, in time order.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

MERGE = 2
PATCH = 14
TOKEN_PIXELS = MERGE * PATCH
FRAMES_PER_PATCH = 2
"""How Qwen2.5-VL cuts a video: a token is 2 x 2 patches of 14 x 14 pixels over two frames."""
FRAMES_AS = {"video": FRAMES_PER_PATCH, "images": 1}
"""How many frames a token is of, by data.frames_as: an image is shown twice."""


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one batch in packed order.

    rows: [T] int64, place of each token in the flattened [B * L] input.
    cu_seqlens: [S + 1] int64, where each sample begins and ends in packed order.
    is_video: [T] bool.
    frame: [T] int64, the temporal patch of a video token, counted over the batch; -1 for text.
    cell: [T] int64, the place of a video token in its frame, row by row; -1 for text.
    video: [T] int64, the video of a video token, counted over the batch; -1 for text.
    grids: [V, 3] int64, frames, rows and columns of each video in tokens.
    own: [n] int64 ascending, the tokens whose rows this process computes, where several share a sample; None: all.
    """

    rows: Tensor
    cu_seqlens: Tensor
    is_video: Tensor
    frame: Tensor
    cell: Tensor
    video: Tensor
    grids: Tensor
    own: Tensor | None = None

    @cached_property
    def video_index(self) -> Tensor:
        """[T_video] int64: packed places of the video tokens."""
        return on_host(lambda layout: layout.is_video.nonzero().flatten(), self)

    @cached_property
    def text_index(self) -> Tensor:
        """[T_text] int64: packed places of the text tokens."""
        return on_host(lambda layout: (~layout.is_video).nonzero().flatten(), self)

    @cached_property
    def sample(self) -> Tensor:
        """[T] int64: the sample each token belongs to."""
        return on_host(_sample, self)

    @cached_property
    def video_rows(self) -> Tensor:
        """[n_video] int64: which of the own rows are video."""
        return self.video_index if self.own is None else on_host(lambda own: _own_rows(own, own.is_video), self)

    @cached_property
    def text_rows(self) -> Tensor:
        """[n_text] int64: which of the own rows are text."""
        return self.text_index if self.own is None else on_host(lambda own: _own_rows(own, ~own.is_video), self)

    def tokens_of(self, rows: Tensor) -> Tensor:
        """[n] int64: packed places of the own rows `rows` [n]."""
        return rows if self.own is None else self.own[rows]

    def keep(self, index: Tensor) -> "TokenLayout":
        """The layout of the packed tokens `index` [n] alone; frames, cells and grids are as they were."""
        counts = torch.bincount(self.sample[index], minlength=len(self.cu_seqlens) - 1)
        per_token = (self.rows, self.is_video, self.frame, self.cell, self.video)
        rows, is_video, frame, cell, video = (x[index] for x in per_token)
        cu_seqlens = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return TokenLayout(rows, cu_seqlens, is_video, frame, cell, video, self.grids)


def moved(made: Any, device: torch.device) -> Any:
    """A tensor, or a dataclass of tensors, from the host to `device`, without waiting for it; anything else as it is.

    Of a dataclass the original is kept with the copy, for `on_host`.
    """
    if device.type == "cpu":
        return made
    if isinstance(made, Tensor):
        return (made.contiguous().pin_memory() if device.type == "cuda" else made).to(device, non_blocking=True)
    if not hasattr(made, "__dataclass_fields__"):
        return made
    copy = type(made)(**{field.name: moved(getattr(made, field.name), device) for field in fields(made)})
    vars(copy)["host"] = made
    return copy


def on_host(make: Callable[..., Any], *given: Any) -> Any:
    """`make(*given)`; where all of `given` came from the host (`moved`), made there of the originals and moved after.

    What looks at values (how many, which) waits for a device that still computes, but not on the host.
    """
    hosts = [vars(x).get("host") for x in given]
    if any(host is None for host in hosts):
        return make(*given)
    first = next(x for x in vars(given[0]).values() if isinstance(x, Tensor))
    return moved(make(*hosts), first.device)


class OnHost:
    """What of a batch stays on the host where the batch moves to a device: its layout.

    shared: how several processes divide it (`nsa_lab.model.context_parallel.Shared`), or None.
    """

    def __init__(self, layout: TokenLayout, shared: Any = None):
        self.layout, self.shared = layout, shared

    def to(self, *args: Any, **kwargs: Any) -> "OnHost":
        return self


def _own_rows(layout: TokenLayout, kind: Tensor) -> Tensor:
    """[n] int64: which of the own rows are of the tokens that `kind` [T] bool marks."""
    return kind[layout.own].nonzero().flatten()


def _sample(layout: TokenLayout) -> Tensor:
    lengths = layout.cu_seqlens.diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def layout_from_token_ids(
    input_ids: Tensor,
    video_token_id: int,
    grid_thw: Tensor | None = None,
    *,
    mrope_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    text_positions: Tensor | None = None,
    spatial_merge: int = 2,
) -> TokenLayout:
    """The layout of `input_ids` [B, L], video tokens being those with `video_token_id`.

    grid_thw [V, 3] holds each video's (t, h, w) in patches, in order; without it the frames are read off mrope_ids
    [3, B, L]. attention_mask [B, L] is 0 on padding; text_positions [B, L] restarts at 0 where a packed sample
    begins. Raises ValueError where the number of video tokens is not what the grids announce.
    """
    is_video = input_ids == video_token_id
    if grid_thw is None and mrope_ids is not None:
        grid_thw = _grids_from_mrope(is_video, mrope_ids, spatial_merge)
    return _layout(is_video, grid_thw, attention_mask, text_positions, spatial_merge)


def layout_from_mrope(
    position_ids: Tensor,
    grid_thw: Tensor | None,
    *,
    attention_mask: Tensor | None = None,
    text_positions: Tensor | None = None,
    spatial_merge: int = 2,
) -> TokenLayout:
    """The layout from M-RoPE ids [3, B, L] alone, for inputs that come as embeddings.

    Text tokens step by one in all three rows; a video begins one token before the first that does not, because
    the top-left token of its first frame has three equal positions too. Each video then spans what its grid
    announces. Raises ValueError where the ids and the grids do not fit together.
    """
    grids = [] if grid_thw is None else grid_thw.tolist()
    is_video = torch.zeros(position_ids.shape[1:], dtype=torch.bool, device=position_ids.device)
    used = 0
    for b in range(position_ids.shape[1]):
        keep = _real_tokens(attention_mask, is_video)[b].nonzero().flatten()
        ids = position_ids[:, b, keep]
        restarts = (
            text_positions[b, keep] == 0 if text_positions is not None else torch.zeros_like(keep, dtype=torch.bool)
        )
        start = 0
        while used < len(grids):
            found = _first_video_token(ids, restarts, start)
            if found is None:
                break
            count = _tokens(grids[used], spatial_merge)
            if found + count > len(keep):
                raise ValueError(f"video {used} announces {count} tokens, only {len(keep) - found} are left in row {b}")
            is_video[b, keep[found : found + count]] = True
            start, used = found + count, used + 1
    if used != len(grids):
        raise ValueError(f"{len(grids)} grids, but the M-RoPE ids show {used} videos; pass token ids instead")
    return _layout(is_video, grid_thw, attention_mask, text_positions, spatial_merge)


def _grids_from_mrope(is_video: Tensor, mrope_ids: Tensor, spatial_merge: int) -> Tensor:
    """[V, 3] grids in patches of the runs of video tokens: a frame begins where its top-left (h, w) comes again."""
    grids = []
    for row, ids in zip(is_video, mrope_ids.unbind(1), strict=True):
        places = row.nonzero().flatten()
        breaks = (places.diff() != 1).nonzero().flatten() + 1
        for run in places.tensor_split(breaks.cpu()):
            if len(run):
                height, width = ids[1, run], ids[2, run]
                frames = int(((height == height[0]) & (width == width[0])).sum())
                columns = int(width.max() - width[0]) + 1
                grids.append([frames, len(run) // (frames * columns) * spatial_merge, columns * spatial_merge])
    return torch.tensor(grids, dtype=torch.int64, device=is_video.device).reshape(-1, 3)


def _first_video_token(ids: Tensor, restarts: Tensor, start: int) -> int | None:
    equal = (ids[0] == ids[1]) & (ids[1] == ids[2])
    step = ids.diff(dim=1)
    like_text = torch.cat([torch.ones(1, dtype=torch.bool, device=ids.device), (step == 1).all(0) | restarts[1:]])
    odd = (~(equal & like_text))[start:].nonzero().flatten()
    # After a video, text continues with a jump: that token is equal in all rows and is not the start of a video.
    odd = odd[(odd > 0) | ~equal[start + odd]]
    return None if len(odd) == 0 else int(odd[0]) + start - 1


def _layout(
    is_video: Tensor,
    grid_thw: Tensor | None,
    attention_mask: Tensor | None,
    text_positions: Tensor | None,
    spatial_merge: int,
) -> TokenLayout:
    real = _real_tokens(attention_mask, is_video)
    rows = real.flatten().nonzero().flatten()
    starts = torch.zeros_like(real)
    starts[torch.arange(len(real), device=real.device), real.int().argmax(1)] = True
    if text_positions is not None:
        starts |= text_positions == 0
    begins = (starts & real).flatten()[rows].nonzero().flatten()
    cu_seqlens = torch.cat([begins, begins.new_tensor([len(rows)])])
    packed_video = is_video.flatten()[rows]
    grids = _token_grids(grid_thw, spatial_merge, packed_video)
    frame, cell, video = _frames(packed_video, grids)
    return TokenLayout(rows, cu_seqlens, packed_video, frame, cell, video, grids)


def _real_tokens(attention_mask: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if attention_mask is None else attention_mask[:, : like.shape[1]].bool()


def _tokens(grid: list[int], spatial_merge: int) -> int:
    return grid[0] * grid[1] * grid[2] // spatial_merge**2


def _token_grids(grid_thw: Tensor | None, spatial_merge: int, is_video: Tensor) -> Tensor:
    """[V, 3] grids in tokens. Raises ValueError where they do not announce the video tokens there are."""
    patches = is_video.new_zeros((0, 3), dtype=torch.int64) if grid_thw is None else grid_thw.to(is_video.device)
    grids = patches // patches.new_tensor([1, spatial_merge, spatial_merge])
    found, announced = int(is_video.sum()), int(grids.prod(1).sum())
    if found != announced:
        raise ValueError(
            f"{found} video tokens, but video_grid_thw announces {announced} ({patches.tolist()}); "
            "each video needs t * h * w / merge^2 tokens"
        )
    return grids


def _frames(is_video: Tensor, grids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    per_frame = grids[:, 1] * grids[:, 2]
    frame_lengths = per_frame.repeat_interleave(grids[:, 0])
    frames = torch.arange(len(frame_lengths), device=is_video.device).repeat_interleave(frame_lengths)
    cells = torch.arange(len(frames), device=is_video.device)
    cells = cells - (frame_lengths.cumsum(0) - frame_lengths)[frames]
    videos = torch.arange(len(grids), device=is_video.device).repeat_interleave(grids.prod(1))
    nothing = torch.full(is_video.shape, -1, dtype=torch.int64, device=is_video.device)
    frame, cell, video = (nothing.masked_scatter(is_video, x) for x in (frames, cells, videos))
    return frame, cell, video
