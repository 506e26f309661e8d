"""Optuna's figures of a study, with every design on hover and a ring around the recommended trial."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna.visualization import (
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
    plot_pareto_front,
    plot_slice,
)

from nsa_lab.search.picture import FRONT, INK, OTHER, coloured
from nsa_lab.search.rows import Outcome, Row
from nsa_lab.search.view import number, short_names

FEW = 20
"""Complete trials that importances need: their best quarter then holds 5."""

PARALLEL = "A line is a trial, the darker the better; at None stand those without the parameter."


@dataclass(frozen=True)
class Section:
    """Figures under a heading, in columns, with a sentence on how to read them or why there are none."""

    title: str
    text: str
    figures: list[go.Figure]
    columns: int = 2


def sections(outcome: Outcome) -> list[Section]:
    """The page of a study from top to bottom; needs one complete trial."""
    with warnings.catch_warnings():
        # That names of objectives are experimental, and that importances are those of low values: `_value` has a sign.
        warnings.simplefilter("ignore")
        study, names = _short_study(outcome), list(enumerate(outcome.objectives))
        front = [_front(study, outcome, x, y) for y, x in itertools.combinations(range(len(names)), 2)]
        history = [_history(study, outcome, place, name) for place, name in names]
        slices = [_slices(study, outcome, place, name) for place, name in names]
        parallel = [_parallel(study, outcome, place, name) for place, name in names]
        found = [
            Section("History", "Values in the order of the trials.", history),
            _importances(study, outcome),
            Section(
                "Slices",
                "One parameter at a time; the later the trial, the darker. Dotted: references.",
                slices,
                columns=1,
            ),
            Section("Parallel coordinates", PARALLEL, parallel, columns=1),
        ]
        if front:
            text = "Red: no trial is as good in every objective and better in one."
            found.insert(0, Section("Pareto front", text, front))
        return found


def _short_study(outcome: Outcome) -> optuna.Study:
    """The study in memory, its parameters under short names; trials without finite values are failed ones."""
    short = short_names(list(dict.fromkeys(name for trial in outcome.trials for name in trial.params)))
    study = optuna.create_study(directions=list(outcome.objectives.values()))
    study.set_metric_names(list(outcome.objectives))
    for trial in outcome.trials:
        drawn = create_trial(state=TrialState.FAIL)
        if trial.state == TrialState.COMPLETE and all(map(math.isfinite, trial.values)):
            drawn = create_trial(
                values=trial.values,
                params={short[name]: value for name, value in trial.params.items()},
                distributions={short[name]: kind for name, kind in trial.distributions.items()},
                constraints=trial.constraints,
            )
        study.add_trial(drawn)
    return study


def _front(study: optuna.Study, outcome: Outcome, x: int, y: int) -> go.Figure:
    """Objective `y` over objective `x`, the front joined by steps where these two are all."""
    names = list(outcome.objectives)
    labels = [outcome.label(names[place]) for place in (x, y)]
    figure = plot_pareto_front(study, targets=lambda t: [t.values[x], t.values[y]], target_names=labels)
    for trace, name, colour in zip(figure.data[-2:], ("trial", "Pareto front"), (OTHER, FRONT), strict=True):
        _mark(trace, [outcome.rows[n] for n in trace.marker.color or ()], outcome)
        trace.update(name=name, showlegend=True, marker={"color": colour, "showscale": False})
    points = sorted((row.values[names[x]], row.values[names[y]], row.label) for row in outcome.front)
    steps = go.Scatter(
        x=[point[0] for point in points],
        y=[point[1] for point in points],
        text=[point[2] for point in points],
        mode="lines+markers+text" if len(names) == 2 else "markers+text",
        marker={"size": 14, "opacity": 0},  # keeps the numbers off the points
        line={"color": FRONT, "shape": "hv" if outcome.objectives[names[x]] == "minimize" else "vh"},
        textposition="top left",
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_trace(steps)
    for row, colour in coloured(outcome):
        place = {"x": [row.values[names[x]]], "y": [row.values[names[y]]]}
        marker = {"symbol": "diamond", "color": colour}
        figure.add_trace(go.Scatter(**place, name=row.reference, mode="markers", marker=marker))
        _mark(figure.data[-1], [row], outcome)
    for name, line in ((names[x], figure.add_vline), (names[y], figure.add_hline)):
        if name in outcome.dense:
            line(
                outcome.dense[name], line_dash="dash", line_color=INK, annotation_text="dense attention", layer="below"
            )
    return figure


def _importances(study: optuna.Study, outcome: Outcome) -> Section:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    params = {name for trial in complete for name, kind in trial.distributions.items() if not kind.single()}
    if len(complete) < FEW or len(params) < 2:
        text = f"They need {FEW} complete trials and 2 parameters; there are {len(complete)} and {len(params)}."
        return Section("Importances", text, [])
    # Of 50 trials Optuna's default, a tenth, leaves 5: there a parameter without any effect often came first.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
    bars = []
    for place, (name, direction) in enumerate(outcome.objectives.items()):
        target = _value(place, 1 if direction == "minimize" else -1)
        bars += plot_param_importances(study, evaluator, target=target, target_name=outcome.label(name)).data
    text = (
        f"How much a parameter decides whether a trial is in the best quarter of these {len(complete)} by an objective "
        "(PED-ANOVA, arXiv 2304.10255). Shares sum to 1; while trials are few, chance has a share of its own."
    )
    return Section("Importances", text, [go.Figure(bars)])


def _slices(study: optuna.Study, outcome: Outcome, place: int, name: str) -> go.Figure:
    figure = plot_slice(study, target=_value(place), target_name=outcome.label(name)).update_layout(width=None)
    for trace in figure.select_traces({"name": "Feasible Trial"}):
        _mark(trace, [outcome.rows[n] for n in trace.marker.color], outcome)
    for row, colour in coloured(outcome):
        figure.add_hline(row.values[name], line_dash="dot", line_color=colour)
    return figure


def _parallel(study: optuna.Study, outcome: Outcome, place: int, name: str) -> go.Figure:
    label, alone = outcome.label(name), optuna.create_study(direction=outcome.objectives[name])
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    # Of one objective alone Optuna knows the better end, which is to be the dark one.
    for t in complete:
        alone.add_trial(create_trial(value=t.values[place], params=t.params, distributions=t.distributions))
    figure = plot_parallel_coordinate(alone, target_name=label)
    params = sorted({param for trial in complete for param in trial.params})
    whole = [label, *(param.replace(".", ".<br>") for param in params)]  # Optuna cuts names short
    return figure.update_xaxes(ticktext=whole[: len(figure.layout.xaxis.ticktext or ())])


def _history(study: optuna.Study, outcome: Outcome, place: int, name: str) -> go.Figure:
    alone, label = len(outcome.objectives) == 1, outcome.label(name)
    figure = plot_optimization_history(study, target=None if alone else _value(place), target_name=label)
    for trace in figure.select_traces({"name": label}):
        _mark(trace, [outcome.rows[n] for n in trace.x], outcome)
        trace.marker.color = OTHER
    figure.update_traces(selector={"name": "Best Value"}, line={"shape": "hv", "color": FRONT})
    for row, colour in coloured(outcome):
        figure.add_hline(row.values[name], line_dash="dot", line_color=colour, annotation_text=row.reference)
    return figure


def _mark(trace: go.Scatter, rows: Sequence[Row], outcome: Outcome) -> None:
    """Put the designs of these rows on hover and a ring around the recommended one."""
    trace.update(
        text=[_design(row) for row in rows],
        hovertemplate="%{text}<extra></extra>",
        marker_size=[15 if row is outcome.best else 12 if row.reference else 8 for row in rows],
        marker_line={"color": INK, "width": [3 if row is outcome.best else 0.5 for row in rows]},
    )


def _design(row: Row) -> str:
    values = [f"{name}: {number(value)}" for name, value in row.values.items()]
    params = [f"{name} = {value}" for name, value in (row.overrides if row.reference else row.params).items()]
    return "<br>".join([f"<b>{row.title}</b>", *values, "", *params])


def _value(place: int, sign: int = 1) -> Callable[[FrozenTrial], float]:
    return lambda trial: sign * trial.values[place]
