"""Run the tests that need a GPU, tell what happens while it happens, and leave a record of it: python3 tests/gpu.py

Takes any Python with the packages of NEEDED, no virtual environment.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"torch": "torch", "triton": "triton", "omegaconf": "omegaconf", "av": "av", "pytest": "pytest",
          "pytest_timeout": "pytest-timeout", "xdist": "pytest-xdist"}  # fmt: skip
"""Modules, and what they are installed by."""
NAMED = ("torch", "triton", "transformers", "fla-core")
FILES = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
"""Those alone: the other files may need packages that are not here."""
TIME_LIMIT_S = 450
"""Of eight minutes, what starting and the ending of stuck processes leave."""
TEST_LIMIT_S = 240
PULSE_S = 30
GIB_PER_WORKER = 5


@dataclass
class Progress:
    """A pytest plugin that prints a failure when it happens, and what runs when nothing else is heard.

    After `limit` seconds it ends the session. `running` maps tests to when they started.
    """

    limit: float
    pulse: float = PULSE_S
    started: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    cut_off: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def pytest_sessionstart(self, session):
        self.terminal = session.config.pluginmanager.get_plugin("terminalreporter")
        threading.Thread(target=self._watch, daemon=True).start()

    def pytest_sessionfinish(self):
        self.over.set()

    def pytest_runtest_logstart(self, nodeid):
        self.running[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid):
        self.running.pop(nodeid, None)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self._fail(report.nodeid, report.longreprtext)
        elif report.skipped:
            self.counts["skipped"] += 1
        elif report.when == "call":
            self.counts["passed"] += 1

    def pytest_collectreport(self, report):
        if report.failed:
            self._fail(report.nodeid, report.longreprtext)

    def _fail(self, test: str, text: str) -> None:
        self.running.pop(test, None)  # a process that crashed finishes no test
        self.counts["failed"] += 1
        self.failures[test] = text
        self.terminal.write_line(f"\nFAILED {test} after {self.seconds:.0f} s\n{text}\n")

    def _watch(self) -> None:
        while not self.over.wait(min(self.pulse, max(0, self.limit - self.seconds))):
            for test, since in list(self.running.items()):
                self.terminal.write_line(f"running for {time.monotonic() - since:.0f} s: {test}")
            if self.seconds >= self.limit:
                self.cut_off = sorted(self.running)
                os.kill(os.getpid(), signal.SIGINT)
                return


def run(arguments: Sequence[str], limit: float, pulse: float = PULSE_S) -> tuple[int, Progress]:
    """pytest's exit code for `arguments`, and what the plugin saw."""
    import pytest

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
    progress = Progress(limit, pulse)
    return int(pytest.main([*arguments], plugins=[progress])), progress


def summary(command: str, progress: Progress, facts: Sequence[str]) -> str:
    """What is kept of a run: its command, counts and wall time, where it ran, and every test that did not pass."""
    counts = ", ".join(f"{progress.counts[name]} {name}" for name in ("passed", "failed", "skipped"))
    lines = [command, f"{counts} in {progress.seconds:.0f} s", *facts]
    for test, text in progress.failures.items():
        lines += [f"failed: {test}", *(f"    {line}" for line in text.splitlines() if line.startswith("E "))]
    lines += [f"still running at the limit of {progress.limit:.0f} s: {test}" for test in progress.cut_off]
    return "\n".join(lines) + "\n"


def machine() -> list[str]:
    """Date and commit; GPU, driver and cores; versions."""
    import torch

    commit = os.environ.get("NSA_COMMIT") or _commit() or "unknown"
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0") or "unknown"
    versions = [f"{name} {_version(name)}" for name in NAMED]
    return [
        f"{datetime.datetime.now(datetime.UTC).date()}, commit {commit}",
        f"{torch.cuda.get_device_name()}, driver {driver}, {_cores()} cores",
        ", ".join([f"Python {platform.python_version()}", *versions]),
    ]


def reason_not_to() -> str | None:
    """Why the tests cannot run here, in one line."""
    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        return f"the GPU tests need {', '.join(missing)}; run: {sys.executable} -m pip install {' '.join(missing)}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 would run the kernels on the CPU; unset it"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device; the GPU tests need one (`make test` does not)"
    return None


def workers() -> int:
    """Processes that leave two cores to this one and the driver, and each of the others its share of the GPU."""
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory
    return max(1, min(_cores() - 2, memory // (GIB_PER_WORKER * 2**30)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the record; by default kernels/results/gpu-tests-GPU.txt")
    options = parser.parse_args()
    # With as many OpenMP threads as cores in every process, the float64 references on the CPU never end.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    if reason := reason_not_to():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    facts = machine()
    arguments = ["-n", str(workers()), "-m", "gpu", "--timeout", str(TEST_LIMIT_S), *FILES]
    code, progress = run([*arguments, "-vv", "--tb=short", "--no-summary"], TIME_LIMIT_S)
    text = summary(shlex.join(["OMP_NUM_THREADS=1", "pytest", *arguments]), progress, facts)
    out = options.out or ROOT / f"kernels/results/gpu-tests-{_slug(facts[1])}.txt"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(f"{text}written to {out}")
    return code


def _slug(fact: str) -> str:
    return fact.partition(",")[0].removeprefix("NVIDIA ").lower().replace(" ", "-")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _commit() -> str:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return commit + ("-dirty" if commit and _output("git", "-C", str(ROOT), "status", "--porcelain") else "")


def _output(*command: str) -> str:
    """What a command prints, or nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    sys.exit(main())
