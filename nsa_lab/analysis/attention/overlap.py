"""How much queries share: the blocks that neighbours select, and the keys that neighbouring layers select."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.groups import rows_that_fit
from nsa_lab.attention.inputs import BranchInputs

DISTANCES = (1, 2, 4, 8, 16, 32, 64)
TILES = (16, 64)


@dataclass
class Mean:
    """A mean that grows; NaN of nothing."""

    total: float = 0.0
    count: int = 0

    def add(self, values: Tensor) -> None:
        """Add all elements."""
        self.total += float(values.double().sum())
        self.count += values.numel()

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


@dataclass
class Shared:
    """Jaccard's index of pairs of choices: of all pairs, of those where both had a choice, and those drawn at random.

    A query has a choice where more blocks are open to it than it takes. At random: the expected index, as the ratio of
    expected intersection and union, if both drew as many of the blocks that are open to the earlier one.
    """

    every: Mean = field(default_factory=Mean)
    free: Mean = field(default_factory=Mean)
    random: Mean = field(default_factory=Mean)


@dataclass
class QueryOverlap:
    """One layer's overlap of neighbouring queries' blocks: `by_distance` in queries, and the union over tiles.

    alone: blocks of one query; union: by tile, the blocks that any of its queries reads, over whole tiles alone.
    """

    by_distance: dict[int, Shared] = field(default_factory=lambda: {distance: Shared() for distance in DISTANCES})
    alone: Mean = field(default_factory=Mean)
    union: dict[int, Mean] = field(default_factory=lambda: {size: Mean() for size in TILES})

    def add(self, choice: Tensor, candidates: Tensor, num_blocks: int) -> None:
        """Add a clip: choice [Tq, G, n] int64, -1 past the last; candidates [Tq] int64, blocks open to each query."""
        self.alone.add((choice >= 0).sum(-1))
        for distance, shared in self.by_distance.items():
            _add_pairs(shared, choice[:-distance], choice[distance:], candidates[:-distance], candidates[distance:])
        for size, union in self.union.items():
            union.add(tile_union(choice, size, num_blocks))


def candidates(inputs: BranchInputs) -> Tensor:
    """[Tq] int64: the blocks of a clip that are open to each query, those that have ended and its own."""
    ends, own = inputs.partition.block_end, inputs.context.query_index
    closed = torch.searchsorted(ends.sort().values, own, right=True)
    return closed + (ends[inputs.partition.block_id[own]] > own)


def jaccard(one: Tensor, other: Tensor) -> Tensor:
    """[c, G] float64: Jaccard's index of two choices [c, G, n] int64, -1 past the last; NaN where both are empty."""
    common = ((one[..., None] == other[..., None, :]) & (one >= 0)[..., None]).sum((-2, -1)).double()
    return common / ((one >= 0).sum(-1) + (other >= 0).sum(-1) - common)


def tile_union(choice: Tensor, size: int, num_blocks: int) -> Tensor:
    """[tiles, G] int64: how many blocks the queries of each whole tile of `size` read together."""
    tiles = len(choice) // size
    blocks = choice[: tiles * size].unflatten(0, (tiles, size)).transpose(1, 2).flatten(2) if tiles else choice[:0]
    rows = rows_that_fit(8 * blocks[:1].numel() + choice.shape[1] * num_blocks)
    return torch.cat([_marked(part, num_blocks).sum(-1) for part in blocks.split(rows)])


def _marked(numbers: Tensor, count: int) -> Tensor:
    """[..., count] bool: which numbers of 0 to count - 1 occur in [..., n] int64; -1 is none."""
    marks = torch.zeros(*numbers.shape[:-1], count + 1, dtype=torch.bool, device=numbers.device)
    return marks.scatter_(-1, numbers + 1, True)[..., 1:]


def _add_pairs(shared: Shared, one: Tensor, other: Tensor, open_one: Tensor, open_other: Tensor) -> None:
    rows = rows_that_fit(2 * max(1, one[:1].numel()) * one.shape[-1])
    for a, b, left, right in zip(*(x.split(rows) for x in (one, other, open_one, open_other)), strict=True):
        found, m, n = jaccard(a, b), (a >= 0).sum(-1), (b >= 0).sum(-1)
        some = ~found.isnan()
        free = some & (left[:, None] > m) & (right[:, None] > n)
        common = m * n / left[:, None].double()
        shared.every.add(found[some])
        shared.free.add(found[free])
        shared.random.add((common / (m + n - common))[free])


@dataclass(frozen=True)
class Selected:
    """A layer's choice [Tq, G, n], who had one (free [Tq, G] bool) and the layer's inputs, for the next layer."""

    layer: int
    choice: Tensor
    free: Tensor
    inputs: BranchInputs


def selected(layer: int, choice: Tensor, inputs: BranchInputs) -> Selected:
    """What the next layer is compared with."""
    return Selected(layer, choice, candidates(inputs)[:, None] > (choice >= 0).sum(-1), inputs)


def comparable(one: Selected, other: Selected) -> bool:
    """Whether two layers have the same queries, keys and groups (a token reducer between them drops some)."""
    same = one.choice.shape[:2] == other.choice.shape[:2]
    return same and torch.equal(one.inputs.context.token_index, other.inputs.context.token_index)


def add_layers(shared: Shared, one: Selected, other: Selected) -> None:
    """Add a clip's overlap of two layers: Jaccard's index of the keys in the blocks that each query chose in either.

    Keys and not blocks, since layers may have other partitions. `random` stays empty.
    """
    tokens = len(one.inputs.k)
    rows = rows_that_fit(4 * one.choice.shape[1] * (tokens + 1) + 8 * _widest(one) + 8 * _widest(other))
    for begin in range(0, len(one.choice), rows):
        part = slice(begin, begin + rows)
        a, b = (_marked(_keys(layer, part), tokens) for layer in (one, other))
        common, union = (a & b).sum(-1).double(), (a | b).sum(-1)
        some = union > 0
        found = common / union
        shared.every.add(found[some])
        shared.free.add(found[some & one.free[part] & other.free[part]])


def _widest(layer: Selected) -> int:
    return layer.choice[:1].numel() * layer.inputs.partition.max_length


def _keys(layer: Selected, part: slice) -> Tensor:
    """[c, G, n * L] int64: the keys that queries `part` read, -1 for none."""
    choice, own = layer.choice[part], layer.inputs.context.query_index[part]
    members = layer.inputs.partition.members[choice.clamp(min=0)]
    hidden = (members > own[:, None, None, None]) | (choice < 0)[..., None]
    return members.masked_fill(hidden, -1).flatten(2)


def overlap_rows(queries: dict[int, QueryOverlap], layers: dict[tuple[int, int], Shared]) -> Iterator[dict[str, Any]]:
    """Rows for `queries` at a distance, a `tile` (blocks of its union; alone: of one query), and two `layers`."""
    for layer, found in queries.items():
        for distance, shared in found.by_distance.items():
            yield {"what": "queries", "layer": layer, "distance": distance, **_shares(shared)}
        for size, union in found.union.items():
            row = {"what": "tile", "layer": layer, "distance": size, "blocks": union.value, "tiles": union.count}
            yield row | {"alone": found.alone.value}
    for (layer, other), shared in layers.items():
        yield {"what": "layers", "layer": layer, "other": other, **_shares(shared)}


def _shares(shared: Shared) -> dict[str, Any]:
    both = {"jaccard": shared.every.value, "pairs": shared.every.count, "jaccard_free": shared.free.value}
    return both | {"pairs_free": shared.free.count, "jaccard_random": shared.random.value}
