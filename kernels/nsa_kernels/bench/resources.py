"""What the layer's kernels take of a GPU, compiled without one: registers, spills, shared memory, products.

Tensors without data stand for the inputs. Every launch of a forward and backward is compiled for the card and none is
run, so that what Triton's interpreter cannot see, a type that does not fit or too much shared memory, shows on any
machine. Needs a process without TRITON_INTERPRET, of its own: Triton is told that there is such a card.
"""

import csv
import io
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from nsa_kernels.bench.inputs import Heads
from nsa_kernels.bench.jobs import Design
from nsa_kernels.blocks import Blocks, blocks_from_offsets, uniform_blocks
from nsa_kernels.layer_backward import layer_backward
from nsa_kernels.layer_forward import Plan, layer_forward
from nsa_kernels.runtime import cdiv, instead_of_launching

KIB = 1024
REGISTERS, PROGRAMS = 65536, 32
"""Of a multiprocessor; a warp gets registers by 256."""


@dataclass(frozen=True)
class Card:
    """Shared memory of a multiprocessor, and of one program beside 1 KiB of the driver's, in bytes; its warps."""

    shared: int
    program_shared: int
    warps: int = 64

    def programs(self, registers: int, shared: int, warps: int) -> int:
        """Of one kernel, how many a multiprocessor holds."""
        of_registers = REGISTERS // (cdiv(registers * 32, 256) * 256 * warps)
        return min(of_registers, self.shared // (shared + KIB), self.warps // warps, PROGRAMS)


CARDS = {80: Card(164 * KIB, 163 * KIB), 90: Card(228 * KIB, 227 * KIB)}
"""By compute capability: A100; H100 and H200."""


@dataclass(frozen=True)
class Setting:
    """One layer. full: permuted keys, every second of them a query, a block bias, a token budget: what adds code."""

    tokens: int
    heads: Heads
    design: Design
    window: int
    dtype: torch.dtype
    full: bool = False

    def __str__(self) -> str:
        design = self.design
        tile = f"/{design.query_tile}" if design.query_tile > 1 else ""
        return f"{design.block_size}x{design.block_count}{tile} at {self.tokens}"

    @cached_property
    def blocks(self) -> Blocks:
        bounds = torch.tensor([0, self.tokens])
        made = uniform_blocks(bounds, self.design.block_size)
        if self.full:
            order = torch.arange(self.tokens).flip(0)
            made = blocks_from_offsets(made.offsets, bounds, order=order, query_index=torch.arange(0, self.tokens, 2))
        return Blocks.join([x.to("meta") for x in made.flat()], made.sizes)

    @property
    def plan(self) -> Plan:
        design = self.design
        budget = design.block_size * design.block_count if self.full else 0
        options = {"budget": budget, "query_tile": design.query_tile, "window": self.window}
        return Plan(True, design.block_count, scale=self.heads.dim**-0.5, **options)


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.kernel.fn.__module__}.{self.kernel.fn.__name__}".removeprefix("nsa_kernels.")


@dataclass(frozen=True)
class Resources:
    """registers and spilled (bytes) of a thread; shared memory of a program, bytes; products with and without wgmma,
    and waits for the former, as they stand in the machine code; programs: how many a multiprocessor holds, none where
    it does not fit. error: why it does not compile, and then the rest is zero.
    """

    kernel: str
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    wgmma: int = 0
    mma: int = 0
    waits: int = 0
    warps: int = 0
    stages: int = 0
    programs: int = 0
    settings: str = ""
    error: str = ""


def launches(setting: Setting) -> list[Launch]:
    """Of a forward and backward of the layer."""
    heads, plan, blocks = setting.heads, setting.plan, setting.blocks
    rows = blocks.num_queries
    q, do = (_empty(setting, rows, heads.query, heads.dim) for _ in range(2))
    k, v = (_empty(setting, setting.tokens, heads.groups, heads.dim) for _ in range(2))
    gates = _empty(setting, rows, heads.query, 3)
    bias = torch.empty(blocks.num_blocks, device="meta") if setting.full else None
    leader = torch.empty(rows, dtype=torch.int32, device="meta") if plan.query_tile > 1 else None
    found: list[Launch] = []
    with instead_of_launching(lambda *launched: found.append(Launch(*launched))):
        kept = layer_forward(q, k, v, gates, None, None, bias, leader, None, blocks, plan)
        layer_backward(q, k, v, gates, do, kept, bias, blocks, plan, False)
    return found


def resources(settings: Iterable[Setting], only: str, arch: int) -> list[Resources]:
    """A row for each kernel whose name holds `only` and each way it is compiled, in order of their first launch."""
    triton.runtime.driver.set_active(_Driver(arch))
    found: dict[int, tuple[Launch, Any, list[str]]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        for setting in settings:
            for launch in launches(setting):
                if only in launch.name:
                    kernel = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
                    found.setdefault(id(kernel), (launch, kernel, []))[2].append(str(setting))
        return [_row(*row, CARDS[arch]) for row in found.values()]


def _row(launch: Launch, kernel: Any, compiled_for: list[str], card: Card) -> Resources:
    settings = ", ".join(dict.fromkeys(compiled_for))
    try:
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
    except Exception as error:  # whatever the compiler found becomes its row
        return Resources(launch.name, settings=settings, error=f"{type(error).__name__}: {error}")
    made = kernel.metadata
    code = _machine_code(kernel.asm["cubin"])
    registers, stack = (int(re.findall(rf"\b{name}:(\d+)", code)[0]) for name in ("REG", "STACK"))
    return Resources(
        launch.name, registers, stack, made.shared, settings=settings,
        wgmma=code.count("HGMMA"), mma=len(re.findall(r"\bHMMA", code)), waits=code.count("WARPGROUP.DEPBAR"),
        warps=made.num_warps, stages=launch.options.get("STAGES", made.num_stages),
        programs=card.programs(registers, made.shared, made.num_warps),
    )  # fmt: skip


def _machine_code(cubin: bytes) -> str:
    """What cuobjdump, which Triton brings along, says of a kernel's resources and instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _empty(setting: Setting, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=setting.dtype, device="meta")


class _Driver:
    """Says to Triton that there is one card, which nothing can be run on."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def show(rows: list[Resources], as_csv: bool) -> str:
    """A table for people, or a CSV; what does not compile stands below the table with the compiler's words."""
    names = [field.name for field in fields(Resources)]
    if as_csv:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([names, *map(astuple, rows)])
        return text.getvalue()
    cells = [names[:-1], *(list(map(str, astuple(row)[:-1])) for row in rows if not row.error)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(_aligned(line, widths)).rstrip() for line in cells]
    lines += [f"\n{row.kernel} ({row.settings}) does not compile\n{row.error}" for row in rows if row.error]
    return "\n".join(lines) + "\n"


def _aligned(cells: list[str], widths: list[int]) -> list[str]:
    """Names to the left, numbers to the right."""
    first, *numbers, last = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
    return [cells[0].ljust(len(first)), *numbers, cells[-1].ljust(len(last))]
