"""The method `released` against an emulation of the published code, written from its description token by token."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from nsa_lab.attention.budget import paper_ratio
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import NSA, Released
from nsa_lab.attention.methods import released_ops as ops
from nsa_lab.attention.methods.released import Deviations
from nsa_lab.attention.trace import Trace
from nsa_lab.config import load_config
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.plugin import settings
from nsa_testing import assert_close, make_partition, random_heads, token_layout

ODD = [(3, (4, 2, 3), 5), (1, (3, 2, 2), 0), (0, (1, 2, 2), 2), (4, (0, 2, 2), 0), (0, (2, 3, 2), 0)]
"""Text around the video; none after it; one frame; no video; no text."""
HEADS = [(4, 2, 8), (7, 1, 8), (28, 4, 4), (6, 2, 4)]
SWITCHES = ("reversed_mask", "foreign_heads", "zeroed_text", "flat_scores", "unmasked", "missed_tokens")
NONE = dict.fromkeys((*SWITCHES, "rounded_count"), False) | {"temperature": None}
BLOCK, COUNT, WINDOW = 4, 3, 6


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
    plan = AttentionPlan(token_layout(shapes), (1, 0), Trace("cost", "choice"))
    plan.partition = lambda layer, x: make_partition("uniform", plan.sparse("video"), BLOCK)
    return plan


def inputs_of(plan, heads):
    count = len(plan.layout.rows)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 16, dtype=torch.float64, generator=generator)
    return x, *random_heads(count, count, heads, torch.float64).all


def softmax_over(q, keys, values, scale):
    """[D]: one query [D] against lists of keys and values."""
    if not keys:
        return torch.zeros_like(q)
    weights = torch.softmax(torch.stack([(q * key).sum() * scale for key in keys]), 0)
    return sum(w * value for w, value in zip(weights, values, strict=True))


def emulate(x, q, k, v, video, gate, deviations):
    """One call of the published code for one sample: q [n, H, D], k and v [n, G, D], video a list of bools, gate a
    function of one token's x that gives [H, 3]."""
    (n, heads, d), groups = q.shape, k.shape[1]
    scale, zero = d**-0.5, torch.zeros(d, dtype=q.dtype)
    on = SimpleNamespace(**vars(deviations))
    out = [[zero for _ in range(heads)] for _ in range(n)]
    for t in range(n):
        for h in range(heads):
            own = h // (heads // groups)
            if not video[t]:
                out[t][h] = softmax_over(q[t, h], list(k[: t + 1, own]), list(v[: t + 1, own]), scale)
            elif on.unmasked and not all(video):
                out[t][h] = v[: t + 1, own].mean(0)
    if not any(video):
        return torch.stack([torch.stack(row) for row in out])

    places = list(range(n)) if on.zeroed_text else [t for t in range(n) if video[t]]
    length = len(places)
    count = 2 ** math.ceil(math.log2(COUNT)) if on.rounded_count else COUNT
    padded = heads
    if on.foreign_heads:
        padded = 1
        while padded < 2 * heads:
            padded *= 2
    real = 2 * heads if on.foreign_heads else heads
    blocks = [range(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]

    def clean(tensor, t, head):
        return tensor[t, head] if video[t] else zero

    def query(i, p):
        return clean(q, places[i], p % heads) if p < real else zero

    def group(p):
        return p // (padded // groups)

    def mean(tensor, j, g):
        return sum(clean(tensor, places[i], g) for i in blocks[j]) / len(blocks[j])

    pooled_k = [[mean(k, j, g) for g in range(groups)] for j in range(len(blocks))]
    pooled_v = [[mean(v, j, g) for g in range(groups)] for j in range(len(blocks))]

    def visible(i):
        if on.reversed_mask:
            return [j for j in range(len(blocks)) if BLOCK * (j + 1) - 1 >= i]
        return [j for j in range(len(blocks)) if blocks[j][-1] <= i]

    def log_sum(p, i):
        logits = [float((query(i, p) * pooled_k[j][group(p)]).sum().detach() * scale) for j in visible(i)]
        return math.log(sum(map(math.exp, logits))) if logits else -math.inf

    table = [[log_sum(p, i) for i in range(length)] for p in range(padded)]

    def read(p, i):
        if not on.flat_scores:
            return table[p][i]
        flat = i * padded + p
        return table[flat // length][flat % length]

    gates = {t: gate(x[t]) if video[t] else torch.full((heads, 3), 0.5, dtype=q.dtype) for t in places}
    for i, t in enumerate(places):
        if not video[t] and not on.unmasked:
            continue
        chosen = []
        for g in range(groups):
            score = {}
            members = [p for p in range(padded) if group(p) == g]
            for j in range(i // BLOCK):
                logits = [(p, float((query(i, p) * pooled_k[j][g]).sum().detach() * scale)) for p in members]
                score[j] = sum(math.exp(logit - read(p, i)) for p, logit in logits)
            sure = not (on.flat_scores or on.reversed_mask)
            score[i // BLOCK] = math.inf if sure else float(len(members))
            chosen.append(sorted(score, key=lambda j: (-score[j], j))[:count])
        found = []
        for p in range(padded):
            g, own = group(p), query(i, p)
            tokens = [m for j in chosen[g] for m in blocks[j] if m <= i]
            near = range(max(0, i - WINDOW + 1), i + 1)
            compressed = [[pooled[j][g] for j in visible(i)] for pooled in (pooled_k, pooled_v)]
            picked = [[[clean(z, places[m], g) for m in some] for z in (k, v)] for some in (tokens, near)]
            found.append([softmax_over(own, *given, scale) for given in (compressed, *picked)])
        for h in range(heads):
            copies = (h, h + heads) if on.foreign_heads else (h,)
            parts = [sum(gates[t][h, c] * found[p][c] for c in range(3)) for p in copies]
            out[t][h] = out[t][h] + sum(parts) / len(parts)
    return torch.stack([torch.stack(row) for row in out])


def emulate_all(layer, x, q, k, v, layout):
    ends, on = layout.cu_seqlens.tolist(), layer.deviations

    def one_gate(row):
        hidden = torch.nn.functional.gelu(layer.sparse.gate.up.weight @ row + layer.sparse.gate.up.bias)
        logits = layer.sparse.gate.down.weight @ hidden + layer.sparse.gate.down.bias
        return torch.sigmoid(logits / (1.0 if on.temperature is None else on.temperature)).view(-1, 3)

    outputs = []
    for begin, end in pairwise(ends):
        video, first = [], None
        for t in range(begin, end):
            is_video = bool(layout.is_video[t])
            if is_video and first is None:
                first = int(layout.frame[t])
            if is_video and on.missed_tokens:
                columns = int(layout.grids[int(layout.video[t])][2])
                place = divmod(int(layout.cell[t]), columns)
                is_video = len({(int(layout.frame[t]) - first) * 2, *place}) > 1
            video.append(is_video)
        parts = (part[begin:end] for part in (x, q, k, v))
        outputs.append(emulate(*parts, video, one_gate, on))
    return torch.cat(outputs)


CASES = [
    ((4, 2, 8), {}),
    ((4, 2, 8), NONE),
    *(((4, 2, 8), NONE | {name: True}) for name in SWITCHES),
    *(((4, 2, 8), {name: False}) for name in SWITCHES),
    *((heads, {}) for heads in HEADS[1:]),
]


def name_of(heads, deviations):
    on = [f"{key}={value}" for key, value in deviations.items() if value or len(deviations) == 1]
    return f"{heads} {' '.join(on) or ('none' if deviations else 'all')}"


@pytest.mark.parametrize(
    ("heads", "deviations"),
    [
        pytest.param(*case, id=name_of(*case), marks=[pytest.mark.slow] * (number in range(2, len(CASES) - 1)))
        for number, case in enumerate(CASES)
    ],
)
def test_it_is_what_the_published_code_computes(heads, deviations, monkeypatch):
    monkeypatch.setattr(ops, "PIECE_BYTES", 9000)  # pieces of a few queries
    layer, plan = layer_of(heads, **deviations), plan_of(ODD)
    x, *given = inputs_of(plan, heads)
    expected = emulate_all(layer, x, *given, plan.layout)
    actual = layer.prefill(x, *given, plan)
    assert_close(actual, expected, 1e-12, "forward")
    weight = torch.randn(actual.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    learned = [*given, *layer.sparse.gate.parameters()]
    want = torch.autograd.grad((expected * weight).sum(), learned)
    have = torch.autograd.grad((actual * weight).sum(), learned)
    for one, other in zip(have, want, strict=True):
        assert_close(one, other, 1e-11, "gradient")


@pytest.mark.parametrize("heads", HEADS[:3], ids=str)
def test_without_deviations_it_is_the_paper_s_method(heads):
    plan = plan_of(ODD)
    x, *given = inputs_of(plan, heads)
    ours, papers = layer_of(heads, **NONE), layer_of(heads, NSA)
    papers.sparse.gate.load_state_dict(ours.sparse.gate.state_dict())
    assert_close(ours.prefill(x, *given, plan), papers.prefill(x, *given, plan), 1e-12)
    released = layer_of(heads)
    released.sparse.gate.load_state_dict(ours.sparse.gate.state_dict())
    assert (released.prefill(x, *given, plan) - ours.prefill(x, *given, plan)).abs().max() > 0.05


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
        ("attention.released.time_step=0", "is not positive"),
        ("attention.branches.compression.log_length_bias=true", "the published code has False alone"),
    ],
)
def test_what_the_published_code_has_not_is_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, ["tasks.needle.enabled=true", "attention.method=released", override])
