"""What lies in a folder that a report can tell of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsa_lab.comparison.compare import ROWS
from nsa_lab.comparison.rows import Row, check_one_training_each, read_rows
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.stored import STORED, load_stored
from nsa_lab.errors import NsaLabError

PICTURES = (".png", ".svg")
FRONT = "pareto.png"
ANALYSIS = "analysis"


@dataclass(frozen=True)
class Compared:
    """A comparison's folder with its rows, and the command that made them."""

    folder: Path
    comparison: Comparison
    command: str
    rows: list[Row]


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures: a study's front, or what was drawn of a run."""

    folder: Path
    title: str
    files: list[Path]


@dataclass(frozen=True)
class Found:
    compared: list[Compared]
    studies: list[Pictures]
    runs: list[Pictures]


def find(folders: Sequence[Path]) -> Found:
    """All that stands in or below `folders`. Raises NsaLabError where one does not exist, or nothing is found."""
    for folder in folders:
        if not folder.is_dir():
            raise NsaLabError(f"{folder} is no folder; name one with comparisons, studies or runs, such as runs")
    compared = [_compared(file.parent) for file in _each(folders, STORED) if (file.parent / ROWS).is_file()]
    studies = [Pictures(file.parent, file.parent.name, [file]) for file in _each(folders, FRONT)]
    places = (place for place in _each(folders, ANALYSIS) if place.is_dir())
    runs = [Pictures(place, place.parent.name, _pictures(place)) for place in places if _pictures(place)]
    if not (compared or studies or runs):
        raise NsaLabError(
            f"{', '.join(map(str, folders))}: nothing to report on; a comparison, an ablation, a sweep or"
            " `nsa-lab analyze` leaves something there"
        )
    return Found(compared, studies, runs)


def _each(folders: Sequence[Path], name: str) -> Iterator[Path]:
    found = {place.resolve(): place for folder in folders for place in sorted(folder.rglob(name))}
    return iter(found.values())


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in PICTURES)


def _compared(folder: Path) -> Compared:
    comparison, command = load_stored(folder)
    rows = list(read_rows(folder / ROWS).values())
    known = {one.name for one in comparison.experiments}
    mine = [row for row in rows if row["experiment"] in known]
    try:
        check_one_training_each(mine)
    except NsaLabError as error:
        raise NsaLabError(f"{folder / ROWS}: {error}") from error
    return Compared(folder, comparison, command, mine)
