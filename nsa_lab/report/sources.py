"""What lies in a folder that a report can tell of."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nsa_lab.analysis.runs import find_runs
from nsa_lab.benchmark.run import SCORE, Score
from nsa_lab.comparison.compare import ROWS
from nsa_lab.comparison.rows import Row, check_one_training_each, read_rows
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.stored import STORED, load_stored
from nsa_lab.errors import NsaLabError
from nsa_lab.files import no_folder
from nsa_lab.report.prefill import FILES, Prefills, read_prefills
from nsa_lab.report.runs import PlainRun, read_plain_run
from nsa_lab.tracking.store import ARTIFACTS

PICTURES = (".png", ".svg")
FRONT = "pareto.png"
ANALYSIS = "analysis"
Source = TypeVar("Source")


@dataclass(frozen=True)
class Compared:
    """A comparison with its rows; of `others`, experiments that were not asked for last, its folder has rows too."""

    comparison: Comparison
    rows: list[Row]
    others: list[str]


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures: a study's front, or what was drawn of a run."""

    folder: Path
    title: str
    files: list[Path]


@dataclass(frozen=True)
class Found:
    """`faults` say of each source that could not be read why, and what to do."""

    compared: list[Compared]
    studies: list[Pictures]
    trained: list[PlainRun]
    runs: list[Pictures]
    scores: list[Score]
    prefills: list[Prefills]
    faults: list[str]


def find(places: Sequence[Path]) -> Found:
    """All that stands in or below folders, and CSVs of prefills, named or called FILES; what is damaged becomes a fault
    of its own and spares the rest.

    Raises NsaLabError where a folder does not exist, or nothing is found.
    """
    tables = [place for place in places if place.suffix == ".csv"]
    folders = [place for place in places if place not in tables]
    for folder in folders:
        if not folder.is_dir():
            raise NsaLabError(f"{folder} {no_folder(folder)}; name one with comparisons, studies or runs, such as runs")
    faults: list[str] = []
    homes = [file.parent for file in _each(folders, STORED) if (file.parent / ROWS).is_file()]
    compared = list(_readable(_compared, homes, faults))
    studies = [Pictures(file.parent, file.parent.name, [file]) for file in _each(folders, FRONT)]
    drawn = (place for place in _each(folders, ANALYSIS) if place.is_dir())
    runs = [Pictures(place, place.parent.name, _pictures(place)) for place in drawn if _pictures(place)]
    alone = {home.resolve(): home for folder in folders for home in find_runs(folder)}
    trained = list(_readable(read_plain_run, alone.values(), faults))
    scores = list(_readable(Score.read, [file.parent for file in _each(folders, SCORE)], faults))
    measured = {file.resolve(): file for file in (*tables, *_each(folders, FILES))}
    prefills = [one for own in _readable(read_prefills, measured.values(), faults) for one in own]
    if not (compared or studies or runs or trained or scores or prefills or faults):
        raise NsaLabError(
            f"{', '.join(map(str, places))}: nothing to report on; a training, a comparison, an ablation, a sweep, a"
            " benchmark or `nsa-lab analyze` leaves something there"
        )
    return Found(compared, studies, trained, runs, scores, prefills, faults)


def _readable(read: Callable[[Path], Source | None], homes: Iterable[Path], faults: list[str]) -> Iterator[Source]:
    """What `read` makes of each folder; why it cannot joins `faults`."""
    for home in homes:
        try:
            if (one := read(home)) is not None:
                yield one
        except NsaLabError as error:
            faults += str(error).splitlines()
        except OSError as error:
            faults.append(f"{error.filename or home} cannot be read ({error.strerror}); make it readable, or remove it")


def _each(folders: Sequence[Path], name: str) -> Iterator[Path]:
    """Where `name` stands in or below `folders`, but for the copies that MLflow keeps beside what they are of."""
    below = ((folder, place) for folder in folders for place in sorted(folder.rglob(name)))
    found = {place.resolve(): place for folder, place in below if ARTIFACTS not in place.relative_to(folder).parts}
    return iter(found.values())


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in PICTURES)


def _compared(folder: Path) -> Compared:
    comparison = load_stored(folder)
    rows = list(read_rows(folder / ROWS).values())
    known = {one.name for one in comparison.experiments}
    mine = [row for row in rows if row["experiment"] in known]
    try:
        check_one_training_each(mine)
    except NsaLabError as error:
        raise NsaLabError(f"{folder / ROWS}: {error}") from error
    return Compared(comparison, mine, sorted({row["experiment"] for row in rows} - known))
