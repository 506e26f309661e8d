"""What a tile of neighbouring queries chose together, and which tiles are better walked over that union.

Over key blocks (`lists.py`), a (query, block) pair costs its arithmetic and a slot, whoever else chose the block. Over
unions, a tile of queries meets every block that one of them chose: nothing is written but the output, and the rows of
those that did not choose it are wasted. So `waste`, the rows met for one that is wanted, decides between the two, tile
by tile and group by group, on the device; each (query, group) is written by exactly one of them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, Tile, cdiv, launch, padded
from nsa_kernels.selection.lists import TILE

MOST_WASTE = 2.0
"""Tiles whose queries share so much are walked over their union; 0 for none of them, infinity for all."""
LEAST_ROWS = 64
"""Smaller tiles do not use a Hopper GPU's matrix units, as float32 never does, and go over key blocks."""


@dataclass(frozen=True)
class Unions:
    """Unions of the choices of tiles of neighbouring queries, as int32 tensors.

    met [3, tiles, G, most]: the blocks of a union. [0]: the first place of the block in block order; [1]: its length;
    [2]: who chose it, bit i for query i of the tile. Blocks that fill a tile of keys and that all the tile's queries
    see whole stand at the front; the others from the last place backwards.
    count [2, tiles, G]: how many there are, 0 for a tile that goes over key blocks, and how many stand at the front.
    taken [tiles * G]: tile * G + g of each tile that goes over its union, in any order; taken_count [1]: how many do.
    """

    met: Tensor
    count: Tensor
    taken: Tensor
    taken_count: Tensor

    @property
    def most(self) -> int:
        return self.met.shape[3]

    @property
    def tiles(self) -> int:
        return self.count.shape[1]


@dataclass(frozen=True)
class UnionTile(Tile):
    """`queries` neighbouring queries, a power of two so that a membership word holds whole tiles, in `rows` rows."""

    queries: int

    @staticmethod
    def of(rows: int, keys: int, warps: int, stages: int, ratio: int) -> "UnionTile":
        """As many queries of `ratio` heads as `rows` hold, one at least and TILE at most."""
        queries = 2 ** (min(TILE, max(1, rows // ratio)).bit_length() - 1)
        return UnionTile(padded(queries * ratio), keys, warps, stages, queries)


@triton.jit(do_not_specialize=["query_begin", "queries", "N"], do_not_specialize_on_alignment=["taken_count"])
def _unite(
    chosen, words, met, count, taken, taken_count, offsets, end, position, query_begin, queries, N, most_waste,
    G: tl.constexpr, S: tl.constexpr, TILE: tl.constexpr, QUERIES: tl.constexpr, MOST: tl.constexpr, BN: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """One (tile, group): its bits in the words [words, G, N] of `lists.py`, or, where it shares enough, its union.

    One program does both, for both ask who else of the tile chose a block: who finds no bit of the tile in a word
    counts the block. A union is in the order of the first query, then slot, that chose a block, whatever order the
    atomics ran in. chosen [queries, G, S] from query_begin on; met to taken_count: see `Unions`; most_waste: rows met
    for one that is wanted; PAIRS: queries of a tile times slots, padded; MOST: blocks of a union; BN: keys of a whole
    block.
    """
    ALL: tl.constexpr = (1 << QUERIES) - 1
    tile = tl.program_id(0)
    g = tl.program_id(1)
    first = tile * QUERIES
    shift = first % TILE
    i = tl.arange(0, PAIRS)
    inner = i // S
    there = (inner < QUERIES) & (first + inner < queries)
    block = tl.load(chosen + ((first + inner).to(tl.int64) * G + g) * S + i % S, mask=there, other=-1)
    wanted = block >= 0
    words += ((first // TILE).to(tl.int64) * G + g) * N
    bit = (1 << ((first + inner) % TILE)).to(tl.uint32)
    found = tl.atomic_or(words + block, bit, mask=wanted, sem="relaxed").to(tl.uint32)
    union = tl.sum((wanted & (((found >> shift) & ALL) == 0)).to(tl.int32), 0)
    shared = (union <= MOST) & ((union * QUERIES).to(tl.float32) <= most_waste * tl.sum(wanted.to(tl.int32), 0))
    stride = tl.num_programs(0).to(tl.int64) * G
    column = tile * G + g
    tl.store(count + column, tl.where(shared, union, 0))
    if shared & (union > 0):
        tl.debug_barrier()
        word = tl.load(words + block, mask=wanted, other=0, cache_modifier=".cg").to(tl.uint32)  # from L2, as atomics
        tl.debug_barrier()
        bits = (word >> shift) & ALL
        leads = wanted & ((((word & (bit - 1)) >> shift) & ALL) == 0)
        tl.atomic_and(words + block, (~(bits << shift)).to(tl.int32), mask=leads, sem="relaxed")
        place = tl.load(offsets + block, mask=leads, other=0)
        length = tl.load(offsets + block + 1, mask=leads, other=0) - place
        pos = tl.load(position + query_begin + first)
        whole = leads & (length == BN) & (tl.load(end + block, mask=leads, other=0) <= pos)
        fronts = whole.to(tl.int32)
        backs = (leads & (fronts == 0)).to(tl.int32)
        at = tl.where(whole, tl.cumsum(fronts, 0) - 1, MOST - tl.cumsum(backs, 0))
        met += column.to(tl.int64) * MOST
        tl.store(met + at, place, mask=leads)
        tl.store(met + stride * MOST + at, length, mask=leads)
        tl.store(met + 2 * stride * MOST + at, bits.to(tl.int32), mask=leads)
        tl.store(count + stride + column, tl.sum(fronts, 0))
        tl.store(taken + tl.atomic_add(taken_count, 1, sem="relaxed"), column)


def build_unions(
    chosen: Tensor, blocks: Blocks, query_begin: int, tile: UnionTile, most_waste: float
) -> tuple[Tensor, Unions]:
    """Membership words [ceil(C / TILE), G, N] int32 of those that go over lists, and the unions of the others.

    chosen [C, G, S] int32, of queries from `query_begin` on: -1 for an empty slot. No host synchronisation.
    """
    queries, groups, slots = chosen.shape
    tiles, many = cdiv(queries, tile.queries), cdiv(queries, TILE) * groups * blocks.num_blocks
    most = max(1, int(min(tile.queries, most_waste) * slots))
    zeros = torch.zeros(many + 1, dtype=torch.int32, device=chosen.device)
    unions = Unions(
        zeros.new_empty((3, tiles, groups, most)), zeros.new_empty((2, tiles, groups)),
        zeros.new_empty(tiles * groups), zeros[many:],
    )  # fmt: skip
    words = zeros[:many].view(-1, groups, blocks.num_blocks)
    launch(_unite, (tiles, groups),
        chosen, words, unions.met, unions.count, unions.taken, unions.taken_count,
        blocks.offsets, blocks.end, blocks.position, query_begin, queries, blocks.num_blocks, float(most_waste),
        G=groups, S=slots, TILE=TILE, QUERIES=tile.queries, MOST=most, BN=tile.keys,
        PAIRS=padded(tile.queries * slots, 1),
    )  # fmt: skip
    return words, unions


def waste_for(tile: UnionTile, dtype: torch.dtype, given: float | None) -> float:
    """The most waste with which tiles go over their unions, `given` or by default."""
    if given is not None:
        return given
    small = tile.rows < LEAST_ROWS or dtype == torch.float32
    return 0.0 if small and not INTERPRET else MOST_WASTE
