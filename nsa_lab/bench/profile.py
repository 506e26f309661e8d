"""Where a step's time on the GPU goes by kind of kernel, and the arithmetic that the model asks for."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from nsa_lab.bench.step import Step
from nsa_lab.model import measure_budget
from nsa_lab.model.flops import StepFlops, peak_flops

SPARSE, DENSE, PRODUCTS, COMPILED, COPIES, REST = (
    "sparse attention", "dense attention", "products", "compiled", "copies", "other elementwise",
)  # fmt: skip
_MARKS = (
    (DENSE, ("flash", "fmha", "sdpa", "mha_")),
    (PRODUCTS, ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk")),
    (COMPILED, ("triton_",)),
    (COPIES, ("memcpy", "memset", "copy", "index", "scatter", "gather", "catarray", "cat_")),
)


@dataclass(frozen=True)
class Profile:
    """Shares of the GPU's time by kind, that time over the step's seconds (busy), host waits, and model FLOPs used."""

    shares: dict[str, float]
    busy: float
    waits: float
    mfu: float


def profile(step: Step, seconds: float) -> Profile:
    """One more step under the profiler; `seconds` is what one takes without. On a CPU all of it is nan."""
    kinds = (SPARSE, DENSE, PRODUCTS, COMPILED, COPIES, REST)
    if step.device.type != "cuda":
        return Profile(dict.fromkeys(kinds, float("nan")), *[float("nan")] * 3)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        step.run()
    own, times, waits = set(own_kernels()), dict.fromkeys(kinds, 0.0), 0
    for event in found.key_averages():
        if getattr(event, "is_user_annotation", False):
            continue
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[kind_of(event.key, own)] += event.self_device_time_total / 1e6
        elif event.key == "cudaStreamSynchronize":
            waits += event.count
    total = sum(times.values())
    peak = peak_flops(torch.cuda.get_device_name()) or float("nan")
    shares = {kind: time / total for kind, time in times.items()}
    return Profile(shares, total / seconds, waits, model_flops(step) / seconds / peak)


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
