"""Work that is shared out to processes of one thread each.

The operations of a model of a few million numbers are too short for several threads: a second
core is of use to a second process only. Helpers are forked, as PyTorch's `DataLoader` forks its
workers, so that they have the model, and whatever else is loaded, at once. They compute, or write
files that nobody else writes; the lock of the folder is theirs too, and they end with the process
that they help. Who does which part changes nothing: every part is computed with one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import Array, c_int64
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeVar

from spillover.errors import MachineError, RunError
from spillover.stopping import SIGNALS

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from spillover.models import LoadedModel

T = TypeVar("T")
R = TypeVar("R")
Counts = Array[c_int64]

SMALL = 10_000_000
"""Parameters up to which a second process does more than a second thread."""
MOST = 4
"""Processes that work at a time, at most."""
TICK = 0.2
"""Seconds between two looks at how far the helpers are."""


def crew_of(model: LoadedModel) -> int:
    """How many processes share the work on a model; set OMP_NUM_THREADS to 1 to have no helpers.

    Several for small models on a CPU, where PyTorch may use several threads. One where there is a
    GPU (autograd does not survive a fork there), and where systems do not fork safely.
    """
    import torch

    suits = sys.platform == "linux" and not torch.accelerator.is_available()
    small = sum(p.numel() for p in model.model.parameters()) <= SMALL
    return min(torch.get_num_threads(), MOST) if suits and small else 1


def counts_of(parts: int) -> Counts:
    """A number for each part, seen by all processes that share the work."""
    return multiprocessing.get_context("fork").RawArray(c_int64, parts)


def share_out(
    todo: Sequence[T],
    do: Callable[[T], R],
    took: Callable[[int, R], None],
    crew: int,
    waiting: Callable[[], None] | None = None,
) -> None:
    """Do every part once, in this process or in a helper.

    Args:
        todo: the parts; the first ones are begun first.
        do: what is done to a part; what it returns goes through a pipe.
        took: called in this process with (number of the part, result), in the order of arrival.
        crew: processes that work at a time, this one included; 1 does everything here.
        waiting: called now and then while helpers have not finished.

    Raises:
        MachineError: when the system ends a helper. Whatever a helper raises is raised here.
    """
    if crew == 1:
        for number, part in enumerate(todo):
            took(number, do(part))
        return
    next_one = multiprocessing.get_context("fork").Value(c_int64, 0)

    def take() -> Iterator[int]:
        while True:
            with next_one.get_lock():
                number = next_one.value
                next_one.value += 1
            if number >= len(todo):
                return
            yield number

    with _one_thread(), _helpers(min(crew, len(todo)) - 1, todo, do, take) as helpers:
        for number in take():
            took(number, do(todo[number]))
            _collect(helpers, took, 0.0)
        while helpers:
            _collect(helpers, took, TICK)
            if waiting:
                waiting()


Helpers = dict[Connection, "ForkProcess"]
"""The processes that have not finished, by what they send through."""


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _helpers(
    count: int,
    todo: Sequence[T],
    do: Callable[[T], R],
    take: Callable[[], Iterator[int]],
) -> Iterator[Helpers]:
    """Start helpers; none is left at the end, whatever happens within."""
    context, started = multiprocessing.get_context("fork"), []
    helpers: Helpers = {}
    try:
        for _ in range(count):
            reading, writing = context.Pipe(duplex=False)
            process = context.Process(target=_help, args=(writing, todo, do, take))
            with warnings.catch_warnings():  # of threads: a helper needs none of this process's
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writing.close()
            started.append(process)
            helpers[reading] = process
        yield helpers
    finally:
        for process in started:
            process.kill()
            process.join()
        for reading in helpers:
            reading.close()


def _collect(helpers: Helpers, took: Callable[[int, Any], None], timeout: float) -> None:
    """Take in what has arrived, or arrives in time; those that have finished leave."""
    for reading in wait(list(helpers), timeout):
        assert isinstance(reading, Connection)
        try:
            kind, *content = reading.recv()
        except EOFError:
            process = helpers.pop(reading)
            reading.close()
            process.join()
            if process.exitcode:
                raise MachineError(
                    f"a process that helped was ended from outside (exit {process.exitcode}), "
                    "perhaps for lack of memory; repeat the command to go on, with "
                    "OMP_NUM_THREADS=1 to work without helpers: what is finished is kept"
                ) from None
        else:
            if kind == "failed":
                raise content[0]
            took(*content)


def _help(
    writing: Connection,
    todo: Sequence[T],
    do: Callable[[T], R],
    take: Callable[[], Iterator[int]],
) -> None:
    """What a helper does; this process and its parent end together."""
    signal.set_wakeup_fd(-1)
    for stop in SIGNALS:
        signal.signal(stop, signal.SIG_IGN)  # the parent decides
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # its display is not ours
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _sender(writing) as send:
        try:
            for number in take():
                send(("did", number, do(todo[number])))
        except Exception as error:  # raised again where the work is waited for
            send(("failed", _portable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _sender(writing: Connection) -> Iterator[Callable[[object], None]]:
    """Give a way to send without waiting until it is read; at the end all is sent."""
    waiting: queue.SimpleQueue[object] = queue.SimpleQueue()

    def pump() -> None:
        while (sent := waiting.get()) is not None:
            writing.send(sent)

    thread = threading.Thread(target=pump)
    thread.start()
    try:
        yield waiting.put
    finally:
        waiting.put(None)
        thread.join()


def _portable(error: Exception) -> Exception:
    """An error as it can be sent: itself, or its traceback in a `RunError`."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError("".join(traceback.format_exception(error)))
    return error
