"""The bench's command line, rows, tables, picture and inputs."""

import dataclasses
from pathlib import Path

import pytest
import torch

from nsa_kernels.bench.__main__ import main, run_parser
from nsa_kernels.bench.inputs import FRAME, Heads, leaders, mean_union, random_inputs, scenes, video_inputs
from nsa_kernels.bench.records import COLUMNS, Case, Origin, Result, Row, Shape, append, latest, read
from nsa_kernels.bench.report import END, START, markdown
from nsa_kernels.checks import MOST_BLOCK_COUNT

SHAPE = Shape(28, 4, 128, 256, "bf16")
ORIGIN = Origin("NVIDIA H200", "580.1", "2.11.0", "3.6.0", "13.0", "abc123", "2026-11-22T10:00:00Z")
ROOT = Path(__file__).parents[2]


def row(op, tokens, direction, milliseconds, *, inputs="random", design=(64, 32, 1), **result):
    return Row(Case(op, inputs, tokens, *design, direction), Result(milliseconds, **result), SHAPE, ORIGIN)


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "deep" / "gpu.csv"
    for tokens in (8192, 32768):
        for direction, factor in (("forward", 1), ("forward+backward", 3)):
            append(path, row("layer", tokens, direction, 1.5 * factor * tokens / 8192, peak_mib=10.0, union16=80.0))
            append(path, row("layer", tokens, direction, 1.2 * factor * tokens / 8192, inputs="video"))
            append(path, row("dense-cudnn", tokens, direction, 0.8 * factor * (tokens / 8192) ** 2, design=(0, 0, 0)))
    append(path, row("topk", 8192, "forward", 0.25, roof_share=0.5, union16=111.6))
    append(path, row("fla", 8192, "forward", None, status="failed: ModuleNotFoundError: No module named 'fla'"))
    return path


def test_the_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "TRITON_INTERPRET=1" in text and "plot CSV" in text and "--no-baselines" in text


def test_options_are_parsed():
    options = run_parser().parse_args(["--lengths", "8,16", "--designs", "8x3,16x2", "--only", "fla,topk"])
    assert (options.lengths, options.designs, options.only) == ([8, 16], [(8, 3), (16, 2)], ["fla", "topk"])
    assert options.heads == (28, 4, 128) and options.seconds == 300


def test_small_blocks_have_one_budget_and_leave_the_rest_to_be_said(monkeypatch):
    plans = []
    monkeypatch.setattr("nsa_kernels.bench.run.run", lambda plan: plans.append(plan) or 0)
    assert main(["--small-blocks", "--lengths", "4096"]) == 0
    (plan,) = plans
    assert {d.block_size * d.block_count for d in plan.designs} == {2048} and plan.lengths == [4096]
    assert max(d.block_count for d in plan.designs) == MOST_BLOCK_COUNT
    assert {"selection-lists", "selection-gathered"} <= plan.only and "fla" not in plan.only


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "fals"],
        ["--heads", "7,2,16"],
        ["--heads", "7,1,512"],
        ["--designs", "64"],
        ["--designs", "300x8"],
        ["--designs", "8x513"],
        ["--lengths", "0"],
        ["--inputs", "x"],
    ],
)
def test_wrong_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_rows_survive_the_csv(csv_file):
    rows = read(csv_file)
    assert csv_file.read_text().splitlines()[0].split(",") == COLUMNS
    assert {
        "T",
        "milliseconds",
        "peak_mib",
        "status",
        "gpu",
        "driver",
        "torch",
        "triton",
        "cuda",
        "commit",
        "date",
    } <= set(COLUMNS)
    assert rows[0] == row("layer", 8192, "forward", 1.5, peak_mib=10.0, union16=80.0)
    assert rows[-1].result.milliseconds is None and "'fla'" in rows[-1].result.status


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        append(path, row("pool", 8, "forward", 1.0))
    with pytest.raises(ValueError, match="other columns"):
        read(path)
    assert path.read_text() == "a,b\n1,2\n"


def test_the_latest_time_counts_and_a_failure_does_not_hide_it():
    old, new = row("pool", 8, "forward", 2.0), row("pool", 8, "forward", 1.0)
    failed = row("pool", 8, "forward", None, status="failed: x")
    assert latest([old, new, failed]) == [new]
    assert latest([failed, failed]) == [failed]
    other = dataclasses.replace(new, shape=dataclasses.replace(SHAPE, window=9))
    assert latest([new, other]) == [new, other]


def test_the_table_holds_what_was_measured(csv_file):
    text = markdown(read(csv_file))
    assert "| 8,192 | ours 64 x 32 | random | 1.5 | 4.5 | 10 | 10 |" in text
    assert "| 32,768 | dense-cudnn | any | 12.8 | 38.4 | - | - |" in text
    assert "| topk | random | 64 x 32 | 1 | forward | 0.25 (50%) | - |" in text
    assert "NVIDIA H200" in text and "abc123" in text and "random 64 x 32 at 8,192: 112" in text
    assert "- fla 64 x 32, random, T=8,192, forward: failed: ModuleNotFoundError" in text


def test_the_table_goes_between_the_markers(csv_file, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    for _ in range(2):
        assert main(["table", str(csv_file), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{START}\n") and text.endswith(f"{END}\nafter\n")
    assert text.count("ours 64 x 32") == 4 and "old" not in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="lacks"):
        main(["table", str(csv_file), "--readme", str(readme)])


def test_the_readme_has_the_markers():
    text = (ROOT / "kernels/README.md").read_text()
    assert 0 < text.index(START) < text.index(END)


def test_the_picture(csv_file, capsys):
    assert main(["plot", str(csv_file)]) == 0
    assert csv_file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_video_inputs_choose_alike_and_random_ones_do_not():
    heads, tokens, size, count = Heads(2, 1, 64), 6000, 60, 12
    unions = []
    for make in (random_inputs, video_inputs):
        x = make(tokens, heads, torch.float32, torch.device("cpu"), seed=3)
        assert x.q.shape == (tokens, 2, 64) and x.k.shape == (tokens, 1, 64) and x.gates.shape == (tokens, 2, 3)
        assert 0.9 < x.k.std() < 1.1 and 0.9 < x.q.std() < 1.1 and 0 < x.gates.min() <= x.gates.max() < 1
        pooled = x.k.unflatten(0, (-1, size)).mean(1)[:, 0]
        scores = (x.q[-960:] @ pooled.T / 8).softmax(-1).sum(1)
        unions.append(mean_union(scores.topk(count).indices[:, None]))
    assert unions[0] > 50 and unions[1] < 0.6 * unions[0]


def test_video_inputs_are_the_same_for_the_same_seed():
    first, second, other = (
        video_inputs(200, Heads(2, 1, 16), torch.float32, torch.device("cpu"), s) for s in (1, 1, 2)
    )
    assert torch.equal(first.q, second.q) and not torch.equal(first.q, other.q)


def test_scenes_are_10_to_80_frames_long():
    scene, first = scenes(5000, seed=0)
    lengths = torch.bincount(scene)[:-1]
    assert lengths.min() >= 10 and lengths.max() <= 80 and 40 < lengths.float().mean() < 50
    assert (scene.diff() >= 0).all() and torch.equal(
        first.unique(), torch.cat([torch.zeros(1), lengths.cumsum(0)]).long()
    )


def test_tiles_stay_inside_frames():
    leader = leaders(150, 16, torch.device("cpu"))
    assert leader[:17].tolist() == [0] * 16 + [16]
    assert leader[58:62].tolist() == [48, 48, FRAME, FRAME]
    assert leaders(150, 64, torch.device("cpu")).unique().tolist() == [0, 60, 120]


def test_mean_union_counts_distinct_blocks():
    chosen = torch.tensor([[[0, 1, -1]], [[1, 2, -1]], [[5, 6, 7]], [[5, 6, 7]], [[9, 9, 9]]])
    assert mean_union(chosen, neighbours=2) == 3.0
