"""Runs work on foreign videos in processes of their own, under a limit of time and one of memory.

A video may crash FFmpeg, hang it or fill the memory; then its process ends and the caller gets a `LostError`. Processes
stay for the next piece of work, so that one costs a millisecond more than here. They start from a bare interpreter:
they do not run the user's script again, load no torch and hold no GPU.

A deadline is the kernel's alarm with its default action, the end of the process. It needs no Python, so it also ends a
process that stands still inside a library; one that waits for a dead network disk ends when the disk answers.
"""

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.spawn
import operator
import os
import pickle
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import GeneratorType
from typing import Any, Self, TypeVar, cast

import cloudpickle  # also of what the main script defines

from ace_dist.utils.errors import DataError

Result = TypeVar("Result")

# Of address space, a process. 8K HEVC of 10 bits takes 4.2 GiB with 16 threads, the most that FFmpeg starts (measured).
MOST_GIB = 8
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
try:
    sys.path, function = connection.recv()
except (EOFError, OSError):
    sys.exit(1)  # the parent has ended meanwhile
from ace_dist.data.build.isolation import serve
serve(connection, function)
"""

limit_s = 0.0  # of the deadline that runs in this process; 0: none


class LostError(DataError):
    """A process that died before it answered; the message says how."""


class Workers:
    """Up to `count` processes that call `function`. Each starts when it is first needed, and again when it has died.

    All that goes to them and comes back must be picklable. A `DataError` says that one needs more memory than it may
    have; a `LostError` that it died, or did not finish within `timeout_s` seconds (0: it may take any time).
    """

    def __init__(self, count: int, function: Callable[..., Any]) -> None:
        self.threads = ThreadPoolExecutor(count, "worker")
        self.function = cloudpickle.dumps(function)
        self.idle: list[Worker] = []
        self.busy: set[Worker] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes, also those at work: nobody waits for their results any more."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self.busy):
            worker.process.kill()
        self.threads.shutdown(wait=True)
        while self.idle:
            self.idle.pop().close()

    def forget(self) -> None:
        """In a fork: the processes are those of the parent."""
        for worker in (*self.idle, *self.busy):
            worker.process.returncode = 0  # else subprocess warns that it still runs
        self.idle, self.busy = [], set()

    def submit(self, timeout_s: float, *arguments: Any) -> Future[Any]:
        """As `run`, in parallel."""
        return self.threads.submit(self.run, timeout_s, *arguments)

    def run(self, timeout_s: float, *arguments: Any) -> Any:
        """`function(*arguments)` in another process. What it raises is raised here."""
        (result,) = self.stream(timeout_s, *arguments)
        return result

    def stream(self, timeout_s: float, *arguments: Any) -> Iterator[Any]:
        """The items of a generator as they come. `timeout_s` is for each.

        The process waits while nobody takes an item, so each side holds one at a time.
        """
        with self.worker() as worker:
            worker.send(timeout_s, *arguments)
            while item := worker.receive():
                yield item[0]

    @contextlib.contextmanager
    def worker(self) -> Iterator["Worker"]:
        """One for the time of a block. It goes back to the others when it has finished its work."""
        worker = self.idle_worker() or Worker(self.function)
        self.busy.add(worker)
        try:
            yield worker
        finally:
            self.busy.discard(worker)
            if worker.is_idle:
                self.idle.append(worker)
            else:
                worker.close()

    def idle_worker(self) -> "Worker | None":
        with contextlib.suppress(IndexError):  # threads share the list
            while True:
                worker = self.idle.pop()
                if worker.process.poll() is None:
                    return worker
                worker.close()  # somebody ended it while it was idle
        return None


def interpreter() -> str:
    """A Python: `sys.executable`, unless the program in which Python runs has named another one."""
    return os.fsdecode(multiprocessing.spawn.get_executable())


def present_folder() -> str:
    """Where paths begin; in a folder that was deleted no relative one leads anywhere, and others go on working."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


class Worker:
    """One process, and the connection to it. `files`: numbers of open ones that it may use, under the same numbers."""

    def __init__(self, function: bytes, files: Sequence[int] = ()) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        # Each of OpenBLAS's threads takes some of the address space.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        # -P: a file of the present folder that is called as a module is not it.
        command = [interpreter(), "-P", "-c", START, str(theirs.fileno())]
        passed = [theirs.fileno(), *files]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=passed, env=environment)
        theirs.close()
        self.is_idle, self.has_started, self.timeout_s = True, False, 0.0
        with contextlib.suppress(OSError):  # it died; `receive` says how
            self.connection.send((sys.path, function))

    def send(self, timeout_s: float, *arguments: Any) -> None:
        self.is_idle, self.timeout_s = False, timeout_s
        request = sys.path, present_folder(), timeout_s, cloudpickle.dumps(arguments)
        with contextlib.suppress(OSError):
            self.connection.send(request)

    def receive(self) -> tuple[Any, ...]:
        """The next item, alone in a tuple; an empty one at the end. Raises what the function raises, or `LostError`."""
        try:
            if not self.has_started:
                self.has_started = self.connection.recv()
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise LostError(self.loss()) from None
        self.is_idle = kind != "item"
        if kind == "error":
            raise value
        return (value,) if kind == "item" else ()

    def loss(self) -> str:
        """How it died."""
        self.close()
        code = self.process.returncode
        if code == -signal.SIGALRM:
            return f"it was not read within {self.timeout_s:g} s: FFmpeg hangs on it, or it is very long"
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"status {code}"
        if not self.has_started:
            return (
                f"no process to read it in started: {interpreter()} ended with {how}; where that is no Python, as in a "
                f"program with Python inside, name one by multiprocessing.set_executable(PATH)"
            )
        return f"it crashes FFmpeg, or memory runs out: its process ended with {how}"

    def close(self) -> None:
        self.process.kill()  # without effect on one that died
        self.process.wait()
        self.connection.close()


shared = Workers(1, operator.call)  # of this process, for single pieces of work; as many as its threads ask for at once
atexit.register(shared.__exit__)
os.register_at_fork(after_in_child=shared.forget)


def run_alone(timeout_s: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """`Workers.run` for any function, in a process that stays for the next call."""
    return cast(Result, shared.run(timeout_s, function, *arguments))


def stream_alone(timeout_s: float, function: Callable[..., Iterator[Result]], *arguments: Any) -> Iterator[Result]:
    """`Workers.stream` for any generator, in a process that stays for the next call."""
    return shared.stream(timeout_s, function, *arguments)


# What follows runs in a worker.


def serve(connection: Connection, function: bytes) -> None:
    """Answer requests until the parent ends."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    most, hard = MOST_GIB << 30, resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(connection, requests), daemon=True).start()
    with contextlib.suppress(OSError):  # the parent has ended
        connection.send(True)  # it has started: what ends it from here on is its work
    while True:
        answer(connection, function, *requests.get())


def listen(connection: Connection, requests: "queue.SimpleQueue[Any]") -> None:
    """Take requests. When the parent has ended, end this process at once, in whatever call the main thread is."""
    try:
        while True:
            requests.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)


def answer(
    connection: Connection, function: bytes, path: list[str], folder: str, timeout_s: float, arguments: bytes
) -> None:
    """Send the result, or the items, of a function, then how it ended."""
    end: tuple[str, Any] = "end", None
    try:
        sys.path[:] = path
        os.chdir(folder)
        given = pickle.loads(arguments)  # of its own parent  # nosec B301
        items, nothing = results(loaded(function), given), object()
        while (item := next_item(timeout_s, items, nothing)) is not nothing:
            connection.send(("item", item))
    except MemoryError:
        end = "error", DataError(f"it needs more than {MOST_GIB} GiB of memory, which no camera's video does")
    except Exception as error:  # every error is the caller's, who raises it again
        end = "error", error
    connection.send(end)


loaded = functools.cache(pickle.loads)


def results(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[Any]:
    result = function(*arguments)
    if isinstance(result, GeneratorType):
        yield from result
    else:
        yield result


def next_item(timeout_s: float, items: Iterator[Any], nothing: object) -> Any:
    with deadline(timeout_s):
        return next(items, nothing)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End this process, whatever it is doing, when the block takes longer; 0 is no deadline."""
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


@contextlib.contextmanager
def without_deadline() -> Iterator[None]:
    """A wait for somebody else; the work that follows has the whole time again."""
    if limit_s:
        signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    renew_deadline()
