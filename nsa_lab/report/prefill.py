"""What `nsa-lab bench --layer --methods` measured, as tables and a picture: prefill time against length by method."""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsa_lab.comparison.grid import Grid
from nsa_lab.errors import NsaLabError
from nsa_lab.report.drawing import FAINT, GRID, INK, LOOKS, make_axes, plain, to_svg

FILES = "prefill*.csv"
"""How a file is called that a report finds in a folder; others are named."""
WHAT = "layer prefill"
SETTING = ("device", "size", "precision", "inputs")
ORIGIN = ("driver", "torch", "triton", "commit", "date")
NUMBERS = ("milliseconds", "choose_ms", "peak_mib", "budget", "visited")
DENSE = "dense"

Row = dict[str, str]


@dataclass(frozen=True)
class Prefills:
    """The rows of one file under one setting: of several of a method and length the last counts."""

    file: Path
    setting: tuple[str, ...]
    rows: list[Row]

    @property
    def title(self) -> str:
        """`NVIDIA H100, 7b, bf16-true, video inputs`."""
        device, size, precision, inputs = self.setting
        return f"{device}, {size}, {precision}, {inputs} inputs"

    @property
    def origin(self) -> list[tuple[str, str]]:
        """Where the numbers come from, by name."""
        return [(name, ", ".join(sorted({row.get(name, "") for row in self.rows}))) for name in ORIGIN]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def lengths(self) -> list[int]:
        return sorted({int(row["video_tokens"]) for row in self.rows})

    def value(self, method: str, length: int, name: str) -> float:
        """nan where it was not measured."""
        found = [r for r in self.rows if (r["method"], int(r["video_tokens"])) == (method, length)]
        return float(found[-1][name]) if found else math.nan


def read_prefills(file: Path) -> list[Prefills]:
    """What a CSV of `bench --layer --methods` holds, by setting. Raises NsaLabError on any other file."""
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row.get("what") == WHAT]
        found: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            numbers = {name: float(row[name]) for name in NUMBERS}
            if not 0 < int(row["video_tokens"]) < 2**53 or not 0 < numbers["milliseconds"] < math.inf:
                raise ValueError(f"video_tokens={row['video_tokens']}, milliseconds={row['milliseconds']}")
            found.setdefault(tuple(row[name] for name in SETTING), []).append(row | {"method": row["method"]})
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise NsaLabError(
            f"{file} cannot be read as what `bench --layer --methods --out` writes ({error!r})"
        ) from error
    if not found:
        raise NsaLabError(f"{file} has no rows of `nsa-lab bench --layer --methods`; name another file")
    return [Prefills(file, setting, own) for setting, own in found.items()]


def prefill_grids(found: Prefills) -> list[Grid]:
    """Milliseconds and what choosing takes of them, times dense attention, memory, and what is read."""

    def ratio(method: str, length: int) -> str:
        dense = found.value(DENSE, length, "milliseconds")
        return "" if method == DENSE else _text(dense / found.value(method, length, "milliseconds"), "{:.2f}")

    def cell(name: str, form: str) -> Callable[[str, int], str]:
        return lambda method, length: _text(found.value(method, length, name), form)

    tables = {
        "milliseconds": cell("milliseconds", "{:.4g}"),
        "milliseconds of these to choose what is read": cell("choose_ms", "{:.4g}"),
        "times as fast as dense attention": ratio,
        "peak MiB above the inputs": cell("peak_mib", "{:,.0f}"),
        "keys read, of dense attention's": cell("budget", "{:.1%}"),
    }
    grids = [_grid(title, found, own) for title, own in tables.items()]
    return [grid for grid in grids if grid.lines]


def _grid(title: str, found: Prefills, cell: Callable[[str, int], str]) -> Grid:
    lines = [[method, *(cell(method, length) for length in found.lengths)] for method in found.methods]
    return Grid(title, ["method", *(f"{length:,}" for length in found.lengths)], [x for x in lines if any(x[1:])])


def _text(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def prefill_said(found: Prefills) -> Iterator[str]:
    """Which methods beat dense attention, from which length on, and where they stop."""
    if DENSE not in found.methods:
        return
    for method in found.methods:
        if method == DENSE:
            continue
        both = [
            (n, found.value(DENSE, n, "milliseconds"), found.value(method, n, "milliseconds")) for n in found.lengths
        ]
        known = [(length, dense / own) for length, dense, own in both if not math.isnan(dense / own)]
        if not known:
            continue
        longest, times = known[-1]
        faster = [length for place, (length, _) in enumerate(known) if all(rate > 1 for _, rate in known[place:])]
        since = f"faster than dense from {faster[0]:,} tokens on" if faster else "not faster than dense"
        read = _text(found.value(method, longest, "budget"), ", reading {:.0%} of its keys")
        yield f"{method}: {since}, {times:.2f} times its speed at {longest:,}{read}"
    for method in found.methods:
        missing = [length for length in found.lengths if math.isnan(found.value(method, length, "milliseconds"))]
        if missing:
            yield f"{method}: nothing measured at {', '.join(f'{length:,}' for length in missing)} tokens"


def prefill_chart(found: Prefills) -> str:
    """Milliseconds against length, a line a method, both on scales of equal ratios."""
    figure, axes = make_axes(3.9)
    for number, method in enumerate(found.methods):
        points = [(n, found.value(method, n, "milliseconds")) for n in found.lengths]
        xs, ys = zip(*points, strict=True)
        colour, shape = LOOKS[number % len(LOOKS)]
        look = {"ls": "--", "mfc": "white"} if number >= len(LOOKS) else {"ls": "-"}
        axes.plot(xs, ys, marker=shape, color=colour, ms=5, lw=1.3, label=plain(method), **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(found.lengths, [_short(length) for length in found.lengths])
    axes.minorticks_off()
    axes.set_xlabel("video tokens")
    axes.set_ylabel("milliseconds of one layer's prefill")
    axes.grid(color=GRID, lw=0.8)
    axes.spines[:].set_color(FAINT)
    figure.legend(fontsize=7, frameon=False, loc="outside upper left", labelcolor=INK, ncols=3)
    return to_svg(figure)


def _short(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def prefill_markdown(tables: Sequence[Prefills]) -> str:
    """The section of a report in Markdown."""
    parts = ["## Prefill of one layer by method"]
    for found in tables:
        origin = ", ".join(f"{name} {value}" for name, value in found.origin if value)
        parts += [f"### {found.title}", f"`{found.file}`: {origin}"]
        parts += ["\n".join(f"- {said}" for said in prefill_said(found))]
        for grid in prefill_grids(found):
            parts += [grid.title, grid.markdown()]
    return "\n\n".join(part for part in parts if part) + "\n"
