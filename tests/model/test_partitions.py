"""Partitioners inside the whole model: what leaks, what is equal bit by bit, and what the router learns from."""

import copy

import pytest
import torch

from nsa_kernels.runtime import INTERPRET
from nsa_lab.attention.smooth import moving_average, smooth
from nsa_lab.attention.trace import Trace
from nsa_lab.model import build_model, load_model
from nsa_lab.model.partitions import partition_statistics
from nsa_lab.partition import PARTITIONERS, Partitioner, partition_from_block_id
from nsa_testing import assert_close, model_batch, tiny_config

FRAMES, HEIGHT, WIDTH = 9, 2, 3
BEFORE, AFTER = 3, 5
SHAPES = [(BEFORE, (FRAMES, HEIGHT, WIDTH), AFTER), (2, (3, 2, 2), 4)]
ROUTERS = {"one router": (), "a router per layer": ("attention.partition.router.group_size=1",)}
CAUSAL = [name for name, kind in PARTITIONERS.items() if kind.causality in ("token", "frame")]


def make(tokenizer, *overrides):
    torch.manual_seed(0)
    model = build_model(tiny_config("model.num_layers=3", *overrides), tokenizer).eval()
    for name, parameter in model.named_parameters():
        if ".sparse." in name or ".partitions." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.double()


def batch_of(model, shapes=SHAPES):
    batch = model_batch(model, shapes)
    return batch | {"pixel_values_videos": batch["pixel_values_videos"].to(model.dtype)}


def with_frame_changed(batch, frame):
    patches = slice(frame * HEIGHT * WIDTH * 4, (frame + 1) * HEIGHT * WIDTH * 4)
    pixels = batch["pixel_values_videos"].clone()
    pixels[patches] = torch.randn(pixels[patches].shape, generator=torch.Generator().manual_seed(frame)).to(pixels) * 3
    return batch | {"pixel_values_videos": pixels}


@torch.no_grad()
def run(model, batch):
    """Logits [L, V] and each layer's block of every key."""
    trace = Trace("inputs")
    logits = model(**batch, use_cache=False, trace=trace).logits[0]
    return logits, [inputs.partition.block_id for inputs in trace.of("inputs").values()]


def leaks(model, shapes=SHAPES, frames=range(1, FRAMES)):
    """Per frame that is changed: the greatest change of a logit before it, and whether any layer's blocks moved."""
    batch = batch_of(model, shapes)
    logits, blocks = run(model, batch)
    for frame in frames:
        after, blocks_after = run(model, with_frame_changed(batch, frame))
        seen = BEFORE + frame * HEIGHT * WIDTH
        assert (logits[seen:] - after[seen:]).abs().max() > 1e-6
        moved = any(not torch.equal(one, other) for one, other in zip(blocks, blocks_after, strict=True))
        yield (logits[:seen] - after[:seen]).abs().max().item(), moved


@pytest.mark.pairwise
@pytest.mark.parametrize(
    "frames",
    [(1, FRAMES // 2, FRAMES - 1), pytest.param(range(1, FRAMES), marks=pytest.mark.slow)],
    ids=["few", "each"],
)
@pytest.mark.parametrize("context", ["video", "all"])
@pytest.mark.parametrize("overrides", [(), ("attention.compressor.kind=mlp",)], ids=["mean", "mlp"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_no_output_of_the_model_depends_on_a_later_frame(tokenizer, kind, overrides, context, frames):
    model = make(tokenizer, f"attention.partition.kind={kind}", f"attention.context={context}", *overrides)
    found = list(leaks(model, frames=frames))
    assert max(change for change, _ in found) < 1e-10
    assert any(moved for _, moved in found) == PARTITIONERS[kind].needs_features, (
        "the blocks never changed, or should not"
    )


@pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("backend", ["layers.1.backend", pytest.param("backend", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [pytest.param("scene", marks=pytest.mark.slow), "router"])
def test_no_output_of_the_triton_path_depends_on_a_later_frame(tokenizer, kind, backend):
    model = make(tokenizer, f"attention.partition.kind={kind}", f"attention.{backend}=triton").float()
    found = list(leaks(model, [(BEFORE, (4, HEIGHT, WIDTH), AFTER)], frames=(2,)))
    assert max(change for change, _ in found) < 1e-5 and any(moved for _, moved in found)


def test_a_router_per_layer_does_not_leak_either(tokenizer):
    model = make(tokenizer, "attention.partition.kind=router", *ROUTERS["a router per layer"])
    found = list(leaks(model))
    assert max(change for change, _ in found) < 1e-10 and any(moved for _, moved in found)


@pytest.mark.parametrize("kind", [name for name, kind in PARTITIONERS.items() if kind.causality == "video"])
def test_the_leak_test_finds_partitions_that_use_the_whole_video(tokenizer, kind):
    model = make(tokenizer, f"attention.partition={{kind: {kind}, block_size: 18}}")
    assert max(change for change, _ in leaks(model, SHAPES[:1])) > 1e-6


def gradients(model, batch):
    model.zero_grad()
    logits = model(**batch, use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class Explicit(Partitioner):
    """Blocks of four as a list of offsets, sample by sample."""

    causality = "token"
    prefix_consistent = True

    def forward(self, context, features=None, layer=0):
        offsets = [key for _, _, begin, end in context.spans for key in range(begin, end, 4)]
        block_id = torch.bucketize(torch.arange(len(context.segment)), torch.tensor(offsets), right=True) - 1
        return partition_from_block_id(block_id, context.cu_seqlens, self.causality)


def assert_bit_equal(one, other):
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys() and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_explicit_offsets_equal_the_fixed_path_bit_by_bit(tokenizer, monkeypatch):
    fixed = make(tokenizer)
    monkeypatch.setitem(PARTITIONERS, "uniform", Explicit)
    explicit = make(tokenizer)
    assert isinstance(explicit.partitions.partitioner(0), Explicit)
    batch = batch_of(fixed)
    assert_bit_equal(gradients(explicit, batch), gradients(fixed, batch))


def test_frame_equals_uniform_where_frames_have_the_block_size(tokenizer):
    uniform, frame = (
        make(tokenizer, f"attention.partition={{kind: {k}, block_size: 6}}") for k in ("uniform", "frame")
    )
    batch = batch_of(uniform, SHAPES[:1])
    assert_bit_equal(gradients(frame, batch), gradients(uniform, batch))


def test_layers_share_what_they_can(tokenizer):
    tile = make(tokenizer, "attention.partition.kind=tile", "attention.partition.tile.cycle=time row")
    assert tile.partitions.slot_of_layer == {0: 0, 1: 1, 2: 0}
    overridden = make(tokenizer, "attention.partition.kind=scene", "attention.layers.1.partition.block_size=6")
    assert overridden.partitions.slot_of_layer == {0: 0, 1: 1, 2: 0}
    grouped = make(tokenizer, "attention.partition.kind=router", "attention.partition.router.group_size=2")
    assert grouped.partitions.slot_of_layer == {0: 0, 1: 0, 2: 1}
    assert make(tokenizer, "attention.method=dense").partitions.slot_of_layer == {}


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("overrides", ROUTERS.values(), ids=ROUTERS)
def test_boundaries_get_gradient_from_the_task_and_from_the_ratio_loss(tokenizer, overrides, weight):
    """With the weight at 0 the only way to the router is through the pooled keys and values."""
    model = make(tokenizer, "attention.partition.kind=router", *overrides)
    for partitioner in model.partitions.partitioners:
        partitioner.config.router.loss_weight = weight
    trace = Trace()
    logits = model(**batch_of(model), use_cache=False, trace=trace).logits
    loss = logits.square().mean() if weight == 0 else trace.loss()
    loss.backward()
    # Nothing reads the video rows of the last layer.
    for number, slot in enumerate(model.partitions.slots):
        for name, parameter in model.partitions.partitioner(number).named_parameters():
            assert parameter.grad is not None
            assert (parameter.grad != 0).any() or slot.first_layer == 2, name


def test_labels_bring_the_auxiliary_loss_into_the_loss(tokenizer):
    model = make(tokenizer, "attention.partition.kind=router", "attention.partition.router.loss_weight=0.5")
    batch = batch_of(model)
    trace = Trace()
    with torch.no_grad():
        out = model(**batch, labels=batch["input_ids"], use_cache=False, trace=trace)
    logits, loss = out.logits, out.loss
    plain = torch.nn.functional.cross_entropy(logits[0, :-1].float(), batch["input_ids"][0, 1:])
    extra = trace.loss()
    assert extra > 0.1
    torch.testing.assert_close(loss.float(), (plain + extra).float())


@pytest.mark.parametrize("kind", ["router", "scene", "tile"])
@pytest.mark.parametrize("overrides", ROUTERS.values(), ids=ROUTERS)
def test_activation_checkpointing_gives_the_same_gradients(tokenizer, kind, overrides):
    found = []
    for checkpointing in (False, True):
        model = make(tokenizer, f"attention.partition.kind={kind}", *overrides).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trace = Trace("partition", "gates", "choice", "cost")
        logits = model(**batch_of(model), use_cache=False, trace=trace).logits
        extra = trace.loss()
        (logits.square().mean() + (0 if extra is None else extra)).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in found[0].items():
        assert_close(found[1][name], grad, 1e-9, name)


def test_a_router_starts_as_a_detector_of_change_and_is_saved(tokenizer, tmp_path):
    overrides = ("attention.partition.kind=router", "model.num_layers=2")
    model = build_model(tiny_config(*overrides), tokenizer)
    router = model.partitions.partitioner(0)
    assert torch.equal(router.query, torch.eye(64)) and torch.equal(router.key, torch.eye(64))
    with torch.no_grad():
        router.query.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path).partitions.partitioner(0).query, router.query)
    other = build_model(tiny_config("model.num_layers=2"), tokenizer)
    other.save_pretrained(tmp_path / "uniform")
    fresh = load_model(tmp_path / "uniform", tiny_config(*overrides).attention)
    assert torch.equal(fresh.partitions.partitioner(0).query, torch.eye(64))


def test_a_model_can_be_copied_after_a_forward(tokenizer):
    model = make(tokenizer, "attention.partition.kind=router")
    batch = batch_of(model)
    logits = model(**batch, use_cache=False).logits
    assert torch.equal(copy.deepcopy(model)(**batch, use_cache=False).logits, logits)


def test_statistics_describe_the_blocks(tokenizer):
    model = make(tokenizer, "attention.partition.kind=router").train()
    trace = Trace("partition")
    assert partition_statistics(trace) == {} and model.partitions.clock.lap() == 0
    model(**batch_of(model), use_cache=False, trace=trace)
    said = partition_statistics(trace)
    partition = trace.found[0, "partition"]
    assert said["partition/blocks"] == partition.num_blocks
    assert said["partition/mean_length"] == pytest.approx(66 / partition.num_blocks)
    assert 1 <= said["partition/p10_length"] <= said["partition/mean_length"] <= said["partition/p90_length"] <= 8
    # 66 tokens in two videos, whose first ones open a block whatever the router thinks.
    assert said["partition/router/boundary_rate"] == pytest.approx((partition.num_blocks - 2) / 64)
    assert 0 < said["partition/router/mean_probability"] < 1
    assert model.partitions.clock.lap() > 0 and model.partitions.clock.lap() == 0


def test_the_moving_average_is_the_recurrence():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    share = torch.rand(11, dtype=torch.float64, generator=generator)
    share[[0, 4]] = 1
    share.requires_grad_()
    rows, before = [], torch.zeros(2, 3, dtype=torch.float64)
    for b in range(11):
        before = share[b] * x[b] + (1 - share[b]) * before
        rows.append(before)
    expected, found = torch.stack(rows), moving_average(x, share)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), (x, share))
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), (x, share)), wanted)
    assert torch.autograd.grad(moving_average(x, share)[4:].sum(), x)[0][:4].abs().max() == 0, (
        "runs into the next video"
    )


def test_full_confidence_changes_nothing_but_has_gradient():
    k, v = torch.randn(2, 5, 2, 3, dtype=torch.float64).unbind(0)
    confidence = torch.ones(5, dtype=torch.float64, requires_grad=True)
    smooth_k, smooth_v = smooth(k, v, confidence)
    assert torch.equal(smooth_k, k) and torch.equal(smooth_v, v)
    smooth_v.square().sum().backward()
    # d/dc of |c k~|^2 with k~ = v: the straight-through factor gives 2 v.v, the average 2 v.(v - v_before) more.
    before = torch.cat([torch.zeros(1, 2, 3, dtype=torch.float64), v[:-1]])
    torch.testing.assert_close(confidence.grad, (2 * v * v + 2 * v * (v - before)).sum((1, 2)))
