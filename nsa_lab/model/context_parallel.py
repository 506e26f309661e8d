"""Context parallelism: several processes share each sample, for samples too long for one GPU.

Each owns some of its rows, and all that a decoder layer does to a row is done by the owner; what rows see of one
another, the keys and values, every process gathers whole (few heads have them, so that this is cheap). A process also
has some of the frames in the vision tower, which sees each for itself. Weights, blocks and choices of blocks are those
of one process: blocks are made of what all have alike, and each query chooses where its row is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from nsa_lab.errors import NsaLabError
from nsa_lab.layout import MERGE, OnHost, TokenLayout, moved
from nsa_lab.partition import Partition
from nsa_lab.partition.segments import place_in_run

# torch 2.13 renamed them; both names are within the supported range.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Gathering:
    """Where rows stand that lie with the processes of a group, at most `most` with each.

    place [T] int64: of each of all rows, among those of all processes one after the other, each filled up to `most`.
    """

    place: Tensor
    most: int


@dataclass(frozen=True)
class ContextGroup:
    """The processes that share each sample: this one is number `place` of the `size` of torch's process group `group`.

    tile: so many neighbouring queries of a frame stay together, since they share one choice of blocks.
    """

    place: int
    size: int
    group: Any
    tile: int = 1

    def divide(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A packed batch on the host (see `nsa_lab.data.collate`), of whose rows and frames this process has some.

        input_ids, position_ids and mm_token_type_ids are those of its own rows, pixel_values_videos those of its
        frames; label_rows are the labelled tokens that its own rows predict, and label_from [n] int64 says which row
        does. Everything else is as it was; `host` knows how to gather what is divided.
        """
        layout: TokenLayout = batch["host"].layout
        owner = row_owners(layout, self.size, self.tile)
        own = (owner == self.place).nonzero().flatten()
        frames = _Frames(layout, self)
        labelled = batch["label_rows"][owner[batch["label_rows"] - 1] == self.place]
        shared = Shared(self, _gathering(owner, self.size), frames.gathering, frames.grids, frames.count)
        return dict(batch) | {
            "input_ids": batch["input_ids"][:, own],
            "position_ids": batch["position_ids"][:, :, own],
            "mm_token_type_ids": batch["mm_token_type_ids"][:, own],
            "pixel_values_videos": batch["pixel_values_videos"][frames.patches],
            "label_rows": labelled,
            "label_from": torch.searchsorted(own, labelled - 1),
            "host": OnHost(replace(layout, own=own), shared),
        }

    def gather(self, x: Tensor, gathering: Gathering) -> Tensor:
        """All rows [T, ...] of the own ones x [n, ...]. Gradients are summed over the group in float32 or wider."""
        return _Gather.apply(x, gathering.place, gathering.most, self)

    def first(self, make: Callable[[], Partition]) -> Partition:
        """What `make()` gives in the first process, in all of them; each must ask."""
        made = [_on_cpu(make()) if self.place == 0 else None]
        dist.broadcast_object_list(made, dist.get_global_rank(self.group, 0), group=self.group)
        assert made[0] is not None
        return made[0]

    def least(self, *numbers: int) -> list[int]:
        """Of each number the least of any process."""
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        found = torch.tensor(numbers, device=device)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.group)
        return found.tolist()

    def everywhere(self, hits: Tensor) -> Tensor:
        """[n] bool: what is true in every process."""
        found = hits.to(torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.group)
        return found.bool()


@dataclass(frozen=True)
class Shared:
    """How a batch is divided over `group`: what gathers rows and video tokens, and the frames of this process.

    grids [v, 3] int64: frames, rows and columns in tokens of what the vision tower sees here; `count` tokens of that
    are this process's own, none where there are too few frames and it sees the first one in vain.
    """

    group: ContextGroup
    rows: Gathering
    video: Gathering
    grids: Tensor
    count: int

    def to(self, device: torch.device) -> "Shared":
        """With what gathers on `device`; the grids stay on the host."""
        return replace(self, rows=moved(self.rows, device), video=moved(self.video, device))

    def all_rows(self, x: Tensor) -> Tensor:
        """[T, ...] of the own rows x [n, ...]."""
        return self.group.gather(x, self.rows)

    def all_video(self, x: Tensor) -> Tensor:
        """[T_video, ...] of what the vision tower made of the frames here, x [tokens, ...]."""
        return self.group.gather(x[: self.count], self.video)


def row_owners(layout: TokenLayout, size: int, tile: int = 1) -> Tensor:
    """[T] int64: which of `size` processes has each row.

    A sample's video rows are cut into 2 `size` stretches of like length, and process r has the one at r from the begin
    and the one at r from the end, so that all have as many rows and rows that see as much. Its text rows, far fewer and
    some of them far apart, are dealt out one by one in the same order.
    """
    video, text = layout.video_index, layout.text_index
    sample = layout.sample[video]
    number = place_in_run(sample) - layout.cell[video] % tile
    stretch = torch.empty_like(layout.rows)
    stretch[video] = number * 2 * size // torch.bincount(sample)[sample]
    stretch[text] = place_in_run(layout.sample[text]) % (2 * size)
    return torch.minimum(stretch, 2 * size - 1 - stretch)


class _Frames:
    """The frames of one process in the vision tower: neighbouring ones, as many tokens as the others have, about."""

    def __init__(self, layout: TokenLayout, group: ContextGroup):
        frame, video = (x[layout.video_index] for x in (layout.frame, layout.video))
        place = torch.arange(len(frame))
        middle = 2 * (place - place_in_run(frame)) + torch.bincount(frame)[frame]
        owner = (middle * group.size // (2 * max(len(frame), 1))).clamp(max=group.size - 1)
        own = (owner == group.place).nonzero().flatten()
        self.count = len(own)
        if not self.count:
            own = (frame == 0).nonzero().flatten()
        tokens = torch.bincount(video[own], minlength=len(layout.grids))
        frames = tokens // layout.grids[:, 1:].prod(1).clamp(min=1)
        grids = torch.cat([frames[:, None], layout.grids[:, 1:]], 1)
        self.grids = grids[frames > 0]
        begin = int(own[0]) if len(own) else 0
        self.patches = slice(begin * MERGE**2, (begin + len(own)) * MERGE**2)
        self.gathering = _gathering(owner, group.size)


def _gathering(owner: Tensor, size: int) -> Gathering:
    counts = torch.bincount(owner, minlength=size)
    order = owner.argsort(stable=True)
    number = torch.empty_like(owner)
    number[order] = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner[order]]
    most = int(counts.max())
    return Gathering(owner * most + number, most)


def _on_cpu(partition: Partition) -> Partition:
    if partition.confidence is not None or partition.auxiliary_loss is not None:
        raise NsaLabError("a partition with gradients cannot be shared; set training.context_parallel=1")
    values: dict[str, Any] = {field.name: getattr(partition, field.name) for field in dataclasses.fields(partition)}
    statistics = {name: float(value) for name, value in partition.statistics.items()}
    values = {name: x.cpu() if isinstance(x, Tensor) else x for name, x in values.items()}
    return Partition(**values | {"statistics": statistics})


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, most: int, group: ContextGroup) -> Tensor:
        ctx.save_for_backward(place)
        ctx.rows, ctx.most, ctx.group = len(x), most, group
        own = x.new_zeros(most, *x.shape[1:])
        own[: len(x)] = x
        every = x.new_empty(group.size * most, *x.shape[1:])
        _all_gather(every, own, group=group.group)
        return every[place]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)
        every = grad.new_zeros(ctx.group.size * ctx.most, *grad.shape[1:], dtype=wide)
        every[place] = grad.to(wide)
        own = every.new_empty(ctx.most, *grad.shape[1:])
        _reduce_scatter(own, every, group=ctx.group.group)
        return own[: ctx.rows].to(grad.dtype), None, None, None
