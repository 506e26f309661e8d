"""The torch path on a CUDA device: against the float64 reference on the CPU, forward and backward."""

import pytest
import torch

from nsa_lab.attention.backends import BACKENDS
from nsa_lab.attention.compressors import mean_of_blocks
from nsa_lab.partition import PARTITIONERS, sparse_context
from nsa_testing import (
    ODD_SHAPES,
    assert_close,
    block_rule,
    compression_scorer,
    make_partition,
    random_heads,
    requires_gpu,
    token_layout,
)

SCORER = compression_scorer()
reference, torch_path = (BACKENDS["reference"], BACKENDS["torch"])

pytestmark = [pytest.mark.gpu, requires_gpu]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("heads", [(4, 4, 16), (4, 2, 32), (7, 1, 128)])
@pytest.mark.parametrize("partition", PARTITIONERS)
def test_torch_path_on_the_gpu(dtype, tolerance, heads, partition):
    torch.backends.cuda.matmul.allow_tf32 = False
    shapes = [*ODD_SHAPES, (2, (30, 2, 3), 1)]
    host = sparse_context(token_layout(shapes), "video")
    device = sparse_context(_to_gpu(token_layout(shapes)), "video")
    blocks, gpu_blocks = (make_partition(partition, c, 4) for c in (host, device))
    exact = random_heads(len(host.query_index), len(host.token_index), heads, torch.float64)
    low = [x.detach().to(dtype) for x in exact.all]
    wide = [x.double().requires_grad_() for x in low]
    fast = [x.cuda().requires_grad_() for x in low]
    scale = heads[2] ** -0.5
    rule = block_rule(3, 1, 1)
    chosen = reference.select_blocks(
        wide[0], mean_of_blocks(wide[1], blocks), host, blocks, scale=scale, scorer=SCORER, rule=rule
    )
    if dtype == torch.float32:
        pooled = mean_of_blocks(fast[1], gpu_blocks)
        found = torch_path.select_blocks(fast[0], pooled, device, gpu_blocks, scale=scale, scorer=SCORER, rule=rule)
        assert (found.cpu() == chosen).float().mean() > 0.999
    for op in ("compression", "selection", "window", "dense"):
        expected = _run(reference, op, wide, chosen, host, blocks, scale)
        actual = _run(torch_path, op, fast, chosen.cuda(), device, gpu_blocks, scale)
        assert_close(actual.cpu(), expected, tolerance, op)
        weight = torch.randn(expected.shape, dtype=torch.float64)
        wanted = torch.autograd.grad((expected * weight).sum(), wide)
        grads = torch.autograd.grad((actual * weight.to("cuda", dtype)).sum(), fast)
        for name, grad, reference_grad in zip(("dq", "dk", "dv"), grads, wanted, strict=True):
            assert_close(grad.cpu(), reference_grad, 2 * tolerance, f"{op} {name}")


def _run(ops, op, heads, chosen, context, blocks, scale):
    q, k, v = heads
    if op == "compression":
        pooled = mean_of_blocks(k, blocks), mean_of_blocks(v, blocks)
        return ops.compression(q, *pooled, context, blocks, scale=scale)
    if op == "selection":
        return ops.selection(q, k, v, chosen, context, blocks, scale=scale)
    if op == "window":
        return ops.window(q, k, v, context, size=5, scale=scale)
    return ops.dense(q, k, v, context, scale=scale)


def _to_gpu(layout):
    return type(layout)(**{name: getattr(layout, name).cuda() for name in type(layout).__dataclass_fields__})
