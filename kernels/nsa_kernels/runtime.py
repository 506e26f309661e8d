"""What every kernel needs to know about where it runs: precision, padded sizes, tiles, and the memory it may take."""

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import triton
from torch import Tensor

INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""Kernels run on the CPU, slowly and in float32 or float16 only; set TRITON_INTERPRET=1 before the first import."""

Run = TypeVar("Run", bound=Callable[..., Any])

LOG2E = 1.4426950408889634
WORKSPACE_BYTES = 2 * 2**30
"""No op takes more than this beyond its inputs and outputs: queries are cut into chunks."""

SCORE_BYTES = 2**28
"""Scores of one chunk of queries in the top-k; larger chunks mean fewer launches."""


def why_not(device: torch.device) -> str | None:
    """None where the kernels can run on `device`, otherwise the reason."""
    if device.type == "cuda" or (device.type == "cpu" and INTERPRET):
        return None
    if device.type == "cpu":
        return "Triton kernels need a CUDA device; TRITON_INTERPRET=1, set before the first import, runs them on a CPU"
    return f"Triton kernels need a CUDA device, not {device.type}"


def precision(dtype: torch.dtype) -> str:
    """The `input_precision` of tl.dot: float32 inputs are multiplied in full float32, not in TF32."""
    return "ieee" if dtype == torch.float32 else "tf32"


def padded(size: int, least: int = 16) -> int:
    """The next power of two, at least what tl.dot wants."""
    return max(least, triton.next_power_of_2(size))


@dataclass(frozen=True)
class Tile:
    """What one program holds at a time: `rows` queries against `keys` keys, by `warps` warps, loads `stages` deep."""

    rows: int
    keys: int
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


def query_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """For kernels that hold queries and walk over keys."""
    if INTERPRET:
        return Tile(32, 32, 4, 1)
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1) if padded(head_dim) <= 128 else Tile(16, 16, 4, 1)
    return Tile(64, 64, 4, 2) if padded(head_dim) <= 128 else Tile(64, 32, 4, 2)


def key_tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """For kernels that hold keys, sum two gradients in registers, and walk over queries."""
    if INTERPRET:
        return Tile(32, 32, 4, 1)
    if dtype == torch.float32:
        return Tile(32, 32, 4, 1) if padded(head_dim) <= 128 else Tile(16, 16, 4, 1)
    return Tile(64, 64, 4, 2) if padded(head_dim) <= 128 else Tile(32, 32, 4, 1)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, device=like.device, dtype=dtype or like.dtype)


class _Thread(threading.local):
    instead: Callable[..., None] | None = None


_thread = _Thread()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument, a tensor, or do what `instead_of_launching` says."""
    options["enable_fp_fusion"] = True  # Triton 3.9 warns that 3.10 will not fuse products and sums by itself
    with torch.cuda.device(args[0].device) if args[0].is_cuda else nullcontext():
        if _thread.instead is None:
            kernel[grid](*args, **options)
        else:
            _thread.instead(kernel, grid, args, options)


@contextmanager
def instead_of_launching(do: Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """What this thread launches inside is handed to `do` (kernel, grid, arguments, options) and not run."""
    _thread.instead = do
    try:
        yield
    finally:
        _thread.instead = None


@contextmanager
def compiling() -> Iterator[None]:
    """Compile the kernels that this thread launches inside, side by side, and run none of them."""

    def compile_only(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kernel.warmup(*args, grid=grid, **options)

    workers = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    with workers as pool, triton.AsyncCompileMode(pool), instead_of_launching(compile_only):
        yield


_compiled: set[tuple[Any, ...]] = set()


def compiled_together(run: Run) -> Run:
    """A function whose kernels are compiled side by side, before its first run with arguments of a kind."""

    @functools.wraps(run)
    def wrapped(*arguments: Any) -> Any:
        key = (run, *map(_kind, arguments))
        if not (INTERPRET or _thread.instead or key in _compiled):
            with compiling():
                run(*arguments)
            _compiled.add(key)
        return run(*arguments)

    return cast(Run, wrapped)


def _kind(argument: Any) -> Any:
    """What kernels are compiled for: of a tensor all but its length, of other objects what `compiled_for` says."""
    if isinstance(argument, Tensor):
        return argument.device, argument.dtype, argument.shape[1:], len(argument) > 0
    if isinstance(argument, dict):
        return tuple(argument)
    return getattr(argument, "compiled_for", argument)
