"""What each of several processes makes for itself are parts of the model that one process makes."""

import json

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.model import VideoNSAForConditionalGeneration, build_model, fresh
from nsa_lab.model.checkpoint import bare_config, bare_model
from nsa_lab.model.drawing import Drawing, Share, fill
from nsa_lab.model.fresh import drawn_model, random_model
from nsa_lab.model.sharded import REST
from nsa_lab.model.stream import model_in_parts
from nsa_lab.training.build import build_module
from nsa_testing import TINY, requires_gpu, stored_run, tiny_config

DESIGNS = {
    "paper": (),
    "learned": ("attention.gate.kind=constant", "attention.compressor.kind=mlp", "attention.partition.kind=router"),
}


def seeded(make, *arguments):
    L.seed_everything(3, verbose=False)
    made = make(*arguments)
    return made, torch.rand(2).tolist()


def put_together(config, tokenizer, world):
    """The weights of all processes, each of which draws the same random numbers; and their buffers."""
    found = [seeded(model_in_parts, config, tokenizer, Share(rank, world)) for rank in range(world)]
    assert len({str(numbers) for _, numbers in found}) == 1
    models, parts = zip(*(made for made, _ in found), strict=True)
    assert all(parameter.is_meta for model in models for parameter in model.parameters())
    weights = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return weights, dict(models[0].named_buffers()), found[0][1]


def assert_equal(config, tokenizer, world):
    whole, numbers = seeded(build_model, config, tokenizer)
    weights, buffers, others = put_together(config, tokenizer, world)
    assert weights.keys() == {name for name, _ in whole.named_parameters()}
    for name, weight in (*whole.named_parameters(), *whole.named_buffers()):
        found = weights[name] if name in weights else buffers[name]
        assert torch.equal(found, weight) and found.dtype == weight.dtype, name
    assert {buffer.dtype for buffer in buffers.values()} == {torch.float32} and len(buffers) == 4
    return whole, numbers == others


@pytest.mark.singly
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("world", [1, 2, 5])
def test_random_weights_are_those_of_one_process(tokenizer, design, world):
    config = tiny_config(*DESIGNS[design])
    whole, same_numbers = assert_equal(config, tokenizer, world)
    plain, _ = seeded(bare_model, config, tokenizer)
    assert same_numbers and all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), plain.state_dict().values(), strict=True)
    )


def test_an_output_head_of_its_own_is_drawn_too(tokenizer):
    stored, training = bare_config(tiny_config(), tokenizer), tiny_config().training
    stored.tie_word_embeddings = stored.text_config.tie_word_embeddings = False
    plain, _ = seeded(VideoNSAForConditionalGeneration, stored)
    (_, parts), _ = seeded(drawn_model, stored, training, Share(1, 2))
    head = plain.lm_head.weight
    assert head is not plain.get_input_embeddings().weight
    assert torch.equal(parts["lm_head.weight"], head[len(head) // 2 :])


def test_weights_of_bf16_true_are_the_float32_ones_cast(tokenizer):
    plain, _ = seeded(bare_model, tiny_config(), tokenizer)
    half, _ = assert_equal(tiny_config("training.precision=bf16-true"), tokenizer, 2)
    for name, weight in half.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name].bfloat16()), name
    assert half.lm_head.weight is half.get_input_embeddings().weight


class Live(TorchDispatchMode):
    """The most bytes that tensors held at a time, while it is entered."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, found)):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.held = {key: kept for key, kept in self.held.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return found


def bytes_of(tensors):
    return [tensor.numel() * tensor.element_size() for tensor in tensors]


def peak_of(config, tokenizer, share):
    with Live() as live:
        _, parts = model_in_parts(config, tokenizer, share)
    return live.peak, sum(bytes_of(parts.values()))


@pytest.mark.parametrize(("source", "weights"), [("random", 1.3), ("folder", 1.3), ("run", 2.3)])
def test_no_process_holds_more_than_its_part_and_a_weight_or_two(tokenizer, published, tmp_path, source, weights):
    """What is made beside weights (masks, frequencies) is less than a third of one; of parts torch reads copies."""
    config = tiny_config("model.num_layers=4", "model.hidden_size=64")
    places = {"random": None, "folder": published, "run": tmp_path / "run"}
    if source == "run":
        stored_run(tmp_path / "run", config, build_model(config, tokenizer))
        as_parts(tmp_path / "run")
    config.model.path = places[source] and str(places[source])
    whole = bytes_of(build_model(config, tokenizer).parameters())
    peak, part = peak_of(config, tokenizer, Share(1, 4))
    assert part < 0.27 * sum(whole) and part < peak < part + weights * max(whole) < 0.7 * sum(whole)


def test_the_bytes_are_counted(tokenizer):
    with Live() as live:
        model = bare_model(tiny_config(), tokenizer)
    assert live.peak >= sum(bytes_of(model.parameters()))


@pytest.fixture(scope="module")
def published(tokenizer, tmp_path_factory):
    """A folder like Qwen2.5-VL's on the hub: a plain model in bfloat16 under the hub's names, in many files."""
    stored = bare_config(tiny_config("model.num_layers=4", "model.hidden_size=64"), tokenizer).to_dict()
    stored["model_type"] = "qwen2_5_vl"
    stored["text_config"].pop("video_nsa")
    stored.pop("positions")
    folder = tmp_path_factory.mktemp("published")
    qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(stored))
    qwen.bfloat16().save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.mark.singly
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("world", [2, 3])
def test_stored_weights_are_read_and_what_they_lack_is_drawn_as_one_process_would(
    tokenizer, published, precision, world, caplog
):
    config = tiny_config(f"model.path={published}", f"training.precision={precision}", "attention.compressor.kind=mlp")
    assert_equal(config, tokenizer, world)
    said = [line for line in caplog.messages if "start fresh" in line]
    assert len(said) == 1 + world and len(set(said)) == 1


def test_stored_weights_that_do_not_fit_are_named(tokenizer, published, tmp_path):
    weights = {}
    for file in published.glob("*.safetensors"):
        weights |= load_file(file)
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    config = tiny_config(f"model.path={tmp_path}")

    def refused(message):
        with pytest.raises(NsaLabError, match=message) as error:
            model_in_parts(config, tokenizer, Share(0, 2))
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)

    refused("holds no safetensors")
    name = next(name for name in weights if name.endswith("layers.1.self_attn.q_proj.bias"))
    for change, said in (
        ({name: torch.ones(3)}, r"1 of another shape .such as model\.language_model\.layers\.1\.self_attn\.q_proj"),
        ({"model.layers.0.self_attn.phi": torch.ones(2)}, "1 unexpected"),
    ):
        save_file(weights | change, tmp_path / "model.safetensors")
        refused(said)
    save_file({key: weight for key, weight in weights.items() if key != name}, tmp_path / "model.safetensors")
    refused("1 missing")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    refused("cannot be loaded")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": "b"}}))
    refused("cannot be loaded")


def as_parts(run):
    """Replace the checkpoint of the folder `run` by a folder of parts."""
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    last.unlink()
    dcp.save({"state_dict": content.pop("state_dict"), "optimizer_0": {"lr": 1.0}}, checkpoint_id=last, no_dist=True)
    torch.save(content, last / REST)


@pytest.mark.singly
@pytest.mark.parametrize(("branches", "form"), [("all", "file"), ("fewer", "file"), ("fewer", "parts")])
def test_the_last_weights_of_a_run_are_shared_out(tokenizer, clips, tmp_path, branches, form):
    base = TINY | {"data.cache_dir": str(clips)}
    trained = load_config(None, base)
    model, _ = seeded(build_model, trained, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    run = stored_run(tmp_path / "run", trained, model)
    if form == "parts":
        as_parts(tmp_path / "run")
    other = {"attention.branches.window.enabled": False, "attention.branches.compression.enabled": True}
    config = load_config(None, base | {"model.path": run} | (other if branches == "fewer" else {}))
    whole, _ = assert_equal(config, tokenizer, 2)
    assert (whole.get_input_embeddings().weight > 0.4).any()


def test_a_large_model_is_drawn_where_it_is_trained(tokenizer, monkeypatch):
    stored, training = bare_config(tiny_config(), tokenizer), tiny_config().training
    monkeypatch.setattr(fresh, "training_device", lambda accelerator: torch.device("cuda"))
    assert fresh._where_to_draw(stored, training) == torch.device("cpu")
    monkeypatch.setattr(fresh, "LARGE", 1000)
    assert fresh._where_to_draw(stored, training) == torch.device("cuda")


@pytest.mark.gpu
@requires_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_weights_drawn_on_a_gpu_stay_there_and_are_those_of_one_process(tokenizer, monkeypatch, precision):
    monkeypatch.setattr(fresh, "LARGE", 1000)
    config = tiny_config(f"training.precision={precision}")
    whole, _ = assert_equal(config, tokenizer, 2)
    assert {parameter.device.type for parameter in whole.parameters()} == {"cuda"}


class Derived(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))
        how(self)


def by_another_weight(module):
    module.other = nn.Parameter(module.weight * 2)


def behind_the_parameter(module):
    module.weight.data.normal_()


def in_two_goes(module):
    nn.init.zeros_(module.weight)
    module.other = nn.Parameter(torch.ones(1))
    nn.init.zeros_(module.other)
    with torch.no_grad():
        module.weight[0].fill_(1.0)


@pytest.mark.parametrize("how", [by_another_weight, behind_the_parameter, in_two_goes])
def test_a_start_value_that_cannot_be_kept_is_an_error(how):
    with pytest.raises(TypeError), Drawing(Share(0, 2), torch.device("cpu"), torch.float32):
        Derived(how)


def test_values_that_a_constructor_makes_are_kept():
    def part(module):
        with torch.no_grad():
            module.weight[1].fill_(5.0)

    with Drawing(Share(0, 2), torch.device("cpu"), torch.float32) as drawing:
        model = Derived(part)
        parts = drawing.own_parts(model)
    assert parts["weight"].tolist() == [[1.0] * 3, [5.0] * 3]


def test_what_is_loaded_is_trained_in_train_mode(tokenizer, published):
    """Eval mode, in which transformers hands out a model, recomputes no activations."""
    module = build_module(tiny_config(f"model.path={published}"), tokenizer)
    assert all(part.training for part in module.modules())


def test_a_filled_model_is_whole(tokenizer):
    config = tiny_config("attention.compressor.kind=mlp")
    model = random_model(bare_config(config, tokenizer), config.training)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    fill_again, parts = model_in_parts(config, tokenizer, Share())
    parts.popitem()
    with pytest.raises(KeyError):
        fill(fill_again, parts)
