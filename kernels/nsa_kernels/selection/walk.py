"""What the forward's and the backward's walk over a key block's list of queries share.

A row is a (query, head) pair. Rows and keys are held as left and right halves of the head dim.
"""

import triton
import triton.language as tl

from nsa_kernels.runtime import padded
from nsa_kernels.tiles import load_rows, near_rows, store_near_rows, store_rows


def half(dim: int) -> int:
    """Columns of one half of a row: the right one is padded."""
    return padded(dim, 32) // 2


@triton.jit
def list_part(entries, list_begin, list_count, item_begin, column, PER_ITEM: tl.constexpr):
    """Where this program's part of list `column` begins and ends, and where the list's entries are."""
    begin = (tl.program_id(0) - tl.load(item_begin + column)) * PER_ITEM
    stop = tl.minimum(begin + PER_ITEM, tl.load(list_count + column))
    return begin, stop, entries + tl.load(list_begin + column)


@triton.jit
def block_keys(offsets, order, block, BN: tl.constexpr, PERMUTED: tl.constexpr):
    """A block's first place and its length; numbers [BN] of its keys, and where they stand in packed order."""
    place = tl.load(offsets + block)
    length = tl.load(offsets + block + 1) - place
    n = tl.arange(0, BN)
    key = place + n
    if PERMUTED:
        key = tl.load(order + key, mask=n < length, other=0)
    return place, length, n, key


@triton.jit
def pairs_of_tile(BM: tl.constexpr, R: tl.constexpr):
    """For BM rows that hold BM // R (query, group) pairs of R heads: the row's pair, its head, whether it has one."""
    row = tl.arange(0, BM)
    whole = row < BM // R * R
    return tl.where(whole, row // R, 0), tl.where(whole, row % R, 0), whole


@triton.jit
def entries_to_mask(
    query_at, start, end, position, entry_at, block, query_begin, stop, whole, S: tl.constexpr, IDENTITY: tl.constexpr
):
    """So many first entries of a list may see a part of the block: the queries inside it, where none stands before.

    whole: the block fills its tile of keys.
    """
    first = query_begin + tl.load(entry_at) // S
    if not IDENTITY:
        first = tl.load(position + first)
    begin = tl.load(start + block)
    masked = stop
    if whole & (first >= begin):
        after = tl.load(query_at + tl.load(end + block))
        masked = tl.maximum(after - tl.maximum(tl.load(query_at + begin), query_begin), 0)
    return masked


@triton.jit
def seen_keys(key, n, place, length, pos, PERMUTED: tl.constexpr):
    """[rows, BN]: which keys n of a block of `length`, the first at `place`, stand at or before positions pos."""
    if PERMUTED:
        return (n < length)[None, :] & (key[None, :] <= pos[:, None])
    # One comparison with a number per row: thresholds per key would stay in registers through the whole walk.
    return n[None, :] <= tl.minimum(pos - place, length - 1)[:, None]


@triton.jit
def load_halves(x, rows, seen, stride, D: tl.constexpr, HD: tl.constexpr):
    """Two [rows, HD] of x [*, stride]; rows that are not `seen` are zero."""
    return load_rows(x, rows, seen, stride, HD, HD), load_rows(x + HD, rows, seen, stride, D - HD, HD)


@triton.jit
def store_halves(x, left, right, rows, seen, stride, D: tl.constexpr, HD: tl.constexpr):
    store_rows(x, left, rows, seen, stride, HD, HD)
    store_rows(x + HD, right, rows, seen, stride, D - HD, HD)


@triton.jit
def near_halves(x, rows, D: tl.constexpr, HD: tl.constexpr):
    """Two [rows, HD] of x [*, D]; every row exists and lies within 2^31 elements of x."""
    return near_rows(x, rows, D, HD, HD), near_rows(x + HD, rows, D, D - HD, HD)


@triton.jit
def dot_halves(a0, a1, b0, b1, PREC: tl.constexpr):
    """a b^T of a [BM, 2 HD] and b [BN, 2 HD]."""
    left = tl.dot(a0, tl.trans(b0), input_precision=PREC)
    return tl.dot(a1, tl.trans(b1), left, input_precision=PREC)


@triton.jit
def store_products(x, a, b0, b1, rows, seen, D: tl.constexpr, HD: tl.constexpr, PREC: tl.constexpr):
    """a [BM, BN] times b [BN, 2 HD] into rows of x [*, D], one half after the other."""
    store_near_rows(x, tl.dot(a, b0, input_precision=PREC), rows, seen, D, HD, HD)
    store_near_rows(x + HD, tl.dot(a, b1, input_precision=PREC), rows, seen, D, D - HD, HD)
