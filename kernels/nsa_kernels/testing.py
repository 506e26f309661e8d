"""Helpers of the kernels' tests: odd geometries, random inputs, relative errors, and memory full of NaN."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks, blocks_from_offsets

SAMPLES = (1, 23, 0, 14)
"""One token, a sample of several blocks, an empty one, another."""
LENGTHS = ((1,), (8, 1, 5, 7, 2), (), (3, 11))


def odd_blocks(
    *,
    permuted: bool = False,
    sparse: bool = False,
    samples: Sequence[int] = SAMPLES,
    lengths: Sequence[Sequence[int]] = LENGTHS,
    device: str = "cpu",
    seed: int = 0,
) -> Blocks:
    """Unequal blocks of packed samples; permuted inside each, and with about a third of the keys as queries."""
    generator = torch.Generator().manual_seed(seed)
    cu_seqlens = torch.tensor([0, *samples]).cumsum(0)
    offsets = torch.tensor([0, *(n for of_sample in lengths for n in of_sample)]).cumsum(0)
    assert offsets[-1] == cu_seqlens[-1]
    order = query_index = None
    if permuted:
        shuffled = [torch.randperm(n, generator=generator) for n in samples]
        order = torch.cat([x + begin for x, begin in zip(shuffled, cu_seqlens[:-1], strict=True)]).to(device)
    if sparse:
        query_index = (torch.rand(int(cu_seqlens[-1]), generator=generator) < 0.35).nonzero().flatten().to(device)
    return blocks_from_offsets(offsets.to(device), cu_seqlens.to(device), order=order, query_index=query_index)


def uneven(samples: Sequence[int], longest: int, seed: int = 0) -> list[list[int]]:
    """Random block lengths from 1 to `longest` that fill each sample."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[list[int]] = []
    for left in samples:
        lengths.append([])
        while left:
            n = min(left, int(torch.randint(1, longest + 1, (1,), generator=generator)))
            lengths[-1].append(n)
            left -= n
    return lengths


def random_heads(
    blocks: Blocks, heads: tuple[int, int, int], dtype: torch.dtype, branches: int = 3, seed: int = 0
) -> list[Tensor]:
    """q [Tq, H, D], k, v [T, G, D], gates [Tq, H, branches] in (0, 1), do [Tq, H, D]; heads is (H, G, D)."""
    generator = torch.Generator().manual_seed(seed)
    h, g, d = heads
    rows, keys = blocks.num_queries, blocks.num_keys
    shapes = [(rows, h, d), (keys, g, d), (keys, g, d), (rows, h, branches), (rows, h, d)]
    q, k, v, gates, do = (torch.randn(shape, generator=generator) for shape in shapes)
    device = blocks.end.device
    return [x.to(device, dtype) for x in (q, k, v, gates.sigmoid(), do)]


def relative_error(actual: Tensor, expected: Tensor, least: float = 1e-12) -> float:
    """In the 2-norm, relative to `least` where the expected norm is smaller; NaN where `actual` holds one."""
    error = (actual.double() - expected.double()).norm()
    return (error / expected.double().norm().clamp(min=least)).item()


@contextmanager
def poisoned() -> Iterator[None]:
    """Every new, unwritten tensor is full of NaN, or of the largest integer."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def quicken_interpreter() -> None:
    """Spare Triton's interpreter most of its time on small kernels, with the same results.

    By itself it replaces the functions of its language anew at every call from one function of a kernel to another,
    checks sums and products of integers for an overflow that it reports in debug mode alone, and makes the same few
    types, with their names and shapes, for every value.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    _patch_once(interpreter, tl)
    _keep_dtypes(interpreter)
    _keep_types(tl.core)


def _patch_once(interpreter: Any, tl: Any) -> None:
    patch = interpreter._patch_lang
    languages = functools.cache(lambda function: [x for x in function.__globals__.values() if x is tl or x is tl.core])

    def patch_if_new(function: Any) -> Any:
        used = languages(function)
        if used and not any(tl.core.is_builtin(language.load) for language in used):
            return None
        return patch(function)

    interpreter._patch_lang = patch_if_new


def _keep_dtypes(interpreter: Any) -> None:
    """NumPy's type of a value by the name of its scalar type."""
    make, known = interpreter._get_np_dtype, {}

    def of(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in known:
            known[name] = make(dtype)
        return known[name]

    interpreter._get_np_dtype = of


def _keep_types(core: Any) -> None:
    """A type of blocks, with the shape and dtype of its tensors, by scalar type and shape."""
    make_type, make_tensor = core.block_type.__init__, core.tensor.__init__
    kept: dict[Any, dict[str, Any]] = {}

    def parts(type: Any) -> dict[str, Any]:
        tensor = core.tensor.__new__(core.tensor)
        make_tensor(tensor, None, type)
        return {name: part for name, part in vars(tensor).items() if name not in ("handle", "type")}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(n.value if isinstance(n, core.constexpr) else n for n in shape))
        if key not in kept:
            make_type(self, element_ty, shape)
            kept[key] = vars(self).copy() | {"parts": parts(self)}
        vars(self).update(kept[key])

    def tensor(self: Any, handle: Any, type: Any) -> None:
        if "parts" not in vars(type):
            type.parts = parts(type)
        vars(self).update(type.parts, handle=handle, type=type)

    core.block_type.__init__, core.tensor.__init__ = block_type, tensor
