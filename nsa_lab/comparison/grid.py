"""A table on the terminal, in Markdown and in LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

TO_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
)


@dataclass(frozen=True)
class Grid:
    """Lines of cells under the names of their columns, the first being the line's name; `**` makes bold."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]

    def filled(self) -> "Grid":
        """Without the columns and lines that are empty."""
        some = [line for line in self.lines if any(line[1:])]
        kept = [place for place in range(len(self.head)) if not place or any(line[place] for line in some)]
        head, *lines = ([cells[place] for place in kept] for cells in (self.head, *some))
        return Grid(self.title, head, lines)

    def named(self, owner: str) -> "Grid":
        """With a title that stands outside `owner`'s section."""
        return replace(self, title=f"{owner}: {self.title}")

    def drawn(self) -> Table:
        table = Table(title=Text(self.title), title_justify="left")
        for name in self.head:
            table.add_column(Text(name), overflow="fold", no_wrap=name == self.head[0])
        for line in self.lines:
            table.add_row(*(Text(cell.replace("**", ""), "bold" if "**" in cell else "") for cell in line))
        return table

    def markdown(self) -> str:
        rule = ["---"] * len(self.head)
        cells = [[cell.replace("|", "\\|") for cell in line] for line in (self.head, *self.lines)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:]))

    def latex(self) -> str:
        """A table of the package booktabs."""
        head, *lines = (f"{' & '.join(map(_latex, line))} \\\\" for line in (self.head, *self.lines))
        columns, title = "l" + "r" * (len(self.head) - 1), _latex(self.title)
        top = [r"\begin{table}", r"\centering", f"\\caption{{{title}}}", f"\\begin{{tabular}}{{{columns}}}"]
        bottom = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join([*top, r"\toprule", head, r"\midrule", *lines, *bottom])


def _latex(cell: str) -> str:
    bold = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", cell.translate(TO_LATEX))
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", bold)
