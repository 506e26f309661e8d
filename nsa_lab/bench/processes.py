"""Calls a measurement in fresh processes, which are one training's where there are several."""

import os
from collections.abc import Callable, Sequence
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.training.launch import free_port
from nsa_lab.training.ranks import LAUNCHED


class OutOfMemory(Exception):
    """A process among several has not enough memory, and the others wait for it."""


def first_answer(measure: Callable[..., Any], given: Sequence[Any], processes: int, gpus: bool) -> Any:
    """What `measure(*given)` returns in the first of so many processes, each of which calls it; with `gpus` on its own.

    None where one of them returns None, for want of memory, or is killed. Raises NsaLabError where it raised that.
    """
    context = multiprocessing.get_context("spawn")
    answers: SimpleQueue[Any] = context.SimpleQueue()
    try:
        multiprocessing.spawn(_body, (processes, gpus, free_port(), measure, tuple(given), answers), processes)
    except multiprocessing.ProcessExitedException:
        return None
    except multiprocessing.ProcessRaisedException as error:
        return _raised(error)
    return answers.get()


def _body(
    rank: int, world: int, gpus: bool, port: int, measure: Callable[..., Any], given: Sequence[Any], answers: Any
) -> None:
    if world == 1:
        answers.put(measure(*given))
        return
    told = (rank, world, rank, world, "127.0.0.1", port)
    os.environ.update(zip(LAUNCHED, map(str, told), strict=True))
    if gpus:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if gpus else "gloo")
    found = measure(*given)
    if found is None:
        raise OutOfMemory
    if rank == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _raised(error: multiprocessing.ProcessRaisedException) -> None:
    last = str(error).strip().splitlines()[-1]
    kind, _, text = last.partition(": ")
    if kind.endswith(OutOfMemory.__name__):
        return
    if kind.endswith(NsaLabError.__name__):
        raise NsaLabError(text or first_line(error)) from error
    raise error
