"""Activations on the host: the same gradients, and nothing of an offloaded layer stays where it was."""

import gc
from functools import partial

import pytest
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model, offload, recompute
from nsa_lab.model.compile import compile_dense
from nsa_lab.model.offload import Offload
from nsa_lab.model.recompute import Memory, recompute_activations
from nsa_testing import assert_close, model_batch, requires_gpu, tiny_config

SHAPES = [(3, (4, 2, 3), 5), (2, (3, 2, 2), 4)]


@pytest.fixture
def one_process(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Always(Memory):
    """A GPU whose host has room for two layers of five, and itself for no more than inputs."""

    def plan(self, x):
        self.away = 2

    def trial(self, number):
        return None


@pytest.fixture
def every_tensor(monkeypatch):
    monkeypatch.setattr(offload, "LEAST", 0)
    monkeypatch.setattr(recompute, "Memory", Always)


def built(tokenizer, *overrides, device="cpu"):
    torch.manual_seed(0)
    model = build_model(tiny_config("model.num_layers=5", *overrides), tokenizer).to(device).train()
    return model, {name: x.to(device) for name, x in model_batch(model, SHAPES).items()}


def gradients(model, batch):
    model.zero_grad(set_to_none=True)
    model(**batch, use_cache=False).logits.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def offload_of(model):
    return model.model.language_model.layers[0]._gradient_checkpointing_func.args[2]


@pytest.mark.parametrize("overrides", [(), ("attention.method=dense",), ("attention.partition.kind=router",)])
def test_gradients_are_the_same(tokenizer, every_tensor, overrides):
    plain = gradients(*built(tokenizer, *overrides))
    model, batch = built(tokenizer, *overrides)
    recompute_activations(model, "auto", host=1.0)
    for _ in range(3):
        found = gradients(model, batch)
        assert plain.keys() == found.keys()
        for name, grad in plain.items():
            assert torch.equal(found[name], grad), name
    assert set(offload_of(model).kept) == {0, 2}


@pytest.mark.slow
def test_gradients_are_the_same_with_compiled_parts(tokenizer, every_tensor):
    model, batch = built(tokenizer)
    compile_dense(model, backend="aot_eager")
    plain = gradients(model, batch)
    recompute_activations(model, "auto", host=1.0)
    for _ in range(2):
        found = gradients(model, batch)
        for name, grad in plain.items():
            assert torch.equal(found[name], grad), name


def test_two_forwards_before_their_backwards_keep_apart(tokenizer, every_tensor):
    model, batch = built(tokenizer)
    other = model_batch(model, SHAPES[::-1])
    expected = {name: grad.clone() for name, grad in gradients(model, batch).items()}
    for name, grad in gradients(model, other).items():
        expected[name] += grad
    recompute_activations(model, "auto", host=1.0)
    model.zero_grad(set_to_none=True)
    losses = [model(**x, use_cache=False).logits.square().mean() for x in (batch, other)]
    for loss in losses:
        loss.backward()
    for name, grad in expected.items():
        assert_close(dict(model.named_parameters())[name].grad, grad, 1e-6, name)


def test_buffers_serve_again_and_weights_stay(tokenizer, every_tensor):
    model, batch = built(tokenizer)
    recompute_activations(model, "auto", host=1.0)
    loss = model(**batch, use_cache=False).logits.square().mean()
    kept = offload_of(model)
    sent, buffers = set(kept.kept[0].saved), kept.kept[0].buffers
    assert len(sent) == len(buffers) > 10
    assert sent.isdisjoint(p.untyped_storage().data_ptr() for p in model.parameters())
    loss.backward()
    taken, addresses = kept.host_bytes(), [buffer.bytes.data_ptr() for buffer in buffers]
    for seed in (1, 2):
        gradients(model, model_batch(model, SHAPES, seed))
        assert kept.host_bytes() == taken
        assert [buffer.bytes.data_ptr() for buffer in kept.kept[0].buffers] == addresses


def test_a_storage_is_sent_once_and_goes_with_its_graph(every_tensor):
    layer = torch.nn.Module()
    kept = Offload(torch.nn.ModuleList([layer]))
    x = torch.randn(6, 4, requires_grad=True)

    def forward(x):
        wide = x * 2.0
        return (wide[:3].sin() * wide[3:].cos() * wide.t().exp().t()[:3]).sum(0)

    kept.begin(0)
    out = kept.run(0, forward, x)
    sent = kept.kept[0].saved
    whole = [saved for saved in sent.values() if len(saved.bytes) == 6 * 4 * 4]
    assert 1 <= len(whole) < len(sent)
    out.sum().backward()
    expected = torch.autograd.grad(forward(x).sum(), x)[0]
    assert torch.equal(x.grad, expected)
    del out, whole
    gc.collect()
    assert not kept.kept[0].saved


def test_a_second_backward_is_refused_where_the_buffers_serve_another_forward(every_tensor):
    module = torch.nn.Linear(4, 4)
    kept = Offload(torch.nn.ModuleList([module]))
    x = torch.randn(3, 4, requires_grad=True)
    out = kept.run(0, lambda x: module(x).exp(), x).sum()
    out.backward(retain_graph=True)
    out.backward(retain_graph=True)
    kept.run(0, lambda x: module(x).exp(), x).sum().backward()
    with pytest.raises(NsaLabError, match="a second backward came after another forward"):
        out.backward()


def test_the_host_is_asked_for_what_is_allowed_and_one_layer_stays():
    memory = Memory(6, host=1_000.0)
    memory.kept, memory.longest = {"attention": 4.0, "selective": 6.0, "everything": 16.0}, 10
    memory.settle(0.0, 0.0, 10, 1)
    assert memory.away == 2  # 6 would fit; layers 0 and 2 leave 1, 3, 4 and 5, of which 5 is below nothing
    assert [memory.way(number) for number in range(6)] == ["offload", "full", "offload", "full", "full", "full"]
    memory.host = 200.0
    memory.settle(1e6, 0.0, 10, 1)
    assert memory.away == 1 and memory.counts == {"attention": 5, "selective": 5, "everything": 5}
    assert [memory.way(number) for number in range(6)] == ["offload", *["everything"] * 5]
    assert memory.spent == 10 * (5 * 15.0 - 1.0)
    memory.counts = {"attention": 4, "selective": 2, "everything": 1}
    memory.away = 2
    ways = ["offload", "attention", "offload", "attention", "selective", "everything"]
    assert [memory.way(number) for number in range(6)] == ways


@pytest.mark.parametrize(
    ("away", "numbers"), [(1, [0]), (3, [0, 9, 18]), (6, [0, 4, 8, 12, 16, 20]), (13, [*range(0, 26, 2)])]
)
def test_what_is_away_is_spread_over_all_but_the_last(away, numbers):
    memory = Memory(28)
    memory.away = away
    memory.counts = {"attention": 28 - away, "selective": 1, "everything": 1}
    ways = [memory.way(number) for number in range(28)]
    assert [number for number, way in enumerate(ways) if way == "offload"] == numbers
    assert ways.count("attention") == 27 - away and ways[27] == "everything"
    assert Memory(1).way(0) == "full"


def test_of_a_checkpoint_its_input_is_kept_on_the_host(every_tensor):
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 4))
    kept = Offload(torch.nn.ModuleList([module]))
    x = torch.randn(3, 4, requires_grad=True)
    out = kept.run(0, partial(checkpoint, module, use_reentrant=False), x)
    assert [len(saved.bytes) for saved in kept.kept[0].saved.values()] == [x.nbytes]
    assert kept.fits(0, x.nbytes, x.nbytes) and not kept.fits(1, 1, x.nbytes)
    out.sum().backward()
    assert torch.equal(x.grad, torch.autograd.grad(module(x).sum(), x)[0])


@pytest.mark.parametrize("recomputed", [True, False])
def test_weights_that_are_sharded_between_forwards_stay(every_tensor, one_process, recomputed):
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 4))
    x = torch.randn(3, 4, requires_grad=True)
    plain = torch.autograd.grad(module(x).sum(), x)[0]
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    kept = Offload(torch.nn.ModuleList([module]))
    forward = partial(checkpoint, module, use_reentrant=False) if recomputed else module
    for _ in range(2):
        out = kept.run(0, forward, x)
        sizes = [len(saved.bytes) for saved in kept.kept[0].saved.values()]
        # x, the input of SiLU and that of the last layer; a weight of 128 bytes would be a fourth
        assert sorted(sizes) == ([x.nbytes] if recomputed else [x.nbytes, 96, 96])
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], plain)


def test_more_than_the_host_has_is_refused(tokenizer):
    model, _ = built(tokenizer)
    with pytest.raises(NsaLabError, match=r"training.activation_offload=1048576 .*this host has"):
        recompute_activations(model, "auto", host=2.0**50)


@pytest.mark.gpu
@requires_gpu
@pytest.mark.parametrize("method", ["nsa", "dense"])
def test_gradients_are_the_same_on_a_gpu(tokenizer, method, monkeypatch):
    monkeypatch.setattr(offload, "LEAST", 0)
    plain = gradients(*built(tokenizer, f"attention.method={method}", device="cuda"))
    model, batch = built(tokenizer, f"attention.method={method}", device="cuda")
    recompute_activations(model, "auto", host=2.0**30)
    for _ in range(4):
        found = gradients(model, batch)
        for name, grad in plain.items():
            assert_close(found[name], grad, 1e-4, name)
    assert set(offload_of(model).kept) == {0, 2} and offload_of(model).host_bytes() > 0
    blocks = model.model.visual.blocks
    assert set(blocks[0]._gradient_checkpointing_func.args[1].kept) == set(range(len(blocks)))
