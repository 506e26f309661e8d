import sys

import pytest
import torch

from nsa_lab.attention import backends
from nsa_lab.attention.backends import BACKENDS, choose_backend
from nsa_lab.attention.branches import BRANCHES
from nsa_lab.attention.budget import paper_ratio
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import METHODS
from nsa_lab.attention.trace import Trace
from nsa_lab.config import AttentionConfig, load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.partition import PARTITIONERS, sparse_context
from nsa_testing import assert_close, gated_branches, make_partition, random_heads, token_layout

DIMS = HeadDims(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16)
EXACT = ("reference", "torch")
"""The backends that take float64."""


def attention_config(*overrides: str) -> AttentionConfig:
    base = [
        "tasks.needle.enabled=true",
        "attention.partition.block_size=4",
        "attention.branches.window.size=5",
    ]
    return load_config(None, [*base, "attention.branches.selection.block_count=2", *overrides]).attention


def only(branch: str) -> list[str]:
    return [f"attention.branches.{other}.enabled={str(other == branch).lower()}" for other in BRANCHES]


def run(layer, config, x, q, k, v, tokens):
    partition = make_partition(config.partition.kind, tokens, config.partition.block_size)
    return layer(x, q, k, v, tokens, partition, Trace())


@pytest.mark.pairwise
@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("partition", PARTITIONERS)
@pytest.mark.parametrize(
    "overrides",
    [only(b) for b in BRANCHES] + [["attention.compressor.kind=mlp"]],
    ids=[*BRANCHES, "all, mlp"],
)
def test_no_output_depends_on_a_later_token(overrides, partition, backend):
    config = attention_config(*overrides, f"attention.backend={backend}")
    config.partition.kind = partition
    tokens = sparse_context(token_layout([(2, (5, 2, 3), 1), (1, (2, 2, 2), 0)]), "video")
    torch.manual_seed(0)
    layer = gated_branches(config, DIMS).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(38, 64, dtype=torch.float64)
    q, k, v = (t.detach() for t in random_heads(38, 38, (4, 2, 16), torch.float64).all)
    before = run(layer, config, x, q, k, v, tokens)
    for changed in range(0, 38, 3):
        inputs = [t.clone() for t in (x, q, k, v)]
        for t in inputs:
            t[changed:] = torch.randn_like(t[changed:])
        after = run(layer, config, *inputs, tokens)
        assert torch.equal(before[:changed], after[:changed]), f"token {changed} or later moved an earlier output"
        assert not torch.equal(before[changed:], after[changed:])


@pytest.mark.parametrize("name", BRANCHES)
def test_a_disabled_branch_has_no_gate_column(name):
    layer = gated_branches(attention_config(*only(name)), DIMS)
    assert list(layer.branches) == [name]
    assert layer.gate.down.out_features == DIMS.num_heads


@pytest.mark.parametrize("kind", ["mlp", "linear", "softmax", "constant", "fixed"])
def test_gates_start_even_and_learn(kind):
    layer = gated_branches(attention_config(f"attention.gate.kind={kind}", "attention.gate.value=0.25"), DIMS)
    x = torch.randn(7, 64)
    gates = layer.gate(x)
    start = {"softmax": 1 / 3, "fixed": 0.25}.get(kind, 0.5)
    torch.testing.assert_close(gates, torch.full((7, 4, 3), start))
    if kind == "fixed":
        assert not list(layer.gate.parameters())
    else:
        (gates * torch.randn(7, 4, 3)).sum().backward()
        assert any((p.grad != 0).any() for p in layer.gate.parameters())


def test_output_is_the_gated_sum_of_the_branches():
    tokens = sparse_context(token_layout([(2, (5, 2, 3), 1)]), "video")
    x = torch.randn(30, 64, dtype=torch.float64)
    q, k, v = random_heads(30, 30, (4, 2, 16), torch.float64).all
    whole = attention_config("attention.gate.kind=fixed", "attention.gate.value=0.3")
    out = run(gated_branches(whole, DIMS), whole, x, q, k, v, tokens)
    parts = torch.zeros_like(out)
    for name in ("compression", "selection", "window"):
        config = attention_config(*only(name), "attention.gate.kind=fixed", "attention.gate.value=0.3")
        parts = parts + run(gated_branches(config, DIMS), config, x, q, k, v, tokens)
    assert_close(out, parts, 1e-12)


def test_backends_agree_through_the_whole_layer():
    tokens = sparse_context(token_layout([(2, (5, 2, 3), 1), (1, (1, 1, 1), 0)]), "video")
    results = []
    for backend in EXACT:
        torch.manual_seed(0)
        config = attention_config(
            f"attention.backend={backend}",
            "attention.compressor.kind=mlp",
            "attention.partition.kind=frame",
            "attention.branches.compression.log_length_bias=true",
        )
        layer = gated_branches(config, DIMS).double()
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        x = torch.randn(31, 64, dtype=torch.float64, requires_grad=True)
        heads = random_heads(31, 31, (4, 2, 16), torch.float64)
        out = run(layer, config, x, *heads.all, tokens)
        out.square().sum().backward()
        results.append([out, x.grad, *(h.grad for h in heads.all), *(p.grad for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert_close(one, other, 1e-10)


def test_auto_says_what_it_chose(caplog):
    with caplog.at_level("INFO"):
        backends._said.clear()
        assert choose_backend("auto", torch.device("cpu")) == "torch"
        choose_backend("auto", torch.device("cpu"))
        assert choose_backend("auto", torch.device("cuda")) == "triton"
    why = "triton not: it needs a CUDA device (named, and with TRITON_INTERPRET=1, it runs on a CPU for tests)"
    said = [f"attention backend on cpu: torch; {why}", "attention backend on cuda: triton"]
    assert [r.message for r in caplog.records] == said


def test_auto_goes_on_without_triton(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level("INFO"):
        backends._said.clear()
        assert choose_backend("auto", torch.device("cuda")) == "torch"
    assert "triton is not installed" in caplog.text
    with pytest.raises(NsaLabError, match="triton is not installed"):
        choose_backend("triton", torch.device("cuda"))


def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr(BACKENDS["torch"], "why_not", lambda device, named: "no reason at all")
    with pytest.raises(NsaLabError, match="no reason at all"):
        choose_backend("torch", torch.device("cpu"))


def test_paper_budget_is_3_point_6_percent():
    attended = METHODS["nsa"].attended(METHODS["nsa"].Config())
    assert round(paper_ratio(attended, 128_000), 5) == 0.036
    assert paper_ratio(attended, 512) == 1, "2K / (L - 1) is 9.0 there"
    assert paper_ratio(METHODS["dense"].attended(METHODS["dense"].Config()), 128_000) == 1.0
