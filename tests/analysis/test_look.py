"""Looking at one forward: it reports what the layer did, and leaves the model as it was."""

import os

import pytest
import torch

from nsa_lab.analysis.look import look
from nsa_lab.analysis.partition import typical_layers
from nsa_lab.attention.trace import Trace
from nsa_lab.model import MODEL_INPUTS, build_model
from nsa_testing import model_batch, tiny_config

SHAPE = (3, (4, 2, 3), 5)
QUERY = 14


@pytest.fixture(scope="module")
def make_model(tokenizer):
    def make(*overrides):
        torch.manual_seed(0)
        return build_model(tiny_config(*overrides), tokenizer)

    return make


def choices(model, batch):
    inputs, trace = {name: batch[name] for name in MODEL_INPUTS if name in batch}, Trace("choice")
    with torch.no_grad():
        model(**inputs, use_cache=False, trace=trace)
    return trace.of("choice")


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_chosen_blocks_are_those_that_the_layer_recorded(make_model, backend):
    """`triton` computes all branches in one call, unless it is looked at."""
    if backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1")
    model = make_model("attention.partition.kind=frame", f"attention.backend={backend}")
    batch = model_batch(model, [SHAPE])
    seen, recorded = look(model, batch, QUERY), choices(model, batch)
    assert set(seen.layers) == set(recorded) == {0, 1}
    for layer, choice in recorded.items():
        assert torch.equal(seen.layers[layer].chosen, choice[QUERY])
    assert all(attention.method.sparse.fusible for attention in model.attentions())
    assert seen.layers[0].partition.block_id.tolist() == [i // 3 for i in range(24)]  # frames of 6, blocks of 4


@pytest.mark.parametrize(
    ("reducer", "shown"), [("{kind: fastv, fastv: {layer: 1}}", {0}), ("{kind: visionzip}", set())]
)
def test_layers_that_a_reducer_left_part_of_the_video_are_not_shown(make_model, reducer, shown):
    model = make_model(f"attention.reducer={reducer}")
    assert set(look(model, model_batch(model, [SHAPE]), 23).layers) == shown


@pytest.mark.parametrize("query, complete", [(12, [5, 5]), (14, [5, 5, 5]), (23, [5, 5, 5, 5, 4])])
def test_scores_are_the_softmax_over_complete_blocks_and_rank_the_chosen_ones(make_model, query, complete):
    model = make_model("attention.branches.compression.log_length_bias=true", "attention.partition.block_size=5")
    inputs = {}
    branch = model.attentions()[1].method.sparse.branches["selection"]
    hook = branch.register_forward_hook(lambda module, args, output: inputs.update(given=args[0]))
    seen = look(model, model_batch(model, [SHAPE]), query).layers[1]
    hook.remove()
    given, count, own = inputs["given"], len(complete), query // 5
    heads = given.q[query].view(2, 2, -1)
    for group in range(2):
        logits = torch.stack([heads[group] @ given.pooled_k[block, group] * given.scale for block in range(count)], -1)
        wanted = (logits + torch.tensor(complete).log()).softmax(-1).mean(0)
        assert torch.allclose(seen.scores[group, :count], wanted, atol=1e-6)
        assert not seen.scores[group, count:].any()
        others = sorted((block for block in range(count) if block != own), key=lambda block: -wanted[block])
        assert seen.chosen[group].tolist() == sorted([own, *others[:2]])


def test_looking_leaves_no_hook_behind_and_the_mode_as_it_was(make_model):
    model = make_model().train()
    look(model, model_batch(model, [SHAPE]), 0)
    assert model.training
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


def test_layers_without_pooling_report_their_partition_alone(make_model):
    off = [f"attention.branches.{name}.enabled=false" for name in ("compression", "selection")]
    model = make_model(*off)
    seen = look(model, model_batch(model, [SHAPE]), QUERY).layers[0]
    assert seen.chosen is None and seen.scores is None
    assert seen.partition.num_blocks == 6


def test_one_layer_stands_for_all_that_share_its_partition(make_model):
    model = make_model("model.num_layers=4", "attention.layers.3.partition.block_size=2")
    seen = look(model, model_batch(model, [SHAPE]), QUERY)
    assert typical_layers(seen) == [1, 3]
    assert seen.embeddings.shape == (24, 64)
