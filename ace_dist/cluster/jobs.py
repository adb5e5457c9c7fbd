"""What runs in every task of a job: a command of ours, its journal, and going back into the queue.

submitit pickles a `Job` and runs it in each task. A `Job` is a command with its settings: no environment, no secret. A
command that returns 75 was told to stop early and has saved; then global rank 0 puts the job back into the queue with
submitit's own means, outside of any signal handler.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import submitit
from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from ace_dist.config import config_dir
from ace_dist.utils.errors import RunError, UserError
from ace_dist.utils.reading import check_shape, parse_json
from ace_dist.utils.secrets import redact

Main = Callable[[Sequence[str]], int]  # runs a command, as `ace_dist.cli.execute` does; returns its exit status
ATTEMPTS, ANSWER_S = 4, 5.0  # a controller that pre-empts many jobs at once is slow; KILL comes 30 s after TERM


@dataclass(frozen=True)
class Event:
    """A line of a job's journal: what happened to it, when, in which start of which job, as told by which rank."""

    event: str  # started | finished | failed | stopped | requeued
    utc: str
    job_id: str
    start: int  # 0 for the first start, then one more with each requeue
    rank: int
    host: str
    detail: str = ""


@dataclass(frozen=True)
class Job:
    """A command, called in every task. `words` are its name and settings; `journal` is a file that outlives a start."""

    execute: Main
    words: tuple[str, ...]
    journal: str

    def __call__(self) -> None:
        """Run the command to its end, and note how it ended. Exits with the command's status."""
        environment = submitit.JobEnvironment()
        self.answer_signals(environment)
        checkout = (config_dir().parent / "launchers").is_dir()
        sys.argv = [f"launchers/{self.words[0]}.py", *self.words[1:]] if checkout else ["ace", *self.words]
        if environment.global_rank == 0:
            self.note(environment, "started", f"{environment.num_tasks} task(s) on {','.join(environment.hostnames)}")
        try:
            status = self.execute(list(self.words))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            self.note(environment, "failed", str(error))
            raise SystemExit(2) from None
        except Exception as error:
            self.note(environment, "failed", traceback.format_exception_only(error)[-1].strip())
            raise
        if status == os.EX_TEMPFAIL:
            self.requeue(environment)
        if environment.global_rank == 0:
            event = {0: "finished", os.EX_TEMPFAIL: "stopped", 130: "stopped"}.get(status, "failed")
            self.note(environment, event, f"exit status {status}" if status else "")
        if status:
            raise SystemExit(status)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts into the queue again: the same job. Saves nothing: it is called on global rank 0 alone."""
        return DelayedSubmission(self)

    def answer_signals(self, environment: submitit.JobEnvironment) -> None:
        """Outside of training, which has its own handlers, USR1 requeues at once, as submitit's own USR2 does.

        In the evaluation there is nothing to save. TERM is left to submitit, which ignores it: srun sends it too when
        another rank has crashed, and a job that crashes must not requeue itself without end. It ends local jobs.
        """

        def answer(number: int, frame: FrameType | None) -> None:
            if environment.global_rank == 0:
                self.requeue(environment)

        for number in (signal.SIGUSR1, signal.SIGTERM) if environment.cluster == "local" else (signal.SIGUSR1,):
            if number != environment._usr_sig():
                signal.signal(number, answer)

    def requeue(self, environment: submitit.JobEnvironment) -> NoReturn:
        """End this task; on global rank 0 first put the job back into the queue, if it is still to run.

        SLURM would also requeue a job that `scancel` has just cancelled, so a job that no longer counts as running is
        left alone: it was cancelled, or somebody else has requeued it. Local jobs end: whoever runs them is there.
        """
        if environment.global_rank != 0:
            raise SystemExit(0)  # not an error: srun would end rank 0 before it has requeued
        state = queue_state(environment.job_id) if environment.cluster == "slurm" else "local"
        if state != "RUNNING":
            why = "the same command continues" if state == "local" else f"not requeued, because the job is {state}"
            self.note(environment, "stopped", f"saved; {why}")
            raise SystemExit(os.EX_TEMPFAIL)
        pickle = environment.paths.submitted_pickle
        pickle.with_suffix(".pkl.save_tmp").unlink(missing_ok=True)  # of a start that was killed while it requeued
        handler = signal.getsignal(environment._usr_sig())
        assert callable(handler), "submitit's handler was not restored"
        for number in (signal.SIGTERM, signal.SIGUSR1, environment._usr_sig()):  # SLURM's own TERM follows from it
            signal.signal(number, signal.SIG_IGN)
        self.note(environment, "requeued")
        try:
            handler(environment._usr_sig(), None)  # calls checkpoint(), dumps it, requeues, exits
        except UncompletedJobError as error:  # it had cluster.max_timeouts of them
            self.note(environment, "stopped", f"saved; {error} (cluster.max_timeouts)")
            raise
        raise AssertionError("submitit's handler returned")

    def note(self, environment: submitit.JobEnvironment, event: str, detail: str = "") -> None:
        line = Event(
            event,
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            environment.job_id,
            int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            environment.global_rank,
            os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            redact(detail),
        )
        path = Path(self.journal)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(vars(line), ensure_ascii=False) + "\n")


def read_journal(path: Path) -> list[Event]:
    """The events of a job, oldest first; none when it never started.

    A line cut short by a crash is left out, and a damaged one with a line that says so.
    """
    events, lines = [], path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(check_shape(parse_json(line, str(path), RunError), Event, str(path), RunError))
        except (ValueError, TypeError):
            if line.endswith(b"\n"):
                print(f"{path}: line {number} is damaged and left out", file=sys.stderr)
    return events


def queue_state(job_id: str) -> str:
    """SLURM's state of a job: RUNNING, COMPLETING (it is being cancelled or requeued), PENDING, ..., or UNKNOWN."""
    words = ("scontrol", "show", "job", "--oneliner", job_id)
    for attempt in range(ATTEMPTS):
        try:
            text = subprocess.run(words, capture_output=True, text=True, check=False, timeout=ANSWER_S).stdout
        except subprocess.TimeoutExpired:
            continue
        if state := re.search(r"\bJobState=(\S+)", text):
            return state[1]
        time.sleep(ANSWER_S / 5 if attempt < ATTEMPTS - 1 else 0)
    return "UNKNOWN"
