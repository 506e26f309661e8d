"""`nsa-lab analyze RUN` and what stands behind it: files, artifacts, and what is said where there is nothing."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from nsa_lab import cli, load_model, train
from nsa_lab.analysis.attention.report import analyze as analyze_model
from nsa_lab.bench import branches as bench
from nsa_lab.bench.measure import Measurement
from nsa_lab.config import load_config, to_yaml
from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model
from nsa_lab.tracking import Tracker, attach
from nsa_testing import stored_run, tiny_config

PICTURES = {"gates.png", "gate-similarity.png", "sinks.png", "overlap.png", "budget.png"}
TABLES = {"gates.csv", "gate-similarity.csv", "sinks.csv", "sink-positions.csv", "overlap.csv", "budget.csv"}


@pytest.fixture
def analyze(capfd):
    """Runs `nsa-lab analyze`; gives exit code, stdout and stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["analyze", *map(str, arguments)])
        out, err = capfd.readouterr()
        return end.value.code or 0, out, err

    return call


@pytest.fixture
def run_of(clips, tokenizer, tmp_path):
    """Stores a run of a tiny untrained model; `overrides` as on the command line."""

    def make(*overrides):
        settings = ["tasks.needle.frames=8", "tasks.needle.train_clips=6", "tasks.needle.val_clips=3"]
        places = [f"data.cache_dir={clips}", "model.num_layers=3", "training.threads=1", "training.accelerator=cpu"]
        config = tiny_config(*settings, *places, *overrides)
        torch.manual_seed(0)
        return stored_run(tmp_path / "run", config, build_model(config, tokenizer))

    return make


def rows_of(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_gets_figures_tables_and_what_they_are_of(analyze, trained):
    code, out, err = analyze(trained, "--clips", 2)
    assert code == 0, err
    folder = trained / "analysis"
    assert {file.name for file in folder.iterdir()} == PICTURES | TABLES | {"about.json"}
    assert set(out.splitlines()) == {str(file) for file in folder.iterdir()}
    for name in PICTURES:
        with Image.open(folder / name) as image:
            assert image.width > 700 and image.height > 300
            assert (folder / name).stat().st_size < 150_000
    about = json.loads((folder / "about.json").read_text())
    assert len(about["samples"]) == 2 and about["video_tokens"] == [16, 16] and about["commit"]
    assert {row["branch"] for row in rows_of(folder / "sinks.csv") if row["layer"] == "0"} == {"dense"}
    assert {row["layer"] for row in rows_of(folder / "gates.csv")} == {"1", "2"}


def test_a_dense_run_has_sinks_and_a_budget_and_says_what_it_has_not(analyze, run_of, tmp_path):
    run = run_of("attention.method=dense")
    code, _, err = analyze(run, "--clips", 9, "--output", tmp_path / "here")
    assert code == 0, err
    names = {"sinks.png", "sinks.csv", "sink-positions.csv", "budget.png", "budget.csv", "about.json"}
    assert {file.name for file in (tmp_path / "here").iterdir()} == names
    assert err.splitlines() == [
        "notice: clips: 9 were asked for, there are 3",
        "notice: gates: there are none, since no layer has branches",
        "notice: overlap: there is none, since no layer tells of blocks that it selects",
    ]
    assert all(float(row["of_dense"]) == 1 for row in rows_of(tmp_path / "here" / "budget.csv"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["attention.gate.kind=fixed", "attention.branches.selection.enabled=false"],
        ["model.num_heads=1", "model.num_kv_heads=1", "attention.layers.1.method=dense"],
        ["attention.partition.kind=tile", "attention.branches.window.enabled=false"],
    ],
)
def test_every_figure_can_be_drawn_of_designs_that_lack_something(run_of, overrides, tmp_path):
    found = analyze_model(load_model(run_of(*overrides)), clips=1)
    assert {f"{name}.png" for name in found.figures()} <= PICTURES
    assert [name for name in ("overlap", "gate-similarity") if name not in found.tables] == [
        note.partition(":")[0] for note in found.notes
    ][::-1]


def test_a_method_that_tells_its_gates_alone_is_in_gates_and_budget(run_of):
    model = load_model(run_of("attention.method=released", "attention.released.missed_tokens=false"))
    gate, kept, ids = model.attentions()[1].method.sparse["gate"], [], []
    gate.register_forward_hook(lambda module, given, gates: kept.append(gates))
    model.register_forward_pre_hook(lambda module, given, named: ids.append(named["input_ids"][0]), with_kwargs=True)
    found = analyze_model(model, clips=2)
    assert set(found.tables) == {"gates", "gate-similarity", "budget"} == set(found.figures())
    assert found.notes[-1] == "layers 0, 1, 2 (released) do not tell who reads which keys: not in sinks and overlap"
    video = [gates[row == model.config.video_token_id] for gates, row in zip(kept, ids, strict=True)]
    wanted = torch.cat(video).mean(0).T.flatten().tolist()
    assert [row["mean"] for row in found.tables["gates"] if row["layer"] == 1] == pytest.approx(wanted)


@pytest.mark.slow
def test_weights_are_analysed_over_data_that_are_named(analyze, run_of, clips, tmp_path):
    model = load_model(run_of())
    weights = tmp_path / "weights"
    model.save_pretrained(weights)
    data = ["tasks.needle.enabled=true", "tasks.needle.frames=8", "tasks.needle.train_clips=6"]
    data += ["tasks.needle.val_clips=3", f"data.cache_dir={clips}", "data.tokenizer=offline"]
    code, _, err = analyze(weights, *data, "training.accelerator=cpu", "--clips", 1)
    assert code == 0, err
    assert {file.name for file in (weights / "analysis").iterdir()} == PICTURES | TABLES | {"about.json"}


def test_bad_input_is_named_in_one_line(analyze, trained, tokenizer, tmp_path):
    for arguments, parts in (
        ([tmp_path / "none"], ["none does not exist", "give the directory of a run"]),
        ([tmp_path], ["holds neither a run (config.yaml) nor weights"]),
        ([trained, "--clips", 0], ["'--clips': "]),
        ([trained, "--latency", "--lengths", "1k"], ["--lengths '1k'", "512,2048"]),
        ([trained, "--latency", "--lengths", "100", "--output", tmp_path / "no"], ["--lengths 100", "multiple of 64"]),
    ):
        code, out, err = analyze(*arguments)
        assert (code, out) == (2, "") and err.count("\n") == 1 and err.startswith("error: "), err
        assert all(part in err for part in parts), err
    (tmp_path / "model.safetensors").write_bytes(b"")
    code, _, err = analyze(tmp_path, "training.accelerator=cpu")
    assert code == 2 and "holds weights and no data" in err and "data.annotations=FILE" in err
    shutil.copy(trained / "config.yaml", tmp_path)
    code, _, err = analyze(tmp_path)
    assert code == 2 and "last.ckpt does not exist; train first" in err and err.count("\n") == 1
    code, _, err = analyze(trained, "attention.branches.window.enabled=false")
    assert code == 2 and err.count("\n") == 1, err
    assert err.startswith(f"error: attention.branches.window.enabled=False: the weights of {trained} do not fit")
    with pytest.raises(NsaLabError, match="brings no data settings"):
        analyze_model(build_model(tiny_config(), tokenizer))


@pytest.mark.slow
def test_a_run_without_steps_names_whose_weights_it_has(analyze, trained, tokenizer, tmp_path):
    run = tmp_path / "validated"
    run.mkdir()
    (run / "summary.json").write_text("{}")
    config = load_config(trained / "config.yaml", {"model.path": str(trained), "training.steps": 0})
    (run / "config.yaml").write_text(to_yaml(config))
    code, _, err = analyze(run)
    assert code == 2 and f"took no steps (training.steps=0); its weights are those of its model.path: {trained}" in err
    with pytest.raises(NsaLabError, match=f"its weights are those of its model.path: {trained}"):
        build_model(load_config(None, {"tasks.needle.enabled": True, "model.path": str(run)}), tokenizer)
    config.model.path = None
    (run / "config.yaml").write_text(to_yaml(config))
    code, _, err = analyze(run)
    assert code == 2 and "from random weights; train one with steps" in err


@pytest.mark.slow
def test_a_tracked_run_has_the_files_as_artifacts_and_goes_on_as_it_was(make_config, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = train(make_config({"tracking.enabled": True, "tracking.uri": uri}), progress_bar=False)
    file = result.directory / "analysis" / "sinks.csv"
    file.parent.mkdir()
    file.write_text("layer\n")
    assert attach(result.directory, [file], "analysis") is None
    client = MlflowClient(tracking_uri=uri)
    assert [found.path for found in client.list_artifacts(result.tracking_id, "analysis")] == ["analysis/sinks.csv"]
    assert client.get_run(result.tracking_id).info.status == "FINISHED"
    assert attach(tmp_path, [file], "analysis") is None, "no record, nothing to send"


def test_files_that_the_server_did_not_take_are_kept_for_push(make_config, tmp_path):
    Tracker.open(make_config(), tmp_path).finish()
    file = tmp_path / "analysis" / "sinks.csv"
    file.parent.mkdir()
    file.write_text("layer\n")
    assert attach(tmp_path, [file], "analysis") is None, "without tracking there is nothing to send"
    record = json.loads((tmp_path / "tracking.json").read_text())
    assert record["artifacts"][-1] == ["analysis/sinks.csv", "analysis"]
    (tmp_path / "tracking.json").write_text(json.dumps(record | {"uri": "nowhere://here"}))
    why = attach(tmp_path, [file], "analysis")
    assert why is not None and "nowhere" in why
    assert json.loads((tmp_path / "tracking.json").read_text())["artifacts"][-1] == ["analysis/sinks.csv", "analysis"]


def test_latency_measures_each_branch_alone_all_and_dense(analyze, run_of, monkeypatch, tmp_path):
    asked = []

    def measure(config, point, repeats, layer):
        on = [name for name in ("compression", "selection", "window")
              if getattr(config.attention.branches, name).enabled]  # fmt: skip
        asked.append((point.method, config.attention.method, on, config.attention.layers, config.model.hidden_size))
        return Measurement(0.001 * point.video_tokens, 1.0 + point.video_tokens, 5.0)

    monkeypatch.setattr(bench, "in_fresh_process", measure)
    run = run_of("attention.layers.0.method=dense", "attention.branches.window.size=3")
    code, _, err = analyze(run, "--clips", 1, "--latency", "--lengths", "64,128", "--output", tmp_path / "here")
    assert code == 0, err
    names = ["compression", "selection", "window"]
    wanted = [(name, "nsa", [name], {}, 64) for name in names]
    wanted += [
        ("all", "nsa", names, {}, 64),
        ("dense", "dense", names, {}, 64),
    ]
    assert asked == wanted * 2
    rows = rows_of(tmp_path / "here" / "latency.csv")
    assert [(row["what"], row["video_tokens"], row["seconds"]) for row in rows[-1:]] == [("dense", "128", "0.128")]
    assert (tmp_path / "here" / "latency.png").exists() and "device" in rows[0]
