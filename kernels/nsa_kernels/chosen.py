"""A caller's choice of blocks. Kernels read and write wherever a number points, so that none may point outside.

What the kernels chose themselves fits by construction and is not looked at again.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsa_kernels.blocks import Blocks
from nsa_kernels.checks import MOST_BLOCK_COUNT, check

MOST_ENTRIES = 2**24
"""Looked at together: some 40 bytes for each are taken meanwhile."""


def fitting(chosen: Tensor, q: Tensor, groups: int, blocks: Blocks, strict: bool) -> Tensor:
    """A copy of chosen [Tq, G, n] int32 that holds blocks of the query's own sample, none twice, and -1 for none.

    strict: anything else raises ValueError, for which the host waits for the device. Otherwise it becomes -1, without
    waiting. A block of the sample that has not begun at the query stays, and nothing is seen of it.
    """
    shape = list(chosen.shape)
    check(chosen.ndim == 3 and shape[:2] == [q.shape[0], groups], f"chosen must be [Tq, G, n], not {shape}")
    check(1 <= shape[2] <= MOST_BLOCK_COUNT, f"{shape[2]} chosen blocks are outside 1 to {MOST_BLOCK_COUNT}")
    check(chosen.dtype == torch.int32, f"chosen is {chosen.dtype}; it must be int32")
    check(chosen.device == q.device, f"chosen is on {chosen.device}, q is on {q.device}")
    return _fitting(chosen.contiguous(), blocks.flat(), blocks.sizes, strict)


@torch.library.custom_op("nsa_kernels::fitting", mutates_args=())
def _fitting(chosen: Tensor, blocks: list[Tensor], sizes: list[int], strict: bool) -> Tensor:
    joined, fit = Blocks.join(blocks, sizes), torch.empty_like(chosen)
    rows = max(1, MOST_ENTRIES // max(1, chosen[:1].numel()))
    for begin in range(0, len(chosen), rows):
        some = chosen[begin : begin + rows]
        faults = _faults(some, joined, begin)
        if strict:
            _refuse(some, faults, begin)
        fit[begin : begin + rows] = some.masked_fill(torch.stack(list(faults.values())).any(0), -1)
    return fit


@_fitting.register_fake
def _(chosen: Tensor, blocks: list[Tensor], sizes: list[int], strict: bool) -> Tensor:
    return torch.empty_like(chosen)


def _faults(chosen: Tensor, blocks: Blocks, begin: int) -> dict[str, Tensor]:
    """[C, G, n] bool by what is wrong with an entry of the queries from `begin` on; of one that is repeated all but the
    first are."""
    rows = slice(begin, begin + len(chosen))
    inside = (chosen >= 0) & (chosen < blocks.num_blocks)
    first_key = blocks.offsets[:-1] if blocks.order is None else blocks.order[blocks.offsets[:-1]]
    sample_of_block, sample_of_query = blocks.query_stop[first_key], blocks.query_stop[blocks.position[rows]]
    first, sample = (x[:, None, None] for x in (blocks.first_block[rows], sample_of_query))
    own = (chosen >= first) & (sample_of_block[torch.where(inside, chosen, first)] == sample)
    ascending, slot = chosen.sort(dim=-1, stable=True)
    repeated = pad((ascending[..., 1:] == ascending[..., :-1]) & (ascending[..., 1:] >= 0), (1, 0))
    return {
        f"; there are blocks 0 to {blocks.num_blocks - 1}, and -1 for none": ~inside & (chosen != -1),
        ", which is of another sample": inside & ~own,
        " twice": torch.empty_like(repeated).scatter_(-1, slot, repeated),
    }


def _refuse(chosen: Tensor, faults: dict[str, Tensor], begin: int) -> None:
    found = torch.stack([fault.any() for fault in faults.values()]).tolist()
    for (said, fault), there in zip(faults.items(), found, strict=True):
        if there:
            query, group, slot = fault.nonzero()[0].tolist()
            raise ValueError(f"chosen[{begin + query}, {group}] names block {int(chosen[query, group, slot])}{said}")
