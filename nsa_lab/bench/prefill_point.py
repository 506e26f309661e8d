"""One layer's prefill on heads as the kernels' bench makes them: time, memory, and what it reads."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.bench.inputs import INPUTS, Heads
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods.dense import causal_mean
from nsa_lab.attention.methods.tiled import visited
from nsa_lab.attention.methods.training_free import TrainingFree, keys_read
from nsa_lab.attention.trace import Trace
from nsa_lab.bench.layer import Layer, build_layer
from nsa_lab.bench.measure import Point, fastest, memory_mib
from nsa_lab.config import load_config
from nsa_lab.origin import training_device

ROWS = 2048
"""Of a longer sample so many rows, evenly spread, say what is read."""
DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True)
class Prefill:
    """One layer's prefill: milliseconds of the fastest repeat, and choose_ms of them to find out what is read.

    peak_mib: memory above that of the inputs, on a GPU. budget: keys read, of those of dense attention (as
    budget/ratio_to_dense, more than 1 where branches read the same). visited: of the tiles of 128 x 128 pairs that
    dense attention walks, the share that is walked here, gathered columns apart. nan where it cannot be told.
    """

    milliseconds: float
    choose_ms: float
    peak_mib: float
    budget: float
    visited: float


@torch.no_grad()
def measure_prefill(tree: dict[str, Any], point: Point, kind: str, repeats: int) -> Prefill | None:
    """Measure in this process; None where the GPU's memory does not do."""
    config = load_config(None, tree)
    device, dtype = training_device(config.training.accelerator), DTYPES[config.training.precision]

    def heads(dims: HeadDims) -> tuple[Tensor, Tensor, Tensor]:
        own = Heads(dims.num_heads, dims.num_kv_heads, dims.head_dim)
        made = INPUTS[kind](point.video_tokens, own, dtype, device, config.seed)
        return made.q, made.k, made.v

    try:
        layer = build_layer(config, point.video_tokens, device, heads)
        layer.forward(Trace())  # compiles
        peak = _peak_mib(layer, device)
        whole = 1e3 * fastest(lambda: layer.forward(Trace()), device, repeats)
        return Prefill(whole, _choose_ms(layer, device, repeats), peak, *_spent(layer))
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        layer = None  # type: ignore[assignment]
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _peak_mib(layer: Layer, device: torch.device) -> float:
    if device.type != "cuda":
        return float("nan")
    torch.cuda.empty_cache()
    base = memory_mib(device, peak=False)
    torch.cuda.reset_peak_memory_stats()
    layer.forward(Trace())
    return memory_mib(device, peak=True) - base


def _choose_ms(layer: Layer, device: torch.device, repeats: int) -> float:
    method = layer.method
    if not isinstance(method, TrainingFree):
        return float("nan")
    return 1e3 * fastest(
        lambda: method.attend(*method.chosen(layer.q, layer.k, layer.layout.is_video), layer.q), device, repeats
    )


def _spent(layer: Layer) -> tuple[float, float]:
    """(budget, visited)"""
    method, count = layer.method, len(layer.q)
    if not isinstance(method, TrainingFree):
        trace = Trace("cost", "choice")
        layer.forward(trace)
        lengths = torch.tensor([count])
        cost = method.cost(trace, lengths)
        return cost.keys / causal_mean(lengths), float("nan")
    choice, allowed = method.chosen(layer.q, layer.k, layer.layout.is_video)
    places = torch.arange(count, device=layer.q.device)
    rows = places[:: max(1, count // ROWS) | 1]  # an odd step meets every place in a tile
    read = keys_read(choice, allowed, rows, places, method.dims.num_heads)
    return read / float((rows + 1).double().mean()), visited(choice, allowed)
