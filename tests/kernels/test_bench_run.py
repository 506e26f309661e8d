"""The bench at work: masks, counts, the clock, parity's verdict, and a small run in Triton's interpreter."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nsa_kernels.bench.__main__ import main
from nsa_kernels.bench.inputs import Heads
from nsa_kernels.bench.records import Case, Origin, Result, Row, Shape, read

SHAPE = Shape(28, 4, 128, 256, "bf16")
ORIGIN = Origin("NVIDIA H200", "580.1", "2.11.0", "3.6.0", "13.0", "abc123", "2026-11-22T10:00:00Z")
ROOT = Path(__file__).parents[2]


def row(op, tokens, milliseconds, status="ok"):
    return Row(Case(op, "random", tokens, 64, 32, 1, "forward"), Result(milliseconds, status=status), SHAPE, ORIGIN)


def test_flex_mask_is_the_choice_of_the_last_query():
    from nsa_kernels.bench.flex import block_mask, listed, masked_blocks
    from nsa_kernels.blocks import uniform_blocks

    blocks = uniform_blocks(torch.tensor([0, 512]), 64)
    chosen = torch.full((512, 2, 3), -1, dtype=torch.int32)
    chosen[255] = torch.tensor([[0, 2, 3], [3, -1, -1]])
    partly, wholly = masked_blocks(chosen, blocks, ratio=2)
    assert partly.shape == (1, 4, 4, 8)
    assert wholly[0, 0, 1].nonzero().flatten().tolist() == [0] and not wholly[0, 2, 1].any()
    assert [partly[0, h, 1].nonzero().flatten().tolist() for h in range(4)] == [[2, 3], [2, 3], [3], [3]]
    assert not partly[:, :, 0].any()
    dense = block_mask(chosen, blocks, ratio=2).to_dense().bool()
    assert torch.equal(dense, partly | wholly)
    count, order = listed(partly)
    assert count[0, :, 1].tolist() == [2, 2, 1, 1] and order[0, 0, 1, :2].tolist() == [2, 3]


def test_work_counts():
    from nsa_kernels.bench.roofline import Counts, Roof, chosen_pairs, closed_pairs
    from nsa_kernels.blocks import uniform_blocks

    blocks = uniform_blocks(torch.tensor([0, 10]), 4)
    assert closed_pairs(blocks) == 3 * 0 + 4 * 1 + 2 * 2 + 1 * 3
    chosen = torch.full((10, 1, 2), -1, dtype=torch.int32)
    chosen[9, 0] = torch.tensor([0, 2])
    chosen[5, 0, 0] = 1
    assert chosen_pairs(blocks, chosen) == 4 + 2 + 2
    work = Counts(Heads(2, 1, 8), 10, torch.float16).dense(backward=False)
    assert work.flops == 55 * 2 * 2 * 8 * 2
    result = Roof(work.flops, 1e30).explain(Result(2000.0), work)
    assert result.roof_ms == pytest.approx(1000.0) and result.roof_share == pytest.approx(0.5)


def test_what_gathering_costs_on_paper(monkeypatch):
    """8 x 256 at the 7B's heads: a query that sees its whole budget, one that sees four blocks, one that sees none."""
    from nsa_kernels.bench.roofline import gathering
    from nsa_kernels.blocks import uniform_blocks
    from nsa_kernels.runtime import Tile

    monkeypatch.setattr("nsa_kernels.bench.roofline.gather_tile", lambda *_: Tile(16, 64, 4, 2))
    blocks = uniform_blocks(torch.tensor([0, 4096]), 8)
    chosen = torch.full((4096, 1, 256), -1, dtype=torch.int32)
    chosen[4095, 0] = torch.arange(256)
    chosen[31, 0, :4] = torch.arange(4)
    seen, met, visits = 2048 + 32, 2048 + 64, 130  # two blocks of 8 tokens are met at once
    forward = gathering(Heads(7, 1, 128), blocks, chosen, torch.bfloat16, backward=False)
    assert (forward.bytes, forward.flops) == (seen * 512, met * 16 * 128 * 4)
    both = gathering(Heads(7, 1, 128), blocks, chosen, torch.bfloat16, backward=True)
    assert both.bytes == 2 * forward.bytes + visits * 7 * (512 + 8)
    assert both.flops == 2.5 * forward.flops + visits * 7 * 16 * 128 * 8
    assert both.milliseconds == pytest.approx(1e3 * both.bytes / 1e13)


def test_the_clock_stops_what_runs_past_it():
    from nsa_kernels.bench.timing import Clock, OutOfTime

    clock = Clock(0.2)
    started = time.monotonic()
    with pytest.raises(OutOfTime), clock.alarm():
        time.sleep(20)
    assert time.monotonic() - started < 10 and clock.left < 0.01
    with Clock(1000).alarm():
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_choice_that_breaks_a_rule_or_misses_a_block_fails_parity():
    from nsa_kernels.bench.parity import lost_importance, relative
    from nsa_kernels.blocks import uniform_blocks

    blocks = uniform_blocks(torch.tensor([0, 4]), 1)
    score = torch.tensor([[2.0, -1, -1, -1], [0.5, 2, -1, -1], [0.2, 0.4, 2, -1], [0.1, 0.3, 0.2, 2]])[:, None]
    good = torch.tensor([[0, -1], [0, 1], [1, 2], [1, 3]], dtype=torch.int32)[:, None]
    assert lost_importance(score, good, blocks) == 0
    for row, choice, lost in ((3, [2, 3], 0.1 / 2.3), (3, [1, 2], None), (2, [2, 1], None), (1, [1, 2], None)):
        wrong = good.clone()
        wrong[row, 0] = torch.tensor(choice)
        found = lost_importance(score, wrong, blocks)
        assert found == pytest.approx(float("inf") if lost is None else lost)
    assert relative(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_nothing_is_timed_where_parity_fails(monkeypatch, tmp_path, capsys):
    from nsa_kernels.bench import run

    monkeypatch.setattr(run, "why_not", lambda device: None)
    monkeypatch.setattr(run, "parity", lambda plan, device: False)
    assert main(["--output", str(tmp_path / "out"), "--quick"]) == 1
    assert "nothing was timed" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_what_cannot_fit_or_failed_before_is_skipped(tmp_path):
    from nsa_kernels.bench.roofline import Roof
    from nsa_kernels.bench.run import Run
    from nsa_kernels.bench.timing import Clock

    rows = [row("layer", 8192, 100.0), row("flex", 8192, None, status="failed: x")]
    run = Run(None, torch.device("cpu"), Clock(60), Roof(1, 1), ORIGIN, tmp_path, rows)
    assert run._reason_to_skip(row("layer", 16384, None).case) is None
    assert "no time left for about" in run._reason_to_skip(row("layer", 131072, None).case)
    assert run._reason_to_skip(row("flex", 16384, None).case) == "failed: x at T=8192"
    run.rows.append(row("flex", 16384, None, status="skipped: failed: x at T=8192"))
    assert run._reason_to_skip(row("flex", 32768, None).case) == "failed: x at T=8192"
    run.clock = Clock(0)
    assert run._reason_to_skip(row("pool", 8, None).case) == "no time left"


BENCH = """
import runpy
from nsa_kernels.testing import quicken_interpreter
quicken_interpreter()
runpy.run_module("nsa_kernels.bench", run_name="__main__")
"""


def bench(*arguments):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "kernels")}
    command = [sys.executable, "-c", BENCH, "--lengths", "32", "--heads", "2,1,16", "--window", "9", "--dtype", "fp32"]
    command += ["--designs", "8x2", "--query-tiles", "1", "--inputs", "random", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_whole_run_in_the_interpreter(tmp_path):
    done = bench("--only", "topk,pool,fla", "--output", str(tmp_path), "--commit", "deadbeef")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parity 8 x 2, tile 1: layer dgates" in done.stdout
    rows = read(next(tmp_path.glob("*.csv")))
    assert [r.case.op for r in rows] == ["pool"] * 2 + ["topk"] + ["fla"] * 2
    assert all(r.result.milliseconds > 0 for r in rows[:3]) and rows[0].origin.commit == "deadbeef"
    assert all(r.result.milliseconds or r.result.status.startswith(("failed", "skipped")) for r in rows)


def test_no_time_means_no_rows_measured(tmp_path):
    done = bench("--seconds", "0.01", "--output", str(tmp_path))
    assert done.returncode == 1 and "did not suffice" in done.stdout, done.stdout + done.stderr
