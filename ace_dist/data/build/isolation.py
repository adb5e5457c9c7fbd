"""Runs work on files that may crash FFmpeg or hang it in a process of its own; only that process ends with it.

A deadline is the kernel's alarm with its default action, the end of the process. It needs no Python, so it also ends a
process that stands still inside a library; one that waits for a dead network disk ends when the disk answers.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from ace_dist.utils.errors import DataError

Result = TypeVar("Result")

limit_s = 0.0  # of the deadline that runs in this process; 0: none


class LostError(DataError):
    """A process that died before it answered; the message says how."""


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End this process, whatever it is doing, when the block takes longer; 0 is no deadline. For workers only."""
    global limit_s
    limit_s = seconds
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        limit_s = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)


def renew_deadline() -> None:
    """Give the next of many pieces of work the whole time again; without effect where no deadline runs."""
    if limit_s:
        signal.setitimer(signal.ITIMER_REAL, limit_s)


def end_with_parent() -> None:
    """End this worker when its parent ends, also by a kill, and at its deadline, but not on Ctrl-C.

    Ctrl-C reaches the whole group of processes; the parent ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)  # at once, in whatever call the main thread is

    threading.Thread(target=wait, daemon=True).start()


def run_alone(timeout_s: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(*arguments)` in a new process; both must be picklable. What it raises is raised here.

    Raises `LostError` when the process dies, or does not finish within `timeout_s` seconds (0: it may take any time).
    """
    context = get_context("spawn")  # a fork would leave the parent's threads (torch, DALI) half alive
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(sender, timeout_s, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        finished, value = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        if code == -signal.SIGALRM:
            reason = f"it was not read within {timeout_s:g} s: FFmpeg hangs on it, or it is very long"
        else:
            how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"status {code}"
            reason = f"it crashes FFmpeg, or memory runs out: its process ended with {how}"
        raise LostError(reason) from None
    finally:
        receiver.close()
    process.join()
    if not finished:
        raise value
    result: Result = value
    return result


def answer(sender: Connection, timeout_s: float, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    try:
        with deadline(timeout_s):
            result = True, function(*arguments)
    except Exception as error:  # every error is the caller's, who raises it again
        result = False, error
    sender.send(result)
