"""Every kernel of the layer, compiled for a Hopper GPU where there may be none."""

import csv
import io
import os
import subprocess
import sys

import pytest
import torch

from nsa_kernels.bench.__main__ import main
from nsa_kernels.bench.inputs import Heads
from nsa_kernels.bench.jobs import Design
from nsa_kernels.bench.resources import CARDS, KIB, Resources, Setting, launches, show
from nsa_kernels.runtime import INTERPRET

SPILLED = {
    "compression.backward._pooled": 576,
    "selection.backward._visit": 584,
    "selection.backward._gather": 120,
    "selection.over_unions._attend": 56,
    "topk.forward._score": 56,
    "window.backward._keys": 384,
    "window.forward._forward": 32,
}
"""Bytes a thread at most, by triton 3.6 or 3.9, of 28 heads in 4 groups of 128, bfloat16, 64 x 32, 128 x 16 and
8 x 256; other kernels do not spill."""


def compiled(*options):
    """The rows of the command, run as it stands: it compiles nothing beside Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "nsa_kernels.bench", "resources", "--csv", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_layer_of_the_7b_fits_a_hopper_gpu():
    rows = compiled("--designs", "64x32,128x16,8x256")
    assert {row["kernel"] for row in rows} >= {launch.name for launch in launches(setting())}
    assert "selection.gathered._query_gradients" in {row["kernel"] for row in rows}
    for row in rows:
        assert int(row["shared"]) <= CARDS[90].program_shared and int(row["programs"]) >= 1
        assert int(row["spilled"]) <= SPILLED.get(row["kernel"], 0), row


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "options",
    [
        "--full --designs 64x32 --query-tiles 16",
        "--designs 64x32 --dtype fp32",
        "--designs 64x32,256x8 --heads 16,2,64",
        "--designs 64x32 --heads 4,1,256",
        "--full --designs 4x512 --heads 24,2,256",
        "--designs 64x32 --lengths 131072 --only topk",
    ],
)
def test_other_layers_fit_a_hopper_gpu(options):
    assert all(int(row["programs"]) >= 1 for row in compiled(*options.split()))


def setting(full=False):
    return Setting(4096, Heads(28, 4, 128), Design(64, 32), 256, torch.bfloat16, full)


def test_a_layer_is_launched_without_data():
    plain, full = (launches(setting(full)) for full in (False, True))
    names = {launch.name for launch in plain}
    assert names == {launch.name for launch in full}
    assert {"compression.backward._pooled", "topk.forward._select", "selection.lists._place"} <= names
    (select,) = [launch for launch in full if launch.name == "topk.forward._select"]
    assert select.options["PERMUTED"] and select.options["TOKENS"] and select.args[0].is_meta


def test_how_many_programs_fit():
    hopper = CARDS[90]
    assert hopper.programs(registers=168, shared=0, warps=4) == 3
    assert hopper.programs(registers=169, shared=0, warps=4) == 2
    assert hopper.programs(registers=32, shared=227 * KIB, warps=4) == 1
    assert hopper.programs(registers=32, shared=227 * KIB + 1, warps=4) == 0
    assert hopper.programs(registers=16, shared=0, warps=1) == 32


def test_the_table_says_what_does_not_compile():
    rows = [Resources("a.b", 255, 16, 1024, settings="64x32"), Resources("a.longer", settings="8x4", error="at 3:4")]
    table = show(rows, as_csv=False).splitlines()
    assert table[0].split()[:3] == ["kernel", "registers", "spilled"] and table[1].split()[:3] == ["a.b", "255", "16"]
    assert table[-2:] == ["a.longer (8x4) does not compile", "at 3:4"]
    assert [row["error"] for row in csv.DictReader(io.StringIO(show(rows, as_csv=True)))] == ["", "at 3:4"]


@pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1")
def test_the_interpreter_compiles_nothing(capsys):
    assert main(["resources"]) == 2
    assert "unset it" in capsys.readouterr().out


def test_a_name_that_no_kernel_has_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("nsa_kernels.runtime.INTERPRET", False)
    assert main(["resources", "--only", "selction"]) == 2
    said = capsys.readouterr().out
    assert "selction" in said and "selection.gathered._attend" not in said and "selection.forward._visit" in said
