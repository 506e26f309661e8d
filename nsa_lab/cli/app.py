"""The command line. Commands import what they need when they run, so that `--help` answers at once."""

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer

from nsa_lab import origin
from nsa_lab.cli.ablate import ablate
from nsa_lab.cli.analyze import analyze_app
from nsa_lab.cli.ask import ask
from nsa_lab.cli.bench import bench
from nsa_lab.cli.benchmark import benchmark
from nsa_lab.cli.compare import compare, report
from nsa_lab.cli.data import data_app
from nsa_lab.cli.evaluate import evaluate
from nsa_lab.cli.export import export
from nsa_lab.cli.group import OneLineGroup
from nsa_lab.cli.runs import runs_app
from nsa_lab.cli.scale import plan, promote
from nsa_lab.cli.sweep import sweep_app
from nsa_lab.cli.tasks import tasks_app
from nsa_lab.cli.values import Experiment, load_experiment, refuse_empty
from nsa_lab.errors import NsaLabError
from nsa_lab.redact import hide

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings on top, such as training.steps=200.", metavar="KEY=VALUE"),
]
app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""A laboratory for sparse attention in video language models.

    First run, on a laptop CPU, nothing to download:

    `nsa-lab train experiments/smoke.yaml`

    See what a run would do (every setting, the hash, the attention budget):

    `nsa-lab show experiments/smoke.yaml attention.branches.window.size=64`

    Search designs, then look at every run in the browser:

    `nsa-lab sweep sweeps/block_budget.py --trials 40 --workers 2`

    `nsa-lab ui`
    """,
)


app.add_typer(sweep_app, name="sweep")
app.command()(ablate)
app.command()(compare)
app.command()(report)
app.command()(plan)
app.command()(promote)
app.command()(export)
app.command()(evaluate)
app.command()(ask)
app.command()(benchmark)
app.add_typer(data_app, name="data")
app.add_typer(analyze_app, name="analyze")
app.add_typer(runs_app, name="runs")
app.add_typer(tasks_app, name="tasks")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"nsa-lab {origin.version('nsa-lab')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (or set NSA_LAB_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Holds the options that every command shares; `main` reads them."""


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Run directory; by default {output.dir}/{name}-{hash}.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train one experiment, or go on with it from its last checkpoint.

    The same command again continues after a kill, and reports the recorded result once the run is over.

    With training.devices=N it trains on N GPUs of this machine (or in N processes on its CPU); torchrun's and SLURM's
    processes are used where they started it. training.context_parallel=M of them share each sample.

    `nsa-lab train experiments/smoke.yaml`

    `nsa-lab train experiments/smoke.yaml seed=1 attention.method=dense name=dense`

    `nsa-lab train experiments/smoke.yaml training.resume=false`
    """
    from nsa_lab.cli.output import print_result, say
    from nsa_lab.config import load_config
    from nsa_lab.config.rules import notices

    experiment = load_config(config, overrides or ())
    for notice in notices(experiment):
        say(f"notice: {notice}")

    from nsa_lab import api

    result = api.train(experiment, directory=directory, progress_bar=not quiet)
    if result.first:
        print_result(experiment, config, result)


@app.command()
def show(experiment: Experiment = None) -> None:
    """Print the resolved config, its hash and its attention budget; the YAML alone goes to stdout.

    `nsa-lab show experiments/smoke.yaml`

    `nsa-lab show attention.partition.kind=frame model.size=7b`

    `nsa-lab show experiments/smoke.yaml training.steps=50 > mine.yaml`
    """
    from nsa_lab.cli.output import describe_budget, say
    from nsa_lab.config import config_hash, to_yaml
    from nsa_lab.config.rules import notices

    config = load_experiment(experiment or [])
    typer.echo(to_yaml(config), nl=False)
    say(f"hash: {config_hash(config)}")
    for line in describe_budget(config):
        say(f"budget: {line}")
    for notice in notices(config):
        say(f"notice: {notice}")


@app.command()
def ui(
    experiment: Experiment = None,
    port: Annotated[int, typer.Option(help="Port of the page.", min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    browse: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Open MLflow's page on the runs of this folder (or of a config's tracking.uri), until Ctrl-C.

    `nsa-lab ui`

    `nsa-lab ui experiments/smoke.yaml output.dir=/data/runs --port 5001`
    """
    from nsa_lab.tracking import serve_ui

    raise typer.Exit(serve_ui(load_experiment(experiment or []), port, host, browse))


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="A run directory, or one above several.", metavar="DIR")],
    uri: Annotated[str | None, typer.Option(help="Send to this tracking server instead of the recorded one.")] = None,
) -> None:
    """Send recorded runs to the tracking server: after an outage, or to another server.

    `nsa-lab push runs/smoke-0123456789ab`

    `nsa-lab push runs --uri http://tracking.example:5000`
    """
    from nsa_lab.tracking import push as send

    sent = send(directory, uri)
    for place in sent:
        typer.echo(f"sent {place}")
    if not sent:
        typer.echo(f"nothing to send in {directory}: all has arrived, or is still being written")


app.command()(bench)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 2 the user's to mend (a line each on stderr), 130 interrupted, 1 our fault."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # On a machine that does other work too, threads that spin at every barrier make small models many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    # The option counts wherever it stands, since it is an afterthought by nature.
    debug = "--debug" in given or os.environ.get("NSA_LAB_DEBUG", "0") not in ("", "0")
    try:
        refuse_empty(given)
        app([argument for argument in given if argument != "--debug"], prog_name="nsa-lab")
    except NsaLabError as error:
        if debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        sys.exit(_end(error))
    except SystemExit as end:
        # A command that was interrupted and said so itself exits with the same code, but without this cause.
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        raise


def _end(error: Exception) -> int:
    """Say what nobody foresaw in one line, and return the exit code: 2 where a file or the machine refused, else 1."""
    if isinstance(error, OSError) and error.strerror:
        print(f"error: {error.filename or 'the system'}: {error.strerror}", file=sys.stderr)
        return 2
    if isinstance(error, MemoryError):
        print("error: not enough memory; make the model, the batch or the clips smaller", file=sys.stderr)
        return 2
    with tempfile.NamedTemporaryFile("w", prefix="nsa-lab-", suffix=".txt", delete=False) as file:
        file.write(hide("".join(traceback.format_exception(error))))
    # Of a process of its own that failed, torch gives the traceback, whose last line says why.
    told = str(error).strip().splitlines()[-1:] if "Traceback (most recent call last)" in str(error) else [str(error)]
    reason = " ".join(hide("".join(told)).split())[:200]
    said = f"a fault of nsa-lab itself ({type(error).__name__}: {reason}); please report it with {file.name}"
    print(f"error: {said}", file=sys.stderr)
    return 1
