"""The method `released` against an emulation of the published code (tests/support/nsa_released.py)."""

import math
from dataclasses import replace

import pytest
import torch

from nsa_lab.attention.budget import Cost, paper_ratio
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import NSA, Released
from nsa_lab.attention.methods import released_ops as ops
from nsa_lab.attention.methods.released import Deviations
from nsa_lab.attention.trace import Trace
from nsa_lab.config import load_config
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.layout import layout_from_token_ids
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.plugin import settings
from nsa_released import BLOCK, COUNT, WINDOW, emulate
from nsa_testing import assert_close, make_partition, random_heads, token_layout

ODD = [(3, (4, 2, 3), 5), (1, (3, 2, 2), 0), (0, (1, 2, 2), 2), (4, (0, 2, 2), 0), (0, (2, 3, 2), 0)]
"""Text around the video; none after it; one frame; no video; no text."""
HEADS = [(4, 2, 8), (7, 1, 8), (28, 4, 4), (6, 2, 4)]
SWITCHES = ("reversed_mask", "foreign_heads", "zeroed_text", "flat_scores", "unmasked", "missed_tokens")
NONE = dict.fromkeys((*SWITCHES, "rounded_count"), False) | {"temperature": None}


def two_videos():
    """Two samples packed: text, a video, text, another video, text; and a video of one frame with text around it."""
    parts = [[2, (3, 2, 3), 3, (2, 3, 2), 2], [1, (1, 2, 2), 1]]
    ids, positions, grids = [], [], []
    for sample in parts:
        own = [n for part in sample for n in ([0] * part if isinstance(part, int) else [1] * math.prod(part))]
        ids, positions = ids + own, [*positions, *range(len(own))]
        grids += [[t, 2 * h, 2 * w] for t, h, w in (part for part in sample if not isinstance(part, int))]
    return layout_from_token_ids(torch.tensor([ids]), 1, torch.tensor(grids), text_positions=torch.tensor([positions]))


def layer_of(heads, kind=Released, **deviations):
    h, g, d = heads
    name = "released" if kind is Released else "nsa"
    chosen = [f"attention.method={name}", f"attention.partition.block_size={BLOCK}"]
    chosen += [f"attention.branches.selection.block_count={COUNT}", f"attention.branches.window.size={WINDOW}"]
    design = load_config(None, ["tasks.needle.enabled=true", *chosen]).attention
    own = settings(design, "method")
    if kind is Released:
        own.released = replace(Deviations(), **deviations)
    torch.manual_seed(0)
    layer = kind(own, design, HeadDims(16, h, g, d), 0).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def plan_of(shapes):
    layout = two_videos() if shapes is None else token_layout(shapes)
    plan = AttentionPlan(layout, (1, 0), Trace("cost", "choice", "gate_means"))
    plan.partition = lambda layer, x: make_partition("uniform", plan.sparse("video"), BLOCK)
    return plan


def inputs_of(plan, heads):
    count = len(plan.layout.rows)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 16, dtype=torch.float64, generator=generator)
    return x, *random_heads(count, count, heads, torch.float64).all


CASES = [
    ((4, 2, 8), {}),
    ((4, 2, 8), NONE),
    *(((4, 2, 8), NONE | {name: True}) for name in SWITCHES),
    *(((4, 2, 8), {name: False}) for name in SWITCHES),
    *(((4, 2, 8), change) for change in ({"rounded_count": False}, {"temperature": None})),
    *(((4, 2, 8), NONE | change) for change in ({"rounded_count": True}, {"temperature": 0.3})),
    *((heads, {}) for heads in HEADS[1:]),
]


def name_of(heads, deviations):
    on = [f"{key}={value}" for key, value in deviations.items() if value or len(deviations) == 1]
    return f"{heads} {' '.join(on) or ('none' if deviations else 'all')}"


@pytest.mark.parametrize(
    ("heads", "deviations"),
    [
        pytest.param(*case, id=name_of(*case), marks=[pytest.mark.slow] * (number in range(2, len(CASES))))
        for number, case in enumerate(CASES)
    ],
)
def test_it_is_what_the_published_code_computes(heads, deviations, monkeypatch):
    monkeypatch.setattr(ops, "PIECE_BYTES", 9000)  # pieces of a few queries
    compare(layer_of(heads, **deviations), plan_of(ODD), heads)


@pytest.mark.parametrize("deviations", [{}, pytest.param(NONE, marks=pytest.mark.slow)], ids=["all", "none"])
def test_text_between_the_videos_of_a_sample(deviations, monkeypatch):
    monkeypatch.setattr(ops, "PIECE_BYTES", 9000)
    layer, plan = layer_of((4, 2, 8), **deviations), plan_of(None)
    compare(layer, plan, (4, 2, 8))
    assert plan.layout.sample[-1] == 1 and len(plan.layout.grids) == 3


def compare(layer, plan, heads):
    x, *given = inputs_of(plan, heads)
    expected = emulate(layer, x, *given, plan.layout)
    actual = layer.prefill(x, *given, plan)
    assert_close(actual, expected, 1e-12, "forward")
    weight = torch.randn(actual.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    learned = [*given, *layer.sparse.gate.parameters()]
    want = torch.autograd.grad((expected * weight).sum(), learned)
    have = torch.autograd.grad((actual * weight).sum(), learned)
    for one, other in zip(have, want, strict=True):
        assert_close(one, other, 1e-11, "gradient")


def test_text_to_come_changes_the_rows_before_it_under_zeroed_text_alone():
    """So that a prompt in parts is another computation than in one."""
    whole, part = plan_of([(3, (3, 2, 3), 6)]), plan_of([(3, (3, 2, 3), 2)])
    given, count = inputs_of(whole, (4, 2, 8)), len(part.layout.rows)
    for deviations, same in (({}, False), ({"zeroed_text": False}, True), (NONE, True)):
        layer = layer_of((4, 2, 8), **deviations)
        first = layer.prefill(*(each[:count] for each in given), part)
        assert torch.allclose(layer.prefill(*given, whole)[:count], first, rtol=0, atol=1e-12) == same


@pytest.mark.parametrize("heads", HEADS[:3], ids=str)
def test_without_deviations_it_is_the_paper_s_method(heads):
    plan, lengths = plan_of(ODD), torch.tensor([24, 12, 4, 12])
    x, *given = inputs_of(plan, heads)
    ours, papers = layer_of(heads, **NONE), layer_of(heads, NSA)
    papers.sparse.gate.load_state_dict(ours.sparse.gate.state_dict())
    outputs, gradients, costs, means = [], [], [], []
    for layer in (ours, papers):
        outputs.append(layer.prefill(x, *given, plan))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [*given, *layer.sparse.gate.parameters()]))
        cost = layer.cost(plan.trace, lengths)
        costs.append((cost.keys, cost.pooled))
        means.append(plan.trace.found[0, "gate_means"])
    assert_close(*outputs, 1e-12)
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, 1e-11, "gradient")
    assert costs[0] == pytest.approx(costs[1]) and means[0] == pytest.approx(means[1])
    released = layer_of(heads)
    released.sparse.gate.load_state_dict(ours.sparse.gate.state_dict())
    assert (released.prefill(x, *given, plan) - outputs[0]).abs().max() > 0.05


def test_28_heads_read_the_groups_that_the_published_code_reads():
    """Heads 0-3, 4-15, 16-19 and 20-27 meet two of the four groups each; values that name their group show which."""
    plan, layer = plan_of([(0, (3, 2, 3), 0)]), layer_of((28, 4, 4), missed_tokens=False)
    x, q, k, _ = inputs_of(plan, (28, 4, 4))
    torch.nn.init.zeros_(layer.sparse.gate.down.weight)
    torch.nn.init.zeros_(layer.sparse.gate.down.bias)
    out = layer.prefill(x, q, k, torch.eye(4, dtype=torch.float64).expand(18, -1, -1), plan)
    pairs = [(0, 1)] * 4 + [(0, 2)] * 12 + [(1, 2)] * 4 + [(1, 3)] * 8
    read = torch.eye(4, dtype=torch.float64)[torch.tensor(pairs)].sum(1)
    assert_close(out, (3 * 0.5 / 2 * read).expand(18, -1, -1), 1e-12)


def test_blocks_that_compression_sees_and_entries_that_selection_reads():
    """Of 1,024 tokens query 500 sees blocks 7 to 15, the last its own; head 37 of query 100 reads head 6 at 293."""
    shape = ops.Shape(64, 32, 256, 1.0, Deviations())
    seen = ops._visible(slice(0, 1024), 16, 1024, shape, torch.device("cpu"))
    assert seen[500].nonzero().flatten().tolist() == list(range(7, 16)) and seen[-1].tolist() == [False] * 15 + [True]
    queries = torch.randn(1024, 4, 16, 2, generator=torch.Generator().manual_seed(0))
    pooled = torch.randn(16, 4, 2, generator=torch.Generator().manual_seed(1))
    right = ops._lse(queries, pooled, 1024, replace(shape, deviations=Deviations(flat_scores=False))).flatten(1)
    assert ops._lse(queries, pooled, 1024, shape).flatten(1)[100, 37] == right[293, 6]


def test_its_cost_is_what_its_queries_read():
    """9 video tokens after 3 of text, blocks of 4 from the first token: counted by hand."""
    plan = plan_of([(3, (3, 1, 3), 0)])
    layer = layer_of((4, 2, 8), missed_tokens=False)
    x, *given = inputs_of(plan, (4, 2, 8))
    layer.prefill(x, *given, plan)
    cost = layer.cost(plan.trace, torch.tensor([9]))
    window = sum(min(t + 1, WINDOW) for t in range(3, 12)) / 9
    blocks = sum(t + 1 for t in range(3, 12)) / 9  # three blocks, of which at most three are read: all up to the query
    later = (1 * 3 + 4 * 2 + 4 * 1) / 9  # own and later blocks of the query at 3, of 4 to 7, of 8 to 11
    assert cost.keys == pytest.approx(window + blocks) and cost.pooled == pytest.approx(later)


def test_bfloat16_is_rounded_once():
    """Against float64 of the same inputs; a mean that ran in bfloat16 was off by a tenth."""
    plan, layer = plan_of([(20, (50, 3, 4), 20)]), layer_of((4, 2, 8))
    torch.nn.init.zeros_(layer.sparse.gate.down.weight)
    x, *given = (part.detach().bfloat16() for part in inputs_of(plan, (4, 2, 8)))
    exact = layer.prefill(x.double(), *(part.double() for part in given), plan)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer.bfloat16().prefill(x, *given, plan)
    assert rounded.dtype == torch.bfloat16 and (rounded - exact).norm() < 0.01 * exact.norm()


def test_what_backward_keeps_grows_with_the_tokens_not_with_their_square(monkeypatch):
    monkeypatch.setattr(ops, "PIECE_BYTES", 2**16)

    def kept(frames):
        plan, layer, sizes = plan_of([(2, (frames, 2, 3), 40)]), layer_of((4, 2, 8)), {}
        x, *given = inputs_of(plan, (4, 2, 8))

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = layer.prefill(x, *given, plan)
        assert out.requires_grad
        return sum(sizes.values())

    assert kept(80) < 5 * kept(20)


def test_its_gates_are_told_of_the_video_tokens_alone():
    plan, layer = plan_of([(3, (2, 2, 3), 9), (4, (0, 2, 2), 0)]), layer_of((4, 2, 8))
    x, *given = inputs_of(plan, (4, 2, 8))
    layer.prefill(x, *given, plan)
    told = plan.trace.found[0, "gate_means"]
    seen = [t for t in plan.layout.video_index.tolist() if int(plan.layout.cell[t]) or int(plan.layout.frame[t])]
    want = (layer.sparse.gate(x[seen]).sum(0) + 0.5).mean(0) / 12  # the first token passes for text
    assert list(told) == ["compression", "selection", "window"]
    assert list(told.values()) == pytest.approx(want.tolist(), abs=1e-6)


def test_a_forward_without_video_costs_nothing():
    plan, layer = plan_of([(4, (0, 2, 2), 0)]), layer_of((4, 2, 8))
    x, *given = inputs_of(plan, (4, 2, 8))
    layer.prefill(x, *given, plan)
    assert layer.cost(plan.trace, torch.tensor([])) == Cost() and (0, "gate_means") not in plan.trace.found


def test_the_paper_s_budget_counts_the_blocks_that_are_really_read():
    base = ["tasks.needle.enabled=true", "attention.method=released", "attention.branches.selection.block_count=20"]
    design = load_config(None, base).attention
    assert Released.attended(settings(design, "method")) == 32 * 64 + 256
    assert paper_ratio(32 * 64 + 256, 128_000) == pytest.approx(0.03600, abs=5e-6)


def test_heads_that_cannot_be_padded_as_published_are_refused():
    with pytest.raises(NsaLabError, match="12 query heads do not divide over 3 key/value heads when padded to 32"):
        layer_of((12, 3, 4))
    layer_of((12, 3, 4), foreign_heads=False)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("attention.partition.kind=scene", "the published code has uniform alone"),
        ("attention.branches.selection.local_blocks=2", "the published code has 1 alone"),
        ("attention.branches.selection.block_count=40", "more than 32, beyond which"),
        ("attention.released.temperature=0", "is not positive"),
        ("attention.backend=torch", "torch is not read by method=released"),
        ("attention.released.time_step=0", "is not positive"),
        ("attention.branches.compression.log_length_bias=true", "the published code has False alone"),
    ],
)
def test_what_the_published_code_has_not_is_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, ["tasks.needle.enabled=true", "attention.method=released", override])
