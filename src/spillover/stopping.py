"""SIGTERM and Ctrl-C: a process ends within seconds, whatever it is doing.

A signal becomes an exception in the main thread, so that files under way are cleaned up. Where it
comes up in a finalizer, in which Python ignores exceptions, it is raised again. Where the main
thread does not come to it (it is inside a long native call, or a library swallows the exception), a
second thread ends the process: whatever is on disk is whole at any moment.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 3.0
"""Seconds that the main thread has for ending by itself."""
AGAIN = 0.02
"""Seconds after which what a finalizer swallowed is raised again."""


class Stopped(BaseException):
    """The user or the system asked this process to end. Not an `Exception`: nothing failed."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(self.number.name)
        self.code = 128 + number


@contextmanager
def stoppable(last_words: str) -> Iterator[None]:
    """Within, the first SIGTERM or SIGINT raises `Stopped`; further ones change nothing.

    Args:
        last_words: printed where the process has to be ended from outside its main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended, came = threading.Event(), False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
            raise Stopped(number)

    def repeat(ignored: sys.UnraisableHookArgs) -> None:
        nonlocal came
        if not isinstance(ignored.exc_value, Stopped):
            hook(ignored)
            return
        came = False
        threading.Timer(AGAIN, _interrupt, (ignored.exc_value.number, ended)).start()

    hook, sys.unraisablehook = sys.unraisablehook, repeat
    watch = threading.Thread(target=_watch, args=(reading, ended, last_words), daemon=True)
    watch.start()
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the watch
        watch.join(1)


def _interrupt(number: signal.Signals, ended: threading.Event) -> None:
    if not ended.is_set():
        _thread.interrupt_main(number)


def _watch(reading: int, ended: threading.Event, last_words: str) -> None:
    """Wait for a signal's number on a pipe, then for the main thread; end without it."""
    while number := os.read(reading, 1):
        if number[0] in SIGNALS and not ended.wait(GRACE):
            os.write(2, f"\n{last_words}\n".encode())
            os._exit(128 + number[0])
    os.close(reading)
