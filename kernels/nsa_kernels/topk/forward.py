"""Choose blocks: the importance of a block is its compression probability summed over the group's heads.

Scores are made for a chunk of queries at a time, so that T x N is never held.

`_score`: a program owns BM queries of one group and a tile of BN blocks, further ones where its queries are of
several samples; it sums over the heads in registers, so that a score is written once.
`_select`: a program owns one (query, group), or with TILE > 1 the first of a run of queries that share its choice.
It holds all scores in registers, [W / 32, 32], so that what is picked of 32 is a word, and popcounts tell a block's
slot. The score that separates the chosen from the rest is found by bisection on its bits: as integers, floats that
are not negative are in the same order.

Beside the names of `tiles.py`:
  scores [chunk, G, width] float32        column c of a row is block first_block + c
  lse [H, Tq]                             of compression
  chosen [Tq, G, count] int32             ascending, -1 past the last
  leader [Tq] int32                       the first query of each run, where TILE > 1
  row_begin, row_end, rows_total          the chunk's queries, and how many there are in all
  count, budget, initial, local           blocks to choose, tokens at most where TOKENS, blocks that are always chosen
  W, SLOTS, TILE                          width, count and the longest run, padded to powers of two
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, LOG2E, SCORE_BYTES, Tile, cdiv, empty, launch, padded, precision
from nsa_kernels.tiles import block_logits, exp2, load_rows, near_rows, popcount

MOST_BLOCKS = 32768
"""Blocks of one sample that a program can rank in registers."""

_FORCED = tl.constexpr(0x7F800000)
"""The key of a block that is always chosen: above that of every score, the score's bits."""


@triton.jit(do_not_specialize=["row_begin", "row_end", "Tq", "N", "width", "ratio"])
def _score(
    q, pk, bias, lse, scores, position, first_block, last_block, end, row_begin, row_end, Tq, N, width, ratio, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BIAS: tl.constexpr, PREC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Scores [BM, BN] of one group; column c of a row is block first_block + c.

    ratio: heads of a group, not a constant because its loop would be unrolled, which takes too many registers.
    """
    g = tl.program_id(1)
    row0 = row_begin + tl.program_id(0) * BM
    rows = row0 + tl.arange(0, BM)
    real = rows < row_end
    first = tl.load(first_block + rows, mask=real, other=0)
    pos = tl.load(position + rows, mask=real, other=-1)
    stop = tl.load(last_block + tl.minimum(row0 + BM, row_end) - 1) + 1
    q += (row0.to(tl.int64) * H + g * ratio) * D
    lse += g * ratio * Tq + row0
    scores += ((row0 - row_begin).to(tl.int64) * G + g) * width
    row = tl.minimum(tl.arange(0, BM), row_end - 1 - row0)
    for j0 in range(tl.load(first_block + row0) + tl.program_id(2) * BN, stop, tl.num_programs(2) * BN):
        j = j0 + tl.arange(0, BN)
        kt = load_rows(pk + g * D, j, j < N, G * D, D, DP)
        total = tl.zeros([BM, BN], tl.float32)
        for r in tl.range(0, ratio, num_stages=STAGES):
            qt = near_rows(q + r * D, row, H * D, D, DP)
            s = block_logits(qt, kt, bias, end, first, pos, j, N, scale2, False, BIAS, PREC)
            total += exp2(s - tl.load(lse + r * Tq + row)[:, None])
        ends = tl.load(end + j, mask=j < N, other=2**30)
        column = j[None, :] - first[:, None]
        at = scores + row[:, None] * (G * width) + column
        inside = real[:, None] & (column >= 0) & (column < width)
        tl.store(at, tl.where(ends[None, :] <= pos[:, None], total, 0.0), mask=inside)


@triton.jit(do_not_specialize=["row_begin", "row_end", "rows_total", "width", "count", "budget", "initial", "local"])
def _select(
    scores, chosen, leader, offsets, position, first_block, last_block, closed_below, start, end, block_of_query,
    row_begin, row_end, rows_total, width, count, budget, initial, local,
    G: tl.constexpr, W: tl.constexpr, SLOTS: tl.constexpr, TILE: tl.constexpr, TOKENS: tl.constexpr,
    PERMUTED: tl.constexpr,
):  # fmt: skip
    """The blocks of one (query, group), ascending, into chosen [Tq, G, count]; with TILE > 1 of one run of queries."""
    row = row_begin + tl.program_id(0)
    g = tl.program_id(1)
    last = row
    first = tl.load(first_block + row)
    if TILE > 1:
        if tl.load(leader + row) != row:
            return
        step = tl.arange(0, TILE)
        after = row + step
        real = after < rows_total
        led = tl.load(leader + after, mask=real, other=-1) == row
        led &= tl.load(first_block + after, mask=real, other=-1) == first  # another sample's scores lie elsewhere
        last = row - 1 + tl.min(tl.where(led, TILE, step))
    lane = tl.arange(0, 32)
    column = tl.arange(0, W // 32)[:, None] * 32 + lane[None, :]
    j = first + column
    begun_count = tl.load(last_block + last) + 1 - first
    pos = tl.load(position + last)
    closed = column < tl.load(closed_below + last) - first
    own_first = tl.load(block_of_query + row) - local + 1
    own_last = tl.where(local > 0, tl.load(block_of_query + last), -1)
    forced = (column < tl.minimum(initial, begun_count)) | ((j >= own_first) & (j <= own_last))
    if PERMUTED:
        inside = column < begun_count
        closed = inside & (tl.load(end + j, mask=inside, other=2**30) <= pos)
        forced = forced & inside & (tl.load(start + j, mask=inside, other=2**30) <= pos)

    at = scores + ((row - row_begin).to(tl.int64) * G + g) * width + column
    if TILE > 1:
        score = tl.zeros([W // 32, 32], tl.float32)
        for i in range(last - row + 1):
            # A block that closed after an earlier query of the tile scores zero there, if it was scored at all.
            score += tl.load(at, mask=closed & (column <= tl.load(last_block + row + i) - first), other=0.0)
            at += G * width
        score = tl.where(closed, score, float("-inf"))
    else:
        score = tl.load(at, mask=closed, other=float("-inf"))
    limit = count
    weight = column
    if TOKENS:
        listed = closed | forced
        weight = tl.load(offsets + j + 1, mask=listed, other=1) - tl.load(offsets + j, mask=listed, other=0)
        score = score / weight.to(tl.float32)
        limit = budget
    key = tl.where(forced, _FORCED, tl.minimum(score.to(tl.int32, bitcast=True), _FORCED - 1))

    pick = key >= 0
    _, many = _taken(key, 0, weight, count, limit, TOKENS)
    if many:
        edge, tie = _edge(key, forced, weight, count, limit, TOKENS)
        pick = key > edge
        if tie:
            pick = pick | _first_equal(key, edge, weight, count, limit, W, TOKENS)
    words = tl.sum(tl.where(pick, 1 << lane, 0).to(tl.uint32), 1)
    picked = popcount(words)
    found = tl.sum(picked)
    before = popcount(words[:, None] & ((1 << lane) - 1).to(tl.uint32)[None, :])
    place = (tl.cumsum(picked, 0) - picked)[:, None] + before
    slot = tl.arange(0, SLOTS)
    out = chosen + (row.to(tl.int64) * G + g) * count
    for _ in range(last - row + 1):
        tl.store(out + place, j, mask=pick)
        tl.store(out + slot, tl.full([SLOTS], -1, tl.int32), mask=(slot >= found) & (slot < count))
        out += G * count


@triton.jit
def _taken(key, least, weight, count, limit, TOKENS: tl.constexpr):
    """How many blocks have key >= least, and whether they are more than `count` or hold more than `limit` tokens."""
    # The sign of a difference: a sum of comparisons is compiled to half as many instructions again.
    taken = key.numel + tl.sum((key - least) >> 31)
    many = taken > count
    if TOKENS:
        many = many | (tl.sum(tl.where(key >= least, weight, 0)) > limit)
    return taken, many


@triton.jit
def _edge(key, forced, weight, count, limit, TOKENS: tl.constexpr):
    """The largest v for which the blocks with key >= v are too many, and whether some with key == v may yet fit.

    Bisected between the worst key, with which all are taken, and what is above the best.
    """
    high = tl.max(tl.where(forced, -1, key)) + 1
    low = tl.min(tl.where(forced | (key < 0), _FORCED, key))
    taken, many = _taken(key, high, weight, count, limit, TOKENS)  # what is forced, alone
    low = tl.where(many, _FORCED, low)
    high = tl.where(many, _FORCED + 1, high)
    tie = True
    if not TOKENS:
        tie = taken != count
        low = tl.where(tie, low, high - 1)
    while high - low > 1:
        trial = low + (high - low) // 2
        taken, many = _taken(key, trial, weight, count, limit, TOKENS)
        low = tl.where(many, trial, low)
        high = tl.where(many, high, trial)
        if not TOKENS:
            tie = taken != count
            low = tl.where(tie, low, trial - 1)
    return low, tie


@triton.jit
def _first_equal(key, edge, weight, count, limit, W: tl.constexpr, TOKENS: tl.constexpr):
    """The first blocks with key == edge that fit beside those above it."""
    better = key > edge
    equal = tl.reshape(key == edge, [W])
    fits = tl.cumsum(equal.to(tl.int32), 0) <= count - tl.sum(better.to(tl.int32))
    if TOKENS:
        room = limit - tl.sum(tl.where(better, weight, 0))
        fits = fits & (tl.cumsum(tl.where(equal, tl.reshape(weight, [W]), 0), 0) <= room)
    return tl.reshape(equal & fits, [W // 32, 32])


def topk_forward(
    q: Tensor,
    pooled_k: Tensor,
    lse: Tensor,
    blocks: Blocks,
    scale: float,
    count: int,
    *,
    initial: int = 0,
    local: int = 1,
    budget: int | None = None,
    leader: Tensor | None = None,
    query_tile: int = 1,
    bias: Tensor | None = None,
) -> Tensor:
    """[Tq, G, count] int32 ascending, -1 past the last block. lse [H, Tq] is the compression op's."""
    rows, heads, dim = q.shape
    groups = pooled_k.shape[1]
    chosen = torch.full((rows, groups, count), -1, dtype=torch.int32, device=q.device)
    if not rows:
        return chosen
    if blocks.most(0, rows) > MOST_BLOCKS:
        raise ValueError(f"a sample of {blocks.most(0, rows)} blocks is more than {MOST_BLOCKS}; use larger blocks")
    width = blocks.most(0, rows)
    chunk = chunk_rows(rows, groups, width)
    extra = query_tile - 1
    scores = empty((min(rows, chunk + extra), groups, width), q, torch.float32)
    tile = score_tile(dim, q.dtype)
    for begin in range(0, rows, chunk):
        end = min(rows, begin + chunk)
        scored = min(rows, end + extra)
        width = blocks.most(begin, scored)
        columns = padded(width, 32)
        launch(_score, (cdiv(scored - begin, tile.rows), groups, cdiv(width, tile.keys)),
            q, pooled_k, q if bias is None else bias, lse, scores,
            blocks.position, blocks.first_block, blocks.last_block, blocks.end,
            begin, scored, rows, blocks.num_blocks, width, heads // groups,
            scale * LOG2E,
            H=heads, G=groups, D=dim, DP=padded(dim), BM=tile.rows, BN=tile.keys,
            BIAS=bias is not None, PREC=precision(q.dtype), STAGES=tile.stages, num_warps=tile.warps,
        )  # fmt: skip
        launch(_select, (end - begin, groups),
            scores, chosen, chosen if leader is None else leader, blocks.offsets,
            blocks.position, blocks.first_block, blocks.last_block, blocks.closed_below, blocks.start, blocks.end,
            blocks.block_of_query,
            begin, end, rows, width, count, budget or 0, initial, local,
            G=groups, W=columns, SLOTS=padded(count, 1), TILE=padded(query_tile, 1), TOKENS=budget is not None,
            PERMUTED=blocks.order is not None, num_warps=min(16, max(1, columns // 512)),
        )  # fmt: skip
    return chosen


def chunk_rows(rows: int, groups: int, width: int) -> int:
    """Queries whose scores fit SCORE_BYTES."""
    return min(rows, max(64, SCORE_BYTES // (4 * groups * max(1, width)) // 64 * 64))


def score_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """A tile walks over the heads of a group and keeps the sum of their probabilities."""
    if INTERPRET or dtype == torch.float32:
        return Tile(32, 32, 4, 1)
    return Tile(64, 64, 4, 3) if padded(head_dim) <= 128 else Tile(64, 64, 4, 2)
