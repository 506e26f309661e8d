"""`nsa-lab bench`: a training step's seconds and peak memory by video length, sparse against dense."""

import csv
import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from nsa_lab.bench.measure import Measurement, Point
from nsa_lab.config import ExperimentConfig, flatten, load_config, to_dict
from nsa_lab.config.sizes import SIZES
from nsa_lab.errors import NsaLabError
from nsa_lab.files import writing
from nsa_lab.origin import machine_facts

FRAME_TOKENS = 64


def run_bench(
    config: ExperimentConfig,
    *,
    lengths: Sequence[int],
    sizes: Sequence[str] | None = None,
    repeats: int,
    out: Path | None,
    layer: bool = False,
) -> list[dict[str, Any]]:
    """Measure every size, length and method, print a table as it grows, and append the rows to the CSV `out`.

    A training step of the model, or with `layer` the forward of one layer's attention. Where model.path is given, its
    shape counts in place of `sizes` (default: nano), with random weights.

    Raises NsaLabError on a length that is not whole frames, an unknown size, `sizes` beside model.path, or a CSV that
    cannot be written.
    """
    points = list(_points(lengths, _sizes(config, sizes, layer)))
    machine = machine_facts(config.training.accelerator, config.training.threads)
    rows: list[dict[str, Any]] = []
    print(f"{machine['device']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}")
    print(f"{'size':>6} {'tokens':>7} {'method':>6} {'seconds':>9} {'peak MiB':>9} {'vs dense':>9}")
    for point in points:
        measured = in_fresh_process(_with(config, point), point, repeats, layer)
        row = {"what": "layer forward" if layer else "training step", **dataclasses.asdict(point)}
        rows.append(row | dataclasses.asdict(measured) | {"repeats": repeats, **machine})
        print(_line(point, measured, rows), flush=True)
        if out is not None:
            append_row(out, rows[-1])
    return rows


def _sizes(config: ExperimentConfig, sizes: Sequence[str] | None, layer: bool) -> Sequence[str]:
    if config.model.path is not None:
        if layer:
            raise NsaLabError("--layer measures at --sizes, without a model; leave out model.path")
        if sizes:
            raise NsaLabError(f"--sizes {','.join(sizes)} stands beside model.path, whose shape counts; leave one out")
        return [Path(config.model.path).resolve().name]
    sizes = sizes or ["nano"]
    for size in sizes:
        if size not in SIZES:
            raise NsaLabError(f"--sizes {size!r} is no model size; known: {', '.join(SIZES)}")
    return sizes


def _points(lengths: Sequence[int], sizes: Sequence[str]) -> Iterator[Point]:
    for size in sizes:
        for length in lengths:
            check_length(length)
            yield from (Point(size, method, length) for method in ("dense", "nsa"))


def check_length(length: int) -> None:
    """Raise NsaLabError unless `length` video tokens are whole frames."""
    if length < FRAME_TOKENS or length % FRAME_TOKENS:
        raise NsaLabError(f"--lengths {length} is not a positive multiple of {FRAME_TOKENS}, a frame pair's tokens")


def _with(config: ExperimentConfig, point: Point) -> ExperimentConfig:
    changes = {"attention.method": point.method} | ({} if config.model.path else {"model.size": point.size})
    return load_config(None, flatten(to_dict(config)) | changes)


def in_fresh_process(config: ExperimentConfig, point: Point, repeats: int, layer: bool) -> Measurement:
    """Peak memory of a process never falls, so each point gets its own."""
    # Imported here, because `nsa-lab --help` and a faulty command need neither torch nor the model.
    from nsa_lab.bench.layer import measure_layer
    from nsa_lab.bench.step import measure_step

    measure_point = measure_layer if layer else measure_step
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_point, to_dict(config), point, repeats).result()
        except BrokenProcessPool as error:
            raise NsaLabError(
                f"the process that measured {point.size} {point.method} at {point.video_tokens} tokens "
                "was killed, most likely for want of memory; use shorter --lengths"
            ) from error


def _line(point: Point, measured: Measurement, rows: list[dict[str, Any]]) -> str:
    same = [r for r in rows if (r["size"], r["video_tokens"], r["method"]) == (point.size, point.video_tokens, "dense")]
    ratio = f"{same[0]['seconds'] / measured.seconds:.2f}x" if same and point.method != "dense" else ""
    return (
        f"{point.size:>6} {point.video_tokens:>7} {point.method:>6} {measured.seconds:>9.4f} "
        f"{measured.peak_mib:>9.0f} {ratio:>9}"
    )


def append_row(out: Path, row: dict[str, Any]) -> None:
    """Append `row` to the CSV `out`, under a header where the file is new. Raises NsaLabError where it cannot."""
    with writing(out, "choose another file with --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        new = not out.exists()
        with open(out, "a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
