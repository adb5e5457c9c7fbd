"""Locks between processes: `flock` on a file of its own, which the kernel releases however its holder dies."""

import contextlib
import errno
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold `path`, made when it is missing, alone. Yields whether it is held: with `wait=False` another may have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield try_lock(file.fileno(), fcntl.LOCK_EX, wait)


def try_lock(descriptor: int, mode: int, wait: bool = False) -> bool:
    """Take or convert a lock; whether it worked.

    A file system without locks is said to be one, and the user trusted.
    """
    try:
        fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        print("warning: no file locks here (mount option `flock`?); start one process at a time", file=sys.stderr)
    return True
