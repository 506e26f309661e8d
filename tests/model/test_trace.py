"""What a forward says of itself: asked for or not, checkpointed, compiled, and with a scorer that learns."""

import pytest
import torch
from torch import nn

from nsa_lab.attention.choice import Scorer
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.select.compression import compression_scores
from nsa_lab.attention.trace import Trace
from nsa_lab.model import build_model
from nsa_testing import assert_close, model_batch, tiny_config, tiny_tokenizer

SHAPES = [(3, (5, 2, 3), 5), (2, (3, 2, 2), 4)]
EVERYTHING = ("gates", "gate_means", "choice", "cost", "partition", "inputs")


class Learned(Scorer):
    """Scores read off x by a linear map, trained towards the compression probabilities."""

    needs_x = True

    def __init__(self, config, dims):
        super().__init__(config, dims)
        self.query = nn.Linear(dims.hidden_size, dims.num_kv_heads * dims.head_dim, bias=False)

    def forward(self, x, q, pooled_k, visible, block_bias, scale):
        index = self.query(x).unflatten(-1, (q.shape[2], q.shape[4]))
        return torch.einsum("ucgd,umgd->ucgm", index, pooled_k) * scale

    def loss(self, inputs):
        heads = inputs.q.detach().unflatten(1, (inputs.k.shape[1], -1))[None]
        pooled = inputs.pooled_k.detach()[None]
        visible = (inputs.partition.block_end <= inputs.context.query_index[:, None])[None]
        teacher = compression_scores(heads, pooled, visible, None, inputs.scale)
        return (self(inputs.x.detach()[None], heads, pooled, visible, None, inputs.scale) - teacher).square().mean()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make(tokenizer, *overrides, learned=True):
    torch.manual_seed(0)
    model = build_model(tiny_config("model.num_layers=2", *overrides), tokenizer)
    if learned:
        for attention in model.attentions():
            attention.method.sparse.branches["selection"].scorer = Learned(Learned.Config(), HeadDims(64, 4, 2, 16))
    for name, parameter in model.named_parameters():
        if ".method." in name:
            nn.init.normal_(parameter, std=0.1)
    return model.double().train()


def batch_of(model):
    batch = model_batch(model, SHAPES)
    return batch | {"pixel_values_videos": batch["pixel_values_videos"].double()}


def run(model, *wanted):
    trace = Trace(*wanted)
    out = model(**batch_of(model), use_cache=False, trace=trace)
    loss = out.logits.square().mean()
    extra = trace.loss()
    (loss if extra is None else loss + extra).backward()
    return trace, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_nothing_is_kept_that_nobody_asked_for(tokenizer):
    trace, _ = run(make(tokenizer))
    assert trace.found == {} and set(trace.losses) == {(layer, "scorer") for layer in range(2)}
    trace, _ = run(make(tokenizer), *EVERYTHING)
    assert {(layer, name) for layer in range(2) for name in EVERYTHING if name != "partition"} <= trace.found.keys()
    assert trace.of("choice")[1].shape == (42, 2, 3)


def test_a_scorer_learns_by_its_loss_alone_and_its_choice_is_read(tokenizer):
    model, trace = make(tokenizer), Trace("choice")
    weights = [attention.method.sparse.branches["selection"].scorer.query.weight for attention in model.attentions()]
    model(**batch_of(model), use_cache=False, trace=trace).logits.square().mean().backward(retain_graph=True)
    assert all(weight.grad is None for weight in weights)
    trace.loss().backward()
    assert all((weight.grad != 0).any() for weight in weights)
    plain, _ = run(make(tokenizer, learned=False), "choice")
    assert any(not torch.equal(plain.of("choice")[layer], trace.of("choice")[layer]) for layer in range(2))
    assert not any("scorer" in name for name in run(make(tokenizer, learned=False))[1])


def test_eval_asks_no_scorer_for_its_loss(tokenizer):
    model, trace = make(tokenizer).eval(), Trace()
    with torch.no_grad():
        model(**batch_of(model), use_cache=False, trace=trace)
    assert trace.losses == {}


@pytest.mark.parametrize("partition", ["uniform", "router"])
def test_activation_checkpointing_records_and_learns_the_same(tokenizer, partition):
    found = []
    for checkpointing in (False, True):
        model = make(tokenizer, f"attention.partition.kind={partition}")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(run(model, *EVERYTHING))
    (trace, gradients), (again, gradients_again) = found
    assert trace.found.keys() == again.found.keys() and trace.losses.keys() == again.losses.keys()
    for key, loss in trace.losses.items():
        assert_close(again.losses[key], loss, 1e-12)
    assert gradients.keys() == gradients_again.keys()
    for name, grad in gradients.items():
        assert_close(gradients_again[name], grad, 1e-9, name)
    for layer, choice in trace.of("choice").items():
        assert torch.equal(again.of("choice")[layer], choice)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_records_and_learns_the_same(tokenizer):
    trace, gradients = run(make(tokenizer), *EVERYTHING)
    model = make(tokenizer)
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    again, gradients_again = run(model, *EVERYTHING)
    assert trace.found.keys() == again.found.keys() and trace.losses.keys() == again.losses.keys()
    for name, grad in gradients.items():
        assert_close(gradients_again[name], grad, 1e-9, name)
    for layer, choice in trace.of("choice").items():
        assert torch.equal(again.of("choice")[layer], choice)
