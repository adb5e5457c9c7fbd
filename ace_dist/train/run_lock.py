"""The lock of a run folder: one job writes there at a time."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_bytes


class RunLock:
    """One writer a run folder. `<run_dir>/lock.json` says who; its time stamp is renewed every `BEAT_S` seconds.

    Made by a hard link, which is atomic on network file systems where `flock` may be local or missing. A crash leaves
    the file behind. It is taken over at once when its process is known to be dead (same host) or its SLURM job was
    requeued as this one, and else when it was not renewed for `STALE_S` by the file server's clock, for which the
    newcomer waits.
    """

    BEAT_S = 10.0
    STALE_S = 60.0

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "lock.json"
        self.me: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": process_start(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID"),
            "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
            "token": secrets.token_hex(8),
        }
        self.done = threading.Event()
        self.beating = threading.Thread(target=self.beat, name="run-lock", daemon=True)

    def acquire(self) -> None:
        """Take the folder. Raises `RunError` naming the host, process and job that has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self.try_link():
            holder = self.holder()
            if holder is None:
                continue  # released, or taken over, between two looks
            if not self.is_dead(holder) and not self.went_stale(holder):
                job = f", SLURM job {holder['job']}" if holder.get("job") else ""
                raise RunError(
                    f"{self.path.parent} is being written by process {holder['pid']} on {holder['host']}{job}; wait "
                    f"for it, stop it, or choose another run_dir"
                )
            self.remove(holder)
        self.beating.start()

    def close(self) -> None:
        """Give the folder back, if it was taken."""
        self.done.set()
        if self.beating.is_alive():
            self.beating.join()
        if self.held():
            self.path.unlink()

    def check(self) -> None:
        """Raise `RunError` when another job has taken the folder, as it may after `STALE_S` without a renewal."""
        if not self.held():
            raise RunError(
                f"{self.path.parent} was taken over by another job while this process stood still for more than "
                f"{self.STALE_S:g} s; this one writes no more"
            )

    def held(self) -> bool:
        """Whether the file is there and ours."""
        holder = self.holder()
        return holder is not None and bool(holder["token"] == self.me["token"])

    def beat(self) -> None:
        """Renew the time stamp until released."""
        while not self.done.wait(self.BEAT_S):
            try:
                if not self.held():
                    return
                os.utime(self.path)
            except OSError as error:  # a network file system that hiccups; the next renewal may succeed
                print(f"{self.path} was not renewed: {error.strerror}", file=sys.stderr, flush=True)

    def try_link(self) -> bool:
        """Create the file with our name in it, in one step; False when there is one."""
        own = self.path.with_name(f".{self.path.name}.{self.me['token']}")
        write_bytes(own, json.dumps(self.me, indent=1).encode())
        try:
            os.link(own, self.path)
        except FileExistsError:
            return False
        finally:
            own.unlink()
        return True

    def holder(self) -> dict[str, Any] | None:
        """Who has the folder."""
        try:
            holder: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return holder

    def is_dead(self, holder: dict[str, Any]) -> bool:
        """Whether the holder is known to be gone: its process here, or its SLURM job's earlier start."""
        if holder["host"] == self.me["host"]:
            return bool(process_start(holder["pid"]) != holder["started"])
        same_job = holder["job"] is not None and holder["job"] == self.me["job"]
        return same_job and bool(holder["restart"] != self.me["restart"])

    def went_stale(self, holder: dict[str, Any]) -> bool:
        """Watch the time stamp until it is renewed (False) or older than `STALE_S` (True)."""
        probe = self.path.with_name(f".{self.path.name}.{self.me['token']}.probe")
        first = self.stamp()
        told = False
        while self.stamp() == first:
            probe.touch()  # its time stamp comes from the same clock, the file server's
            age_s = probe.stat().st_mtime - first
            probe.unlink()
            if age_s > self.STALE_S:
                return True
            if not told and age_s > 2 * self.BEAT_S:
                told = True
                print(f"{self.path} was last renewed {age_s:.0f} s ago by {holder['host']}; waiting", flush=True)
            time.sleep(min(1.0, self.BEAT_S / 4))
        return False

    def stamp(self) -> float:
        """The file's time stamp, 0 when it is gone."""
        try:
            return self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def remove(self, holder: dict[str, Any]) -> None:
        """Remove a dead holder's file, unless another newcomer was faster and it is theirs already."""
        aside = self.path.with_name(f".{self.path.name}.{self.me['token']}.dead")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if json.loads(aside.read_text(encoding="utf-8"))["token"] != holder["token"]:
            os.link(aside, self.path)  # theirs: put it back
        else:
            print(
                f"took over {self.path.parent} from process {holder['pid']} on {holder['host']}, which is gone",
                flush=True,
            )
        aside.unlink()


def process_start(pid: int) -> str | None:
    """When a process of this host started, in the kernel's ticks; None when there is none (or no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]
