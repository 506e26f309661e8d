"""What others offer, as jobs. Whatever fails becomes a row with its reason.

dense-cudnn, dense-flash: causal dense attention, `scaled_dot_product_attention` with that backend, grouped heads by
    `enable_gqa`; where the backend refuses that, keys and values are repeated inside the timed call, and the row says
    so.
fla: flash-linear-attention's `parallel_nsa` (compression, its own top-n with the first and the last two blocks forced,
    selection), which wants groups of 16 or more heads, a power of two: the heads of each group are padded with zeros
    to that inside the timed call. Its own window needs the flash_attn package, so `window_size=0`, and this
    repository's window op adds the third branch inside the timed call. For the first design.
flex: FlexAttention with a block mask as dense with blocks as ours, to be compared with our selection op alone. It is
    other maths: a row of the mask is 128 queries, which share the blocks that the last of them chose, group by group,
    causal inside; the other 127 queries do not read their own choice. Making the mask is not timed, nor are top-n and
    compression. For every block design, on the first kind of inputs.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_kernels.bench.flex import flex_call
from nsa_kernels.bench.jobs import BOTH, FORWARD, Design, Job, Prepared, Scene
from nsa_kernels.bench.ops import Stage
from nsa_kernels.runtime import padded

BASELINES = ("dense-cudnn", "dense-flash", "fla", "flex")


def baseline_jobs(op: str, scene: Scene, designs: list[Design], first_inputs: bool) -> Iterator[Job]:
    """Dense attention does not know designs, and its time does not know inputs."""
    own_choice = [design for design in designs if design.query_tile == 1]
    chosen = {"fla": own_choice[:1], "flex": own_choice if first_inputs else []}
    for design in chosen.get(op, designs[:1] if first_inputs else []):
        stage = Stage(scene, design)
        for direction in (FORWARD, BOTH):
            case = scene.case(op, direction, design if op in chosen else None)
            yield Job(case, _preparer(op, stage, direction == BOTH))


def _preparer(op: str, stage: Stage, backward: bool) -> Callable[[], Prepared]:
    if op == "fla":
        return lambda: _fla(stage, backward)
    if op == "flex":
        return lambda: _flex(stage, backward)
    return lambda: _dense(stage.scene, op, backward)


def _dense(scene: Scene, op: str, backward: bool) -> Prepared:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel = SDPBackend.CUDNN_ATTENTION if op == "dense-cudnn" else SDPBackend.FLASH_ATTENTION
    x = scene.inputs
    q, k, v, do = (t.transpose(0, 1)[None].detach() for t in (x.q, x.k, x.v, x.do))
    leaves = [t.requires_grad_(backward) for t in (q, k, v)]

    def attend(repeat: bool) -> None:
        keys, values = leaves[1:]
        if repeat:
            keys, values = (t.repeat_interleave(scene.heads.ratio, 1) for t in (keys, values))
        with sdpa_kernel(kernel):
            out = F.scaled_dot_product_attention(
                q, keys, values, is_causal=True, scale=scene.scale, enable_gqa=not repeat
            )
        if backward:
            torch.autograd.grad(out, leaves, do)

    work = scene.counts.dense(backward)
    try:
        attend(repeat=False)
    except RuntimeError:
        return Prepared(lambda: attend(repeat=True), work, "keys and values repeated")
    return Prepared(lambda: attend(repeat=False), work)


def _fla(stage: Stage, backward: bool) -> Prepared:
    from fla.ops.nsa import parallel_nsa

    from nsa_kernels import video_nsa

    scene, design, heads = stage.scene, stage.design, stage.heads
    x, width = scene.inputs, padded(heads.ratio, 16)
    leaves = [t.detach().requires_grad_(backward) for t in (x.q, x.k, x.v, x.gates)]

    def pad(t: Tensor) -> Tensor:
        """[T, H, *] to [1, T, G * width, *]"""
        rows = t.unflatten(1, (heads.groups, heads.ratio))
        return F.pad(rows, (0, 0, 0, width - heads.ratio)).flatten(1, 2)[None]

    def run() -> None:
        q, k, v, gates = leaves
        wide = pad(gates)
        out = parallel_nsa(
            pad(q), k[None], v[None], g_cmp=wide[..., 0].contiguous(), g_slc=wide[..., 1].contiguous(),
            block_counts=design.block_count, block_size=design.block_size, window_size=0, scale=scene.scale,
        )  # fmt: skip
        out = out[0].unflatten(1, (heads.groups, width))[:, :, : heads.ratio].flatten(1, 2)
        gate = gates[:, :, 2:].contiguous()
        out = out + video_nsa(q, k, v, gate, stage.blocks, branches=("window",), window=scene.window, scale=scene.scale)
        if backward:
            torch.autograd.grad(out, leaves, x.do)

    return Prepared(run, stage.layer(backward).work, f"groups padded from {heads.ratio} to {width}; our window op")


def _flex(stage: Stage, backward: bool) -> Prepared:
    run, note = flex_call(stage.scene, stage.blocks, stage.chosen, backward)
    return Prepared(run, stage.counts.selection(stage.blocks, stage.chosen, backward), note)
