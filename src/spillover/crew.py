"""Work that is shared out to processes of one thread each.

The operations of a model of a few million numbers are too short for several threads: a second
core is of use to a second process only. Helpers are forked, as PyTorch's `DataLoader` forks its
workers, so that they have the model, and whatever else is loaded, at once. They compute, or write
files that nobody else writes; the lock of the folder is theirs too, and they end with the process
that they help, which takes in what they send and does nothing else. Who does which part changes
nothing: every part is computed with one thread.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import resource
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import Array, c_int64
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from spillover.errors import MachineError, RunError
from spillover.stopping import SIGNALS

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from spillover.models import LoadedModel

T = TypeVar("T")
R = TypeVar("R")
Counts = Array[c_int64]
Helpers = dict[Connection, "ForkProcess"]
"""The processes that have not finished, by what they send through."""

SMALL = 10_000_000
"""Parameters up to which a second process does more than a second thread."""
MOST = 4
"""Processes that work at a time, at most."""
TICK = 0.2
"""Seconds between two looks at how far the helpers are."""
_held = [0]
"""The most that the helpers of one work have held together (kB)."""


def crew_of(model: LoadedModel) -> int:
    """How many processes share the work on a model; set OMP_NUM_THREADS to 1 to have no helpers.

    Several for small models on a CPU, where PyTorch may use several threads. One where there is a
    GPU (autograd does not survive a fork there), and where processes cannot be forked safely.
    """
    import torch

    suits = sys.platform == "linux" and not torch.accelerator.is_available()
    suits &= not multiprocessing.current_process().daemon  # these may not have children
    small = sum(p.numel() for p in model.model.parameters()) <= SMALL
    return min(torch.get_num_threads(), MOST) if suits and small else 1


def counts_of(parts: int) -> Counts:
    """A number for each part, seen by all processes that share the work."""
    return multiprocessing.get_context("fork").RawArray(c_int64, parts)


def most_held() -> int:
    """The most memory that helpers have held at a time, besides what they share (kB)."""
    return _held[0]


def share_out(
    todo: Sequence[T],
    do: Callable[[T], R],
    took: Callable[[int, R], None],
    crew: int,
    *,
    waiting: Callable[[], None] | None = None,
    room: int | None = None,
) -> None:
    """Do every part once, here or in helpers.

    Args:
        todo: the parts; the first ones are begun first.
        do: what is done to a part; what it returns goes through a pipe.
        took: called in this process with (number of the part, result), in the order of arrival.
        crew: see `crew_of`; 1 does everything here, with all threads.
        waiting: called now and then while helpers have not finished.
        room: parts that memory has room for at a time.

    Raises:
        MachineError: when the system ends a helper. Whatever a helper raises is raised here.
    """
    if crew == 1 or len(todo) < 2:
        with _one_thread(only_if=crew > 1):
            for number, part in enumerate(todo):
                took(number, do(part))
        return
    arrived, held = 0, 0
    with _one_thread(), _helpers(min(crew, len(todo), room or crew), todo, do) as helpers:
        while helpers:
            for kind, *content in _received(helpers):
                if kind == "did":
                    took(*content)
                    arrived += 1
                elif kind == "held":
                    held += content[0]
                else:
                    raise content[0]
            if waiting:
                waiting()
    _held[0] = max(_held[0], held)
    if arrived < len(todo):
        raise _lost("without a word")


@contextmanager
def _one_thread(*, only_if: bool = True) -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if only_if else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _helpers(count: int, todo: Sequence[T], do: Callable[[T], R]) -> Iterator[Helpers]:
    """Start helpers; none is left at the end, whatever happens within."""
    context = multiprocessing.get_context("fork")
    next_one, started = context.Value(c_int64, 0), []
    helpers: Helpers = {}
    gc.freeze()  # what looks for garbage writes to every object: helpers would copy their pages
    try:
        for _ in range(count):
            reading, writing = context.Pipe(duplex=False)
            process = context.Process(target=_help, args=(reading, writing, next_one, todo, do))
            started.append(process)
            with warnings.catch_warnings():  # of threads: a helper needs none of this process's
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writing.close()
            helpers[reading] = process
        yield helpers
    finally:
        gc.unfreeze()
        for process in started:
            if process.pid is not None:
                process.kill()
                process.join()
        for reading in helpers:
            reading.close()


def _received(helpers: Helpers) -> Iterator[tuple[Any, ...]]:
    """What has arrived, or arrives soon; helpers that have finished leave."""
    for reading in wait(list(helpers), TICK):
        assert isinstance(reading, Connection)
        try:
            yield reading.recv()
        except (EOFError, OSError):  # at the end of a message, or within one
            process = helpers.pop(reading)
            reading.close()
            process.join()
            if process.exitcode != 0:
                raise _lost(f"from outside (exit {process.exitcode})") from None


def _lost(how: str) -> MachineError:
    return MachineError(
        f"a process that helped was ended {how}, perhaps for lack of memory; repeat the command to "
        "go on, with OMP_NUM_THREADS=1 to work without helpers: what is finished is kept"
    )


def _help(
    reading: Connection,
    writing: Connection,
    next_one: Any,
    todo: Sequence[T],
    do: Callable[[T], R],
) -> None:
    """What a helper does; it ends when its parent does."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # their threads are not forked
    signal.set_wakeup_fd(-1)
    for stop in SIGNALS:
        signal.signal(stop, signal.SIG_IGN)  # the parent decides
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # its display is not ours
    reading.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _sender(writing) as send:
        try:
            for number in _taken(next_one, len(todo)):
                send(("did", number, do(todo[number])))
        except Exception as error:  # raised again where the work is waited for
            send(("failed", _portable(error)))
        send(("held", _own_memory()))
    os._exit(0)  # what else this process would tidy up is its parent's


def _taken(next_one: Any, parts: int) -> Iterator[int]:
    """Numbers of parts that nobody else has taken."""
    while True:
        with next_one.get_lock():
            number = next_one.value
            next_one.value += 1
        if number >= parts:
            return
        yield number


def _own_memory() -> int:
    """The most that this helper has held besides what it shares (kB)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        lines = Path("/proc/self/smaps_rollup").read_text("utf-8").splitlines()[1:]
    except OSError:  # not every system tells
        return most
    held = {line.split()[0]: int(line.split()[1]) for line in lines}
    return most - held["Rss:"] + held["Private_Clean:"] + held["Private_Dirty:"]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _sender(writing: Connection) -> Iterator[Callable[[object], None]]:
    """Give a way to send without waiting until it is read; at the end all is sent."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def pump() -> None:
        while (sent := waiting.get()) is not None:
            writing.send_bytes(sent)

    def send(message: object) -> None:
        waiting.put(ForkingPickler.dumps(message))  # what cannot be sent is an error of the part

    thread = threading.Thread(target=pump)
    thread.start()
    try:
        yield send
    finally:
        waiting.put(None)
        thread.join()


def _portable(error: Exception) -> Exception:
    """An error as it can be sent, itself or a `RunError` of a line; its traceback is a note."""
    said = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        first = (str(error).splitlines() or [""])[0]
        error = RunError(f"{type(error).__name__}: {first}")
    error.add_note(f"in a helper:\n{said}")
    return error
