"""Random designs of a sparse layer over random samples, each told by a number, and the layer on any backend."""

import random
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from nsa_lab.attention.backends.triton_path import Triton
from nsa_lab.attention.branches import BRANCHES
from nsa_lab.attention.branches.selection import SelectionBranch
from nsa_lab.attention.compressors import COMPRESSORS
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.gates import GATES
from nsa_lab.attention.select import RULES, SCORERS
from nsa_lab.attention.trace import Trace
from nsa_lab.config import attention_from_dict, unflatten
from nsa_lab.layout import moved
from nsa_lab.model.chunks import chunk_bounds
from nsa_lab.partition import PARTITIONERS, Context, Partition, sparse_context
from nsa_lab.plugin import problems_of
from nsa_testing import Shape, gated_branches, make_partition, random_heads, token_layout

DESIGNS = 200
HEADS = ((1, 1, 16), (2, 1, 24), (4, 2, 16), (7, 1, 16), (14, 2, 16), (3, 3, 32))
HIDDEN = 24


@dataclass(frozen=True)
class Design:
    """settings below `attention`; shapes, the packed samples; heads (H, G, D); rows at once, or None for all."""

    number: int
    settings: dict[str, Any]
    shapes: tuple[Shape, ...]
    heads: tuple[int, int, int]
    rows: int | None


def random_design(number: int, most_tokens: int = 70) -> Design:
    """The design of this number, over samples of about so many tokens at most; one that a config may have."""
    draw = random.Random(number)
    while True:
        settings = _settings(draw)
        shapes = _shapes(draw, most_tokens)
        rows = draw.choice((None, None, draw.randint(1, most_tokens)))
        attention = attention_from_dict(unflatten(settings))
        if not list(problems_of(attention, "method", attention)):
            return Design(number, settings, shapes, draw.choice(HEADS), rows)


def _settings(draw: random.Random) -> dict[str, Any]:
    block_size = draw.choice((1, 2, 3, 4, 7, 8, 16, 33))
    selection: dict[str, Any] = {
        "scorer": draw.choice(list(SCORERS)),
        "rule": draw.choice(list(RULES)),
        "block_count": draw.randint(1, 6),
        "initial_blocks": draw.choice((0, 0, 1, 2)),
        "local_blocks": draw.choice((0, 1, 1, 2)),
        "query_tile": draw.choice((1, 1, 2, 5)),
        "token_budget": draw.randint(1, 8) * block_size,
    }
    if selection["rule"] != "token_budget":
        del selection["token_budget"]
    on = draw.choice([names for names in _subsets(list(BRANCHES)) if names])
    return {
        "context": draw.choice(("video", "all")),
        "partition.kind": draw.choice(list(PARTITIONERS)),
        "partition.block_size": block_size,
        "compressor.kind": draw.choice(list(COMPRESSORS)),
        "gate.kind": draw.choice(list(GATES)),
        "branches.compression.log_length_bias": draw.random() < 0.3,
        "branches.window.size": draw.choice((1, 2, 5, 17, 200)),
        **{f"branches.{name}.enabled": name in on for name in BRANCHES},
        **{f"branches.selection.{name}": value for name, value in selection.items()},
    }


def _subsets(names: list[str]) -> list[set[str]]:
    return [{name for bit, name in enumerate(names) if number >> bit & 1} for number in range(2 ** len(names))]


def _shapes(draw: random.Random, most_tokens: int) -> tuple[Shape, ...]:
    """One to four samples, of which the first has a video."""
    shapes: list[Shape] = []
    left = most_tokens
    for number in range(draw.randint(1, 4)):
        height, width = draw.randint(1, 4), draw.randint(1, 4)
        frames = draw.randint(0 if number else 1, max(1, min(9, left // (height * width))))
        sides = (frames, height, width) if frames else (0, 0, 0)
        shapes.append((draw.randint(0, 4), sides, draw.randint(0 if frames else 1, 3)))
        left -= frames * height * width
    return tuple(shapes)


class Layer:
    """The layer of a design with random weights and inputs in float64; `run` computes it."""

    def __init__(self, design: Design):
        attention = attention_from_dict(unflatten(design.settings))
        torch.manual_seed(design.number)
        heads, groups, dim = design.heads
        self.layer = gated_branches(attention, HeadDims(HIDDEN, heads, groups, dim)).double()
        for parameter in self.layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        layout = token_layout(design.shapes)
        if design.rows is not None:
            bounds = chunk_bounds(layout, design.rows, attention.branches.selection.query_tile).tolist()
            last = len(bounds) // 2
            layout = replace(layout, own=torch.arange(bounds[last - 1], bounds[last]))
        self.context = sparse_context(layout, attention.context)
        kind, size = design.settings["partition.kind"], design.settings["partition.block_size"]
        with torch.no_grad():
            self.partition = make_partition(kind, self.context, size, design.number)
        queries, keys = len(self.context.query_index), len(self.context.token_index)
        self.inputs = torch.randn(queries, HIDDEN, dtype=torch.float64), *random_heads(
            queries, keys, design.heads, torch.float64, design.number
        ).all  # fmt: skip
        self.weight = torch.randn(queries, heads, dim, dtype=torch.float64)

    def run(
        self, backend: str, dtype: torch.dtype = torch.float64, device: str = "cpu", chosen: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """The output and the gradients of inputs and weights; and the blocks read, those of `chosen` where given."""
        layer = deepcopy(self.layer).to(device, dtype)
        layer.backend = backend
        leaves = [x.detach().to(device, dtype).requires_grad_() for x in self.inputs]
        place = torch.device(device)
        context: Context = moved(self.context, place)
        partition: Partition = moved(self.partition, place)
        trace = Trace("choice")
        with ExitStack() as stack:
            if chosen is not None:
                given = chosen.to(device)
                stack.enter_context(mock.patch.object(SelectionBranch, "choose", lambda *_: given))
                stack.enter_context(mock.patch.object(Triton, "chooses", lambda *_: False))
            out = layer(*leaves, context, partition, trace)
        wanted = [*leaves, *layer.parameters()]
        grads = torch.autograd.grad(
            (out * self.weight.to(out)).sum(), wanted, allow_unused=True, materialize_grads=True
        )
        return [out, *grads], trace.of("choice").get(0)

    def check(self, found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
        """Each of `found` is within `tolerance` of `wanted`, relative to it or to a hundredth of `weight`.

        Gradients of the layer's weights within ten times that: they are sums over all queries, which may cancel.
        """
        least = max(self.weight.norm().item() / 100, 1e-12)
        inputs = ["out", "dx", "dq", "dk", "dv"]
        names = [*inputs, *(name for name, _ in self.layer.named_parameters())]
        for name, one, other in zip(names, found, wanted, strict=True):
            error = (one.double().cpu() - other).norm().item() / max(other.norm().item(), least)
            assert error <= tolerance * (1 if name in inputs else 10), f"{name}: relative error {error:.2e}"
