"""What each method's prefill costs by length: one layer, its choice apart, memory, and the attention it spends."""

import dataclasses
import multiprocessing
import subprocess
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nsa_lab.bench.measure import Point
from nsa_lab.bench.run import append_row, check_length
from nsa_lab.config import ExperimentConfig, flatten, load_config, to_dict
from nsa_lab.config.sizes import SIZES
from nsa_lab.errors import NsaLabError
from nsa_lab.origin import machine_facts, training_device, version

if TYPE_CHECKING:
    from nsa_lab.bench.prefill_point import Prefill

INPUTS = ("random", "video")
"""As the kernels' bench makes them (nsa_kernels.bench.inputs): independent heads, or scenes that drift slowly."""


def run_prefill(
    config: ExperimentConfig,
    *,
    methods: Sequence[str],
    lengths: Sequence[int],
    sizes: Sequence[str],
    inputs: Sequence[str],
    repeats: int,
    out: Path | None,
) -> list[dict[str, Any]]:
    """Measure every size, length, kind of inputs and method; print a table as it grows, append to the CSV `out`.

    In the dtype of training.precision, without gradient. Each size and length has a process of its own, in which
    nothing is compiled twice; what does not fit the memory becomes a line that says so, and the next one follows.
    Raises NsaLabError on an unknown method, size or kind of inputs, or a length that is not whole frames.
    """
    for kind in inputs:
        if kind not in INPUTS:
            raise NsaLabError(f"--inputs {kind!r} is unknown; known: {', '.join(INPUTS)}")
    for size in sizes:
        if size not in SIZES:
            raise NsaLabError(f"--sizes {size!r} is no model size; known: {', '.join(SIZES)}")
    for length in lengths:
        check_length(length)
    asked = {(size, method): _with(config, size, method) for size in sizes for method in methods}
    machine: dict[str, Any] = machine_facts(config.training.accelerator, config.training.threads)
    machine |= {"triton": version("triton"), "driver": _driver(config)}
    print(f"{machine['device']}, driver {machine['driver']}, torch {machine['torch']}, triton {machine['triton']}")
    head = f"{'size':>5} {'tokens':>7} {'inputs':<6} {'method':<12} {'ms':>9} {'choosing':>9}"
    print(f"{head} {'peak MiB':>9} {'budget':>7} {'visited':>7}")
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for length in lengths:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                for kind in inputs:
                    for method in methods:
                        found = _measured(pool, asked[size, method], Point(size, method, length), kind, repeats)
                        print(_line(size, length, kind, method, found), flush=True)
                        if found is None:
                            continue
                        row: dict[str, Any] = {"what": "layer prefill", "size": size, "inputs": kind, "method": method}
                        row |= {"video_tokens": length, **dataclasses.asdict(found), "repeats": repeats}
                        rows.append(row | {"precision": config.training.precision, **machine})
                        if out is not None:
                            append_row(out, rows[-1])
    return rows


def _with(config: ExperimentConfig, size: str, method: str) -> ExperimentConfig:
    return load_config(None, flatten(to_dict(config)) | {"attention.method": method, "model.size": size})


def _driver(config: ExperimentConfig) -> str:
    if training_device(config.training.accelerator).type != "cuda":
        return "none"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _measured(
    pool: ProcessPoolExecutor, config: ExperimentConfig, point: Point, kind: str, repeats: int
) -> "Prefill | None":
    # Imported here, because a faulty command does not need the model.
    from nsa_lab.bench.prefill_point import measure_prefill

    try:
        return pool.submit(measure_prefill, to_dict(config), point, kind, repeats).result()
    except BrokenProcessPool as error:
        raise NsaLabError(
            f"the process that measured {point.size} {point.method} at {point.video_tokens} tokens was killed, most"
            " likely for want of memory; use shorter --lengths"
        ) from error


def _line(size: str, length: int, kind: str, method: str, found: "Prefill | None") -> str:
    head = f"{size:>5} {length:>7} {kind:<6} {method:<12}"
    if found is None:
        return f"{head} out of memory"
    cells = (
        (found.milliseconds, "9.3f"), (found.choose_ms, "9.3f"), (found.peak_mib, "9.0f"), (found.budget, "7.1%"),
        (found.visited, "7.1%"),
    )  # fmt: skip
    return " ".join(
        [head, *(f"{value:>{form}}" if value == value else "-".rjust(int(form[0])) for value, form in cells)]
    )
