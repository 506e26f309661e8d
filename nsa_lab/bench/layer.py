"""One layer's attention of a video, forward, on random heads: what `nsa-lab bench --layer` measures."""

from typing import Any

import torch

from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import Method
from nsa_lab.attention.trace import Trace
from nsa_lab.bench.measure import Measurement, Point, memory_mib, now
from nsa_lab.config import layer_attention, load_config
from nsa_lab.config.sizes import model_size
from nsa_lab.layout import layout_from_token_ids
from nsa_lab.model.partitions import LayerPartitions
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.origin import training_device
from nsa_lab.plugin import build

SIDE = 8


@torch.no_grad()
def measure_layer(tree: dict[str, Any], point: Point, repeats: int) -> Measurement:
    """Time layer 0's attention at the head layout of the model's size, one video of 8 x 8 tokens a frame."""
    config = load_config(None, tree)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    device, size = training_device(config.training.accelerator), model_size(config.model)
    design = layer_attention(config.attention, 0)
    dims = HeadDims(size.hidden_size, size.num_heads, size.num_kv_heads, size.head_dim)
    torch.manual_seed(config.seed)
    base = memory_mib(device, peak=False)
    frames = point.video_tokens // SIDE**2
    ids = torch.ones(1, point.video_tokens, dtype=torch.int64, device=device)
    layout = layout_from_token_ids(ids, 1, torch.tensor([[frames, 2 * SIDE, 2 * SIDE]]))
    x = torch.randn(point.video_tokens, dims.hidden_size, device=device)
    q, k, v = (torch.randn(point.video_tokens, heads, dims.head_dim, device=device)
               for heads in (dims.num_heads, dims.num_kv_heads, dims.num_kv_heads))  # fmt: skip
    method: Method = build(design, "method", design, dims, 0).to(device)
    partitions = LayerPartitions([design], dims.hidden_size).to(device)

    def forward() -> None:
        plan = AttentionPlan(layout, (1, point.video_tokens), Trace())
        plan.begin(partitions, x, (x, x))  # q and k come as if M-RoPE had turned them
        method.prefill(x, q, k, v, plan)

    seconds = []
    for _ in range(repeats):
        started = now(device)
        forward()
        seconds.append(now(device) - started)
    return Measurement(min(seconds), memory_mib(device, peak=True) - base, base)
