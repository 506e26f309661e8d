"""Rows, the Pareto set, pictures and the live table, on studies made by hand."""

import csv
import io
import random
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from rich.console import Console

from nsa_lab.config import flatten, load_config, to_dict
from nsa_lab.config.identity import ADDED_AS
from nsa_lab.errors import NsaLabError
from nsa_lab.runner.view import SAY_EVERY_S, View
from nsa_lab.search.figures import FEW, sections
from nsa_lab.search.page import write_html
from nsa_lab.search.picture import REFERENCES
from nsa_lab.search.report import print_report, write_report
from nsa_lab.search.rows import read_outcome, read_row
from nsa_lab.search.spec import design
from nsa_lab.search.study import _check_base
from nsa_lab.search.view import short_names, shown

NAMES = ("val/accuracy", "budget/keys_per_query", "throughput/seconds_per_step")
DIRECTIONS = ("maximize", "minimize", "minimize")


def study_of(values, states=None, ratios=()):
    """A study with these objective values; None for a trial without (its state from `states`, default FAIL)."""
    count = max(len(v) for v in values if v)
    study = optuna.create_study(study_name="made", directions=DIRECTIONS[:count])
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(list(NAMES[:count]))
    study.set_user_attr("base", flatten(to_dict(load_config(None, {"tasks.needle.enabled": True}))))
    for number, value in enumerate(values):
        trial = study.ask()
        size = trial.suggest_int("attention.branches.window.size", 1, 100)
        trial.set_user_attr("overrides", {"attention.branches.window.size": size})
        if ratios:
            found = {"budget/keys_per_query": value[1], "budget/ratio_to_dense": ratios[number]}
            trial.set_user_attr("metrics", found)
        trial.set_constraint("config", 1.0 if states and states.get(number) == "infeasible" else 0.0)
        if value is None:
            named = (states or {}).get(number, "failed")
            state = optuna.trial.TrialState.FAIL if named == "failed" else optuna.trial.TrialState.PRUNED
            study.tell(trial, state=state)
        else:
            study.tell(trial, value)
    return study


def test_a_setting_that_came_later_was_as_it_was_added(monkeypatch):
    """As if data.fps had come after the study, as 1.0, and 2.0 were its default since."""
    study = study_of([(0.5,)])
    base = study.user_attrs["base"]
    study.set_user_attr("base", {key: value for key, value in base.items() if key != "data.fps"})
    monkeypatch.setitem(ADDED_AS, "data.fps", 1.0)
    (row,) = read_outcome(study).rows
    assert design(row.base, row.overrides, "again").data.fps == 1.0
    _check_base(study, base | {"data.fps": 1.0})
    with pytest.raises(NsaLabError, match=r"data\.fps=1\.0 then, 2\.0 now"):
        _check_base(study, base)


TWO = [(0.5, 10.0), (0.9, 80.0), (0.9, 60.0), (0.4, 50.0), None, None, (0.7, 30.0)]


def test_the_front_and_the_recommended_trial():
    outcome = read_outcome(study_of(TWO, {4: "infeasible"}))
    assert [row.number for row in outcome.front] == [6, 2, 0], "the knee first, then by objectives"
    assert (outcome.count("infeasible"), outcome.count("failed"), outcome.count("complete")) == (1, 1, 5)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([(0.904, 80.0), (0.9, 8.0), (0.7, 60.0), (0.6, 40.0)], 1),
        ([(0.9, 10.0), (0.2, 8.0), (0.7, 60.0), (0.6, 40.0)], 0),
        ([(0.904, 80.0), (0.9, 8.0), (-1e9, 60.0), (0.7, 40.0), (0.6, 70.0)], 1),
        ([(0.9, 10.0), (0.7, 9.0), (-1e9, 60.0), (0.6, 40.0), (0.6, 70.0)], 0),
        ([(0.5, 10.0), (0.5, 10.0)], 0),
        ([(0.9, 80.0), (0.5, 8.0)], 0),
    ],
    ids=["a tenth of the cost for 0.004", "a fifth of the cost for everything", "one went astray", "another, too",
         "all alike", "two extremes: the first objective"],
)  # fmt: skip
def test_the_recommended_trial_is_the_knee(values, best):
    assert read_outcome(study_of(values)).best.number == best


def test_dense_attention_is_a_line_and_what_reads_more_is_marked(tmp_path):
    outcome = read_outcome(study_of([(0.9, 80.0), (0.6, 10.0)], ratios=[1.6, 0.2]))
    assert outcome.dense == {"budget/keys_per_query": pytest.approx(50)}
    (front,) = figures_of(outcome)["Pareto front"].figures
    assert [(shape.x0, shape.x1) for shape in front.layout.shapes] == [(pytest.approx(50), pytest.approx(50))]
    write_report(outcome, tmp_path)
    console = Console(record=True, width=160, file=io.StringIO())
    print_report(outcome, tmp_path, console)
    text = console.export_text()
    assert "160%!" in text and "20%" in text and "! more keys than dense attention: trial 0\n" in text


def with_dense(study, *values):
    """The study with a measured dense baseline of these objectives."""
    kept = {"metrics": dict(zip(NAMES, values, strict=False)), "directory": "runs/dense", "seconds": 1.0, "half": {}}
    study.set_user_attr("reference:dense", kept | {"overrides": {"attention.method": "dense"}})
    return read_outcome(study)


@pytest.mark.parametrize(("keys", "best"), [(70.0, "trial 6"), (1.0, "dense")])
def test_a_measured_reference_has_its_own_colour_in_every_figure_beaten_or_not(keys, best, tmp_path):
    outcome = with_dense(study_of(TWO), 0.9, keys)
    found = figures_of(outcome)
    (front,) = found["Pareto front"].figures
    dense = front.data[-1]
    assert (dense.name, dense.marker.color, *dense.x, *dense.y) == ("dense", REFERENCES[0], keys, 0.9)
    assert dense.text[0].startswith("<b>dense</b><br>") and "attention.method = dense" in dense.text[0]
    assert (dense.marker.line.width[0] == 3) == (best == "dense")
    for figure, value in zip(found["History"].figures, (0.9, keys), strict=True):
        assert [(line.y0, line.line.color) for line in figure.layout.shapes] == [(value, REFERENCES[0])]
    write_report(outcome, tmp_path)
    assert f"Recommended (ringed): {best}, " in (tmp_path / "pareto.html").read_text()
    assert (tmp_path / "best.yaml").read_text().startswith(f"# {best.capitalize()} of study made: ")


@pytest.mark.parametrize("values", [(0.9, 90.0), (0.9,)], ids=["two", "one"])
def test_a_study_with_references_alone_has_its_report(values, tmp_path):
    study = study_of([values])
    empty = optuna.create_study(study_name="made", directions=study.directions)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        empty.set_metric_names(study.metric_names)
    empty.set_user_attr("base", study.user_attrs["base"])
    outcome = with_dense(empty, *values)
    write_report(outcome, tmp_path)
    assert outcome.best.title == "dense" and "dense" in (tmp_path / "pareto.html").read_text()


def test_one_objective_recommends_the_first_of_the_best():
    outcome = read_outcome(study_of([(0.2,), (0.8,), (0.8,)]))
    assert [row.number for row in outcome.front] == [1]
    assert outcome.rule == "highest val/accuracy; ties: lowest trial number"


@pytest.mark.parametrize(
    "values",
    [TWO, [(0.2,), (0.8,), None, (0.6,)], [(0.5, 1.0, 3.0), (0.7, 2.0, 2.0), (0.4, 2.0, 3.0)], [(0.5, 2.0)]],
    ids=["two", "one", "three", "single"],
)
def test_every_study_leaves_pictures_tables_and_configs(values, tmp_path):
    outcome = read_outcome(study_of(values))
    files = {file.name for file in write_report(outcome, tmp_path)}
    assert files == {"table.csv", "pareto.png", "pareto.html", "best.yaml", "pareto"}
    assert (tmp_path / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "pareto.html").read_text()
    assert "Plotly.newPlot" in page and 'src="http' not in page and page.count("plotly.js v") == 1
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [int(row["number"]) for row in rows] == list(range(len(values)))
    assert {int(row["number"]) for row in rows if row["pareto"] == "True"} == {r.number for r in outcome.front}
    best = load_config(tmp_path / "best.yaml")
    assert best.attention.branches.window.size == outcome.best.params["attention.branches.window.size"]
    assert (tmp_path / "best.yaml").read_text().startswith(f"# Trial {outcome.best.number} of study made")


def made(values, params, directions=DIRECTIONS[:1], **changed):
    """A study of trials with these values and parameters, without names of objectives."""
    study = optuna.create_study(study_name="made", directions=directions)
    for value, some in zip(values, params, strict=True):
        space = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in some}
        study.add_trial(optuna.trial.create_trial(values=value, params=some, distributions=space, **changed))
    return study


def figures_of(outcome):
    return {section.title: section for section in sections(outcome)}


def test_every_figure_tells_the_design_on_hover_and_rings_the_recommended_trial():
    outcome = read_outcome(study_of(TWO))
    found = figures_of(outcome)
    assert list(found) == ["Pareto front", "History", "Importances", "Slices", "Parallel coordinates"]
    (front,) = found["Pareto front"].figures
    assert [len(trace.x) for trace in front.data] == [0, 2, 3, 3], "infeasible, others, front and its steps"
    assert front.layout.xaxis.title.text == f"{NAMES[1]} ↓" and front.layout.yaxis.title.text == f"{NAMES[0]} ↑"
    drawn = [point for trace in front.data[1:3] for point in zip(trace.text, trace.marker.size, strict=True)]
    ringed = [text for text, size in drawn if size > 8]
    assert len(ringed) == 1 and ringed[0].startswith("<b>trial 6</b><br>val/accuracy: 0.7<br>budget/keys_per_query: 30")
    assert "attention.branches.window.size = " in ringed[0]
    for figure in [*found["History"].figures, *found["Slices"].figures]:
        (trace,) = (trace for trace in figure.data if len(trace.x))
        assert ringed[0] in trace.text and sorted(trace.marker.size)[-2:] == [8, 15]
    assert found["Slices"].figures[0].layout.xaxis.title.text == "window.size"


def test_parallel_coordinates_have_whole_short_names_and_dark_lines_for_good_values():
    params = [
        {"attention.branches.selection.num_blocks": i / 9} | ({"other.size": 0.5} if i > 4 else {}) for i in range(9)
    ]
    outcome = read_outcome(made([(i / 9, 9 - i) for i in range(9)], params, DIRECTIONS[:2]))
    figures = figures_of(outcome)["Parallel coordinates"].figures
    assert len(figures) == 2
    for figure, name in zip(figures, outcome.objectives, strict=True):
        labels = figure.layout.xaxis.ticktext
        assert labels == (outcome.label(name), "other.<br>size", "selection.<br>num_blocks")
        *lines, _ = figure.data
        assert len(lines) == 9 and lines[0].customdata[1][1] == "None"
        brightness = [sum(map(float, re.findall(r"[\d.]+", line.line.color))) for line in lines]
        assert brightness == sorted(brightness, reverse=True), "later trials are better in both"


def test_importances_are_those_of_good_values_whatever_their_direction():
    rng = random.Random(0)
    params = [{"high": rng.random(), "low": rng.random()} for _ in range(200)]
    # The best quarter is where `high` is; where `low` is, values are the worst.
    values = [(2.0 * (p["high"] > 0.75) - (p["low"] < 0.25) + rng.random() / 10,) for p in params]
    for direction, sign in (("maximize", 1), ("minimize", -1)):
        outcome = read_outcome(made([(sign * v,) for (v,) in values], params, [direction]))
        (figure,) = figures_of(outcome)["Importances"].figures
        assert dict(zip(figure.data[0].y, figure.data[0].x, strict=True))["high"] > 0.8, direction


def test_importances_say_what_they_lack():
    few = made([(i / 9,) for i in range(FEW - 1)], [{"x": i / 20, "y": 0.5} for i in range(FEW - 1)])
    assert figures_of(read_outcome(few))["Importances"].text.endswith("there are 19 and 2.")
    one = made([(i / 9,) for i in range(FEW)], [{"x": i / 20} for i in range(FEW)])
    section = figures_of(read_outcome(one))["Importances"]
    assert section.text == "They need 20 complete trials and 2 parameters; there are 20 and 1." and not section.figures


@pytest.mark.parametrize(
    "study",
    [
        made([(0.5,), (0.6,)], [{}, {}]),
        made([(float("inf"),)], [{"x": 0.5}]),
        made([(0.1, 0.2), (0.2, float("-inf"))], [{"x": 0.5}, {"x": 0.6}], ["minimize"] * 2),
        made([(0.1, 0.2, 0.3, 0.4)] * 2, [{"x": 0.5}, {"y": 0.6}], ["minimize"] * 4),
    ],
    ids=["no parameters", "no finite value", "an infinite one", "four objectives, other parameters"],
)
def test_odd_studies_have_their_page(study, tmp_path):
    study.enqueue_trial({"x": 0.5})
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING))
    write_html(read_outcome(study), tmp_path / "page.html")
    assert "<h1>made</h1>" in (tmp_path / "page.html").read_text()


def test_a_trial_that_breaks_a_constraint_is_drawn_but_not_recommended():
    study = made([(0.9, 1.0)], [{"x": 0.5}], DIRECTIONS[:2], constraints={"limit": 1.0})
    study.add_trial(optuna.trial.create_trial(values=(0.5, 2.0), constraints={"limit": 0.0}))
    outcome = read_outcome(study)
    assert [row.number for row in outcome.front] == [1]
    (front,) = figures_of(outcome)["Pareto front"].figures
    assert [len(trace.x) for trace in front.data] == [1, 0, 1, 1]


def test_configs_that_left_the_front_are_removed(tmp_path):
    write_report(read_outcome(study_of([(0.5, 10.0)])), tmp_path)
    write_report(read_outcome(study_of([(0.5, 10.0), (0.6, 9.0)])), tmp_path)
    assert [f.name for f in (tmp_path / "pareto").iterdir()] == ["trial-0001.yaml"]


def test_a_study_without_a_complete_trial_still_writes_its_table(tmp_path):
    study = optuna.create_study(study_name="made")
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    outcome = read_outcome(study)
    assert [file.name for file in write_report(outcome, tmp_path)] == ["table.csv"]
    console = Console(record=True, file=io.StringIO())
    print_report(outcome, tmp_path, console)
    assert "no complete trial yet" in console.export_text()


def test_the_table_marks_the_recommended_trial_and_states_the_rule(tmp_path):
    console = Console(record=True, width=160, file=io.StringIO())
    print_report(read_outcome(study_of(TWO)), tmp_path, console)
    text = console.export_text()
    assert "*6" in text and "5 complete, 2 failed" in text
    assert "recommended: trial 6 (the knee: nearest to highest val/accuracy and lowest budget/keys_per_query" in text


def test_a_terminal_gets_a_live_table_and_a_file_plain_lines():
    objectives = dict(zip(NAMES[:2], DIRECTIONS[:2], strict=True))
    done = shown(read_row(study_of(TWO).get_trials()[1], objectives))
    plain = Console(width=160, record=True, file=io.StringIO())
    with View(plain, "trials", list(objectives), 9) as view:
        view.finished(done)
    assert "1/9  trial-0001 complete    val/accuracy 0.9  budget/keys_per_query 80" in plain.export_text()

    worker = SimpleNamespace(
        job=SimpleNamespace(name="trial-0002"), progress=SimpleNamespace(step=30, steps=100), since=0.0
    )
    plain.export_text()
    view.show([worker])
    assert not plain.export_text()
    view.said -= SAY_EVERY_S
    view.show([worker])
    assert plain.export_text().endswith("left; trial-0002 30/100\n")

    screen = io.StringIO()
    terminal = Console(width=160, force_terminal=True, file=screen)
    progress = SimpleNamespace(step=30, steps=100, metrics={"val/accuracy": 0.25})
    job = SimpleNamespace(name="trial-0002")
    worker = SimpleNamespace(index=3, job=job, since=time.monotonic(), progress=progress)
    failed = replace(done, name="trial-0008", state="failed", note="[Errno 28] [/data] is full")
    with View(terminal, "trials", list(objectives), 9) as view:
        view.finished(done)
        view.finished(failed)
        view.show([worker])
    said = ("2/9 trials", "30/100", "0.25", "worker 3", "trial-0002", "trial-0008", "[Errno 28] [/data] is full")
    assert all(text in screen.getvalue() for text in said)


def test_short_names_stay_distinct():
    names = ["a.window.enabled", "b.window.enabled", "c.size", "alone"]
    assert list(short_names(names).values()) == ["a.window.enabled", "b.window.enabled", "c.size", "alone"]
    assert short_names(["attention.partition.block_size"]) == {"attention.partition.block_size": "partition.block_size"}
