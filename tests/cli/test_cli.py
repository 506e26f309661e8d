"""The command line: quick to answer, clear when it refuses, and every command reaches what it is for."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nsa_lab.cli.values import home_of
from nsa_lab.config import load_config
from nsa_lab.tasks import base

HEAVY = ("torch", "transformers", "lightning", "mlflow", "optuna", "matplotlib", "plotly", "av", "omegaconf")


@pytest.fixture
def config_file(clips, tmp_path):
    values = {
        "name": "tiny",
        "output": {"dir": str(tmp_path / "runs")},
        "data": {"cache_dir": str(clips)},
        "tracking": {"enabled": False},
        "tasks": {"needle": {"enabled": True, "frames": 8, "train_clips": 2, "val_clips": 2}},
        "model": {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 1},
        "training": {"steps": 2, "batch_size": 2},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_importing_the_command_line_imports_nothing_heavy():
    code = f"import sys, nsa_lab.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_the_commands():
    command = [sys.executable, "-m", "nsa_lab.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "train" in done.stdout


@pytest.mark.parametrize("setting", ["attention.branches.selection.enabled=false", "tracking.enabled=false"])
def test_show_without_a_file_takes_settings_that_choose_no_task(nsa_lab, setting):
    code, out, err = nsa_lab("show", setting)
    assert code == 0, err
    assert yaml.safe_load(out)["tasks"]["needle"]["enabled"]
    code, out, err = nsa_lab("show", setting, "tasks.order.enabled=true")
    assert code == 0 and not yaml.safe_load(out)["tasks"]["needle"]["enabled"]


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "show",
        "sweep",
        "sweep run",
        "sweep show",
        "tasks",
        "ui",
        "push",
        "bench",
        "evaluate",
        "ask",
        "analyze",
        "analyze run",
        "analyze partition",
        "runs",
        "runs list",
        "runs diff",
        "data check",
    ],
)
def test_help_of_each_command_gives_an_example(nsa_lab, command):
    code, out, _ = nsa_lab(*command.split(), "--help")
    assert code == 0
    assert f"nsa-lab {command.removesuffix(' run').removesuffix(' list')}" in out


def test_usage_errors_exit_with_2(nsa_lab):
    assert nsa_lab("train")[0] == 2
    assert nsa_lab("trian")[0] == 2
    assert nsa_lab("show", "--no-such-option")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? (nsa-lab --help)"),
        (["ablate"], "Missing argument 'FILE' (nsa-lab ablate --help)"),
        (
            ["ablate", "x.yaml", "--at", "foo"],
            "'--at': 'foo' is not one of 'training', 'inference', 'both' (",
        ),
        (["ablate", "x.yaml", "--out", ""], "argument 4 is empty, after --out; give a value, or leave it out"),
        (["compare", "x.py", "--variants", "a,,b"], "--variants 'a,,b' has an empty name"),
        (["sweep", "show", "x", "training.steps=5"], "training.steps is not read here; only output.dir=DIR is"),
        (["promote", "x", "--to", "x.yaml", "seed=5"], "seed is not read here; only output.dir=DIR is"),
        (["ablate", "x.txt"], "x.txt is no comparison; name an ablation's YAML"),
        (["report", "x.yaml", "rows.csv", "--out", "x.html"], "config file x.yaml does not exist"),
        (["tasks", "check", "gist", "--workers", "0"], "'--workers': "),
        (["plan", "x.yaml", "--gpus", "0"], "'--gpus': "),
        (["plan", "x.yaml", "--labelled", "-1"], "'--labelled': "),
        (["plan", "x.yaml", "--price", "inf"], "'--price': "),
        (["plan", "x.yaml", "--checkpointing", "some"], "'some' is not one of 'none', 'selective', 'full' ("),
        (["ablate", "x.yaml", "--seeds", "0"], "'--seeds': "),
        (["ablate", "x.yaml", "--minutes", "0"], "'--minutes': "),
        (["compare", "x.py", "--minutes", "nan"], "'--minutes': "),
        (["sweep", "x.py", "--trials", "-1"], "'--trials': "),
        (["export", "x", "y", "--dtype", "float16"], "'float16' is not one of 'float32', 'bfloat16' ("),
        (["runs", "diff", "a"], "' (nsa-lab runs diff --help)"),
    ],
)
def test_usage_errors_are_one_line(nsa_lab, arguments, said):
    code, out, err = nsa_lab(*arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and said in err, err


def test_show_prints_a_config_that_loads_again(nsa_lab, config_file, tmp_path):
    code, out, err = nsa_lab("show", config_file, "training.steps=7")
    assert code == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(out)
    assert load_config(shown) == load_config(config_file, ["training.steps=7"])
    assert "hash: " in err and "budget: " in err
    assert "block_count=32 is more than" in err  # the notice that a tiny clip has fewer blocks


def test_show_needs_no_file(nsa_lab):
    code, out, err = nsa_lab("show", "attention.method=dense")
    assert code == 0
    assert yaml.safe_load(out)["attention"]["method"] == "dense"
    assert "dense" in err


def test_show_says_what_a_reducer_leaves(nsa_lab):
    given = ("attention.method=dense", "attention.reducer.kind=fastv", "model.num_layers=28")
    code, out, err = nsa_lab("show", *given)
    assert (code, yaml.safe_load(out)["attention"]["reducer"]["fastv"]) == (0, {"layer": 2, "drop": 0.5})
    assert "budget: fastv leaves 50.0% of the video tokens in the last of 28 layers, 53.6% on average over all" in err
    assert "over all, of a needle clip (32 frames of 4)\n" in err
    read = (2 + 26 / 4) / 28
    assert f"dense attention: every past token; after the reducer {read:.1%} of it for a needle clip\n" in err
    small = nsa_lab("show", "attention.method=dense", "attention.reducer.kind=visionzip")[2]
    assert "visionzip leaves 25.0% of the video tokens in the last of 4 layers, 25.0% on" in small, "1 of 4, not 11.1%"
    sparse = nsa_lab("show", "attention.reducer.kind=visionzip", "attention.reducer.visionzip.keep=0.5")[2]
    attended = int(sparse.split("budget: ")[1].split(" tokens a query, of the queries and keys")[0].replace(",", ""))
    share = 2 * attended / 63_999 / 4
    assert f"{100 * share:.3g}% of dense for the paper's length (128,000 tokens)" in sparse
    assert "reducer" not in nsa_lab("show", "attention.method=dense")[2]


def test_what_is_found_of_a_hub_id_goes_below_the_runs(tmp_path):
    assert home_of("Qwen/Qwen2.5-VL-3B", "runs") == Path("runs/Qwen--Qwen2.5-VL-3B")
    assert home_of(str(tmp_path), "runs") == tmp_path


def test_tasks_says_where_nothing_was_measured(nsa_lab, monkeypatch):
    found = base._all_records()
    monkeypatch.setattr(base, "_all_records", lambda: {name: found[name] for name in found if name != "gist"})
    blocks = nsa_lab("tasks")[1].split("\n\n")
    assert all(("not measured; `nsa-lab tasks check" in block) != (": dense " in block) for block in blocks)
    assert [block.partition(":")[0] for block in blocks if "not measured" in block] == ["gist"]


def test_tasks_lists_dials_and_chance(nsa_lab):
    code, out, _ = nsa_lab("tasks")
    assert code == 0
    for part in ("needle", "order", "chance", "event_frames="):
        assert part in out


def test_train_prints_metrics_directory_and_how_to_look(nsa_lab, config_file, tmp_path):
    command = ["train", config_file, "--quiet", "--dir", tmp_path / "here"]
    code, out, err = nsa_lab(*command)
    assert code == 0, err
    assert "val/accuracy" in out and str(tmp_path / "here") in out
    assert "Warning" not in err and "available:" not in err and "Trainer" not in err
    code, out, err = nsa_lab(*command, "tracking.enabled=true")
    assert code == 0 and "recorded" in err and "val/accuracy" in out and "nsa-lab ui" in out


def test_progress_bar_shows_step_loss_and_accuracy(nsa_lab, config_file):
    code, _, err = nsa_lab("train", config_file)
    assert code == 0
    for part in ("step", "2/2", "loss", "accuracy", "it/s"):
        assert part in err


def test_error_is_one_line_and_debug_shows_where(nsa_lab, monkeypatch):
    code, out, err = nsa_lab("train", "missing.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: config file missing.yaml does not exist") and err.count("\n") == 1
    assert "Traceback" in nsa_lab("train", "missing.yaml", "--debug")[2]
    for value, shown in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("NSA_LAB_DEBUG", value)
        assert ("Traceback" in nsa_lab("train", "missing.yaml")[2]) == shown
    assert nsa_lab("--version")[:2] == (0, f"nsa-lab {importlib.metadata.version('nsa-lab')}\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), 2, "error: /data/x: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "error: the system: No space left on device\n"),
        (KeyError("weight"), 1, "error: a fault of nsa-lab itself (KeyError: 'weight'); please report it with "),
        (
            RuntimeError("-- Process 0 failed:\nTraceback (most recent call last):\n  File x.py\nValueError: no 7\n"),
            1,
            "error: a fault of nsa-lab itself (RuntimeError: ValueError: no 7); please report it with ",
        ),
    ],
)
def test_what_nobody_foresaw_is_one_line(nsa_lab, config_file, monkeypatch, error, code, said):
    from nsa_lab import api

    def faulty(*_, **__):
        raise error

    monkeypatch.setattr(api, "train", faulty)
    found, _, err = nsa_lab("train", config_file)
    assert found == code and said in err and "Traceback" not in err
    if code == 1:
        file = Path(err.split()[-1])
        assert type(error).__name__ in file.read_text()
        file.unlink()
    with pytest.raises(type(error)):
        nsa_lab("train", config_file, "--debug")


def test_interrupt_is_one_line_and_exits_with_130(nsa_lab, config_file, monkeypatch):
    from nsa_lab import api

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "train", interrupted)
    code, _, err = nsa_lab("train", config_file)
    assert code == 130
    assert "interrupted" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.slow
def test_push_sends_a_local_run(nsa_lab, config_file, tmp_path):
    nsa_lab("train", config_file, "--quiet", "--dir", tmp_path / "here")
    store = f"sqlite:///{tmp_path / 'store.db'}"
    code, out, err = nsa_lab("push", tmp_path / "here", "--uri", store)
    assert code == 0, err
    assert f"sent {tmp_path / 'here'}" in out
    assert json.loads((tmp_path / "here" / "tracking.json").read_text())["run_id"]
    assert "nothing to send" in nsa_lab("push", tmp_path / "here")[1]


@pytest.mark.usefixtures("workers")
def test_bench_writes_sparse_and_dense_with_the_machine(nsa_lab, clips, tmp_path):
    out_file = tmp_path / "bench.csv"
    arguments = ["--lengths", "128", "--repeats", "1", "--out", out_file, "training.threads=1"]
    code, out, err = nsa_lab("bench", *arguments, f"data.cache_dir={clips}")
    assert code == 0, err
    header, *rows = [line.split(",") for line in out_file.read_text().splitlines()]
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [(row["video_tokens"], row["method"]) for row in table] == [("128", "dense"), ("128", "nsa")]
    for row in table:
        assert float(row["seconds"]) > 0 and float(row["peak_mib"]) > 0
        assert all(row[name] for name in ("device", "cores", "torch", "transformers", "commit", "date"))
    assert "vs dense" in out


def test_bench_refuses_rows_of_parts_without_them(nsa_lab):
    code, _, err = nsa_lab("bench", "--only", "+ compile")
    assert code == 2 and "--only names rows of --parts" in err


def test_bench_refuses_lengths_that_are_not_whole_frames(nsa_lab):
    for arguments in (
        ["--lengths", "100"],
        ["--lengths", "many"],
        ["--sizes", "huge"],
        ["--sizes", "nano", "model.path=x"],
    ):
        code, _, err = nsa_lab("bench", *arguments)
        assert code == 2 and err.startswith("error: --") and err.count("\n") == 1
