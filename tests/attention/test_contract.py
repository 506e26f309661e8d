"""What every branch, compressor, gate, scorer, rule, method and reducer must hold to: parametrised over the registries,
so that a new one is tested by its line."""

import pytest
import torch

from nsa_lab.attention.branches import BRANCHES
from nsa_lab.attention.compressors import COMPRESSORS
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.gates import GATES
from nsa_lab.attention.methods import METHODS
from nsa_lab.attention.select import RULES, SCORERS
from nsa_lab.attention.trace import Trace
from nsa_lab.baselines import REDUCERS
from nsa_lab.config import load_config
from nsa_lab.model import build_model, measure_budget
from nsa_lab.partition import sparse_context
from nsa_testing import (
    ODD_SHAPES,
    assert_close,
    gated_branches,
    make_partition,
    model_batch,
    random_heads,
    tiny_config,
    tiny_tokenizer,
    token_layout,
)

DIMS = HeadDims(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16)
SHAPES = [(2, (5, 2, 3), 1), (1, (2, 2, 2), 0)]
TOKENS = 38


def layer_of(*overrides):
    base = ["tasks.needle.enabled=true", "attention.partition.block_size=4", "attention.branches.window.size=5"]
    attention = load_config(None, [*base, "attention.branches.selection.block_count=2", *overrides]).attention
    torch.manual_seed(0)
    layer = gated_branches(attention, DIMS).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def only(branch):
    return [f"attention.branches.{other}.enabled={str(other == branch).lower()}" for other in BRANCHES]


def inputs_of(shapes=SHAPES):
    tokens = sparse_context(token_layout(shapes), "video")
    count = len(tokens.query_index)
    x = torch.randn(count, 64, dtype=torch.float64)
    return tokens, make_partition("uniform", tokens, 4), x, *random_heads(count, count, (4, 2, 16), torch.float64).all


DESIGNS = [
    *((f"branch {name}", only(name)) for name in BRANCHES),
    *((f"compressor {kind}", [f"attention.compressor.kind={kind}"]) for kind in COMPRESSORS),
    *((f"gate {kind}", [f"attention.gate.kind={kind}"]) for kind in GATES),
    *((f"scorer {name}", [f"attention.branches.selection.scorer={name}"]) for name in SCORERS),
    *(
        (f"rule {name}", [f"attention.branches.selection={{rule: {name}, block_count: 2}}"])
        for name in RULES
        if name != "token_budget"
    ),
    ("rule token_budget", ["attention.branches.selection={rule: token_budget, token_budget: 9}"]),
]
every_design = pytest.mark.parametrize("overrides", [d[1] for d in DESIGNS], ids=[d[0] for d in DESIGNS])


@every_design
def test_no_output_depends_on_a_later_token(overrides):
    layer = layer_of(*overrides)
    tokens, blocks, *given = inputs_of()
    given = [tensor.detach() for tensor in given]
    before = layer(*given, tokens, blocks, Trace())
    assert before.isfinite().all() and before.shape == (TOKENS, 4, 16)
    for changed in (1, 7, 19, 30, 31):
        other = [tensor.clone() for tensor in given]
        for tensor in other:
            tensor[changed:] = torch.randn_like(tensor[changed:])
        after = layer(*other, tokens, blocks, Trace())
        assert torch.equal(before[:changed], after[:changed])


@every_design
def test_samples_packed_equal_samples_alone(overrides):
    layer = layer_of(*overrides)
    tokens, blocks, *given = inputs_of()
    packed = layer(*given, tokens, blocks, Trace())
    for sample, (begin, end) in enumerate(((0, 30), (30, 38))):
        alone = sparse_context(token_layout([SHAPES[sample]]), "video")
        parts = [tensor[begin:end] for tensor in given]
        assert_close(layer(*parts, alone, make_partition("uniform", alone, 4), Trace()), packed[begin:end], 1e-10)


@every_design
def test_costs_are_counted_and_everything_learns(overrides):
    layer = layer_of(*overrides).train()
    tokens, blocks, *given = inputs_of(ODD_SHAPES)
    trace = Trace("cost", "choice", "gates", "gate_means")
    out = layer(*given, tokens, blocks, trace)
    assert set(trace.found[0, "cost"]) == set(layer.branches) == set(trace.found[0, "gate_means"])
    for cost in trace.found[0, "cost"].values():
        assert min(cost.keys, cost.pooled, cost.scored) >= 0
    extra = trace.loss()
    (out.square().sum() + (0 if extra is None else extra)).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), f"{name} learns nothing"


@pytest.mark.parametrize("kind", GATES)
def test_a_gate_says_which_of_its_parameters_have_a_column_for_each_branch(kind):
    """Those whose shapes follow the number of branches: without them weights cannot go on under other branches."""
    one, all_three = (layer_of(f"attention.gate.kind={kind}", *o).gate for o in (only("window"), ()))
    differ = {n for n, p in one.named_parameters() if p.shape != all_three.get_parameter(n).shape}
    assert differ == set(all_three.per_branch)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", RULES)
def test_a_rule_chooses_for_many_as_it_does_for_one(name, seed):
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 12, (), generator=generator))
    given = {"block_count": int(torch.randint(1, 6, (), generator=generator))}
    given |= {"token_budget": int(torch.randint(1, 30, (), generator=generator))} if name == "token_budget" else {}
    rule = RULES[name](RULES[name].Config(**given))
    scores = torch.rand(2, 3, 2, count, generator=generator, dtype=torch.float64).mul(8).floor()  # with ties
    visible = torch.rand(2, 3, count, generator=generator) < 0.7
    forced = torch.rand(2, 3, count, generator=generator) < 0.2
    lengths = torch.randint(1, 9, (2, count), generator=generator)
    scores = scores.masked_fill(~visible[:, :, None], 0)
    found = rule.choose(scores, visible, forced, lengths)
    for u in range(2):
        for c in range(3):
            own_forced = set(forced[u, c].nonzero().flatten().tolist())
            for g in range(2):
                seen = {j: scores[u, c, g, j].item() for j in range(count) if visible[u, c, j]}
                expected = rule.plain(own_forced, seen, dict(enumerate(lengths[u].tolist())))
                assert [j for j in found[u, c, g].tolist() if j >= 0] == expected


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_model(tokenizer, *overrides):
    torch.manual_seed(0)
    model = build_model(tiny_config(*overrides), tokenizer).eval()
    for name, parameter in model.named_parameters():
        if ".method." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.double()


def batch_of(model, shapes):
    batch = model_batch(model, shapes)
    return batch | {"pixel_values_videos": batch["pixel_values_videos"].double()}


@pytest.mark.parametrize(
    "override",
    [*(f"attention.method={name}" for name in METHODS), *(f"attention.reducer.kind={name}" for name in REDUCERS)],
)
def test_a_model_of_every_method_and_reducer_is_causal_in_its_text(tokenizer, override):
    """What comes after the question changes no earlier logit; samples packed are samples alone; the budget is counted.

    Training-free methods read such short samples densely: how far their choices look ahead is said in their own tests.
    """
    model = make_model(tokenizer, override, "model.num_layers=3")
    shapes = [(3, (4, 2, 3), 5), (2, (3, 2, 2), 4)]
    batch = batch_of(model, shapes)
    batch["answering"] = torch.isin(torch.arange(50), torch.tensor([28, 29, 48]))[None]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[0]
        ids = batch["input_ids"].clone()
        ids[0, 30] = 100
        later = model(**batch | {"input_ids": ids}, use_cache=False).logits[0]
        assert torch.equal(logits[:30], later[:30]) and not torch.equal(logits[30], later[30])
        first = {
            "input_ids": batch["input_ids"][:, :32],
            "position_ids": batch["position_ids"][..., :32],
            "mm_token_type_ids": batch["mm_token_type_ids"][:, :32],
            "pixel_values_videos": batch["pixel_values_videos"][: 4 * 4 * 6],
            "video_grid_thw": batch["video_grid_thw"][:1],
            "answering": batch["answering"][:, :32],
        }
        assert_close(model(**first, use_cache=False).logits[0], logits[:32], 1e-10)
    budget = measure_budget(model, batch)
    assert budget["budget/keys_per_query"] > 0 and budget["budget/flops_per_token"] > 0
