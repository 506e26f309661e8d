"""`nsa-lab bench`: a training step's seconds and peak memory by video length, sparse against dense."""

import csv
import dataclasses
import datetime
import importlib.metadata
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.config import ExperimentConfig, load_config, to_dict
from nsa_lab.config.rules import broken_rules
from nsa_lab.config.sizes import MERGE, SIZES
from nsa_lab.errors import ConfigError, NsaLabError

FRAME_TOKENS = 64
ANSWER = "red"
MIB = 1 << 20


@dataclass(frozen=True)
class Point:
    """One measurement to take: a model size, an attention mode and the video tokens of the one sample."""

    size: str
    mode: str
    video_tokens: int


@dataclass(frozen=True)
class Measurement:
    """The fastest of the timed steps, and memory above that of the libraries and the model, in MiB."""

    seconds: float
    peak_mib: float
    base_mib: float


def run_bench(
    config: ExperimentConfig,
    *,
    lengths: Sequence[int],
    sizes: Sequence[str],
    repeats: int,
    out: Path | None,
    layer: bool = False,
) -> list[dict[str, Any]]:
    """Measure every size, length and mode, print a table as it grows, and append the rows to the CSV `out`.

    A training step of the model, or with `layer` the forward of one layer's attention.

    Raises NsaLabError on a length that is not whole frames, an unknown size, or a CSV that cannot be written.
    """
    points = list(_points(lengths, sizes))
    machine = machine_facts(config)
    rows: list[dict[str, Any]] = []
    print(f"{machine['device']}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}")
    print(f"{'size':>6} {'tokens':>7} {'mode':>6} {'seconds':>9} {'peak MiB':>9} {'vs dense':>9}")
    for point in points:
        measured = _in_fresh_process(_with(config, point), point, repeats, layer)
        rows.append(
            {
                "what": "layer forward" if layer else "training step",
                **dataclasses.asdict(point),
                **dataclasses.asdict(measured),
                "repeats": repeats,
                **machine,
            }
        )
        print(_line(point, measured, rows), flush=True)
        if out is not None:
            _append(out, rows[-1])
    return rows


def measure(tree: dict[str, Any], point: Point, repeats: int) -> Measurement:
    """Build the model and time forward, backward and optimiser on a random clip, in this process."""
    import torch

    from nsa_lab.data import load_tokenizer
    from nsa_lab.model import build_model
    from nsa_lab.training.schedule import build_optimizer
    from nsa_lab.training.score import score_answers

    config = load_config(None, tree)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    device = bench_device(config)
    tokenizer = load_tokenizer(config.data.tokenizer, Path(config.data.cache_dir))
    torch.manual_seed(config.seed)
    model = build_model(config, tokenizer).to(device).train()
    optimizer, _ = build_optimizer(model, config.training)
    batch = {
        k: v.to(device) if hasattr(v, "to") else v
        for k, v in random_batch(point.video_tokens, tokenizer, config).items()
    }
    bf16 = config.training.precision.startswith("bf16")

    def step() -> float:
        started = now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = score_answers(model, batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return now(device) - started

    base = memory_mib(device, peak=False)
    step()
    seconds = min(step() for _ in range(repeats))
    return Measurement(seconds, memory_mib(device, peak=True) - base, base)


def random_batch(video_tokens: int, tokenizer: Any, config: ExperimentConfig) -> dict[str, Any]:
    """One sample of random pixels with `video_tokens` tokens, a question and an answer, packed for training."""
    import torch

    from nsa_lab.data import Example, Turn, pack
    from nsa_lab.data.chat import VIDEO_TOKEN, encode_chat
    from nsa_lab.data.positions import mrope_positions

    frames = video_tokens // FRAME_TOKENS
    side = MERGE * math.isqrt(FRAME_TOKENS)
    grid = torch.tensor([[frames, side, side]])
    turns = [Turn("Which colour came first?", ANSWER)]
    chat = encode_chat(turns, video_tokens, tokenizer, config.data.system_prompt)
    is_video = chat.input_ids == tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
    seconds = torch.arange(frames, dtype=torch.float64) * 2 / config.data.fps
    example = Example(
        input_ids=chat.input_ids,
        labels=chat.labels,
        position_ids=mrope_positions(is_video, grid, seconds, 2.0),
        pixel_values=torch.randn(frames * side * side, 1176, generator=torch.Generator().manual_seed(config.seed)),
        grid_thw=grid,
        answer_index=chat.answer_index,
        task="bench",
        token_types=is_video.long() * 2,
    )
    return pack([example])


def machine_facts(config: ExperimentConfig) -> dict[str, str]:
    """Where numbers come from: device, cores, library versions, commit, date."""
    import torch

    from nsa_lab.tracking_origin import source_state

    source = source_state()
    on_gpu = torch.cuda.is_available() and config.training.accelerator != "cpu"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(config.training.threads or torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "commit": source.commit + ("-dirty" if source.dirty else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _points(lengths: Sequence[int], sizes: Sequence[str]) -> Iterator[Point]:
    for size in sizes:
        if size not in SIZES:
            raise NsaLabError(f"--sizes {size!r} is no model size; known: {', '.join(SIZES)}")
        for length in lengths:
            if length < FRAME_TOKENS or length % FRAME_TOKENS:
                raise NsaLabError(
                    f"--lengths {length} is not a positive multiple of {FRAME_TOKENS}, a frame pair's tokens"
                )
            yield from (Point(size, mode, length) for mode in ("dense", "sparse"))


def _with(config: ExperimentConfig, point: Point) -> ExperimentConfig:
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, size=point.size),  # type: ignore[arg-type]
        attention=dataclasses.replace(config.attention, mode=point.mode),  # type: ignore[arg-type]
    )
    if problems := broken_rules(config):
        raise ConfigError(problems)
    return config


def _in_fresh_process(config: ExperimentConfig, point: Point, repeats: int, layer: bool) -> Measurement:
    """Peak memory of a process never falls, so each point gets its own."""
    if layer:
        from nsa_lab.bench_layer import measure_layer as measure_point
    else:
        measure_point = measure
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure_point, to_dict(config), point, repeats).result()
        except BrokenProcessPool as error:
            raise NsaLabError(
                f"the process that measured {point.size} {point.mode} at {point.video_tokens} tokens "
                "was killed, most likely for want of memory; use shorter --lengths"
            ) from error


def bench_device(config: ExperimentConfig) -> Any:
    """The GPU where there is one and the config does not say cpu."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() and config.training.accelerator != "cpu" else "cpu")


def memory_mib(device: Any, peak: bool) -> float:
    """Memory of this process in MiB, now or at its peak: resident on a CPU, allocated tensors on a GPU."""
    if device.type == "cuda":
        import torch

        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / MIB
    # Not getrusage: its maximum is inherited from the process that started this one.
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def now(device: Any) -> float:
    """Seconds on a clock that has waited for the device."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def _line(point: Point, measured: Measurement, rows: list[dict[str, Any]]) -> str:
    same = [r for r in rows if (r["size"], r["video_tokens"], r["mode"]) == (point.size, point.video_tokens, "dense")]
    ratio = f"{same[0]['seconds'] / measured.seconds:.2f}x" if same and point.mode == "sparse" else ""
    return (
        f"{point.size:>6} {point.video_tokens:>7} {point.mode:>6} {measured.seconds:>9.4f} "
        f"{measured.peak_mib:>9.0f} {ratio:>9}"
    )


def _append(out: Path, row: dict[str, Any]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = not out.exists()
        with open(out, "a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        raise NsaLabError(f"cannot write {out}: {error.strerror}; choose another file with --out") from error
