"""The run: parity, then every job in order of interest, each row written as it is known."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nsa_kernels.bench.baselines import BASELINES, baseline_jobs
from nsa_kernels.bench.inputs import Heads
from nsa_kernels.bench.jobs import Design, Job, Scene
from nsa_kernels.bench.ops import op_jobs
from nsa_kernels.bench.parity import check_design
from nsa_kernels.bench.records import Case, Origin, Result, Row, Shape, append, origin
from nsa_kernels.bench.report import live_line, print_row, print_summary
from nsa_kernels.bench.roofline import Roof, Work, measure_roof
from nsa_kernels.bench.timing import CALLS, Clock, OutOfTime, measure
from nsa_kernels.runtime import why_not

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
START_SECONDS = 2.0
"""Getting ready for a case, beside its calls."""


@dataclass(frozen=True)
class Plan:
    """What the command line asks for; `only` holds names of ops and baselines."""

    lengths: list[int]
    inputs: list[str]
    designs: list[Design]
    only: set[str]
    heads: Heads
    window: int
    dtype: str
    seconds: float
    output: Path
    commit: str | None = None


@dataclass
class Run:
    plan: Plan
    device: torch.device
    clock: Clock
    roof: Roof
    origin: Origin
    path: Path
    rows: list[Row] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        heads, plan = self.plan.heads, self.plan
        return Shape(heads.query, heads.groups, heads.dim, plan.window, plan.dtype)

    def record(self, case: Case, result: Result, work: Work | None = None) -> None:
        result = self.roof.explain(result, work) if work else result
        self.rows.append(Row(case, result, self.shape, self.origin))
        append(self.path, self.rows[-1])
        print_row(self.rows[-1])

    def take(self, job: Job) -> None:
        """Time one job, or write down why not."""
        reason = self._reason_to_skip(job.case)
        if reason is None:
            result, work = self._time(job)
            self.record(job.case, result, work)
        else:
            self.record(job.case, Result(status=f"skipped: {reason}"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _time(self, job: Job) -> tuple[Result, Work | None]:
        try:
            with self.clock.alarm():
                prepared = job.prepare()
                milliseconds, peak = measure(prepared.run, self.device, self.clock)
        except OutOfTime:
            return Result(status="skipped: no time left"), None
        except Exception as error:  # a failure of one case, whatever it is, becomes its row
            return Result(status=f"failed: {one_line(error)}"), None
        status = f"ok: {prepared.note}" if prepared.note else "ok"
        return Result(milliseconds, peak, status, union16=prepared.union16), prepared.work

    def _reason_to_skip(self, case: Case) -> str | None:
        """No time left for what a shorter length leads to expect, or that length failed."""
        if self.clock.left <= START_SECONDS:
            return "no time left"
        shorter = [r for r in self.rows if dataclasses.replace(r.case, tokens=case.tokens) == case]
        if not shorter:
            return None
        last = shorter[-1]
        status = last.result.status.removeprefix("skipped: ")
        if status.startswith("failed"):
            return status if " at T=" in status else f"{status} at T={last.case.tokens}"[:300]
        growth = (case.tokens / last.case.tokens) ** 2
        wanted = CALLS * growth * (last.result.milliseconds or 0.0) / 1e3 + START_SECONDS
        return f"no time left for about {wanted:.0f} s" if wanted > self.clock.left else None


def run(plan: Plan) -> int:
    """Exit code: 0; 1 where parity fails; 2 where the kernels cannot run here."""
    clock = Clock(plan.seconds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := why_not(device):
        print(f"error: {reason}; python -m nsa_kernels.bench resources compiles them without either")
        return 2
    facts = origin(plan.commit)
    print(f"{facts.gpu}, driver {facts.driver}, torch {facts.torch}, triton {facts.triton}, commit {facts.commit}")
    if device.type == "cpu":
        print("The interpreter's times say nothing about a GPU's.")
    try:
        with clock.alarm():
            right = parity(plan, device)
            roof = measure_roof(device)
    except OutOfTime:
        print(f"error: {plan.seconds:.0f} s did not suffice for the parity check; give --seconds more")
        return 1
    if not right:
        print("error: parity failed, so nothing was timed")
        return 1
    if device.type == "cuda":
        print(f"roof: {roof.flops_per_second / 1e12:.0f} TFLOP/s, {roof.bytes_per_second / 1e12:.2f} TB/s")
    path = plan.output / f"{'-'.join(facts.gpu.lower().replace('(', '').replace(')', '').split())}.csv"
    work = Run(plan, device, clock, roof, facts, path)
    print(live_line())
    for job in jobs(plan, device):
        work.take(job)
    print_summary(work.rows)
    missing = sum(r.result.milliseconds is None for r in work.rows)
    print(f"{len(work.rows) - missing} rows measured, {missing} not; {plan.seconds - clock.left:.0f} s; {path}")
    return 0


def parity(plan: Plan, device: torch.device) -> bool:
    """Print every check; True where all pass."""
    good = True
    for design in plan.designs:
        for check in check_design(design, plan.heads, plan.window, DTYPES[plan.dtype], device):
            label = f"{design.block_size} x {design.block_count}, tile {design.query_tile}"
            verdict = "ok" if check.passed else "FAILED"
            print(f"parity {label}: {check.name:<16} {check.error:.1e} (at most {check.limit:.0e}) {verdict}")
            good &= check.passed
    return good


def jobs(plan: Plan, device: torch.device) -> Iterator[Job]:
    """Our ops at all lengths, then the baselines, one after another."""
    for tokens in plan.lengths:
        for number, kind in enumerate(plan.inputs):
            yield from op_jobs(_scene(plan, kind, tokens, device), plan.designs, plan.only, number == 0)
    for op in BASELINES:
        if op in plan.only:
            for number, kind in enumerate(plan.inputs):
                for tokens in plan.lengths:
                    yield from baseline_jobs(op, _scene(plan, kind, tokens, device), plan.designs, number == 0)


def one_line(error: Exception) -> str:
    """The kind of an error and the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _scene(plan: Plan, kind: str, tokens: int, device: torch.device) -> Scene:
    return Scene(kind, tokens, plan.heads, plan.window, DTYPES[plan.dtype], device)
