"""The scripts for SLURM, on a machine without it: what they would run."""

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nsa_lab.cli.app import app

SCRIPTS = Path(__file__).parents[2] / "experiments" / "scale"
STUB = """#!/bin/bash
[ "$1" = show ] && [ "$2" = hostnames ] && { printf 'node-a\\nnode-b\\n'; exit; }
printf '%s\\n' "$(basename "$0")" "$@"
"""


def run(script, tmp_path, *arguments):
    for program in ("nsa-lab", "srun", "scontrol"):
        (tmp_path / program).write_text(STUB)
        (tmp_path / program).chmod(0o755)
    slurm = {"SLURM_GPUS_ON_NODE": "8", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[a-b]"}
    where = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", SCRIPTS / script, *arguments], env=where, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_every_machine_joins_the_search_with_a_worker_for_each_gpu(tmp_path):
    given = ["space.py", "--total", "200", "tracking.uri=http://host:5000"]
    assert run("sweep.slurm", tmp_path, *given) == ["nsa-lab", "sweep", *given, "--workers", "8"]


def test_every_machine_starts_its_processes_of_one_training(tmp_path):
    said = run("train.slurm", tmp_path, "x.yaml", "seed=1")
    assert (
        said[0] == "srun" and said[2] == "torchrun" and said[-5:] == ["-m", "nsa_lab.cli", "train", "x.yaml", "seed=1"]
    )
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node-a:29500"} <= set(said)


@pytest.mark.parametrize("option", ["--total", "--workers"])
def test_the_search_takes_the_options_of_its_script(option):
    assert option in CliRunner(env={"COLUMNS": "200"}).invoke(app, ["sweep", "run", "--help"]).output
