"""Where ranks that one launcher starts on this machine meet, so that jobs side by side need no ports of their own."""

import os
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text
from ace_dist.utils.processes import start_time


@dataclass
class Meeting:
    """Where ranks that one launcher started on this machine meet: a port that rank 0 opens and tells the others.

    DeepSpeed's launcher gives all trainings of a machine the same port: the second one could not open it, and its other
    ranks would meet those of the first. The ranks know each other by their parent, in whose name a file holds the port.
    """

    store: Any  # of rank 0, else None
    file: Path | None

    @classmethod
    def arrange(cls, rank: int, world: int, timeout_s: float) -> Self:
        """Set MASTER_ADDR and MASTER_PORT. Raises `RunError` when rank 0 names no port within `timeout_s`."""
        file = None if world == 1 else meeting_file()
        if rank == 0:
            listening = socket.create_server(("127.0.0.1", 0))  # nobody else can take the port any more
            port = listening.getsockname()[1]
            store = dist.TCPStore(  # type: ignore[attr-defined]
                "127.0.0.1", port, world, True, timedelta(seconds=timeout_s), wait_for_workers=False,
                multi_tenant=True,  # so that torch, which opens one of its own for the group, takes this one
                master_listen_fd=listening.detach(),
            )  # fmt: skip
            if file is not None:
                write_text(file, f"{port}")
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            return cls(store, file)
        assert file is not None
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=wait_for_port(file, rank, world, timeout_s))
        return cls(None, None)

    def close(self) -> None:
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        self.store = None


def meeting_file() -> Path:
    """A name that the ranks of one launcher share, and no other process of this machine had or will have."""
    parent = os.getppid()
    return Path(tempfile.gettempdir()) / f"ace-dist-{os.getuid()}-{parent}-{start_time(parent)}.port"


def wait_for_port(file: Path, rank: int, world: int, timeout_s: float) -> str:
    """The port that rank 0 wrote into a file, which must be of this user: in a shared folder others may write too."""
    deadline = time.monotonic() + timeout_s
    while not file.is_file() or file.is_symlink() or file.stat().st_uid != os.getuid():
        if time.monotonic() > deadline:
            raise RunError(
                f"rank {rank} of {world} waited {timeout_s:g} s for rank 0 to open a port (in {file}); see that it runs"
            )
        time.sleep(0.05)
    return file.read_text(encoding="ascii")


def started_on_one_host(environ: Mapping[str, str]) -> bool:
    """Whether one launcher on this machine started all ranks: DeepSpeed's, submitit's local one, or none at all."""
    if "RANK" in environ:
        return environ.get("CROSS_SIZE") == "1" and environ.get("LOCAL_SIZE") == environ.get("WORLD_SIZE")
    return environ.get("SUBMITIT_EXECUTOR") == "local" or "SLURM_STEP_ID" not in environ
