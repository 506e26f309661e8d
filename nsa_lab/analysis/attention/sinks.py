"""Attention sinks: keys that receive much attention and carry little value (VideoNSA, section 5; Pai et al. 2025).

A key is a sink if the attention that it receives on average is above 0.1 and its value's norm below median - 2 IQR.
The paper does not say over which queries the average goes. Here it goes, head by head, over the video queries that the
branch lets read the key: for compression those at or after the block's end, for selection those that chose its block,
for the window those it stands in the window of, for dense attention and the gated total all at or after the key. Keys
that no query reads do not count, and neither do text rows as queries. Median and IQR of the norms are those of the
clip's keys, of one key/value head; the compression branch's keys are the pooled ones. The gated total is the branches'
weights times their gates, a pooled key's share spread evenly over its block.

Who reads ten keys or fewer gives them 0.1 each and more, so that there (small windows, the clip's first and last keys)
the value's norm alone decides; the tables therefore count both conditions apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.branches import Branch
from nsa_lab.attention.branches.base import queries_from
from nsa_lab.attention.inputs import BranchInputs, DenseInputs
from nsa_lab.attention.trace import Trace

MUCH = 0.1
IQRS = 2.0
BINS = 20
"""Positions are counted in this many equal parts of the clip."""


@dataclass(frozen=True)
class Received:
    """What each of K keys got: attention [K, H] float, the mean over its readers (0 where there are none).

    readers [K, H] int64; norm [K, G], of the values; place [K] float from 0 to 1, where the key stands in the clip.
    """

    attention: Tensor
    readers: Tensor
    norm: Tensor
    place: Tensor


def column_sums(out: Tensor, values: list[Tensor], factors: Tensor | None = None) -> list[Tensor | None]:
    """[W, K, H] for each of `values` [K, G, D]: the weights that `out` [Tq, H, D] gives its keys, summed over queries.

    Each query's weights are multiplied by each of factors [W, Tq, H], by default by 1. None for values that `out` does
    not depend on. Since out = P v, the gradient by v of one dim of each head's outputs is that head's column sums of P.
    The heads of a group, and the factors, use different dims, so that one backward pass gives all of them, in whatever
    pieces the backend makes it.
    """
    groups, width = values[0].shape[1], out.shape[2]
    factors = torch.ones_like(out[None, ..., 0]) if factors is None else factors.to(out.dtype)
    # [slots, Tq, G]: what each dim of a group's heads stands for, a factor and one head.
    slots = factors.unflatten(2, (groups, -1)).permute(0, 3, 1, 2)
    per_group, found = slots.shape[1], [[] for _ in values]  # type: tuple[int, list[list[Tensor]]]
    for part in torch.arange(len(slots) * per_group).split(width):
        upstream = torch.zeros_like(out)
        by_group = upstream.unflatten(1, (groups, per_group))
        for place, slot in enumerate(part.tolist()):
            number, head = divmod(slot, per_group)
            by_group[:, :, head, place] = slots[number, head]
        grads = torch.autograd.grad(out, values, upstream, retain_graph=True, allow_unused=True)
        for sums, grad in zip(found, grads, strict=True):
            sums += [] if grad is None else [grad[:, :, : len(part)]]
    return [_by_factor(torch.cat(sums, 2), per_group) if sums else None for sums in found]


def _by_factor(sums: Tensor, per_group: int) -> Tensor:
    """[K, G, W * H/G] to [W, K, H]."""
    return sums.unflatten(2, (-1, per_group)).permute(2, 0, 1, 3).flatten(2)


def dense_received(inputs: DenseInputs) -> Received:
    """What the keys of a dense layer got from the video queries, text keys before the video among them."""
    attend = lambda v: inputs.ops.dense(inputs.q, inputs.k, v, inputs.context, scale=inputs.scale)  # noqa: E731
    sums = _sums(attend, inputs.v)
    keys = torch.arange(len(inputs.k), device=inputs.k.device)
    return _received(sums, queries_from(inputs.context, keys), inputs.v, keys / len(keys))


def branch_received(
    branches: dict[str, Branch], inputs: BranchInputs, gates: Tensor
) -> tuple[dict[str, Received], Received]:
    """What keys got from each branch, and from their sum under gates [Tq, H, R]."""
    keys = torch.arange(len(inputs.k), device=inputs.k.device)
    total = torch.zeros(len(keys), inputs.q.shape[1], dtype=inputs.q.dtype, device=keys.device)
    found = {}
    for column, (name, branch) in enumerate(branches.items()):
        found[name], share = _one_branch(branch, inputs, gates[:, :, column])
        total += share
    return found, _received(total, queries_from(inputs.context, keys), inputs.v, keys / len(keys))


def _one_branch(branch: Branch, inputs: BranchInputs, gate: Tensor) -> tuple[Received, Tensor]:
    """What a branch gave to the keys it reads, and [T, H] what the layer's tokens got of it under `gate` [Tq, H]."""
    given = [inputs.v] if inputs.pooled_v is None else [inputs.v, inputs.pooled_v]
    values = [v.detach().requires_grad_() for v in given]
    own = replace(inputs, v=values[0], pooled_v=None if len(values) == 1 else values[1], trace=Trace("choice"))
    with torch.enable_grad():
        out = branch(own)
    tokens, pooled = (*column_sums(out, values, torch.stack([torch.ones_like(gate), gate])), None)[:2]
    share = torch.zeros(len(inputs.k), inputs.q.shape[1], dtype=out.dtype, device=out.device)
    share = share if tokens is None else share + tokens[1]
    place = torch.arange(len(inputs.k), device=out.device) / len(inputs.k)
    if pooled is not None:
        block, lengths = inputs.partition.block_id, inputs.partition.lengths
        share = share + (pooled[1] / lengths[:, None])[block]
        place = torch.zeros(len(lengths), device=out.device).index_add(0, block, place) / lengths
    read = tokens if pooled is None else pooled
    assert read is not None
    return _received(read[0], branch.readers(own), values[-1 if pooled is not None else 0].detach(), place), share


def _sums(attend: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    leaf = v.detach().requires_grad_()
    with torch.enable_grad():
        out = attend(leaf)
    (sums,) = column_sums(out, [leaf])
    assert sums is not None
    return sums[0]


def _received(sums: Tensor, readers: Tensor, v: Tensor, place: Tensor) -> Received:
    """readers [K] or [K, G]."""
    heads, groups = sums.shape[1], v.shape[1]
    by_group = readers[:, None].expand(-1, groups) if readers.ndim == 1 else readers
    by_head = by_group.repeat_interleave(heads // groups, 1)
    return Received(sums / by_head.clamp(min=1), by_head, v.norm(dim=-1), place)


@dataclass(frozen=True)
class Judged:
    """[K, H] bool each: which keys count for a head, receive much attention, and carry little value."""

    counted: Tensor
    attended: Tensor
    light: Tensor

    @property
    def sinks(self) -> Tensor:
        return self.attended & self.light


def judge(got: Received) -> Judged:
    """Which keys are sinks, for each head, by the definition above."""
    counted = got.readers > 0
    per_group = counted.shape[1] // got.norm.shape[1]
    light = torch.zeros_like(counted)
    for head in range(counted.shape[1]):
        norm = got.norm[:, head // per_group]
        light[:, head] = norm < light_below(norm[counted[:, head]])
    return Judged(counted, counted & (got.attention > MUCH), counted & light)


def light_below(norms: Tensor) -> float:
    """median - 2 IQR of the value norms [n], quantiles linearly interpolated; NaN, which nothing is below, of none."""
    if not len(norms):
        return float("nan")
    low, middle, high = norms.double().quantile(norms.new_tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return float(middle - IQRS * (high - low))


class SinkSums:
    """Counts of (head, key) pairs over clips by position, of one layer and branch; `most`: the most attention any got.

    keys, attended, light, sinks: [BINS] int64.
    """

    def __init__(self) -> None:
        self.keys, self.attended, self.light, self.sinks = (torch.zeros(BINS, dtype=torch.int64) for _ in range(4))
        self.most = 0.0

    def add(self, got: Received) -> None:
        """Add a clip's keys."""
        judged = judge(got)
        part = (got.place * BINS).long().clamp(max=BINS - 1)
        kinds = ((self.keys, judged.counted), (self.attended, judged.attended), (self.light, judged.light))
        for counts, hit in (*kinds, (self.sinks, judged.sinks)):
            counts += torch.zeros_like(counts).index_add_(0, part.cpu(), hit.sum(1).cpu())
        self.most = max(self.most, float(got.attention.max()) if got.attention.numel() else 0.0)


def sink_rows(found: dict[tuple[int, str], SinkSums]) -> list[dict[str, Any]]:
    """A row for each layer and branch: (head, key) pairs, those that meet each condition and both, and the ratio."""
    rows = []
    for (layer, branch), sums in found.items():
        counts = {name: int(getattr(sums, name).sum()) for name in ("keys", "attended", "light", "sinks")}
        ratio = {"ratio": counts["sinks"] / counts["keys"] if counts["keys"] else float("nan")}
        rows.append({"layer": layer, "branch": branch, **counts, **ratio, "most_received": sums.most})
    return rows


def position_rows(found: dict[tuple[int, str], SinkSums]) -> list[dict[str, Any]]:
    """A row for each layer, branch and part of the clip: (head, key) pairs and sinks among them."""
    return [
        {"layer": layer, "branch": branch, "begin": part / BINS, "end": (part + 1) / BINS, "keys": keys, "sinks": sinks}
        for (layer, branch), sums in found.items()
        for part, (keys, sinks) in enumerate(zip(sums.keys.tolist(), sums.sinks.tolist(), strict=True))
    ]
