"""Other processes of this machine: whether one still lives, and ending with the launcher above."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

POLL_S = 1.0
LAUNCHERS = {"deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "ace", "ace_dist"}


def stat_fields(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` behind the name: state, parent, ...; none when there is no such process."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def start_time(pid: int) -> str | None:
    """When a process was started, in ticks since the boot; None when it has ended. Its number may be another's now."""
    fields = stat_fields(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None  # ended, and not yet collected by its parent


def identity(pid: int | None = None) -> dict[str, Any]:
    """A process, by default this one, so that another can tell whether it could see it: the boot, and its namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    number = os.getpid() if pid is None else pid
    return {
        "host": socket.gethostname(),
        "pid": number,
        "started": start_time(number),
        "boot": boot.read_text(encoding="ascii").strip() if boot.is_file() else None,
        "namespace": os.readlink(namespace) if namespace.exists() else None,
    }


def still_runs(process: Mapping[str, Any]) -> bool | None:
    """Whether a process of an earlier `identity` runs; None for one of another machine or container."""
    here = identity()
    if process["host"] == here["host"] and process["boot"] != here["boot"]:
        return False  # the machine was started anew
    if any(process[name] != here[name] for name in ("boot", "namespace")):
        return None
    return process["started"] is not None and start_time(process["pid"]) == process["started"]


def launchers_above() -> list[int]:
    """The process that started this rank, and those above it that are launchers too, the nearest first."""
    found = [os.getppid()]
    while fields := stat_fields(found[-1]):
        above = int(fields[1])
        if above <= 1 or not is_launcher(above):
            break
        found.append(above)
    return found


def is_launcher(pid: int) -> bool:
    """Whether a process is Python at a launcher; a shell that mentions one in its words is none."""
    try:
        words = Path("/proc", str(pid), "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return "python" in Path(words[0]).name and any(Path(word).name in LAUNCHERS for word in words[1:4])


def end_with_launcher(environ: Mapping[str, str]) -> None:
    """Send this rank a TERM, on which a training saves and ends, when a launcher above it is gone.

    DeepSpeed's launchers pass no kill on: without this, ranks train on behind one that was killed, and the next start
    of the run finds its folder taken. Does nothing in a process that neither DeepSpeed nor `ace` has started.
    """
    if "LOCAL_SIZE" not in environ:  # a variable of DeepSpeed's launcher and of `ace` alone
        return
    started = {pid: start_time(pid) for pid in launchers_above()}

    def watch() -> None:
        while all(start_time(pid) == since for pid, since in started.items()):
            time.sleep(POLL_S)
        line = f"\nrank {environ.get('RANK', '?')}: its launcher is gone: this rank ends; a training saves first"
        print(line, file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()
