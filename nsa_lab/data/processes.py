"""One function over many items on processes of their own, some of which may die."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")

AHEAD = 2
"""Items in the hands of each process, so that none waits for another."""


def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result | None]]:
    """(item, its result) as they are done; the result is None where the process that had the item died, twice.

    All that a dead process may have had in hand is done again one by one, so that one item costs no other its result.
    An error that `function` raises ends all.
    """
    waiting = deque(items)
    while waiting:
        suspects: list[Item] = []
        yield from _until_a_death(function, waiting, workers, suspects)
        for item in suspects:
            to_blame: list[Item] = []
            yield from _until_a_death(function, deque([item]), 1, to_blame)
            yield from ((culprit, None) for culprit in to_blame)


def _until_a_death(
    function: Callable[[Item], Result], waiting: deque[Item], workers: int, suspects: list[Item]
) -> Iterator[tuple[Item, Result]]:
    """Results of what is taken from `waiting`; where a process dies, what was not done goes to `suspects`."""
    running: dict[Future[Result], Item] = {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD * workers:
                running[pool.submit(function, waiting[0])] = waiting[0]
                waiting.popleft()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                yield running.pop(future), result
    except BrokenProcessPool:
        whole = {future for future in running if future.done() and not future.exception()}
        yield from ((running.pop(future), future.result()) for future in whole)
        suspects += running.values()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """A process leaves Ctrl-C to the one that started it, computes on one thread, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
