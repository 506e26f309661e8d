"""How often a training step waits for its device: an op that must know values (how many, which) stops the host."""

import traceback
from collections import Counter
from dataclasses import fields

import pytest
import torch
from torch import distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_lab import layout
from nsa_lab.bench.measure import Point
from nsa_lab.bench.step import build_step
from nsa_lab.config import flatten, load_config, to_dict
from nsa_lab.model import context_parallel, video_nsa, vision
from nsa_lab.training.score import score_answers
from nsa_testing import tiny_config

WAITING = (
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "masked_scatter", "equal", "bincount",
    "_unique", "_unique2", "unique_dim", "unique_consecutive",
)  # fmt: skip
READING = ("tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "item")


class Reads(TorchFunctionMode):
    """Counts Python's own reads of a tensor, of which a CPU tensor's dispatcher hears nothing."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READING:
            note(self.found, func.__name__)
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().split("::")[1].split(".")[0]
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            x is not None and x.dtype == torch.bool for x in args[1]
        )
        if name in WAITING or repeats or masks:
            note(self.found, name)
        return func(*args, **kwargs)


def note(found, name):
    stack = traceback.extract_stack()[:-2]
    if not any(frame.name in ("on_host", "vision_inputs") for frame in stack):
        own = [f for f in stack if "/nsa_lab/" in f.filename or "/nsa_kernels/" in f.filename]
        found[name, own[-1].filename.split("/")[-1], own[-1].line] += 1


def as_if_to_a_device(made, device):
    """`layout.moved`, with a copy on the CPU for the device's."""
    if isinstance(made, torch.Tensor):
        return made.clone()
    if not hasattr(made, "__dataclass_fields__"):
        return made
    copy = type(made)(**{field.name: as_if_to_a_device(getattr(made, field.name), device) for field in fields(made)})
    vars(copy)["host"] = made
    return copy


def step_of(clips, *overrides):
    config = flatten(to_dict(tiny_config("training.accelerator=cpu", *overrides))) | {"data.cache_dir": str(clips)}
    return build_step(to_dict(load_config(None, config)), Point("", "", 128))


def waits_of(clips, *overrides, told=True, group=None):
    step = step_of(clips, *overrides)
    if not told:
        del step.batch["host"], step.batch["label_rows"]
    if group:
        step.batch.update(group.divide(step.batch))
    with Waits() as waits, Reads(waits.found):
        step.run()
    return waits.found


@pytest.fixture
def pretended(monkeypatch):
    for module in (layout, video_nsa, vision, context_parallel):
        monkeypatch.setattr(module, "moved", as_if_to_a_device)


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_a_dense_step_never_waits(clips, pretended, recompute):
    found = waits_of(clips, "attention.method=dense", f"training.activation_checkpointing={recompute}")
    assert found == {}


@pytest.fixture
def group():
    """A group of one process, which does all that several do."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield context_parallel.ContextGroup(0, 1, dist.group.WORLD)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "overrides",
    [
        ("attention.method=dense", "training.activation_checkpointing=true"),
        pytest.param(("attention.backend=triton",), marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
    ],
    ids=["dense", "on the kernels"],
)
def test_a_step_of_shared_samples_never_waits(clips, pretended, group, monkeypatch, overrides):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert waits_of(clips, *overrides, group=group) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sparse_step_on_the_kernels_never_waits(clips, pretended, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert waits_of(clips, "attention.backend=triton") == {}


def test_the_counter_counts(clips):
    found = waits_of(clips, "attention.method=dense", told=False)
    assert {name for name, *_ in found} >= {"nonzero", "tolist", "repeat_interleave"}


@pytest.mark.parametrize("overrides", [(), ("attention.partition.kind=scene",), ("attention.context=all",)])
def test_what_is_told_changes_nothing(clips, pretended, overrides):
    step = step_of(clips, *overrides)
    told = score_answers(step.model, step.batch)
    asked = score_answers(step.model, {k: v for k, v in step.batch.items() if k not in ("host", "label_rows")})
    assert torch.equal(told.loss, asked.loss) and told.tokens == asked.tokens
    assert torch.equal(told.correct, asked.correct)
