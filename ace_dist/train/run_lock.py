"""The lock of a run's folder: one job writes it at a time.

Whether the job before is gone is decided by what holds on every file system and in every container, never by a clock
of another machine:

1. somebody holds `flock` on `lock.json`: the folder is taken;
2. `lock.json` names a process of this boot and of this process-id namespace: it is looked up;
3. it names another one, which cannot be seen from here: its owner writes a new beat into the file every `BEAT_S`
   seconds, so the newcomer watches it for `WATCH_S` seconds of its own and says so. `flock` alone does not tell: a
   network file system may grant it on each host for itself, or not know it at all.
"""

import fcntl
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from ace_dist.utils.errors import RunError
from ace_dist.utils.processes import identity, start_time
from ace_dist.utils.reading import parse_json

BEAT_S, WATCH_S = 5.0, 20.0
UNKNOWN: dict[str, Any] = {"host": "an unknown host", "pid": 0, "job": None}


class RunLock:
    """The lock of one run folder: `acquire` takes it, `close` gives it back."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "lock.json"
        self.file: IO[str] | None = None
        self.me: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self.closed = threading.Event()

    def acquire(self) -> None:
        """Take the folder. Raises `RunError` naming the host, process and job that has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        patience = 10  # tenths of a second: whoever asks for the owner holds the lock for a moment
        while self.file is None:
            file = os.fdopen(
                os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8", errors="replace"
            )
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = read_owner(file)
                file.close()
                patience -= 1
                if not patience:
                    raise self.refusal(owner) from None
                time.sleep(0.1)
                continue
            except OSError as error:
                print(f"{self.path} cannot be locked ({error.strerror}): its beat is the only lock here", flush=True)
            if self.is_current(file):
                self.file = file
            else:
                file.close()  # removed by its owner between our two calls
        try:
            self.take_over(read_owner(self.file))
        except BaseException:
            self.file.close()
            self.file = None
            raise
        self.me = {**identity(), "job": os.environ.get("SLURM_JOB_ID"), "beat": 0}
        self.write()
        self.thread = threading.Thread(target=self.beat, name="run lock", daemon=True)
        self.thread.start()

    def take_over(self, left: dict[str, Any] | None) -> None:
        """Make sure that the owner that the file names is gone. Raises `RunError` when it is not."""
        if left is None:
            return
        here, folder = identity(), self.path.parent
        who = f"process {left['pid']} on {left['host']}"
        if all(left.get(name) == here[name] for name in ("boot", "namespace")):
            alive = start_time(left["pid"]) == left["started"]
        else:
            print(
                f"{folder} was in use by {who}, which cannot be seen from here: watching {self.path.name} for "
                f"{WATCH_S:g} s, in which a living process would change it",
                flush=True,
            )
            alive = self.changes(WATCH_S)
        if alive:
            raise self.refusal(left)
        print(f"took over {folder} from {who}, which is gone", flush=True)

    def changes(self, seconds: float) -> bool:
        """Whether the lock file becomes another one or says something else within `seconds` of this process's time."""
        before, end = self.path.read_bytes(), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(seconds / 20)
            try:
                if self.path.read_bytes() != before:  # opened anew, or NFS may answer from its cache
                    return True
            except FileNotFoundError:
                return True
        return False

    def refusal(self, owner: dict[str, Any] | None) -> RunError:
        owner = owner or UNKNOWN
        job = f", SLURM job {owner['job']}" if owner.get("job") else ""
        return RunError(
            f"{self.path.parent} is being written by process {owner['pid']} on {owner['host']}{job}; wait for "
            f"it, stop it, or choose another one with run=DIR"
        )

    def write(self) -> None:
        """Write who owns the folder, in place: a new file would not be the locked one."""
        assert self.file is not None
        self.file.seek(0)
        self.file.write(json.dumps(self.me, indent=1) + "\n")
        self.file.truncate()
        self.file.flush()
        os.fsync(self.file.fileno())  # NFS shows other hosts what has reached the server

    def beat(self) -> None:
        """Until the lock is closed, show that its owner lives; end the process when somebody else has taken the folder.

        That happens to one that stood still for `WATCH_S` where `flock` does not hold: it must not write any more.
        """
        while not self.closed.wait(BEAT_S):
            try:
                with self.path.open(encoding="utf-8", errors="replace") as file:  # anew: it may be another one
                    owner = read_owner(file)
                if owner and owner["pid"] and owner != self.me:
                    self.say(
                        f"error: {self.path.parent} was taken over by process {owner['pid']} on {owner['host']} while "
                        f"this process stood still; it ends here and writes nothing more"
                    )
                    os._exit(os.EX_SOFTWARE)
                self.me["beat"] += 1
                self.write()
            except FileNotFoundError:
                self.say(f"{self.path} was removed while this job writes the folder: start no second job in it")
                return
            except OSError as error:
                self.say(f"{self.path} cannot be written: {error.strerror}")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Give the folder back, if it was taken."""
        self.closed.set()
        if self.thread is not None:
            self.thread.join()
        if self.file is not None:
            if self.is_current(self.file):
                self.path.unlink()
            self.file.close()
            self.file = None

    def owner(self) -> dict[str, Any] | None:
        """Who holds the folder at this moment (`host`, `pid`, `job`); None when nobody does."""
        if not self.path.is_file():
            return None
        with self.path.open(encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:  # somebody has it, or the file system has no locks: what the file says
                return read_owner(file) or UNKNOWN
        return None

    def is_current(self, file: IO[str]) -> bool:
        """Whether the folder's lock file is this open one."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


def read_owner(file: IO[str]) -> dict[str, Any] | None:
    """What a lock file says; None for an empty one, `UNKNOWN` for one that is cut or damaged."""
    file.seek(0)
    text = file.read()
    try:
        owner = parse_json(text, "lock.json", RunError) if text else None
        return owner if owner is None else {**UNKNOWN, **owner}
    except (RunError, TypeError):
        return UNKNOWN
