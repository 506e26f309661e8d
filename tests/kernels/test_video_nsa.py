"""The whole layer in one op, in Triton's interpreter: subsets of branches, torch.compile, checkpointing, faults."""

import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nsa_kernels import (
    blocks_from_offsets,
    choose_blocks,
    kept_bytes,
    pool_blocks,
    uniform_blocks,
    video_nsa,
    video_nsa_with_blocks,
)
from nsa_kernels.checks import BRANCHES, MOST_BLOCK_COUNT
from nsa_kernels.reference import video_nsa_reference
from nsa_kernels.runtime import INTERPRET
from nsa_kernels.testing import odd_blocks, poisoned, random_heads, relative_error

pytestmark = [
    pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

KERNELS = Path(__file__).parents[2] / "kernels"
SUBSETS = [subset for n in (1, 2, 3) for subset in combinations(BRANCHES, n)]
OPTIONS = {"block_count": 3, "initial_blocks": 1, "local_blocks": 1, "window": 5}
SMALL = {"samples": (1, 0, 13), "lengths": ((1,), (), (5, 1, 4, 3))}
"""Of odd_blocks: few queries, for what does not hang on their number."""


def leaves_of(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def check(blocks, inputs, pooled, do, tolerance, **options):
    """Output and all gradients of video_nsa against the float64 reference; `pooled` may be empty."""
    leaves = leaves_of(*inputs, *pooled)
    wide = leaves_of(*(x.double() for x in (*inputs, *pooled)))
    with poisoned():
        out = video_nsa(*leaves[:4], blocks, pooled=tuple(leaves[4:]) or None, **options)
        grads = torch.autograd.grad(out, leaves, do, allow_unused=True, materialize_grads=True)
    expected = video_nsa_reference(*wide[:4], blocks, pooled=tuple(wide[4:]) or None, **options)
    wanted = torch.autograd.grad(expected, wide, do.double(), allow_unused=True, materialize_grads=True)
    assert out.dtype == inputs[0].dtype and relative_error(out, expected) <= tolerance
    for number, (grad, want) in enumerate(zip(grads, wanted, strict=True)):
        assert grad.dtype == leaves[number].dtype
        assert relative_error(grad, want, 1e-6) <= 3 * tolerance, f"gradient {number}"


def subsets():
    """Every subset, with blocks pooled by the op and given to it; in the quick suite one of the two in turn, small."""
    for number, (branches, pooled) in enumerate(product(SUBSETS, (False, True))):
        name = f"{'+'.join(branches)}-{'given' if pooled else 'mean'}"
        yield pytest.param(branches, pooled, {}, marks=pytest.mark.slow, id=name)
        if number % 4 in (0, 3):
            yield pytest.param(branches, pooled, SMALL, id=f"{name}-small")


@pytest.mark.parametrize(("branches", "pooled", "sizes"), subsets())
def test_every_subset_of_branches(branches, pooled, sizes):
    blocks = odd_blocks(permuted=pooled, sparse=not pooled, **sizes)
    *inputs, do = random_heads(blocks, (7, 1, 16), torch.float32, len(branches))
    given = [torch.randn(blocks.num_blocks, 1, 16) for _ in range(2)] if pooled else []
    bias = torch.randn(blocks.num_blocks)
    check(blocks, inputs, given, do, 2e-6, branches=branches, block_bias=bias, **OPTIONS)


@pytest.mark.parametrize(
    ("permuted", "heads"),
    [
        (False, (2, 2, 24)),
        (True, (16, 1, 64)),
        (True, (14, 2, 16)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((True, (2, 2, 24)), (False, (16, 1, 64)))),
        pytest.param(False, (14, 2, 16), marks=pytest.mark.slow),
    ],
)
def test_head_layouts_and_token_budgets(heads, permuted):
    blocks = odd_blocks(permuted=permuted, samples=(1, 0, 15), lengths=((1,), (), (4, 2, 1, 3, 5)))
    *inputs, do = random_heads(blocks, heads, torch.float32)
    check(blocks, inputs, [], do, 2e-6, **OPTIONS, token_budget=8)


def test_half_precision_with_full_precision_gates():
    blocks = odd_blocks(**SMALL)
    q, k, v, gates, do = random_heads(blocks, (7, 1, 16), torch.float16)
    chosen = choose_blocks(q, pool_blocks(k, blocks), blocks, block_count=3)
    check(blocks, [q, k, v, gates.float()], [], do, 4e-3, chosen=chosen, window=5)


def test_one_token_samples_and_blocks_of_one():
    blocks = blocks_from_offsets(torch.arange(7), torch.tensor([0, 1, 2, 6]))
    *inputs, do = random_heads(blocks, (4, 2, 16), torch.float32)
    check(blocks, inputs, [], do, 2e-6, **OPTIONS)


def test_no_token_no_query():
    for cu_seqlens, index in (([0, 0], None), ([0, 9], torch.zeros(0, dtype=torch.int64))):
        cu = torch.tensor(cu_seqlens)
        blocks = blocks_from_offsets(cu.unique(), cu, query_index=index)
        *inputs, do = random_heads(blocks, (4, 2, 16), torch.float32)
        leaves = leaves_of(*inputs)
        with poisoned():
            grads = torch.autograd.grad(video_nsa(*leaves, blocks, **OPTIONS), leaves, do)
        assert all(g.shape == x.shape and (g == 0).all() for g, x in zip(grads, leaves, strict=True))


def test_the_chosen_blocks_are_told_and_can_be_given():
    blocks = odd_blocks(sparse=True, **SMALL)
    *inputs, _ = random_heads(blocks, (4, 2, 16), torch.float32)
    out, chosen = video_nsa_with_blocks(*inputs, blocks, **OPTIONS)
    rule = {name: OPTIONS[name] for name in ("block_count", "initial_blocks", "local_blocks")}
    assert torch.equal(chosen, choose_blocks(inputs[0], pool_blocks(inputs[1], blocks), blocks, **rule))
    assert torch.equal(out, video_nsa(*inputs, blocks, chosen=chosen, window=5))
    assert not torch.equal(out, video_nsa(*inputs, blocks, chosen=torch.full_like(chosen, -1), window=5))
    assert video_nsa_with_blocks(*inputs[:3], inputs[3][..., :1], blocks, branches=("window",))[1] is None


@pytest.mark.slow
def test_two_runs_are_bit_equal():
    blocks = odd_blocks(permuted=True, **SMALL)
    *inputs, do = random_heads(blocks, (4, 2, 16), torch.float32)
    results = []
    for _ in range(2):
        leaves = leaves_of(*inputs)
        out = video_nsa(*leaves, blocks, **OPTIONS)
        results.append([out, *torch.autograd.grad(out, leaves, do)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_strided_inputs_and_gradients():
    blocks = odd_blocks(sparse=True)
    q, k, v, gates, do = random_heads(blocks, (4, 2, 16), torch.float32)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v, gates)]
    assert not strided[0].is_contiguous()
    check(blocks, strided, [], do.transpose(0, 1).contiguous().transpose(0, 1), 2e-6, **OPTIONS)


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_inside_torch_compile(backend):
    blocks = odd_blocks(sparse=True, **SMALL)
    q, k, v, gates, do = random_heads(blocks, (4, 2, 16), torch.float32)
    weight = torch.randn(16, 16)

    def layer(q, k, v, gates, weight):
        return torch.nn.functional.gelu(video_nsa(q @ weight, k, v, gates.sigmoid(), blocks, **OPTIONS))

    results = []
    for function in (layer, torch.compile(layer, backend=backend, fullgraph=True)):
        leaves = leaves_of(q, k, v, gates, weight)
        out = function(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, do)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_inside_torch_compile_while_sizes_change():
    compiled = torch.compile(video_nsa, backend="eager", fullgraph=True)
    for length, size in ((7, 3), (9, 2), (12, 4)):
        blocks = uniform_blocks(torch.tensor([0, length]), size)
        inputs = random_heads(blocks, (4, 2, 16), torch.float32)[:4]
        assert torch.equal(compiled(*inputs, blocks, **OPTIONS), video_nsa(*inputs, blocks, **OPTIONS))


def test_the_op_keeps_its_contract_with_pytorch():
    """Schema, fake tensors and autograd registration, as torch.library itself checks them."""
    blocks = odd_blocks(sparse=True, **SMALL)
    q, k, v, gates, _ = random_heads(blocks, (4, 2, 16), torch.float32)
    for pooled_k in (None, torch.randn(blocks.num_blocks, 2, 16, requires_grad=True)):
        args = (*leaves_of(q, k, v, gates), pooled_k, pooled_k, None, None, None, blocks.flat(), blocks.sizes)
        args += (True, 3, 0, 1, 0, 1, 5, 0.25)
        torch.library.opcheck(
            torch.ops.nsa_kernels.video_nsa.default, args, test_utils=("test_schema", "test_faketensor")
        )


def test_under_activation_checkpointing():
    blocks = odd_blocks(sparse=True, **SMALL)
    *inputs, do = random_heads(blocks, (4, 2, 16), torch.float32)
    results = []
    for recompute in (False, True):
        leaves = leaves_of(*inputs)
        run = lambda *x: video_nsa(*x, blocks, **OPTIONS)  # noqa: E731
        out = checkpoint(run, *leaves, use_reentrant=False) if recompute else run(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, do)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_under_autocast_everything_is_cast():
    blocks = odd_blocks(sparse=True, **SMALL)
    q, k, v, gates, _ = random_heads(blocks, (4, 2, 16), torch.float32)
    with torch.autocast("cpu", torch.float16):
        out = video_nsa(q, k, v.half(), gates, blocks, **OPTIONS)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, video_nsa(q.half(), k.half(), v.half(), gates, blocks, **OPTIONS))


GOOD = {"q": (17, 4, 16), "k": (38, 2, 16), "v": (38, 2, 16), "gates": (17, 4, 3)}
FAULTS = {
    "rows of q": ({"q": (12, 4, 16)}, {}, "q has 12 rows"),
    "dims of q": ({"q": (13, 64)}, {}, r"q must be \[Tq, H, D\]"),
    "rows of k": ({"k": (37, 2, 16)}, {}, "k has 37 rows"),
    "k and v differ": ({"v": (38, 4, 16)}, {}, "they must be alike"),
    "groups": ({"k": (38, 3, 16), "v": (38, 3, 16)}, {}, "4 query heads do not divide over the 3 heads of k"),
    "head dims": ({"k": (38, 2, 8)}, {}, "k has a head dim of 8, q has 16"),
    "large head dim": (
        {name: (n, h, 257) for name, (n, h, _) in GOOD.items() if name != "gates"},
        {},
        "257 is outside",
    ),
    "small head dim": (
        {name: (n, h, 8) for name, (n, h, _) in GOOD.items() if name != "gates"},
        {},
        "a head dim of 8 is outside 16 to 256",
    ),
    "no heads": ({"q": (17, 0, 16), "gates": (17, 0, 3)}, {}, "q has no heads"),
    "scale": ({}, {"scale": 0.0}, "scale=0.0 is not positive"),
    "gates": ({"gates": (17, 4, 2)}, {}, "one column per branch"),
    "dtype": ({}, {"dtype": torch.float64}, "float64; the kernels take"),
    "unknown branch": ({}, {"branches": ("compression", "dense")}, r"\['dense'\] are unknown"),
    "order of branches": ({"gates": (17, 4, 2)}, {"branches": ("window", "selection")}, "in the order"),
    "no branch": ({}, {"branches": ()}, "no branch is on"),
    "no blocks": ({}, {"block_count": 0}, f"block_count=0 is outside 1 to {MOST_BLOCK_COUNT}"),
    "many blocks": ({}, {"block_count": MOST_BLOCK_COUNT + 1}, f"block_count={MOST_BLOCK_COUNT + 1} is outside 1 to"),
    "initial": ({}, {"initial_blocks": -1}, "initial_blocks=-1 is negative"),
    "local": ({}, {"local_blocks": -1}, "local_blocks=-1 is negative"),
    "budget": ({}, {"token_budget": 0}, "token_budget=0 is not positive"),
    "window": ({}, {"window": 0}, "a window of 0 holds no token"),
    "tile alone": ({}, {"query_tile": 4}, "query_tile=4 needs leader"),
    "leader": ({}, {"query_tile": 4, "leader": torch.zeros(5, dtype=torch.int32)}, "leader must be"),
    "bias": ({}, {"block_bias": torch.zeros(3)}, "block_bias must be"),
    "bias's gradient": ({}, {"block_bias": torch.zeros(8, requires_grad=True)}, "gets no gradient"),
    "pooled": ({}, {"pooled": (torch.zeros(3, 2, 16), torch.zeros(3, 2, 16))}, "pooled_k has 3 rows"),
    "groups of pooled": ({}, {"pooled": (torch.zeros(8, 4, 16), torch.zeros(8, 4, 16))}, "pooled has 4 heads, k has 2"),
    "half of pooled": ({}, {"pooled": (torch.zeros(8, 2, 16), None)}, "two tensors"),
    "chosen": ({}, {"chosen": torch.zeros(17, 3, 2, dtype=torch.int32)}, "chosen must be"),
    "chosen's dtype": ({}, {"chosen": torch.zeros(17, 2, 2, dtype=torch.int64)}, "it must be int32"),
}


@pytest.mark.parametrize(("shapes", "options", "message"), FAULTS.values(), ids=FAULTS)
def test_faults_are_named(shapes, options, message):
    blocks = odd_blocks(sparse=True)
    assert blocks.num_queries == 17 and blocks.num_blocks == 8
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    tensors = [torch.zeros(shape, dtype=dtype) for shape in (GOOD | shapes).values()]
    with pytest.raises(ValueError, match=message):
        video_nsa(*tensors, blocks, **options)


@pytest.mark.parametrize("size", [38, 2**31 - 20, 2**31 - 1, 2**63 - 1])
def test_a_window_of_any_size_is_dense_from_the_longest_sample_on(size):
    blocks = odd_blocks()
    q, k, v, gates, do = random_heads(blocks, (2, 1, 16), torch.float32, 1)
    results = []
    for window in (23, size):
        leaves = leaves_of(q, k, v, gates)
        out = video_nsa(*leaves, blocks, branches=("window",), window=window)
        results.append([out, *torch.autograd.grad(out, leaves, do)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_block_whose_bias_is_minus_infinity_is_not_compressed():
    blocks = uniform_blocks(torch.tensor([0, 160]), 2)
    q, k, v, gates, do = random_heads(blocks, (2, 1, 16), torch.float32, 1)
    bias = torch.zeros(blocks.num_blocks)
    bias[:40] = float("-inf")
    check(blocks, [q, k, v, gates], [], do, 2e-6, branches=("compression",), block_bias=bias)


@pytest.mark.slow
def test_given_blocks_need_no_block_count():
    blocks = odd_blocks()
    q, k, v, gates, _ = random_heads(blocks, (4, 2, 16), torch.float32)
    _, chosen = video_nsa_with_blocks(q, k, v, gates, blocks, block_count=3, window=5)
    one, other = (video_nsa(q, k, v, gates, blocks, chosen=chosen, block_count=n, window=5) for n in (3, 0))
    assert torch.equal(one, other)


def test_no_gradient_gives_none():
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    blocks = odd_blocks()
    *inputs, do = random_heads(blocks, (2, 1, 16), torch.float32)
    leaves = leaves_of(*inputs)
    out = Stop.apply(video_nsa(*leaves, blocks, **OPTIONS))
    assert torch.autograd.grad(out, leaves, do, allow_unused=True) == (None,) * 4


def test_half_precision_gradients_overflow_no_sooner_than_their_values():
    """Beside a large gradient stand others; what is stored on the way is not larger than the gradient itself."""
    blocks = uniform_blocks(torch.tensor([0, 64]), 16)
    q, k, v, gates, do = random_heads(blocks, (2, 1, 128), torch.float32, 1)
    k *= 40
    do *= 200
    inputs = [x.half() for x in (q * 0.01, k, v, gates)]
    leaves = leaves_of(*inputs)
    options = {"branches": ("selection",), "block_count": 4}
    grads = torch.autograd.grad(video_nsa(*leaves, blocks, **options), leaves, do.half())
    exact = leaves_of(*[x.double() for x in inputs])
    wanted = torch.autograd.grad(video_nsa_reference(*exact, blocks, **options), exact, do.half().double())
    assert 65504 * 128**-0.5 < wanted[0].abs().max() < 65504
    for found, expected in zip(grads, wanted, strict=True):
        assert relative_error(found, expected) < 2e-3


def test_blocks_that_are_too_long_are_refused_by_selection_alone():
    blocks = blocks_from_offsets(torch.tensor([0, 257]), torch.tensor([0, 257]), query_index=torch.tensor([256]))
    q, k, v, gates, _ = random_heads(blocks, (2, 1, 16), torch.float32)
    with pytest.raises(ValueError, match="257 tokens is longer than 256"):
        video_nsa(q, k, v, gates, blocks)
    out = video_nsa(q, k, v, gates[..., :1], blocks, branches=("compression",))
    assert relative_error(out, gates[..., :1] * v.mean(0).expand(1, 2, 16)) < 1e-6


def test_what_is_kept_is_what_is_said():
    blocks = odd_blocks(**SMALL)
    inputs = leaves_of(*random_heads(blocks, (4, 2, 16), torch.float32)[:4])
    saved = {}

    def pack(x):
        saved[x.data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        video_nsa(*inputs, blocks, **OPTIONS)
    known = {x.data_ptr() for x in (*inputs, *blocks.flat())}
    kept = sum(x.nbytes for pointer, x in saved.items() if pointer not in known)
    assert kept == kept_bytes(blocks.num_queries, blocks.num_blocks, 4, 2, 16, element_size=4, block_count=3)


def test_without_triton_the_package_imports_and_says_what_is_missing():
    code = """
import sys
sys.modules["triton"] = None
import nsa_kernels
assert nsa_kernels.uniform_blocks is not None
try:
    nsa_kernels.video_nsa
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(KERNELS)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "nsa_kernels.video_nsa needs triton, which is not installed; pip install 'triton>=3.6'\n"
