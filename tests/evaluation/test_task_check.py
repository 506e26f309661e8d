"""`nsa-lab tasks check`: what it trains, what it makes of trainings that are done, and all of it on a tiny case."""

import csv
import json
import sys

import pytest
import yaml

from nsa_lab.cli import app as cli
from nsa_lab.comparison.plan import trainings
from nsa_lab.comparison.rows import key_of, make_row, write_rows
from nsa_lab.errors import NsaLabError
from nsa_lab.evaluation import task_check
from nsa_lab.evaluation.task_check import check_tasks, designs, facts_of

ORIGIN = dict.fromkeys(
    ("device", "cores", "threads", "python", "torch", "transformers", "commit", "code", "date"), "here"
)


@pytest.fixture
def suite(clips, tmp_path):
    """A suite of two readings whose trainings take two steps."""
    values = {
        "output": {"dir": str(tmp_path / "runs")},
        "data": {"cache_dir": str(clips)},
        "tracking": {"enabled": False},
        "attention": {"text_window": 16, "partition": {"block_size": 4}},
        "tasks": {
            "gist": {"enabled": True, "frames": 24, "scenes": 2, "train_clips": 4, "val_clips": 4},
            "count": {"enabled": True, "most": 2, "frames": 32, "train_clips": 4, "val_clips": 4},
        },
        "model": {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "num_layers": 2},
        "training": {
            "steps": 2,
            "warmup_steps": 1,
            "val_every": 1,
            "batch_size": 2,
            "threads": 1,
            "accelerator": "cpu",
        },
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "dense.yaml").write_text("extends: suite.yaml\nattention: {text_window: null}\n")
    return [tmp_path / "suite.yaml", tmp_path / "dense.yaml"]


def planned(monkeypatch, suite, *names, **options):
    """The trainings that check_tasks asks `compare` for; nothing is trained."""
    asked = []

    def note(comparison, *, overrides, **others):
        asked.append(trainings(comparison, list(comparison.variants), comparison.seeds, overrides))
        raise InterruptedError

    monkeypatch.setattr(task_check, "compare", note)
    with pytest.raises(InterruptedError):
        check_tasks(names, suite=suite, **options)
    return asked[0]


def test_one_task_is_trained_by_every_design_in_both_readings(monkeypatch, suite):
    found = planned(monkeypatch, suite, "gist", seeds=2, steps=7, overrides=["training.learning_rate=0.1"])
    assert len(found) == 2 * 2 * len(designs()) and len({key_of(one) for one in found}) == len(found)
    assert {one.directory.parent.name for one in found} == {"suite-gist"}
    for one in found:
        config = one.config
        assert config.tasks.gist.enabled and not config.tasks.count.enabled
        assert (config.training.steps, config.training.learning_rate) == (7, 0.1)
        assert config.attention.text_window == (16 if one.experiment == "suite" else None)
        assert config.data.blind == (one.variant == "blind")
        branches = config.attention.branches
        kept = [name for name in ("compression", "selection", "window") if getattr(branches, name).enabled]
        expected = {"window", "compression+selection", "selection"} & {one.variant}
        assert config.attention.method == {"blind": "dense"}.get(one.variant, "nsa" if expected else one.variant)
        assert not expected or "+".join(kept) == one.variant


def test_by_conversion_all_tasks_are_trained_together_from_one_dense_model_a_seed(monkeypatch, suite):
    found = planned(monkeypatch, suite, "gist", "count", seeds=2, steps=3, conversion=5)
    starts, rest = [one for one in found if one.variant == "start"], [one for one in found if one.variant != "start"]
    assert len(starts) == 2 * 2 and len(rest) == 2 * 2 * len(designs())
    assert all(one.config.training.steps == 5 and one.config.attention.method == "dense" for one in starts)
    assert {(one.source.seed, one.source.experiment) == (one.seed, one.experiment) for one in rest} == {True}
    assert all(one.config.tasks.gist.enabled and one.config.tasks.count.enabled for one in found)
    assert {one.config.training.steps for one in rest} == {3}


@pytest.mark.slow
def test_a_card_by_conversion_is_of_its_own_task(monkeypatch, suite, tmp_path):
    options = {"seeds": 3, "conversion": 5, "out": tmp_path / "cards"}
    wanted = planned(monkeypatch, suite, "gist", "count", **options)
    monkeypatch.undo()
    rows = []
    for one in wanted:
        metrics = {"val/accuracy": 0.9, "val/accuracy/gist": 0.25, "val/accuracy/count": 1.0}
        rows.append(make_row(one, metrics | {"throughput/seconds_per_step": 30.0}, ORIGIN))
    monkeypatch.setattr(task_check, "compare", lambda *_, **__: wanted[-1].directory.parent)
    write_rows(wanted[-1].directory.parent / "runs.csv", rows)
    gist, count = check_tasks(["gist", "count"], suite=suite, **options)
    assert "| dense | 25.0 ± 0.0 % | 25.0, 25.0, 25.0 |" in gist.read_text()
    assert "| dense | 100.0 ± 0.0 % |" in count.read_text()
    said = "Conversion: each seed's designs go on from one dense model of 5 steps on gist, count."
    assert said in gist.read_text() and said in count.read_text()


def test_facts_are_the_config_s(monkeypatch, suite):
    config = planned(monkeypatch, suite, "count")[0].config
    facts = facts_of("count", config)
    assert (facts.chance, facts.answers, facts.tokens) == (0.375, 8, 64)
    assert facts.question == "How many? Where was it most?" and facts.stands_for == "VSIBench"
    assert facts.dials == "frames 32, train_clips 4, val_clips 4, most 2"


def test_a_name_that_is_no_task_is_refused(suite):
    with pytest.raises(NsaLabError, match="gits is no task; did you mean 'gist'"):
        check_tasks(["gist", "gits"], suite=suite)


def test_what_is_trained_becomes_a_card(monkeypatch, suite, tmp_path, capsys):
    """Rows and curves as trainings leave them, one folder being gone: nothing is trained, the card says what was."""
    wanted = planned(monkeypatch, suite, "gist", seeds=3)
    monkeypatch.undo()
    reached = {"dense": 1.0, "compression+selection": 0.75}
    rows = []
    for one in wanted:
        accuracy = reached.get(one.variant, 0.125)
        rows.append(make_row(one, {"val/accuracy": accuracy, "throughput/seconds_per_step": 30.0}, ORIGIN))
        if (one.variant, one.seed) == ("dense", 2):
            continue
        one.directory.mkdir(parents=True)
        curve = [{"step": step, "metrics": {"val/accuracy": accuracy * (step > 1)}} for step in (1, 2)]
        (one.directory / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in curve))
    write_rows(wanted[0].directory.parent / "runs.csv", rows)
    (card,) = check_tasks(["gist"], suite=suite, seeds=3, out=tmp_path / "cards", command="nsa-lab tasks check gist")
    assert "36 trainings, 36 done before" in capsys.readouterr().out
    text = card.read_text()
    assert card == tmp_path / "cards" / "gist.md" and "**Belongs to the suite**" in text
    assert "| dense | 100.0 ± 0.0 % | 100.0, 100.0, 100.0 | 2 | 1.0 | 2, 2, ? |" in text
    assert "## With text rows bound to the last 16 tokens" in text and "## With dense text rows" in text
    with open(tmp_path / "cards" / "gist.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 36 and lines[0]["left_chance_at"] == "2" and lines[0]["reading"].startswith("text rows bound")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=1"], "tasks check names no task; write for example"),
        (["gits"], "gits is no task; did you mean 'gist'"),
        (["gist", "nix", "--suite", "nowhere.yaml"], "nix is no task; "),
        (["gist", "--suite", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (["gist", "--out", "/dev/null/cards", "--suite", "nowhere.yaml"], "cannot write /dev/null"),
    ],
)
def test_bad_commands_are_answered_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tasks", "check", *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said in line


@pytest.mark.slow
def test_the_command_trains_resumes_and_writes_the_card(suite, tmp_path, monkeypatch, capsys):
    files = ",".join(map(str, suite))
    arguments = ["tasks", "check", "gist", "--seeds", "1", "--workers", "2", "--suite", files, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["nsa-lab", *arguments])
    for done in (0, 12):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code in (0, None)
        said = capsys.readouterr().out
        assert f"12 trainings, {done} done before" in said
        card = (tmp_path / "gist.md").read_text()
        assert card in said and "**Does not belong to the suite**" in card and "fewer than 3 seeds" in card
        assert f"`nsa-lab tasks check gist --seeds 1 --workers 2 --suite {files}" in card
    assert (tmp_path / "gist.csv").exists()
