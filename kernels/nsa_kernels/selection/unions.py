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
from nsa_kernels.tiles import popcount

MOST_WASTE = {"forward": 2.5, "backward": 1.5}
"""Tiles whose queries share so much are walked over their union; 0 for none of them, infinity for all."""
LEAST_ROWS = 64
"""Smaller tiles do not use a Hopper GPU's matrix units, as float32 never does, and go over key blocks."""


@dataclass(frozen=True)
class Unions:
    """Unions of the choices of tiles of `queries` neighbouring queries, as int32 tensors.

    met [3, tiles, G, most]: the blocks of a union. [0]: the first place of the block in block order; [1]: its length;
    [2]: who chose it, bit i for query i of the tile. Blocks that fill a tile of keys and that all the tile's queries
    see whole stand at the front, in order; the others from the last place backwards.
    count [2, tiles, G]: how many stand at the front and at the back, 0 and 0 for a tile that goes over key blocks.
    some [1]: whether there is a tile that does not.
    """

    met: Tensor
    count: Tensor
    some: Tensor

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


@triton.jit(do_not_specialize=["query_begin", "tiles", "N"])
def _collect(
    words, met, count, some, offsets, end, position, query_begin, tiles, N, most_waste,
    G: tl.constexpr, TILE: tl.constexpr, QUERIES: tl.constexpr, MOST: tl.constexpr, BN: tl.constexpr,
    CLEAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One (tile, group): its union from the membership words [words, G, N]; CLEAR: out of them, where it is taken."""
    ALL: tl.constexpr = (1 << QUERIES) - 1
    tile = tl.program_id(0)
    g = tl.program_id(1)
    first = tile * QUERIES
    words += ((first // TILE).to(tl.int64) * G + g) * N
    shift = first % TILE
    column = tile.to(tl.int64) * G + g
    met += column * MOST
    stride = tiles.to(tl.int64) * G * MOST
    pos = tl.load(position + query_begin + first)
    front = 0
    back = 0
    pairs = 0
    for block0 in range(0, N, BLOCK):
        block = block0 + tl.arange(0, BLOCK)
        bits = (tl.load(words + block, mask=block < N, other=0).to(tl.uint32) >> shift) & ALL
        chosen = bits != 0
        place = tl.load(offsets + block, mask=chosen, other=0)
        length = tl.load(offsets + block + 1, mask=chosen, other=0) - place
        whole = chosen & (length == BN) & (tl.load(end + block, mask=chosen, other=0) <= pos)
        fronts = whole.to(tl.int32)
        backs = (chosen & (fronts == 0)).to(tl.int32)
        at = tl.where(whole, front + tl.cumsum(fronts, 0) - 1, MOST - back - tl.cumsum(backs, 0))
        fits = chosen & (at >= 0) & (at < MOST)
        tl.store(met + at, place, mask=fits)
        tl.store(met + stride + at, length, mask=fits)
        tl.store(met + 2 * stride + at, bits.to(tl.int32), mask=fits)
        front += tl.sum(fronts, 0)
        back += tl.sum(backs, 0)
        pairs += tl.sum(popcount(bits), 0)
    union = front + back
    taken = (union <= MOST) & ((union * QUERIES).to(tl.float32) <= most_waste * pairs)
    tl.store(count + column, tl.where(taken, front, 0))
    tl.store(count + tiles.to(tl.int64) * G + column, tl.where(taken, back, 0))
    if taken:
        tl.atomic_or(some, 1, sem="relaxed")
        if CLEAR:
            for block0 in range(0, N, BLOCK):
                block = block0 + tl.arange(0, BLOCK)
                bits = (tl.load(words + block, mask=block < N, other=0).to(tl.uint32) >> shift) & ALL
                tl.atomic_and(words + block, (~(bits << shift)).to(tl.int32), mask=bits != 0, sem="relaxed")


def build_unions(
    words: Tensor, blocks: Blocks, query_begin: int, queries: int, slots: int, tile: UnionTile, most_waste: float,
    *, clear: bool,
) -> Unions:  # fmt: skip
    """The unions of `queries` queries from `query_begin` on, whose choices of up to `slots` blocks are in `words`.

    words: of `mark_choices`; with `clear` the choices of tiles that go over unions leave them. No host synchronisation.
    """
    groups, tiles = words.shape[1] // blocks.num_blocks, cdiv(queries, tile.queries)
    most = int(min(tile.queries, most_waste) * slots)
    unions = Unions(words.new_empty((3, tiles, groups, most)), words.new_zeros((2, tiles, groups)), words.new_zeros(1))
    if most:
        launch(_collect, (tiles, groups),
            words, unions.met, unions.count, unions.some, blocks.offsets, blocks.end, blocks.position,
            query_begin, tiles, blocks.num_blocks, float(most_waste),
            G=groups, TILE=TILE, QUERIES=tile.queries, MOST=most, BN=tile.keys, CLEAR=clear, BLOCK=512,
        )  # fmt: skip
    return unions


@triton.jit
def over_union(count, query, g, queries, G: tl.constexpr, QUERIES: tl.constexpr):
    """Whether group g of query number `query` of a round of `queries` goes over its tile's union."""
    column = query // QUERIES * G + g
    stride = tl.cdiv(queries, QUERIES) * G
    return tl.load(count + column) + tl.load(count + stride + column) > 0


def waste_for(direction: str, tile: UnionTile, dtype: torch.dtype, given: float | None) -> float:
    """The most waste with which tiles go over their unions, `given` or by default."""
    if given is not None:
        return given
    small = tile.rows < LEAST_ROWS or dtype == torch.float32
    return 0.0 if small and not INTERPRET else MOST_WASTE[direction]
