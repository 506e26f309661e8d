"""One layer's attention of a video, forward, on random heads: what `nsa-lab bench --layer` measures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import Method
from nsa_lab.attention.trace import Trace
from nsa_lab.bench.measure import Measurement, Point, fastest, memory_mib
from nsa_lab.config import ExperimentConfig, layer_attention, load_config
from nsa_lab.config.sizes import model_size
from nsa_lab.layout import TokenLayout, layout_from_token_ids
from nsa_lab.model.partitions import LayerPartitions
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.origin import training_device
from nsa_lab.plugin import build

SIDE = 8


@dataclass(frozen=True)
class Layer:
    """Layer 0's method, and what it attends: x [T, hidden], q [T, H, D], k and v [T, G, D] of one video."""

    method: Method
    partitions: LayerPartitions
    layout: TokenLayout
    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor

    def forward(self, trace: Trace) -> Tensor:
        """What it gives, [T, H, D]. The partition is made anew."""
        plan = AttentionPlan(self.layout, (1, len(self.x)), trace)
        plan.begin(self.partitions, self.x, (self.x, self.x))  # q and k come as if M-RoPE had turned them
        return self.method.prefill(self.x, self.q, self.k, self.v, plan)


def build_layer(config: ExperimentConfig, video_tokens: int, device: Any, heads: Callable[..., Any]) -> Layer:
    """The layer of the model's size on one video of 8 x 8 tokens a frame, in the dtype of heads(dims) = (q, k, v)."""
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    size, design = model_size(config.model), layer_attention(config.attention, 0)
    dims = HeadDims(size.hidden_size, size.num_heads, size.num_kv_heads, size.head_dim)
    torch.manual_seed(config.seed)
    ids = torch.ones(1, video_tokens, dtype=torch.int64, device=device)
    layout = layout_from_token_ids(ids, 1, torch.tensor([[video_tokens // SIDE**2, 2 * SIDE, 2 * SIDE]]))
    q, k, v = heads(dims)
    x = torch.randn(video_tokens, dims.hidden_size, device=device).to(q.dtype)
    method: Method = build(design, "method", design, dims, 0).to(device, q.dtype)
    partitions = LayerPartitions([design], dims.hidden_size).to(device, q.dtype)
    return Layer(method, partitions, layout, x, q, k, v)


@torch.no_grad()
def measure_layer(tree: dict[str, Any], point: Point, repeats: int) -> Measurement:
    """Time layer 0's attention at the head layout of the model's size, on random heads in float32."""
    config = load_config(None, tree)
    device = training_device(config.training.accelerator)
    base = memory_mib(device, peak=False)

    def heads(dims: HeadDims) -> Iterator[Tensor]:
        counts = (dims.num_heads, dims.num_kv_heads, dims.num_kv_heads)
        return (torch.randn(point.video_tokens, count, dims.head_dim, device=device) for count in counts)

    layer = build_layer(config, point.video_tokens, device, heads)
    seconds = fastest(lambda: layer.forward(Trace()), device, repeats)
    return Measurement(seconds, memory_mib(device, peak=True) - base, base)
