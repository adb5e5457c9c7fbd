"""The lock of a run folder: one job writes there at a time."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from ace_dist.utils.errors import RunError


class RunLock:
    """An exclusive `flock` of `<run>/lock.json`, which says who holds it.

    The kernel releases it when the process ends, however it ends, so a crash leaves nothing to wait for. It holds
    between hosts where the file system passes it on (NFS, Lustre with `flock`, GPFS). A file system without locks is
    named, and the run goes on without.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "lock.json"
        self.file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the folder. Raises `RunError` naming the host, process and job that has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self.file is None:
            file = self.path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = read_owner(file)
                file.close()
                job = f", SLURM job {owner['job']}" if owner["job"] else ""
                raise RunError(
                    f"{self.path.parent} is being written by process {owner['pid']} on {owner['host']}{job}; wait for "
                    f"it, stop it, or choose another one with run=DIR"
                ) from None
            except OSError as error:
                print(f"{self.path} cannot be locked ({error.strerror}): do not start two jobs in it", flush=True)
            if self.is_current(file):
                self.file = file
            else:
                file.close()  # removed by its owner between our two calls
        left = read_owner(self.file)
        if left["pid"]:
            print(
                f"took over {self.path.parent} from process {left['pid']} on {left['host']}, which is gone", flush=True
            )
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        self.file.truncate(0)
        self.file.write(json.dumps(owner, indent=1))
        self.file.flush()

    def close(self) -> None:
        """Give the folder back, if it was taken."""
        if self.file is not None:
            if self.is_current(self.file):
                self.path.unlink()
            self.file.close()
            self.file = None

    def owner(self) -> dict[str, Any] | None:
        """Who holds the folder at this moment (`host`, `pid`, `job`); None when nobody does."""
        if not self.path.is_file():
            return None
        with self.path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return read_owner(file)
            except OSError:  # a file system without locks: what the file says
                return read_owner(file)
        return None

    def is_current(self, file: IO[str]) -> bool:
        """Whether the folder's lock file is this open one."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


def read_owner(file: IO[str]) -> dict[str, Any]:
    """What a lock file says; no process id when it says nothing, as while its owner writes it."""
    file.seek(0)
    text = file.read()
    owner: dict[str, Any] = (
        json.loads(text) if text.endswith("}") else {"host": "an unknown host", "pid": 0, "job": None}
    )
    return owner
