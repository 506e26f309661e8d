"""kernels/README.md: its example runs as written, every public name is there, and a CPU alone is told what helps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nsa_kernels
from nsa_kernels import checks
from nsa_kernels.runtime import INTERPRET

KERNELS = Path(__file__).parents[2] / "kernels"
README = (KERNELS / "README.md").read_text()
ON_A_CPU = """
import torch, nsa_kernels as n
blocks = n.uniform_blocks(torch.tensor([0, 48]), block_size=16)
q, k, gates = torch.randn(48, 4, 16), torch.randn(48, 2, 16), torch.rand(48, 4, 3)
pooled, chosen = torch.randn(3, 2, 16), torch.zeros(48, 2, 1, dtype=torch.int32)
calls = {
    "pool_blocks": lambda: n.pool_blocks(k, blocks),
    "compression_attention": lambda: n.compression_attention(q, pooled, pooled, blocks),
    "compression_lse": lambda: n.compression_lse(q, pooled, blocks),
    "choose_blocks": lambda: n.choose_blocks(q, pooled, blocks, block_count=1),
    "selection_attention": lambda: n.selection_attention(q, k, k, chosen, blocks),
    "window_attention": lambda: n.window_attention(q, k, k, blocks, size=8),
    "combine_branches": lambda: n.combine_branches([q, q, q], gates),
    "video_nsa": lambda: n.video_nsa(q, k, k, gates, blocks, block_count=1, window=8),
    "video_nsa_with_blocks": lambda: n.video_nsa_with_blocks(q, k, k, gates, blocks, block_count=1, window=8),
}
for name, call in calls.items():
    try:
        call()
    except ValueError as error:
        print(f"{name}: {error}")
"""


def test_without_the_interpreter_tensors_on_a_cpu_are_refused_with_the_remedy():
    environment = {"PYTHONPATH": str(KERNELS), "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ON_A_CPU]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 9 and {line.partition(":")[0] for line in said} <= set(nsa_kernels.__all__)
    assert all("tensors are on cpu" in line and "TRITON_INTERPRET=1" in line for line in said), said


@pytest.mark.skipif(not (INTERPRET or torch.cuda.is_available()), reason="needs TRITON_INTERPRET=1 or a GPU")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_readme_s_example_runs_as_written(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "kernels/README.md", "exec"), {})
    assert "torch.Size" in capsys.readouterr().out


def test_the_readme_s_limits_are_those_of_the_checks():
    assert f"up to {checks.MOST_BLOCK_LENGTH} tokens where" in README
    assert f"up to {checks.MOST_BLOCK_COUNT} chosen blocks" in README
    assert f"up to {checks.MOST_TOKENS:,} tokens" in README


def test_the_readme_names_every_public_function():
    assert [name for name in nsa_kernels.__all__ if f"`{name}" not in README] == []
