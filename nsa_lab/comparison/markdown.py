"""A comparison as Markdown, what RESULTS.md is made of, and its tables in LaTeX."""

from collections.abc import Sequence

from nsa_lab.comparison.grid import Grid
from nsa_lab.comparison.rows import ORIGIN, Row
from nsa_lab.comparison.sections import PAST, sections
from nsa_lab.comparison.spec import START, Comparison
from nsa_lab.comparison.statistics import EXACT_PAIRS, FEWEST, FLIPS, smallest_sign_flip
from nsa_lab.comparison.tables import experiments_of, metric_values, variants_of


def to_markdown(comparison: Comparison, rows: Sequence[Row], title: str, findings: str = "") -> str:
    """A section: what was found in the rows of a comparison, tables, conclusions and origin."""
    parts = [f"## {title}", *([findings] if findings else []), how_to_read(comparison, rows)]
    for section in sections(comparison, rows):
        parts += [f"### {section.title}", *([section.note] if section.note else [])]
        for grid in section.grids:
            parts += [grid.title, grid.markdown()]
        parts += ["\n".join(f"- {said}" for said in section.conclusions)] * bool(section.conclusions)
    return "\n\n".join([*parts, _origin(comparison, rows)]) + "\n"


def to_latex(comparison: Comparison, rows: Sequence[Row], title: str) -> str:
    """The tables of a section; how to read them stands above as a comment."""
    parts = [f"% {title}: for \\usepackage{{booktabs}}\n% {how_to_read(comparison, rows)}"]
    for section in sections(comparison, rows):
        parts += [grid.named(section.title).latex() for grid in section.grids]
    return "\n\n".join(parts) + "\n"


def how_to_read(comparison: Comparison, rows: Sequence[Row]) -> str:
    """What the figures in a comparison's tables are."""
    names = experiments_of(comparison, rows)
    found = (metric_values(rows, [e], v, "val/loss") for e in names for v in variants_of(comparison, rows))
    counts = sorted({len(values) for values in found if values}) or [0]
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    steps = ", ".join(sorted({row["steps"] for row in rows}, key=int))
    flips = "the exact sign-flip test"
    if counts[-1] > EXACT_PAIRS:
        flips = f"the sign-flip test (exact up to {EXACT_PAIRS} seeds, beyond from {FLIPS} random patterns)"
    limit = ", ".join(f"{smallest_sign_flip(count):.4g} for {count}" for count in counts if count >= FEWEST)
    average = " Averages and their costs are over the seeds that all tasks have." * (len(names) > 1)
    return (
        f"{seeds} seed{'' if seeds == '1' else 's'}, {steps} steps each, validation clips never trained on. `±` is the"
        " 95% interval of the mean (Student's t over seeds), of one design or difference alone; fewer than"
        f" {FEWEST} seeds (n) have none. {PAST}"
        f" Differences are paired by seed; p-values are two-sided, first the paired t-test, then {flips}, both adjusted"
        " by Holm over all designs tested against the same reference, which the intervals are not;"
        f" before that adjustment a sign-flip test cannot go below {limit or 'anything: too few seeds'}.{average}"
    )


def _origin(comparison: Comparison, rows: Sequence[Row]) -> str:
    lines = [f"- {name}: {', '.join(sorted({row[name] for row in rows}))}" for name in ORIGIN]
    settings = [[v, _settings(comparison, v)] for v in variants_of(comparison, rows)]
    hashes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        hashes.setdefault((row["experiment"], row["variant"]), []).append(row["config_hash"])
    trained = [[e, v, " ".join(sorted(set(found)))] for (e, v), found in sorted(hashes.items())]
    return "\n".join(
        ["Where the numbers come from:", "", f"- comparison: `{comparison.path}`", *lines, "",
         f"<details><summary>settings of the designs, and config hashes of the {len(rows)} trainings</summary>", "",
         Grid("", ["design", "settings"], settings).markdown(), "",
         "A run's folder ends with its hash, and `nsa-lab runs` lists it by that name. The column hash there is",
         "another where a run starts from weights: it counts their path, this one their folder's name.", "",
         Grid("", ["experiment", "design", "config hashes, one per seed"], trained).markdown(), "", "</details>"]
    )  # fmt: skip


def _settings(comparison: Comparison, variant: str) -> str:
    if variant == START:
        return "what the others start from"
    if variant not in comparison.variants:
        return "no longer in the file"
    return ", ".join(f"{key}={value}" for key, value in comparison.variants[variant].items()) or "the experiment's own"
