"""What the ops accept. Every fault is a ValueError that names the argument, what it is and what it must be."""

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import why_not

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_HEAD_DIM = 16
"""The least that tl.dot multiplies."""
MOST_HEAD_DIM = 256
MOST_BLOCK_LENGTH = 256
MOST_BLOCK_COUNT = 512
MOST_TOKENS = 65535 * 16
"""65,535 programs of the smallest tile, 16 rows: the most along one axis of a launch; and places stay in int32."""
BRANCHES = ("compression", "selection", "window")
"""In the order of the gates' last dimension."""


def check(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def check_device(x: Tensor) -> None:
    reason = why_not(x.device)
    check(reason is None, f"these tensors are on {x.device}: {reason}")


def check_queries(q: Tensor, blocks: Blocks) -> None:
    check_device(q)
    check(q.ndim == 3, f"q must be [Tq, H, D], not {list(q.shape)}")
    check(q.dtype in DTYPES, f"q is {q.dtype}; the kernels take float32, float16 and bfloat16")
    check(q.shape[1] >= 1, "q has no heads")
    dim = q.shape[2]
    check(LEAST_HEAD_DIM <= dim <= MOST_HEAD_DIM, f"a head dim of {dim} is outside {LEAST_HEAD_DIM} to {MOST_HEAD_DIM}")
    check(q.shape[0] == blocks.num_queries, f"q has {q.shape[0]} rows, the blocks tell of {blocks.num_queries} queries")
    check(q.shape[0] <= MOST_TOKENS, f"{q.shape[0]} queries are more than {MOST_TOKENS}")
    check(blocks.position.device == q.device, f"blocks are on {blocks.position.device}, q is on {q.device}")


def check_like(name: str, x: Tensor, q: Tensor, rows: int) -> None:
    """x [rows, G, D] beside q [Tq, H, D]: keys, values or pooled ones."""
    check(x.ndim == 3, f"{name} must be [{rows}, G, D], not {list(x.shape)}")
    check(x.shape[0] == rows, f"{name} has {x.shape[0]} rows, the blocks tell of {rows}")
    check(x.shape[2] == q.shape[2], f"{name} has a head dim of {x.shape[2]}, q has {q.shape[2]}")
    heads, groups = q.shape[1], x.shape[1]
    check(groups > 0 and heads % groups == 0, f"{heads} query heads do not divide over the {groups} heads of {name}")
    check(x.dtype == q.dtype, f"{name} is {x.dtype}, q is {q.dtype}; cast them to one dtype")
    check(x.device == q.device, f"{name} is on {x.device}, q is on {q.device}")


def check_keys(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> None:
    check_queries(q, blocks)
    check(blocks.num_keys <= MOST_TOKENS, f"{blocks.num_keys} keys are more than {MOST_TOKENS}")
    check_like("k", k, q, blocks.num_keys)
    check_like("v", v, q, blocks.num_keys)
    check(k.shape == v.shape, f"k is {list(k.shape)}, v is {list(v.shape)}; they must be alike")


def check_pooled(q: Tensor, pooled_k: Tensor, pooled_v: Tensor | None, blocks: Blocks) -> None:
    check_like("pooled_k", pooled_k, q, blocks.num_blocks)
    if pooled_v is not None:
        check_like("pooled_v", pooled_v, q, blocks.num_blocks)
        check(pooled_k.shape == pooled_v.shape, f"pooled_k is {list(pooled_k.shape)}, pooled_v {list(pooled_v.shape)}")


def check_pair(pooled: tuple[Tensor, Tensor]) -> None:
    whole = len(pooled) == 2 and all(isinstance(x, Tensor) for x in pooled)
    check(whole, "pooled must be a compressor's keys and values, two tensors")


def check_given_pooled(pooled: tuple[Tensor, Tensor], q: Tensor, k: Tensor, blocks: Blocks) -> None:
    """A compressor's keys and values beside keys k [T, G, D]."""
    check_pooled(q, *pooled, blocks)
    groups = k.shape[1]
    check(pooled[0].shape[1] == groups, f"pooled has {pooled[0].shape[1]} heads, k has {groups}; they must be alike")


def check_bias(block_bias: Tensor | None, blocks: Blocks) -> None:
    if block_bias is None:
        return
    wanted = (blocks.num_blocks,)
    check(tuple(block_bias.shape) == wanted, f"block_bias must be {list(wanted)}, not {list(block_bias.shape)}")
    check(block_bias.device == blocks.end.device, f"block_bias is on {block_bias.device}, not {blocks.end.device}")
    check(not block_bias.requires_grad, "block_bias gets no gradient; detach it")


def check_choice(
    blocks: Blocks,
    block_count: int,
    initial_blocks: int,
    local_blocks: int,
    token_budget: int | None,
    leader: Tensor | None,
    query_tile: int,
) -> None:
    check(1 <= block_count <= MOST_BLOCK_COUNT, f"block_count={block_count} is outside 1 to {MOST_BLOCK_COUNT}")
    check(initial_blocks >= 0, f"initial_blocks={initial_blocks} is negative")
    check(local_blocks >= 0, f"local_blocks={local_blocks} is negative")
    check(token_budget is None or token_budget >= 1, f"token_budget={token_budget} is not positive")
    check(query_tile >= 1, f"query_tile={query_tile} is not positive")
    check(
        leader is not None or query_tile == 1, f"query_tile={query_tile} needs leader, each query's first of its tile"
    )
    if leader is not None:
        wanted = (blocks.num_queries,)
        check(tuple(leader.shape) == wanted, f"leader must be {list(wanted)}, not {list(leader.shape)}")
        check(leader.dtype == torch.int32, f"leader is {leader.dtype}; it must be int32")
        check(leader.device == blocks.end.device, f"leader is on {leader.device}, not {blocks.end.device}")


def check_length(blocks: Blocks) -> None:
    if blocks.longest > MOST_BLOCK_LENGTH:  # not `check`: torch.compile cannot write a changing size into a message
        raise ValueError(f"a block of {blocks.longest} tokens is longer than {MOST_BLOCK_LENGTH}")


def check_window(size: int) -> int:
    """The window, cut to what any sample can fill, so that places plus a window stay in int32."""
    check(size >= 1, f"a window of {size} holds no token; use 1 or more, or leave the branch out")
    return min(size, MOST_TOKENS)


def check_scale(scale: float | None, q: Tensor) -> float:
    """The factor of the logits, D ** -0.5 by default."""
    check(scale is None or scale > 0, f"scale={scale} is not positive")
    return q.shape[2] ** -0.5 if scale is None else scale


def check_gates(gates: Tensor, q: Tensor, branches: int) -> None:
    wanted = [q.shape[0], q.shape[1], branches]
    check(list(gates.shape) == wanted, f"gates must be {wanted}, one column per branch, not {list(gates.shape)}")
    check(gates.dtype in DTYPES, f"gates are {gates.dtype}; use float32, float16 or bfloat16")
    check(gates.device == q.device, f"gates are on {gates.device}, q is on {q.device}")


def check_branches(branches: tuple[str, ...]) -> None:
    unknown = [name for name in branches if name not in BRANCHES]
    check(not unknown, f"branches {unknown} are unknown; there are {', '.join(BRANCHES)}")
    check(len(branches) > 0, "no branch is on; name at least one")
    ordered = tuple(name for name in BRANCHES if name in branches)
    check(tuple(branches) == ordered, f"branches must stand once each, in the order {', '.join(BRANCHES)}")
