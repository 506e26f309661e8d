"""A task's card: what its designs reached, and whether it is fit to tell designs apart."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from nsa_lab.comparison.grid import Grid
from nsa_lab.comparison.sections import format_interval
from nsa_lab.comparison.statistics import FEWEST, ROUNDING, Interval, interval

DENSE, BLIND, KNOCK_OUT = "dense", "blind", "frame_local"
LEARNED = 0.95
REACH = 0.10
"""A skill's dense accuracy at least; what the knock-out may lie from the blind design at most."""
SIGMAS = 1.96
COLUMNS = ("task", "reading", "design", "seed", "accuracy", "steps", "minutes", "left_chance_at", "config_hash")


@dataclass(frozen=True)
class Outcome:
    """One training. `minutes` its steps took; `left_chance_at`: the first of its validations from which on all were
    above chance, a step, "never", or "" where the run's folder is gone."""

    reading: str
    design: str
    seed: int
    accuracy: float
    steps: int
    minutes: float
    left_chance_at: str
    config_hash: str


@dataclass(frozen=True)
class Facts:
    """What is known of a task before it is trained; `answers` that a validation asks for, `subsets` of branches,
    `regime`: how it is trained, where not from scratch and alone."""

    name: str
    summary: str
    stands_for: str
    question: str
    chance: float
    answers: int
    tokens: int
    dials: str
    subsets: tuple[str, ...]
    regime: str = ""

    @property
    def noise(self) -> float:
        """Half the width of the 95% interval of a guesser's accuracy over one validation, by the normal law."""
        return SIGMAS * math.sqrt(self.chance * (1 - self.chance) / self.answers)


@dataclass(frozen=True)
class Criterion:
    """Something a skill must show, the numbers that say so, and whether they do."""

    asked: str
    found: str
    met: bool


def accuracy(outcomes: Sequence[Outcome], design: str) -> Interval | None:
    """A design's mean accuracy over its seeds; None without any."""
    values = [outcome.accuracy for outcome in outcomes if outcome.design == design]
    return interval(values) if values else None


def criteria(facts: Facts, outcomes: Sequence[Outcome]) -> list[Criterion]:
    """The four criteria on the trainings of one reading."""
    dense, blind, knocked = (accuracy(outcomes, design) for design in (DENSE, BLIND, KNOCK_OUT))
    return [
        Criterion(f"dense reaches {LEARNED:.0%}", _said(dense), dense is not None and dense.mean >= LEARNED - ROUNDING),
        _blind(facts, blind),
        _knocked_out(blind, knocked),
        _subsets(facts, outcomes),
    ]


def belongs(found: Sequence[Criterion]) -> bool:
    """Whether a task with these criteria belongs to the suite."""
    return all(criterion.met for criterion in found)


def _blind(facts: Facts, blind: Interval | None) -> Criterion:
    asked = f"blind at chance ({facts.chance:.1%} inside its interval, or no farther off than {facts.noise:.1%})"
    off = math.inf if blind is None else abs(blind.mean - facts.chance)
    inside = blind is not None and off <= blind.half
    return Criterion(asked, _said(blind), inside or off <= facts.noise)


def _knocked_out(blind: Interval | None, knocked: Interval | None) -> Criterion:
    asked = f"knock-out within {100 * REACH:.0f} points of blind"
    if blind is None or knocked is None:
        return Criterion(asked, "not trained", False)
    off = knocked.mean - blind.mean
    return Criterion(asked, f"{_said(knocked)}, {100 * off:+.1f} points", abs(off) <= REACH + ROUNDING)


def _subsets(facts: Facts, outcomes: Sequence[Outcome]) -> Criterion:
    asked = "two subsets of branches differ by more than their intervals together"
    found = {name: value for name in facts.subsets if (value := accuracy(outcomes, name))}
    pairs = [(abs(a.mean - b.mean) - a.half - b.half, x, y) for (x, a), (y, b) in combinations(found.items(), 2)]
    apart = [pair for pair in pairs if not math.isnan(pair[0])]
    if not apart:
        return Criterion(asked, f"not known: fewer than {FEWEST} seeds of two subsets", False)
    most, one, other = max(apart)
    return Criterion(asked, f"{one} {_said(found[one])}, {other} {_said(found[other])}", most > 0)


def _said(value: Interval | None) -> str:
    return "not trained" if value is None else format_interval("accuracy", value)


def markdown(facts: Facts, outcomes: Sequence[Outcome], command: str, origin: str) -> str:
    """The card: each reading's designs and criteria; the first reading decides."""
    readings = list(dict.fromkeys(outcome.reading for outcome in outcomes))
    by_reading = {name: [o for o in outcomes if o.reading == name] for name in readings}
    verdicts = {name: criteria(facts, found) for name, found in by_reading.items()}
    fit = belongs(verdicts[readings[0]])
    stands = f" It stands for {facts.stands_for}." if facts.stands_for else ""
    parts = [
        f"# {facts.name}",
        f"{facts.summary[0].upper()}{facts.summary[1:]}.{stands} Asked: {facts.question} Chance {facts.chance:.1%};"
        f" {facts.tokens:,} video tokens a clip ({facts.dials}); {facts.answers} answers a validation."
        + f" {facts.regime}".rstrip(),
        f"**{'Belongs' if fit else 'Does not belong'} to the suite**, by the criteria with {readings[0]}.",
    ]
    for name, found in by_reading.items():
        parts += [f"## With {name}", grid(found).markdown(), "\n".join(_lines(verdicts[name]))]
    reading = (
        "Means with 95% intervals over seeds (Student's t). Minutes: the steps of one training, validations left out,"
        " beside as many others as the command says. Left chance at: the validation from which on all were above chance"
        f" by more than {facts.noise:.1%}, by seed."
    )
    return "\n\n".join([*parts, reading, f"`{command}`; {origin}"]) + "\n"


def grid(outcomes: Sequence[Outcome]) -> Grid:
    """Designs x accuracy, seeds, steps, minutes and where they left chance."""
    lines = []
    for design in dict.fromkeys(outcome.design for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.design == design]
        minutes = sum(outcome.minutes for outcome in mine) / len(mine)
        seeds = ", ".join(f"{100 * outcome.accuracy:.1f}" for outcome in mine)
        steps = ", ".join(dict.fromkeys(str(outcome.steps) for outcome in mine))
        left = ", ".join(outcome.left_chance_at or "?" for outcome in mine)
        lines.append([design, _said(accuracy(mine, design)), seeds, steps, f"{minutes:.1f}", left])
    return Grid("designs", ["design", "accuracy", "by seed", "steps", "minutes", "left chance at"], lines)


def _lines(found: Sequence[Criterion]) -> Iterator[str]:
    for criterion in found:
        yield f"- [{'x' if criterion.met else ' '}] {criterion.asked}: {criterion.found}"


def table(name: str, outcomes: Sequence[Outcome]) -> list[list[object]]:
    """The card's CSV, its header first."""
    rows = [[name, *(getattr(outcome, column) for column in COLUMNS[1:])] for outcome in outcomes]
    return [list(COLUMNS), *rows]


def left_chance_at(accuracies: dict[int, float], above: float) -> str:
    """The first step of `accuracies` from which on all are more than `above`; "never"."""
    left = "never"
    for step in sorted(accuracies, reverse=True):
        if accuracies[step] <= above:
            break
        left = str(step)
    return left
