"""The kernels on a GPU against float64 references: bf16 errors beside plain PyTorch's own, every head layout, 128K."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nsa_kernels import blocks_from_offsets, kept_bytes, uniform_blocks, video_nsa, video_nsa_with_blocks, workspace
from nsa_kernels.compression.reference import pool_reference
from nsa_kernels.reference import video_nsa_reference
from nsa_kernels.runtime import INTERPRET, WORKSPACE_BYTES
from nsa_kernels.selection import unions
from nsa_kernels.testing import odd_blocks, poisoned, random_heads, relative_error, uneven
from nsa_kernels.topk.reference import topk_reference
from nsa_testing import block_rule, requires_gpu

pytestmark = [
    pytest.mark.gpu,
    requires_gpu,
    pytest.mark.skipif(INTERPRET, reason="TRITON_INTERPRET=1: the kernels would run on the CPU"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SAMPLES = (1, 513, 0, 383)
NAMES = ("out", "dq", "dk", "dv", "dgates", "d pooled_k", "d pooled_v")
BRANCHES = ("compression", "selection", "window")
LAYOUTS = [(28, 4), (8, 8), (16, 1), (14, 2), (7, 7)]
LENGTHS = {1: 128, 2: 100, 4: 512, 7: 64, 8: 256, 16: 33, 64: 8, 100: 3, 256: 1}
"""The longest block, and block_count."""
ODD = ["plain", "permuted", "few queries", "permuted, few queries"]


@pytest.fixture(autouse=True)
def full_float32():
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(autouse=True)
def memory_full_of_nan(full_float32):
    """The caching allocator hands this memory out again."""
    torch.full((2**28,), torch.nan, device="cuda")
    torch.cuda.synchronize()
    with poisoned():
        yield


def gpu_blocks(kind, longest=64, samples=SAMPLES):
    return odd_blocks(
        permuted="permuted" in kind, sparse="few" in kind, samples=samples, lengths=uneven(samples, longest),
        device="cuda",
    )  # fmt: skip


def leaves_of(*tensors, dtype=None):
    return [x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in tensors]


def run(function, inputs, do, blocks, dtype, **options):
    """Output and gradients, `inputs` being q, k, v, gates and perhaps pooled keys and values."""
    leaves = leaves_of(*inputs, dtype=dtype)
    out = function(*leaves[:4], blocks, pooled=tuple(leaves[4:]) or None, **options)
    return [out, *torch.autograd.grad(out, leaves, do.to(dtype), allow_unused=True, materialize_grads=True)]


def choose(inputs, blocks, block_count, scale=None, **options):
    """What the float64 reference chooses, so that all precisions read the same blocks."""
    q, k = (x.double() for x in inputs[:2])
    pooled_k = inputs[4].double() if len(inputs) > 4 else pool_reference(k, blocks)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return topk_reference(q, pooled_k, blocks, scale=scale, block_count=block_count, **options)


def check(blocks, inputs, do, dtype, **options):
    """float32: close to float64. bf16, fp16: no worse than twice plain PyTorch's own error in that dtype."""
    exact = run(video_nsa_reference, inputs, do, blocks, torch.float64, **options)
    actual = run(video_nsa, inputs, do, blocks, dtype, **options)
    plain = run(video_nsa_reference, inputs, do, blocks, dtype, **options)
    least = max(0.1 * do.double().norm().item(), 1e-12)  # a query that sees one key alone has no gradient
    for name, found, wanted, low in zip(NAMES, actual, exact, plain, strict=False):
        error, own = relative_error(found, wanted, least), relative_error(low, wanted, least)
        limit = 1e-5 if dtype == torch.float32 else 2 * own + 1e-5
        assert error <= limit, f"{name}: relative error {error:.2e}, plain PyTorch has {own:.2e}"


@pytest.mark.parametrize(
    ("layout", "kind", "dtype"),
    [
        *((layout, kind, torch.bfloat16) for layout in LAYOUTS for kind in ("plain", "permuted, few queries")),
        ((28, 4), "permuted", torch.bfloat16),
        ((28, 4), "few queries", torch.float16),
        ((28, 4), "permuted", torch.float32),
        ((7, 7), "plain", torch.float32),
    ],
    ids=str,
)
def test_head_layouts(layout, kind, dtype):
    blocks = gpu_blocks(kind)
    *inputs, do = random_heads(blocks, (*layout, 64), torch.float32)
    inputs, do = [x.to(dtype).float() for x in inputs], do.to(dtype).float()
    chosen = choose(inputs, blocks, 5)
    check(blocks, inputs, do, dtype, chosen=chosen, window=100)


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        *((dim, torch.bfloat16) for dim in (16, 24, 32, 64, 80, 96, 128, 192, 256)),
        *((dim, torch.float32) for dim in (24, 128, 256)),
    ],
    ids=str,
)
def test_head_dims(dim, dtype):
    blocks = gpu_blocks("plain")
    *inputs, do = random_heads(blocks, (14, 2, dim), torch.float32)
    inputs, do = [x.to(dtype).float() for x in inputs], do.to(dtype).float()
    check(blocks, inputs, do, dtype, chosen=choose(inputs, blocks, 4), window=64)


@pytest.mark.parametrize(
    ("longest", "count", "kind", "dtype"),
    [
        *((n, count, "plain", torch.bfloat16) for n, count in LENGTHS.items()),
        *((n, LENGTHS[n], "permuted", torch.bfloat16) for n in (4, 7, 100, 256)),
        *((n, LENGTHS[n], "permuted", torch.float32) for n in (1, 8, 64, 256)),
    ],
    ids=str,
)
def test_block_lengths_and_counts(longest, count, kind, dtype):
    blocks = gpu_blocks(kind, longest)
    *inputs, do = random_heads(blocks, (7, 1, 128), torch.float32)
    inputs, do = [x.to(dtype).float() for x in inputs], do.to(dtype).float()
    bias = blocks.offsets.diff().float().log()
    check(blocks, inputs, do, dtype, chosen=choose(inputs, blocks, count, block_bias=bias), window=17, block_bias=bias)


def alike(inputs, blocks):
    """Queries and keys that drift slowly, so that neighbours choose much alike."""
    q, k = inputs[:2]
    slow = torch.randn(len(k) // 24 + 1, *k.shape[1:], device="cuda").repeat_interleave(24, 0)[: len(k)]
    near = slow[blocks.position.long()].repeat_interleave(q.shape[1] // k.shape[1], 1)
    return [0.4 * q + near, 0.4 * k + slow, *inputs[2:]]


@pytest.mark.parametrize("waste", [0.0, 1.3, 1e9, None], ids=["lists", "both", "unions", "gathered"])
@pytest.mark.parametrize(
    ("layout", "dim", "longest", "kind", "dtype"),
    [
        ((28, 4), 128, 64, "plain", torch.bfloat16),
        ((28, 4), 128, 64, "permuted, few queries", torch.bfloat16),
        ((7, 7), 64, 100, "plain", torch.bfloat16),
        ((16, 1), 80, 33, "few queries", torch.float16),
        ((14, 2), 256, 256, "permuted", torch.bfloat16),
        ((64, 1), 64, 16, "plain", torch.bfloat16),
    ],
    ids=str,
)
def test_the_walks_of_the_selection(layout, dim, longest, kind, dtype, waste, monkeypatch):
    monkeypatch.setattr(unions, "MOST_WASTE", waste)
    monkeypatch.setattr(unions, "LEAST_ROWS", 16)
    monkeypatch.setattr(workspace, "MOST_SLOTS", 0 if waste is None else 128)
    blocks = gpu_blocks(kind, longest)
    *inputs, do = random_heads(blocks, (*layout, dim), torch.float32, 1)
    inputs, do = [x.to(dtype).float() for x in alike(inputs, blocks)], do.to(dtype).float()
    check(blocks, inputs, do, dtype, branches=("selection",), chosen=choose(inputs, blocks, 5))


@pytest.mark.parametrize("branches", [BRANCHES[:1], BRANCHES[1:2], BRANCHES[2:], BRANCHES[:2], BRANCHES[1:], BRANCHES])
@pytest.mark.parametrize("pooled", [False, True], ids=["mean", "given"])
def test_subsets_of_branches(branches, pooled):
    blocks = gpu_blocks("permuted, few queries")
    *inputs, do = random_heads(blocks, (28, 4, 128), torch.bfloat16, len(branches))
    if pooled:
        inputs += [torch.randn(blocks.num_blocks, 4, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    inputs, do = [x.float() for x in inputs], do.float()
    chosen = choose(inputs, blocks, 6) if "selection" in branches else None
    check(blocks, inputs, do, torch.bfloat16, branches=branches, chosen=chosen, window=4096)


@pytest.mark.parametrize("window", [1, 63, 64, 65, 896, 4096])
def test_windows(window):
    blocks = gpu_blocks("plain")
    *inputs, do = random_heads(blocks, (8, 8, 64), torch.bfloat16, 1)
    inputs, do = [x.float() for x in inputs], do.float()
    check(blocks, inputs, do, torch.bfloat16, branches=("window",), window=window)


@pytest.mark.parametrize(
    "options", [{"initial_blocks": 1, "local_blocks": 2}, {"local_blocks": 0}, {"token_budget": 200}], ids=str
)
@pytest.mark.parametrize(("kind", "query_tile"), [("plain", 1), ("plain", 64), ("few queries", 1), ("permuted", 16)])
def test_the_choice_of_blocks(kind, query_tile, options):
    """In float32 hardly any tie breaks another way than in float64."""
    blocks = gpu_blocks(kind, 24)
    q, k, v, gates, _ = random_heads(blocks, (28, 4, 64), torch.float32)
    first = torch.searchsorted(blocks.sample_start, blocks.sample_start)
    query = torch.arange(blocks.num_queries, device="cuda")
    leader = (query - (query - first) % query_tile).int() if query_tile > 1 else None
    _, chosen = video_nsa_with_blocks(
        q, k, v, gates, blocks, block_count=8, query_tile=query_tile, leader=leader, window=8, **options
    )
    expected = choose([q, k], blocks, 8, leader=leader, **options)
    assert (chosen == expected).all(-1).float().mean() > 0.998


def test_a_choice_among_4096_blocks():
    blocks = uniform_blocks(torch.tensor([0, 16384], device="cuda"), 4)
    index = torch.arange(7, 16384, 511, device="cuda")
    blocks = blocks_from_offsets(blocks.offsets, torch.tensor([0, 16384], device="cuda"), query_index=index)
    q, k, v, gates, _ = random_heads(blocks, (7, 1, 64), torch.float32)
    for count in (128, 512):
        _, chosen = video_nsa_with_blocks(q, k, v, gates, blocks, block_count=count, window=8)
        assert (chosen == choose([q, k], blocks, count)).float().mean() > 0.998


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("prepare", [lambda inputs, _: inputs, alike], ids=["random", "alike"])
@pytest.mark.parametrize("walk", ["slots", "gathered"])
def test_two_runs_are_bit_equal(prepare, kind, walk, monkeypatch):
    monkeypatch.setattr(workspace, "MOST_SLOTS", 0 if walk == "gathered" else 128)
    blocks = gpu_blocks(kind)
    *inputs, do = random_heads(blocks, (28, 4, 128), torch.bfloat16)
    inputs = prepare(inputs, blocks)
    one, other = (run(video_nsa, inputs, do, blocks, torch.bfloat16, block_count=5, window=100) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert all(torch.isfinite(x).all() for x in one)


@pytest.mark.parametrize("samples", [(0,), (1,), (1, 1, 1), (2, 0, 65)])
def test_next_to_nothing(samples):
    blocks = gpu_blocks("plain", 8, samples)
    *inputs, do = random_heads(blocks, (7, 1, 64), torch.float32)
    check(blocks, inputs, do, torch.float32, block_count=2, window=3)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_inside_torch_compile(backend):
    blocks = gpu_blocks("plain")
    *inputs, do = random_heads(blocks, (14, 2, 64), torch.bfloat16)

    def layer(q, k, v, gates, blocks, pooled):
        return torch.nn.functional.gelu(video_nsa(q * 2, k, v, gates.sigmoid(), blocks, block_count=5, window=100))

    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    one, other = (run(f, inputs, do, blocks, torch.bfloat16) for f in (layer, compiled))
    for a, b in zip(one, other, strict=True):
        assert relative_error(b, a) < 5e-3


def test_under_activation_checkpointing_and_autocast():
    blocks = gpu_blocks("plain")
    *inputs, do = random_heads(blocks, (14, 2, 64), torch.float32)

    def layer(q, k, v, gates):
        with torch.autocast("cuda", torch.bfloat16):
            return video_nsa(q, k, v, gates, blocks, block_count=5, window=100)

    results = []
    for recompute in (False, True):
        leaves = leaves_of(*inputs)
        out = checkpoint(layer, *leaves, use_reentrant=False) if recompute else layer(*leaves)
        assert out.dtype == torch.bfloat16
        results.append([out, *torch.autograd.grad(out, leaves, do.bfloat16())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_128k_stays_within_its_memory():
    """28/4 heads, 64 x 32, window 256: at most WORKSPACE_BYTES beyond inputs, outputs and what the backward needs."""
    length, heads, groups, dim = 131072, 28, 4, 128
    blocks = uniform_blocks(torch.tensor([0, length], device="cuda"), 64)
    torch.manual_seed(0)
    q, do = (torch.randn(length, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(length, groups, dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    gates = torch.rand(length, heads, 3, device="cuda", dtype=torch.bfloat16)
    leaves = leaves_of(q, k, v, gates)
    del q, k, v, gates
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = video_nsa(*leaves, blocks)
    kept = out.nbytes + kept_bytes(length, blocks.num_blocks, heads, groups, dim)
    assert torch.cuda.max_memory_allocated() - base <= kept + WORKSPACE_BYTES
    torch.cuda.reset_peak_memory_stats()
    grads = torch.autograd.grad(out, leaves, do)
    peak = torch.cuda.max_memory_allocated() - base
    assert peak <= kept + sum(x.nbytes for x in grads) + WORKSPACE_BYTES
    assert all(torch.isfinite(x).all() for x in (out, *grads))
    few = torch.tensor([0, 63, 64, 5000, 65535, length - 1], device="cuda")
    some = blocks_from_offsets(blocks.offsets, torch.tensor([0, length], device="cuda"), query_index=few)
    exact = video_nsa_reference(*(x.double() for x in (leaves[0][few], *leaves[1:3], leaves[3][few])), some)
    assert relative_error(out[few], exact) < 2e-2


def test_fla_computes_the_same_layer():
    pytest.importorskip("fla.ops.nsa")
    from nsa_lab.attention.backends import BACKENDS
    from nsa_lab.attention.backends.triton_path import kernel_blocks
    from nsa_lab.layout import layout_from_token_ids
    from nsa_lab.partition import sparse_context
    from nsa_testing import make_partition

    ids = torch.full((1, 4096), 9, device="cuda")
    tokens = sparse_context(layout_from_token_ids(ids, 9, torch.tensor([[64, 16, 16]])), "video")
    blocks = make_partition("uniform", tokens, 64)
    q, k, v, gates, do = random_heads(kernel_blocks(tokens, blocks), (28, 4, 128), torch.bfloat16)
    results = []
    for module in (BACKENDS["fla"], BACKENDS["triton"]):
        leaves = leaves_of(q, k, v, gates)
        out, _ = module.video_nsa(
            *leaves, tokens, blocks, branches=BRANCHES, rule=block_rule(16, 1, 2), window_size=256, pooled=None,
            block_bias=None, scale=128**-0.5,
        )  # fmt: skip
        results.append([out, *torch.autograd.grad(out, leaves, do)])
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other) < 5e-2
