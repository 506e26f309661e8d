"""A plan as tables, and as JSON."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from nsa_lab.runner.view import number
from nsa_lab.scale.memory import GIB, Setup
from nsa_lab.scale.plan import FITS, Plan
from nsa_lab.scale.rates import GPUS


def print_plan(plan: Plan, console: Console, samples: int, price: float | None) -> None:
    """Tables of parameters, memory, FLOPs, seconds and what fits; then the cost of `samples` such samples."""
    load, setup, (name, gib) = plan.load, plan.setup, GPUS[plan.gpu]
    console.print(
        f"{setup.gpus} x {name}; a micro-batch of {load.samples} x ({load.video_tokens:,} video + {load.text} text"
        f" tokens), {load.answer} of them labelled, {load.frame_tokens} a temporal patch; {setup.precision},"
        f" checkpointing {_policy(setup)}, {'compiled' if setup.compiled else 'eager'} dense parts"
        + (f", shared by {load.context} GPUs" if load.context > 1 else "")
        + ("" if setup.optimizer else ", no optimizer"),
        highlight=False,
        soft_wrap=True,
    )
    for table in (_parameters(plan), _memory(plan, gib), _flops(plan), _seconds(plan), _fits(plan, gib)):
        console.print(table)
    for line in _summary(plan, samples, price):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in plan.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def as_json(plan: Plan, samples: int, price: float | None) -> dict[str, Any]:
    """The plan as plain numbers: bytes, FLOPs of one forward, seconds."""
    hours = plan.hours(samples)
    return {
        "gpu": GPUS[plan.gpu][0],
        "gpus": plan.setup.gpus,
        "setup": vars(plan.setup),
        "micro_batch": vars(plan.load),
        "parameters": dict(plan.parameters),
        "memory_bytes": {**plan.memory.parts, "total": plan.memory.total, "moment": plan.memory.moment},
        "alone_bytes": dict(plan.memory.alone),
        "host_bytes": dict(plan.host),
        "forward_flops": {group: dict(parts) for group, parts in plan.flops.items()},
        "keys_per_query": dict(plan.keys),
        "seconds": {
            name: {"seconds": own.seconds, "rate": own.rate.value, "unit": own.rate.unit, "how": own.rate.how}
            | {"source": own.rate.source}
            for name, own in plan.step.work.items()
        }
        | {"exposed communication": {"seconds": plan.step.exposed}, "late copies": {"seconds": plan.step.late}}
        | {"total": {"seconds": plan.step.seconds}},
        "tokens_per_second_per_gpu": plan.tokens_per_second,
        "tokens_per_second": plan.tokens_per_second_in_all,
        "mfu": plan.mfu,
        "fits": [vars(fit) for fit in plan.fits],
        "samples": samples,
        "hours": hours,
        "gpu_hours": hours * plan.setup.gpus,
        "price": None if price is None else price * hours * plan.setup.gpus,
        "notes": list(plan.notes),
    }


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _parameters(plan: Plan) -> Table:
    table = _table("parameters", "part", "millions")
    for part, count in plan.parameters.items():
        table.add_row(part, f"{count / 1e6:,.1f}" if count >= 1e5 else f"{count / 1e6:.4f}")
    table.add_row("all", f"{sum(plan.parameters.values()) / 1e6:,.1f}")
    return table


def _memory(plan: Plan, gib: float) -> Table:
    table = _table(f"memory of a GPU at its peak: {plan.memory.moment}", "what", "GiB")
    for what, size in plan.memory.parts.items():
        table.add_row(what, f"{size / GIB:.2f}")
    table.add_row("all", f"{plan.memory.total / GIB:.2f} of {gib:.0f}")
    for what, size in plan.memory.alone.items():
        table.add_row(f"({what}, alone)", f"{size / GIB:.2f}")
    for what, size in plan.host.items():
        table.add_row(f"({what}, in the host's memory)", f"{size / GIB:.2f}")
    return table


def _policy(setup: Setup) -> str:
    """The policy; of auto, how many layers keep what."""
    counts = ", ".join(f"{count} {way}" for way, count in Counter(setup.ways).items())
    return f"{setup.policy} (layers: {counts})" if counts else setup.policy


def _flops(plan: Plan) -> Table:
    table = _table("FLOPs of one forward", "what", "TFLOP", "share", "keys a query")
    for group, parts in plan.flops.items():
        for what, amount in parts.items():
            keys = plan.keys.get(what)
            read = "" if keys is None or group != "attention" else number(keys)
            table.add_row(f"{group}: {what}", f"{amount / 1e12:,.1f}", f"{amount / plan.forward_flops:.1%}", read)
    table.add_row("all", f"{plan.forward_flops / 1e12:,.1f}")
    return table


def _seconds(plan: Plan) -> Table:
    table = _table("seconds of a micro-batch", "work", "seconds", "rate", "", "from")
    for what, own in plan.step.work.items():
        table.add_row(
            what, f"{own.seconds:.3f}", f"{own.rate.value:,.0f} {own.rate.unit}", own.rate.how, own.rate.source
        )
    if plan.setup.gpus > 1:
        table.add_row("communication that nothing hides", f"{plan.step.exposed:.3f}", "", "estimate", "")
    if plan.host:
        table.add_row("copies to the host that are late", f"{plan.step.late:.3f}", "", "derived", "")
    table.add_row("all", f"{plan.step.seconds:.3f}")
    table.columns[4].justify = "left"
    return table


def _fits(plan: Plan, gib: float) -> Table:
    table = _table(f"what fits ({FITS:.0%} of {gib:.0f} GiB)", "GPUs", "this, GiB a GPU", "fits", "longest sample")
    for fit in plan.fits:
        longest = f"{fit.longest:,} video tokens" if fit.longest else "none"
        table.add_row(str(fit.gpus), f"{fit.peak_gib:.1f}", "yes" if fit.fits else "no", longest)
    return table


def _summary(plan: Plan, samples: int, price: float | None) -> list[str]:
    wall, gpus, together = plan.hours(samples), plan.setup.gpus, plan.tokens_per_second_in_all
    cost = "" if price is None else f", {price * gpus * wall:,.0f} at {price:g} a GPU-hour"
    return [
        f"{plan.tokens_per_second:,.0f} tokens/s a GPU, {together:,.0f} in all; MFU {plan.mfu:.1%}",
        f"{samples:,} such samples: {gpus * wall:,.0f} GPU-hours, {wall:,.1f} hours on {gpus}{cost}",
    ]
