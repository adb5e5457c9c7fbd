"""What a build that is killed leaves behind: nothing outside of its folder."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

from ace_dist.data.build.isolation import START, Workers


def named_memory(pid):
    """Named semaphores and shared memory that a process has mapped; only a living process can remove their names."""
    return [line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm/" in line]


def test_builders_have_nothing_in_shared_memory_that_a_kill_could_leave():
    before = named_memory(os.getpid())
    with Workers(2, os.getpid) as workers:
        pids = {workers.submit(0).result() for _ in range(4)}
        assert os.getpid() not in pids and not [name for pid in pids for name in named_memory(pid)]
        assert named_memory(os.getpid()) == before


def test_a_worker_whose_parent_ends_before_it_starts_says_nothing():
    """Ctrl-C while workers start: the terminal showed a traceback of each."""
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    command = [sys.executable, "-P", "-c", START, str(theirs.fileno())]
    done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
