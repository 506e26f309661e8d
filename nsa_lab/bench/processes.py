"""Calls a measurement in fresh processes, which are one training's where there are several."""

import contextlib
import os
from collections.abc import Callable, Sequence
from multiprocessing.queues import SimpleQueue
from typing import Any

from torch import distributed as dist
from torch import multiprocessing

from nsa_lab.errors import NsaLabError
from nsa_lab.training.launch import connect, free_port
from nsa_lab.training.ranks import LAUNCHED


def first_answer(measure: Callable[..., Any], given: Sequence[Any], processes: int, gpus: bool) -> Any:
    """What `measure(*given)` returns in the first of so many processes, each of which calls it; with `gpus` on its own.

    None where one of them returns None, for want of memory, or is killed. Raises NsaLabError where it raised that.
    """
    answers: SimpleQueue[Any] = multiprocessing.get_context("spawn").SimpleQueue()
    with contextlib.suppress(multiprocessing.ProcessExitedException):
        multiprocessing.spawn(_body, (processes, gpus, free_port(), measure, tuple(given), answers), processes)
    found = None if answers.empty() else answers.get()
    if isinstance(found, NsaLabError):
        raise found
    return found


def _body(
    rank: int, world: int, gpus: bool, port: int, measure: Callable[..., Any], given: Sequence[Any], answers: Any
) -> None:
    if world > 1:
        told = (rank, world, rank, world, "127.0.0.1", port)
        os.environ.update(zip(LAUNCHED, map(str, told), strict=True))
        connect(gpus, rank)
    try:
        found = measure(*given)
    except NsaLabError as error:
        found = error
    failed = found is None or isinstance(found, NsaLabError)
    if world > 1 and not failed:
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0 or isinstance(found, NsaLabError):
        answers.put(found)
    if world > 1 and failed:
        os._exit(1)  # the others wait for this process, and an ordinary end would wait for them
