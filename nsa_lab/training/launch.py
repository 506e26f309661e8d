"""Starts the other processes of a training on this machine, and ends it when one of them is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.files import write_text
from nsa_lab.model.trained import kept_checkpoint
from nsa_lab.origin import training_device
from nsa_lab.training.directory import RunDirectory
from nsa_lab.training.ranks import LAUNCHED, Ranks

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, a checkpoint's writing included."""
GRACE_S = 30.0
"""How long the first process has to end by itself once another is lost; NCCL would wait for TIMEOUT."""
LOST = "a process of this training is lost"


@contextmanager
def joined(ranks: Ranks, start: bool, config: ExperimentConfig, home: RunDirectory) -> Iterator[None]:
    """Connects the processes that train `config` in `home`; with `start` the first one starts the others.

    What those print is in `home`/processes. Raises NsaLabError where one is lost.
    """
    if ranks.world == 1:
        yield
        return
    others = Others(ranks.world, home) if start else None
    try:
        connect(training_device(config.training.accelerator).type == "cuda", ranks.local_rank)
        yield
    except Exception as error:
        # What the user can mend all of them may have found; only a kill comes before it.
        mendable = isinstance(error, NsaLabError)
        fault = others.fault(killed=mendable) if others else None
        if fault or (_is_of_a_connection(error) and not mendable):
            what = fault or f"{LOST} ({first_line(error)})"
            raise NsaLabError(f"{what}; {_remedy(home)}") from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        if others:
            others.end()


def connect(gpus: bool, local_rank: int) -> None:
    """Join the processes that the environment tells of; with `gpus` each has the GPU of its number on this machine."""
    if gpus:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if gpus else "gloo", timeout=TIMEOUT)


def _is_of_a_connection(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "nccl", "connection closed"))
    )


class Others:
    """The processes 1 to `world` - 1 of a training whose process 0 this one is."""

    def __init__(self, world: int, home: RunDirectory):
        self.home, self.world, folder = home, world, home.path / "processes"
        self.logs = [folder / f"{rank}.log" for rank in range(1, world)]
        self.before = {name: os.environ.get(name) for name in LAUNCHED}
        common = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "nsa_lab.training.follow", str(home.config), str(home.path)]
        self.processes = []
        for rank, log in enumerate(self.logs, start=1):
            write_text(log, "")
            environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with open(log, "a") as output:
                places: Any = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL}
                self.processes.append(subprocess.Popen(command, env=environment, **places))
        os.environ.update(common | {"RANK": "0", "LOCAL_RANK": "0"})
        self.over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def fault(self, killed: bool = False) -> str | None:
        """Which process is lost, in words, or which was `killed`; None where all go on."""
        time.sleep(0.5)  # the others see the same lost connection and end, too: name the one that was first
        ended = [(rank, p.poll()) for rank, p in enumerate(self.processes, start=1)]
        lost = [(rank, code) for rank, code in ended if code and (code < 0 or not killed)]
        for rank, code in sorted(lost, key=lambda pair: pair[1] > 0):  # killed ones first
            log = self.logs[rank - 1]
            why = f"was killed by signal {-code}" if code < 0 else f"ended: {_last_line(log)}; all of it is in {log}"
            return f"process {rank} of {self.world} (0 is the first) {why}"
        return None

    def end(self) -> None:
        """End those that still run, and forget that there were any."""
        self.over.set()
        for process in self.processes:
            try:
                process.wait(GRACE_S if sys.exc_info()[0] is None else 1.0)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _watch(self) -> None:
        while not self.over.wait(0.5):
            if any(process.poll() for process in self.processes) and not self.over.wait(GRACE_S):
                print(f"error: {self.fault()}; {_remedy(self.home)}", file=sys.stderr, flush=True)
                os._exit(2)


def _remedy(home: RunDirectory) -> str:
    return f"{kept_checkpoint(home.checkpoints)}; run the same command again"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
