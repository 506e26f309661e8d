"""A comparison beside the paper's numbers: of the same branches (Table 2), and of the same methods (Table 1)."""

import functools
import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from nsa_lab.comparison.grid import Grid
from nsa_lab.comparison.rows import Row
from nsa_lab.comparison.sections import format_interval
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.tables import Difference, differences
from nsa_lab.report.curves import budgets_of, main_experiment, method_of

METRIC, DENSE = "val/accuracy", "dense"
FEWEST = 3
"""Of fewer methods that both know, nothing is said."""


@dataclass(frozen=True)
class Beside:
    """A table, where its numbers are from, and what agrees and what does not."""

    grid: Grid
    source: str
    said: list[str]


def beside_branches(branches: Mapping[str, Sequence[str]]) -> Beside | None:
    """The paper's numbers of the same sets of branches, where designs differ in these."""
    paper = _numbers()["branches"]
    known = {name: paper["scores"]["+".join(own)] for name, own in branches.items() if own and name == "+".join(own)}
    if len(known) < 2:
        return None
    lines = [[name, *(f"{score:.1f}" for score in scores), f"{fmean(scores):.1f}"] for name, scores in known.items()]
    grid = Grid("The same branches in the paper", ["branches", *_numbers()["benchmarks"], "mean"], lines)
    return Beside(grid, f"{paper['source']}. {paper['caution']}", [])


def beside_methods(comparison: Comparison, rows: Sequence[Row]) -> Beside | None:
    """The paper's methods beside ours, each less dense attention; None where fewer than FEWEST are known to both."""
    paper = _numbers()["methods"]
    scores = paper["scores"]
    ours = _ours(comparison, rows)
    if len({method_of(name) for name in ours} & set(scores)) < FEWEST:
        return None
    methods = [DENSE, *dict.fromkeys(method_of(name) for name in ours)]
    lines = [[name, *_their_cells(scores, name), _our_cell(ours, name)] for name in methods]
    head = ["method", *_numbers()["benchmarks"], "mean", "less dense", "ours less dense, by budget"]
    said = [line for budget in budgets_of(ours) for line in _agreement(budget, ours, scores)]
    return Beside(Grid("The same methods in the paper", head, lines), f"{paper['source']}. {paper['caution']}", said)


def _ours(comparison: Comparison, rows: Sequence[Row]) -> dict[str, Difference]:
    """By variant, all answers less those of dense attention, in the experiment that has most variants."""
    if DENSE not in comparison.references or not rows:
        return {}
    experiment = main_experiment(comparison, rows)
    found = (d for d in differences(comparison, rows) if (d.experiment, d.metric) == (experiment, METRIC))
    return {d.variant: d for d in found if d.reference == DENSE}


def _their_cells(scores: Mapping[str, Sequence[float]], method: str) -> list[str]:
    if method not in scores:
        return [""] * (len(scores[DENSE]) + 2)
    less = "" if method == DENSE else f"{_theirs(scores, method):+.1f}"
    return [*(f"{score:.1f}" for score in scores[method]), f"{fmean(scores[method]):.1f}", less]


def _theirs(scores: Mapping[str, Sequence[float]], method: str) -> float:
    return fmean(scores[method]) - fmean(scores[DENSE])


def _our_cell(ours: Mapping[str, Difference], method: str) -> str:
    own = {name: found for name, found in ours.items() if method_of(name) == method}
    return "; ".join(f"{name.removeprefix(f'{method}-')}: {_points(found)}" for name, found in own.items())


def _points(found: Difference) -> str:
    return format_interval(METRIC, found.test.difference, "+").replace(" %", "")


def _agreement(budget: str, ours: Mapping[str, Difference], scores: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """What the methods that both know do at one budget: their order, and on which side of dense attention they are.

    A side is taken where the 95% interval of the difference, of that method alone, leaves zero out.
    """
    pairs = ((method_of(name), found) for name, found in ours.items() if name.endswith(f"-{budget}"))
    known = {method: found for method, found in pairs if method in scores}
    if len(known) < FEWEST:
        return
    mine = {method: found.test.difference.mean for method, found in known.items()}
    apart = [(mine[a] - mine[b]) * (_theirs(scores, a) - _theirs(scores, b)) for a, b in combinations(known, 2)]
    alike = sum(product > 0 for product in apart)
    halves = {method: found.test.difference.half for method, found in known.items()}
    told = [method for method in known if abs(mine[method]) > halves[method]]
    same = [method for method in told if mine[method] * _theirs(scores, method) > 0]
    other = [method for method in told if method not in same]
    tied = apart.count(0.0)
    ties = f" ({tied} tied)" if tied else ""
    parts = [f"{alike} of {len(apart)} pairs of methods stand in the paper's order of means{ties}"]
    parts += [f"on the paper's side of dense: {', '.join(same)}"] * bool(same)
    opposite = (f"{method} ({_theirs(scores, method):+.1f} there, {100 * mine[method]:+.1f} here)" for method in other)
    parts += [f"on the other side: {', '.join(opposite)}"] * bool(other)
    unsure = ", ".join(method for method in known if method not in told)
    parts += [f"not told from dense here (95% intervals of each alone): {unsure}"] * bool(unsure)
    yield f"At {budget} % of dense attention: {'; '.join(parts)}."


@functools.cache
def _numbers() -> dict[str, Any]:
    return dict(json.loads(importlib.resources.files("nsa_lab.report").joinpath("paper.json").read_text()))
