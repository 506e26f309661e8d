"""FlexAttention with a block mask made from the blocks that the last query of every 128 chose."""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from nsa_kernels.bench.jobs import Scene
from nsa_kernels.blocks import Blocks

MASK_ROWS = 128


def flex_call(scene: Scene, blocks: Blocks, chosen: Tensor, backward: bool) -> tuple[Callable[[], None], str]:
    """The compiled call, and a remark. Raises ValueError where the blocks or the length do not fit a mask."""
    from torch.nn.attention.flex_attention import flex_attention

    size = blocks.longest
    if scene.tokens % MASK_ROWS or scene.tokens % size:
        raise ValueError(f"{scene.tokens} tokens are not whole tiles of {MASK_ROWS} queries and {size} keys")
    mask = block_mask(chosen, blocks, scene.heads.ratio)
    attend: Callable[..., Any] = torch.compile(flex_attention)
    x = scene.inputs
    q, k, v, do = (t.transpose(0, 1)[None].detach() for t in (x.q, x.k, x.v, x.do))
    leaves = [t.requires_grad_(backward) for t in (q, k, v)]

    def run() -> None:
        # Past the limit of recompilations dynamo would fall back to a T x T score matrix.
        with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
            out = attend(*leaves, block_mask=mask, scale=scene.scale, enable_gqa=True)
        if backward:
            torch.autograd.grad(out, leaves, do)

    return run, f"selection only; {MASK_ROWS} queries share blocks of {size}"


def block_mask(chosen: Tensor, blocks: Blocks, ratio: int) -> Any:
    """The BlockMask of blocks of one length, `MASK_ROWS` queries a row."""
    from torch.nn.attention.flex_attention import BlockMask

    partly, wholly = (listed(wanted) for wanted in masked_blocks(chosen, blocks, ratio))
    return BlockMask.from_kv_blocks(*partly, *wholly, BLOCK_SIZE=(MASK_ROWS, blocks.longest), mask_mod=_causal)


def masked_blocks(chosen: Tensor, blocks: Blocks, ratio: int) -> tuple[Tensor, Tensor]:
    """(partly visible, wholly visible) [1, H, mask rows, N] bool: the choice of each mask row's last query."""
    last = chosen[MASK_ROWS - 1 :: MASK_ROWS].long()
    wanted = torch.zeros(*last.shape[:2], blocks.num_blocks + 1, dtype=torch.bool, device=chosen.device)
    wanted = wanted.scatter_(2, torch.where(last < 0, blocks.num_blocks, last), True)[..., :-1]
    first_query = torch.arange(len(last), device=chosen.device)[:, None, None] * MASK_ROWS
    past = blocks.end.long() <= first_query
    partly, wholly = (m.transpose(0, 1).repeat_interleave(ratio, 0)[None] for m in (wanted & ~past, wanted & past))
    return partly, wholly


def listed(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How many columns of each row are wanted, and all columns with those first, both int32."""
    count = wanted.sum(-1, dtype=torch.int32)
    return count, wanted.to(torch.uint8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)


def _causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
