"""Where numbers come from: the code, the libraries, the machine, the day."""

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DIFF_LIMIT = 1_000_000


@dataclass(frozen=True)
class Source:
    """The code that runs: its commit, and the uncommitted changes (a diff, then the untracked files)."""

    commit: str
    dirty: str


def training_device(accelerator: str) -> "torch.device":
    """What training.accelerator means on this machine: the GPU where there is one, unless it says cpu."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu")


def machine_facts(accelerator: str, threads: int | None) -> dict[str, str]:
    """What a table says of where its rows were measured. `threads` are PyTorch's own where None."""
    import torch

    source = source_state()
    on_gpu = training_device(accelerator).type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(threads or torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": source.commit + ("-dirty" if source.dirty else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def code_digest() -> str:
    """Twelve hex digits over the sources of lab and kernels: the same code, whether or not a commit is known."""
    digest = hashlib.sha256()
    for package in ("nsa_lab", "nsa_kernels"):
        root = Path(str(find_spec(package).origin)).parent  # type: ignore[union-attr]
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def source_state() -> Source:
    """Commit and uncommitted changes of the repository that holds this package; "unknown" outside of one.

    The variable NSA_COMMIT names the commit of a copy that has no repository, or another's.
    """
    if given := os.environ.get("NSA_COMMIT"):
        return Source(given, "")
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return Source("unknown", "")
    diff = _git("diff", "HEAD") or ""
    untracked = _git("ls-files", "--others", "--exclude-standard") or ""
    if len(diff) > DIFF_LIMIT:
        diff = f"{diff[:DIFF_LIMIT]}\n[cut: the diff has {len(diff)} characters]\n"
    names = "".join(f"untracked: {name}\n" for name in untracked.splitlines())
    return Source(commit.strip(), diff + names)


def _git(*arguments: str) -> str | None:
    """Output of a git command, or None where git or a repository is missing or does not answer."""
    command = ["git", "-c", "core.quotepath=off", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
