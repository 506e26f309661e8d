"""Run a Python file that a user wrote as data (a sweep, a comparison), with faults that name its line."""

import difflib
import importlib.util
import traceback
from pathlib import Path
from types import ModuleType

from nsa_lab.errors import NsaLabError


def execute(file: Path, what: str) -> ModuleType:
    """The module of `file`, a `what` ("sweep", "comparison"). Raises NsaLabError that names the file and the line."""
    if file.is_dir():
        raise NsaLabError(f"{what} file {file} is a folder; name a .py file in it")
    if not file.is_file():
        raise NsaLabError(f"{what} file {file} does not exist{_near_file(file)}")
    spec = importlib.util.spec_from_file_location(f"nsa_lab_{what}_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise NsaLabError(f"{file} is not a Python file; a {what} is a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise NsaLabError(f"{place_of(file, error)}: {kind_of(error)}; correct the {what} file") from error
    return module


def experiment_file(file: Path, named: str) -> Path:
    """The YAML that `file` names: from here, from beside the file, or from above it. Raises NsaLabError."""
    for place in (Path(named), file.parent / named, file.parent.parent / named):
        if place.is_file():
            return place
    raise NsaLabError(f"{file}: {named} does not exist here, beside the file, or above it; correct the name")


def place_of(file: Path, error: Exception) -> str:
    """`file:line` where the error left the file."""
    if isinstance(error, SyntaxError):
        return f"{file}:{error.lineno}"
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == file.resolve()
    ]
    return f"{file}:{lines[-1]}" if lines else str(file)


def kind_of(error: Exception) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _near_file(file: Path) -> str:
    known = {path.name: path for folder in (file.parent, Path("sweeps")) for path in folder.glob("*.py")}
    near = difflib.get_close_matches(f"{file.stem}.py", known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else "; check the path"
