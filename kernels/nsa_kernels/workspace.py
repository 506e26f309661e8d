"""How much memory an op takes beyond its inputs and outputs, and how many queries fit it at a time."""

from dataclasses import dataclass

from nsa_kernels.runtime import SCORE_BYTES, WORKSPACE_BYTES, cdiv, padded

SPARE = 64 * 2**20
"""What the allocator rounds up and the small tensors take."""


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


def selection_bytes_per_query(shape: Shape, extra_pairs: int | None) -> int:
    """Partial outputs, list entries and membership words; in the backward also gated gradients and later items.

    extra_pairs: pairs of one work item in the backward, None in the forward.
    """
    partial = shape.heads * shape.block_count * (shape.head_dim * shape.element_size + 4)
    pairs = shape.groups * shape.block_count
    words = cdiv(8 * shape.groups * shape.num_blocks, 32)
    total = partial + 8 * pairs + words
    if extra_pairs is not None:
        total += shape.heads * shape.head_dim * shape.element_size
        total += cdiv(8 * pairs * padded(shape.block_size) * shape.head_dim, extra_pairs)
    return total


def selection_chunk(shape: Shape, extra_pairs: int | None = None) -> int:
    """Queries that one round of the selection op takes; a multiple of 32 unless it takes all."""
    room = WORKSPACE_BYTES - SPARE - (_key_gradients(shape) if extra_pairs is not None else 0)
    per_query = selection_bytes_per_query(shape, extra_pairs)
    fewest_elements = 2**31 // max(1, shape.heads * shape.block_count * shape.head_dim)
    return min(shape.queries, max(32, min(room // per_query, fewest_elements - 32) // 32 * 32))


def workspace_bytes(shape: Shape, extra_pairs: int | None = None) -> int:
    """At most what a forward of the layer takes beyond its inputs, its output and what it keeps for the backward.

    With extra_pairs (nsa_kernels.selection.backward.per_item) the backward, beyond its inputs and gradients.
    """
    selection = selection_chunk(shape, extra_pairs) * selection_bytes_per_query(shape, extra_pairs)
    if extra_pairs is None:
        scores = min(SCORE_BYTES, 4 * shape.groups * shape.num_blocks * shape.queries)
        return SPARE + max(selection, scores)
    return SPARE + _key_gradients(shape) + selection


def _key_gradients(shape: Shape) -> int:
    """dk and dv in float32, and float32 copies of the gates, their gradients and the log-sum-exps' products."""
    return 8 * shape.keys * shape.groups * shape.head_dim + 40 * shape.queries * shape.heads
