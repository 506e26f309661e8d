"""Two hundred random designs over random samples, forward and backward, against the float64 reference."""

import os

import pytest
import torch

from nsa_fuzz import DESIGNS, HEADS, Layer, random_design
from nsa_lab.attention import block_major, groups
from nsa_lab.partition import PARTITIONERS
from nsa_testing import requires_gpu

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
compiled = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the kernels would run on the CPU")


def numbers(count, quick):
    """All below `count`; those outside of `quick` are slow."""
    return [pytest.param(number, marks=[] if number in quick else pytest.mark.slow) for number in range(count)]


@pytest.mark.parametrize("number", numbers(DESIGNS, quick=range(12)))
def test_the_torch_path(number, monkeypatch):
    """By turns at once and in small pieces, and by visits to blocks and under a mask."""
    if number % 2:
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)
        monkeypatch.setattr(block_major, "VISIT_ROWS", 8)
    monkeypatch.setattr("nsa_lab.attention.backends.torch_path.VISITS_COST", (10**9, -(10**9))[number // 2 % 2])
    layer = Layer(random_design(number))
    wanted, expected = layer.run("reference")
    found, chosen = layer.run("torch")
    assert expected is None or torch.equal(chosen, expected)
    layer.check(found, wanted, 1e-10)


@interpreted
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("number", numbers(40, quick=(5, 7)))
def test_the_kernels_in_the_interpreter(number, monkeypatch):
    by_turns(number, monkeypatch)
    check_kernels(Layer(random_design(number, most_tokens=16)), "cpu")


@pytest.mark.gpu
@requires_gpu
@compiled
@pytest.mark.parametrize("number", numbers(DESIGNS, quick=range(20)))
def test_the_kernels_on_a_gpu(number, monkeypatch):
    by_turns(number, monkeypatch)
    torch.backends.cuda.matmul.allow_tf32 = False
    check_kernels(Layer(random_design(number)), "cuda")


def by_turns(number, monkeypatch):
    """The selection over key blocks, and by gathering keys."""
    monkeypatch.setattr("nsa_kernels.workspace.MOST_SLOTS", (128, 0)[number // 2 % 2])


def check_kernels(layer, device):
    """In float32: they choose what the reference does, but where scores all but tie, and of equal choices make equal
    outputs and gradients."""
    wanted, expected = layer.run("reference")
    if expected is not None:
        _, chosen = layer.run("triton", torch.float32, device)
        assert chosen.shape == expected.shape
        assert len(chosen) == 0 or (chosen.cpu() == expected).float().mean() > 0.98
    found, _ = layer.run("triton", torch.float32, device, expected)
    layer.check(found, wanted, 2e-5)


@pytest.mark.slow
def test_the_designs_are_of_every_kind():
    """Each value of a setting stands in several of them, each kind of a plug-in too."""
    designs = [random_design(number) for number in range(DESIGNS)]
    for name in designs[0].settings.keys() - {"branches.selection.token_budget"}:
        values = [design.settings[name] for design in designs]
        assert min(values.count(value) for value in set(values)) >= 3, name
    assert {design.settings["partition.kind"] for design in designs} == set(PARTITIONERS)
    assert {design.heads for design in designs} == set(HEADS) and any(design.rows for design in designs)
    assert {len(design.shapes) for design in designs} == {1, 2, 3, 4}
