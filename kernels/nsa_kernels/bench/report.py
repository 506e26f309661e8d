"""Rows as text: a line each while the bench runs, a table at its end, and the README's tables from a CSV."""

from collections.abc import Sequence
from pathlib import Path

from nsa_kernels.bench.flex import MASK_ROWS
from nsa_kernels.bench.records import Case, Result, Row, latest

START, END = "<!-- bench table: start -->", "<!-- bench table: end -->"
_LIVE = "{:<18} {:>7} {:<8} {:>5} {:<16} {:>10} {:>10} {:>6}  {}"
_HEADINGS = ["T", "what", "inputs", "forward ms", "forward + backward ms", "peak MiB", "peak MiB both"]
BASELINES = ("dense-cudnn", "dense-flash", "fla", "flex")


def live_line() -> str:
    return _LIVE.format("op", "T", "inputs", "block", "direction", "ms", "peak MiB", "roof", "status")


def print_row(row: Row) -> None:
    c, r = row.case, row.result
    block = f"{c.block_size}/{c.query_tile}" if c.block_size else ""
    share = "" if r.roof_share is None else f"{r.roof_share:.0%}"
    line = _LIVE.format(
        c.op, c.tokens, c.inputs, block, c.direction, number(r.milliseconds), number(r.peak_mib), share, r.status
    )
    print(line, flush=True)


def print_summary(rows: Sequence[Row]) -> None:
    """The layer beside the baselines, by rich where it is installed."""
    lines = layer_lines(latest(rows))
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\n".join(" | ".join(cells) for cells in [_HEADINGS, *lines]))
        return
    table = Table(*_HEADINGS)
    for cells in lines:
        table.add_row(*cells)
    Console().print(table)


def markdown(rows: Sequence[Row]) -> str:
    """Three tables: the layer and the baselines, each op, and what was not measured; where the rows come from above."""
    rows = latest(rows)
    parts = [_origins(rows), _table(_HEADINGS, layer_lines(rows))]
    headings = ["op", "inputs", "blocks", "query tile", "direction", *(f"{t:,}" for t in _lengths(rows))]
    if lines := op_lines(rows):
        cells = (
            "Each op alone: milliseconds by T, and in parentheses the share of that time that its arithmetic or its "
        )
        cells += "least traffic would take at the machine's measured rates."
        parts += [cells, _table(headings, lines)]
    if unions := _unions(rows):
        parts.append("Distinct blocks that 16 neighbouring queries choose, on average: " + "; ".join(unions) + ".")
    if missing := _missing(rows):
        parts.append("Not measured:\n\n" + "\n".join(f"- {line}" for line in missing))
    return "\n\n".join(parts) + "\n"


def layer_lines(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each T, kind of inputs and design of the layer and of every baseline."""
    found: dict[Case, dict[str, Result]] = {}
    for row in rows:
        if row.case.op == "layer" or row.case.op in BASELINES:
            found.setdefault(_without_direction(row.case), {})[row.case.direction] = row.result
    lines = []
    for case in sorted(found, key=lambda c: c.tokens):
        forward = found[case].get("forward", Result())
        both = found[case].get("forward+backward", Result())
        if forward.milliseconds is not None or both.milliseconds is not None:
            times = [number(forward.milliseconds), number(both.milliseconds)]
            inputs = case.inputs if case.block_size else "any"
            lines.append(
                [f"{case.tokens:,}", label(case), inputs, *times, number(forward.peak_mib), number(both.peak_mib)]
            )
    return lines


def op_lines(rows: Sequence[Row]) -> list[list[str]]:
    lengths = _lengths(rows)
    found: dict[Case, dict[int, Result]] = {}
    for row in rows:
        if row.case.op not in BASELINES and row.result.milliseconds is not None:
            found.setdefault(_without_length(row.case), {})[row.case.tokens] = row.result
    lines = []
    for c, results in found.items():
        times = [_time_and_share(results.get(t)) for t in lengths]
        lines.append([c.op, c.inputs, f"{c.block_size} x {c.block_count}", str(c.query_tile), c.direction, *times])
    return lines


def label(case: Case) -> str:
    """How tables and pictures name a case's op and design."""
    if not case.block_size:
        return case.op
    name = "ours" if case.op == "layer" else case.op
    tile = f", query tile {case.query_tile}" if case.query_tile > 1 else ""
    alone = f" (selection only, {MASK_ROWS} queries share a choice)" if case.op == "flex" else ""
    return f"{name} {case.block_size} x {case.block_count}{tile}{alone}"


def number(x: float | None) -> str:
    """Three significant digits, or a dash."""
    if x is None:
        return "-"
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def write_between_markers(path: Path, text: str) -> None:
    """Put `text` between the two marker comments of the file at `path`. Raises ValueError where they are missing."""
    before, start, rest = path.read_text().partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{path} lacks the lines {START} and {END}")
    path.write_text(f"{before}{START}\n{text}{END}{after}")


def _origins(rows: Sequence[Row]) -> str:
    """Every machine, state of the code and shape that the rows come from, once."""
    machines: dict[str, None] = {}
    shapes: dict[str, None] = {}
    for o, s in ((r.origin, r.shape) for r in rows):
        versions = f"driver {o.driver}, torch {o.torch}, triton {o.triton}, CUDA {o.cuda}"
        machines[f"{o.gpu}, {versions}, commit {o.commit}, {o.date[:10]}"] = None
        shapes[f"H={s.heads}, G={s.groups}, D={s.head_dim}, window {s.window}, {s.dtype}"] = None
    return f"{'; '.join(machines)}. One sample; {'; '.join(shapes)}."


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(headings)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *lines])


def _unions(rows: Sequence[Row]) -> list[str]:
    return [
        f"{c.inputs} {c.block_size} x {c.block_count} at {c.tokens:,}: {row.result.union16:.0f}"
        for row in rows
        if (c := row.case).op == "topk" and c.query_tile == 1 and row.result.union16 is not None
    ]


def _missing(rows: Sequence[Row]) -> list[str]:
    return [
        f"{label(r.case) if r.case.op in ('layer', *BASELINES) else r.case.op}, {r.case.inputs}, T={r.case.tokens:,}, "
        f"{r.case.direction}: {r.result.status}"
        for r in rows
        if r.result.milliseconds is None
    ]


def _time_and_share(result: Result | None) -> str:
    if result is None:
        return "-"
    share = f" ({result.roof_share:.0%})" if result.roof_share else ""
    return number(result.milliseconds) + share


def _lengths(rows: Sequence[Row]) -> list[int]:
    return sorted({r.case.tokens for r in rows})


def _without_direction(c: Case) -> Case:
    return Case(c.op, c.inputs, c.tokens, c.block_size, c.block_count, c.query_tile, "")


def _without_length(c: Case) -> Case:
    return Case(c.op, c.inputs, 0, c.block_size, c.block_count, c.query_tile, c.direction)
