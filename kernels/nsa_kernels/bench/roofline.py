"""What an op must at least compute and move, and how long the machine's measured rates would take for it."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.bench.inputs import Heads, distinct
from nsa_kernels.bench.records import Result
from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import padded
from nsa_kernels.selection.gathered import gather_tile
from nsa_kernels.selection.pack import pack_size

MIB = 2**20
L2_BYTES_PER_SECOND = 1e13
"""What a walk over queries has read: flash-nsa's selection on an H200, 133 GB in 13.2 ms."""
MMA_FLOPS_PER_SECOND = 5e14
"""Tiles of 16 rows are too small for wgmma; mma.sync reaches 63% of a Hopper's rate (arXiv 2402.13499), here 790e12."""


@dataclass(frozen=True)
class Work:
    """flops; bytes moved if every input is read once and every output written once; bytes that the selection moves
    through its slots or gathers when no cache helps, and flops with what it pads (the same for the other ops)."""

    flops: float
    least: float
    moved: float = 0.0
    padded: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        flops, padded = self.flops + other.flops, self.spent + other.spent
        return Work(flops, self.least + other.least, self.bytes + other.bytes, padded)

    @property
    def bytes(self) -> float:
        return self.moved or self.least

    @property
    def spent(self) -> float:
        return self.padded or self.flops


@dataclass(frozen=True)
class Roof:
    """Rates of this machine: bf16 matrix products, and a copy's reads plus writes."""

    flops_per_second: float
    bytes_per_second: float

    def explain(self, result: Result, work: Work) -> Result:
        """The result with its roofline columns; the shares are empty where there is no time."""
        least = 1e3 * max(work.flops / self.flops_per_second, work.least / self.bytes_per_second)
        moved = 1e3 * max(work.spent / self.flops_per_second, work.bytes / self.bytes_per_second)
        time = result.milliseconds
        return dataclasses.replace(
            result,
            gflop=work.flops / 1e9,
            min_mib=work.least / MIB,
            moved_mib=work.bytes / MIB,
            roof_ms=least or None,
            roof_share=least / time if time and least else None,
            moved_share=moved / time if time and moved else None,
        )


def measure_roof(device: torch.device) -> Roof:
    """A 8192 x 8192 x 8192 bf16 product and a copy of 1 GiB on a GPU; no roof on a CPU."""
    if device.type != "cuda":
        return Roof(float("inf"), float("inf"))
    from triton.testing import do_bench

    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    source = torch.empty(2**30, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = do_bench(lambda: a @ a, warmup=20, rep=100, return_mode="median")
    copy = do_bench(lambda: target.copy_(source), warmup=20, rep=100, return_mode="median")
    return Roof(2 * 8192**3 / product * 1e3, 2 * 2**30 / copy * 1e3)


class Counts:
    """Work of each op on T queries and keys; `pairs` are (query, key) pairs that are not masked, of one head."""

    def __init__(self, heads: Heads, tokens: int, dtype: torch.dtype) -> None:
        self.heads, self.dtype = heads, dtype
        element = dtype.itemsize
        self.query_bytes = tokens * heads.query * heads.dim * element
        self.key_bytes = tokens * heads.groups * heads.dim * element
        self.lse_bytes = tokens * heads.query * 4
        self.tokens = tokens
        self.element = element

    def attention(self, pairs: float, key_bytes: float, backward: bool, gradient_bytes: float = 0) -> Work:
        """Two products forward; five backward. Reads q, k, v, writes out and the log-sum-exp; backward reads these but
        out, do and delta too, and writes dq, dk, dv."""
        flops = 4.0 * pairs * self.heads.query * self.heads.dim
        least = 2 * self.query_bytes + 2 * key_bytes + self.lse_bytes
        if not backward:
            return Work(flops, least)
        more = 3 * self.query_bytes + 2 * key_bytes + 2 * self.lse_bytes + 2 * (gradient_bytes or key_bytes)
        return Work(3.5 * flops, least + more)

    def dense(self, backward: bool) -> Work:
        return self.attention(self.tokens * (self.tokens + 1) / 2, self.key_bytes, backward)

    def pool(self, blocks: Blocks, backward: bool) -> Work:
        one = 2 * (self.key_bytes + self._pooled_bytes(blocks))
        return Work(0.0, one * (2 if backward else 1))

    def compression(self, blocks: Blocks, backward: bool) -> Work:
        return self.attention(closed_pairs(blocks), self._pooled_bytes(blocks), backward)

    def topk(self, blocks: Blocks, count: int) -> Work:
        flops = 2.0 * closed_pairs(blocks) * self.heads.query * self.heads.dim
        choice = self.tokens * self.heads.groups * count * 4
        return Work(flops, self.query_bytes + self._pooled_bytes(blocks) + self.lse_bytes + choice)

    def window(self, size: int, backward: bool) -> Work:
        full = max(0, self.tokens - size)
        short = min(size, self.tokens)
        pairs = full * size + short * (short + 1) / 2
        return self.attention(pairs, self.key_bytes, backward, self._wide(self.key_bytes))

    def selection(self, blocks: Blocks, chosen: Tensor, backward: bool) -> Work:
        choice = chosen.numel() * 4
        pairs = chosen_pairs(blocks, chosen) / self.heads.groups
        least = self.attention(pairs, self.key_bytes, backward, self._wide(self.key_bytes))
        visits = int((chosen >= 0).sum()) * self.heads.ratio * self.heads.dim * self.element
        # A visit reads q and writes a partial output, which the join reads; backward q, do, and the same for dq.
        slots = visits * (3 if not backward else 3 + 4)
        return Work(least.flops, least.least + choice, least.least + choice + slots)

    def gathered(self, blocks: Blocks, chosen: Tensor, backward: bool) -> Work:
        choice = chosen.numel() * 4
        pairs = chosen_pairs(blocks, chosen) / self.heads.groups
        least = self.attention(pairs, self.key_bytes, backward, self._wide(self.key_bytes))
        own = gathering(self.heads, blocks, chosen, self.dtype, backward)
        return Work(least.flops, least.least + choice, least.least + choice + own.bytes, own.flops)

    def combine(self, backward: bool) -> Work:
        gates = self.tokens * self.heads.query * 3 * self.element
        forward = 4 * self.query_bytes + gates
        return Work(0.0, forward + (4 * self.query_bytes + self.tokens * self.heads.query * 3 * 4 if backward else 0))

    def _pooled_bytes(self, blocks: Blocks) -> float:
        return blocks.num_blocks * self.heads.groups * self.heads.dim * self.element

    def _wide(self, size: float) -> float:
        """Bytes of the same numbers in float32."""
        return size / self.element * 4


@dataclass(frozen=True)
class Gathering:
    """What it costs to gather keys, on paper, for so many (query, group) pairs: bytes read again and again, from L2
    where the keys of one group fit there, and flops with padding."""

    bytes: float
    flops: float
    pairs: int

    @property
    def milliseconds(self) -> float:
        return 1e3 * max(self.bytes / L2_BYTES_PER_SECOND, self.flops / MMA_FLOPS_PER_SECOND)

    def __str__(self) -> str:
        kib, mflop = self.bytes / self.pairs / 2**10, self.flops / self.pairs / 1e6
        return f"on paper {self.milliseconds:.3g} ms, {kib:,.0f} KiB and {mflop:.0f} MFLOP per query and group"


def gathering(heads: Heads, blocks: Blocks, chosen: Tensor, dtype: torch.dtype, backward: bool) -> Gathering:
    """Forward: a key and a value for each pair of a query and a token it sees; two products of padded heads with padded
    blocks, up to the last slot that is filled. The backward does so again, with three products, for dq; and for dk and
    dv it reads each head's query and gradient once per pack of which it chose a block, for four products with its
    padded keys."""
    ratio, dim = heads.ratio, heads.dim
    tile = gather_tile(dim, ratio, dtype)
    slot = torch.arange(1, chosen.shape[2] + 1, dtype=chosen.dtype, device=chosen.device)
    reach = torch.where(chosen >= 0, slot, 0).amax(2) * padded(blocks.longest, 1)
    met = float((-(-reach // tile.keys)).sum()) * tile.keys * tile.rows * padded(dim)
    read = chosen_pairs(blocks, chosen) * 2 * dim * dtype.itemsize
    moved, flops = read, 4 * met
    if backward:
        pack = pack_size(blocks.longest)
        rows = float(distinct(torch.where(chosen < 0, -1, chosen // pack)).sum()) * ratio
        moved += read + rows * (2 * dim * dtype.itemsize + 8)
        flops += 6 * met + 8 * rows * padded(pack * blocks.longest) * padded(dim)
    return Gathering(moved, flops, max(1, reach.numel()))


def closed_pairs(blocks: Blocks) -> float:
    """(query, block) pairs whose block has ended: what compression sees. Blocks in packed order only."""
    return float((blocks.closed_below - blocks.first_block).sum())


def chosen_pairs(blocks: Blocks, chosen: Tensor) -> float:
    """(query, key) pairs of all groups whose key stands in a chosen block and not after the query."""
    total = 0.0
    for rows in range(0, len(chosen), 8192):
        part = chosen[rows : rows + 8192].long()
        block = part.clamp(min=0)
        start, end = blocks.start.long()[block], blocks.end.long()[block]
        position = blocks.position[rows : rows + 8192].long()[:, None, None]
        seen = torch.minimum(end, position) - start + 1
        total += float(torch.where(part >= 0, seen, 0).clamp(min=0).sum())
    return total
