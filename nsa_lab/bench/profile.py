"""Where a step's time on the GPU goes by kind of kernel, and the arithmetic that the model asks for."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from nsa_lab.bench.step import Step
from nsa_lab.model import measure_budget
from nsa_lab.model.flops import StepFlops, peak_flops

SPARSE, DENSE, PRODUCTS, COMPILED, COPIES, COMMUNICATION, REST = (
    "sparse attention", "dense attention", "products", "compiled", "copies", "communication", "other elementwise",
)  # fmt: skip
OFFLOAD = "offload"
"""Copies to the host and back, which are no kernels."""
_MARKS = (
    (COMMUNICATION, ("nccl",)),
    (OFFLOAD, ("dtoh", "htod")),
    (DENSE, ("flash", "fmha", "sdpa", "mha_")),
    (PRODUCTS, ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk")),
    (COMPILED, ("triton_",)),
    (COPIES, ("memcpy", "memset", "copy", "index", "scatter", "gather", "catarray", "cat_")),
)


@dataclass(frozen=True)
class Profile:
    """Shares of the kernels' time by kind; of the step's seconds the share in which any kernel ran (busy), and in which
    none but communication and copies to the host and back did (exposed); host waits, and model FLOPs used."""

    shares: dict[str, float]
    busy: float
    exposed: float
    waits: float
    mfu: float


def profile(step: Step, seconds: float) -> Profile:
    """One more step under the profiler; `seconds` is what one takes without. On a CPU all of it is nan."""
    kinds = (SPARSE, DENSE, PRODUCTS, COMPILED, COPIES, COMMUNICATION, REST)
    if step.device.type != "cuda":
        return Profile(dict.fromkeys(kinds, float("nan")), *[float("nan")] * 4)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        step.run()
    own, waits = set(own_kernels()), 0
    spans: dict[str, list[tuple[float, float]]] = {kind: [] for kind in (*kinds, OFFLOAD)}
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if not getattr(event, "is_user_annotation", False):
                spans[kind_of(event.name, own)].append((event.time_range.start, event.time_range.end))
        elif event.name == "cudaStreamSynchronize":
            waits += 1
    times = {kind: sum(end - start for start, end in spans[kind]) for kind in kinds}
    total = sum(times.values())
    shares = {kind: time / total for kind, time in times.items()}
    busy = covered(chain(*spans.values())) / 1e6
    computing = chain(*(found for kind, found in spans.items() if kind not in (COMMUNICATION, OFFLOAD)))
    exposed = busy - covered(computing) / 1e6
    peak = peak_flops(torch.cuda.get_device_name()) or float("nan")
    return Profile(shares, busy / seconds, exposed / seconds, waits, model_flops(step) / seconds / peak)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of `spans`, each from its start to its end."""
    total, until = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def kind_of(kernel: str, own: Iterable[str]) -> str:
    """The kind of a kernel by its name; `own`: the names of the Triton kernels of nsa_kernels."""
    if any(kernel == name or kernel.startswith(f"{name}_") for name in own):
        return SPARSE
    low = kernel.lower()
    return next((kind for kind, marks in _MARKS if any(mark in low for mark in marks)), REST)


def own_kernels() -> Iterable[str]:
    """The names of the Triton kernels in the modules of nsa_kernels that have been imported."""
    for name, module in list(sys.modules.items()):
        if name.startswith("nsa_kernels"):
            for value in vars(module).values():
                function: Any = getattr(value, "fn", None)
                while getattr(function, "fn", None) is not None:
                    function = function.fn
                if getattr(function, "__module__", None) == name:
                    yield function.__name__


def model_flops(step: Step) -> float:
    """FLOPs of a forward and a backward (see StepFlops)."""
    with torch.autocast(step.device.type, torch.bfloat16, enabled=step.autocast):
        attention = measure_budget(step.model, step.batch)["budget/flops_per_token"]
    return StepFlops(step.model).of(step.batch, attention)
