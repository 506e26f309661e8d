"""How much memory an op takes beyond its inputs and outputs, and how many queries fit it at a time."""

from dataclasses import dataclass, replace

from nsa_kernels.runtime import INTERPRET, SCORE_BYTES, WORKSPACE_BYTES, cdiv, padded

SPARE = 64 * 2**20
"""What the allocator rounds up and the small tensors take."""
FORWARD_KEYS, BACKWARD_KEYS = 256, 256
"""Keys of a block that a program holds, at most, where more would fit: no block that is selected is longer."""
LEAST_ROOM = 2**28
"""What a round of queries may take even where dk and dv in float32 leave less of WORKSPACE_BYTES."""
MOST_SLOTS = 128
"""Chosen blocks that have a slot each; a choice of more is gathered (selection/gathered.py)."""
GATHER_BELOW = 0
"""Blocks shorter than this are gathered however few are chosen; 0 for none, until times on a GPU say where it pays."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one call: T queries and keys, N blocks of at most `block_size`, H heads in G groups of dim D."""

    queries: int
    keys: int
    num_blocks: int
    heads: int
    groups: int
    head_dim: int
    block_count: int
    block_size: int
    element_size: int = 2
    gathered: bool = False
    choice_bytes: int = 0


def gathers(block_count: int, block_size: int) -> bool:
    """Whether the selection gathers each query's keys, rather than walk over key blocks and through slots."""
    return block_count > MOST_SLOTS or block_size < GATHER_BELOW


def keys_held(head_dim: int, element_size: int, most: int) -> int:
    """At most `most`, and so many that keys and values fit beside a tile of queries: 32 KiB each, 64 in float32."""
    if INTERPRET:
        return min(most, 32)
    return min(most, (2**16 if element_size == 4 else 2**15) // (padded(head_dim) * element_size))


def in_parts(shape: Shape, most: int = FORWARD_KEYS) -> Shape:
    """The same call as the selection sees it: large blocks are read in parts, for which the choice is written anew."""
    limit = keys_held(shape.head_dim, shape.element_size, most)
    parts = cdiv(shape.block_size, limit)
    if parts < 2:
        return shape
    slots = shape.block_count * parts
    size = 0 if shape.gathered else 4 * shape.queries * shape.groups * slots
    return replace(shape, num_blocks=shape.num_blocks * parts, block_count=slots, block_size=limit, choice_bytes=size)


def selection_bytes_per_query(shape: Shape, extra_pairs: int | None) -> int:
    """Partial outputs, list entries and membership words; in the forward also unions, in the backward gated gradients
    and later items. Where keys are gathered nothing in the forward, and in the backward the choice in parts instead of
    partial outputs.

    extra_pairs: pairs of one work item in the backward, None in the forward.
    """
    if shape.gathered and extra_pairs is None:
        return 0
    partial = 0 if shape.gathered else shape.heads * shape.block_count * (shape.head_dim * shape.element_size + 4)
    pairs = shape.groups * shape.block_count
    words = cdiv(8 * shape.groups * shape.num_blocks, 32)
    total = partial + 8 * pairs + words
    if extra_pairs is None:
        total += 12 * pairs
    else:
        total += shape.heads * shape.head_dim * shape.element_size + (4 * pairs if shape.gathered else 0)
        total += cdiv(8 * pairs * padded(shape.block_size) * shape.head_dim, extra_pairs)
    return total


def selection_chunk(shape: Shape, extra_pairs: int | None = None, most: int = FORWARD_KEYS) -> int:
    """Queries that one round of the selection op takes; a multiple of 32 unless it takes all.

    most: keys of a block that a program holds.
    """
    shape = in_parts(shape, most)
    room = max(LEAST_ROOM, WORKSPACE_BYTES - SPARE - _held(shape, extra_pairs))
    per_query = selection_bytes_per_query(shape, extra_pairs)
    slots = 1 if shape.gathered else shape.block_count
    fewest_elements = 2**31 // max(1, shape.heads * slots * shape.head_dim)
    return min(shape.queries, max(32, min(room // max(1, per_query), fewest_elements - 32) // 32 * 32))


def workspace_bytes(shape: Shape, extra_pairs: int | None = None) -> int:
    """At most what a forward of the layer takes beyond its inputs, its output and what it keeps for the backward.

    With extra_pairs (nsa_kernels.selection.backward.per_item) the backward, beyond its inputs and gradients. At most
    WORKSPACE_BYTES, unless dk and dv in float32 leave less than LEAST_ROOM of it.
    """
    most = FORWARD_KEYS if extra_pairs is None else BACKWARD_KEYS
    parts = in_parts(shape, most)
    selection = selection_chunk(shape, extra_pairs, most) * selection_bytes_per_query(parts, extra_pairs)
    scores = min(SCORE_BYTES, 4 * shape.groups * shape.num_blocks * shape.queries) if extra_pairs is None else 0
    return SPARE + max(_held(parts, extra_pairs) + selection, scores)


def _held(shape: Shape, extra_pairs: int | None) -> int:
    """What stays through all rounds: the choice in parts, and in the backward dk and dv in float32 and float32 copies
    of the gates, their gradients and the log-sum-exps' products."""
    if extra_pairs is None:
        return shape.choice_bytes
    return shape.choice_bytes + 8 * shape.keys * shape.groups * shape.head_dim + 40 * shape.queries * shape.heads
