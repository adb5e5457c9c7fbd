"""Ranks end when a launcher of DeepSpeed above them does, however it ends: its launchers pass no kill on."""

import os
import signal
import subprocess
import sys

import pytest

RANK = """
import signal, sys, time
from ace_dist.utils import processes
processes.POLL_S = 0.1
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(75)))
processes.end_with_launcher({"LOCAL_SIZE": "1", "RANK": "0"})
print(len(processes.launchers_above()), flush=True)
time.sleep(60)
"""
LAUNCHER = "import subprocess, sys, os; print(os.getpid(), flush=True); subprocess.run(sys.argv[1:])"


@pytest.fixture
def chain(tmp_path):
    """A rank below scripts of these names, each starting the next; returns their process ids and the output's pipe."""
    started = []

    def start(*names):
        rank = tmp_path / "rank.py"
        rank.write_text(RANK)
        words = [sys.executable, str(rank)]
        for name in reversed(names):
            (tmp_path / name).write_text(LAUNCHER)
            words = [sys.executable, "-u", str(tmp_path / name), *words]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        return [int(process.stdout.readline()) for _ in names], process.stdout

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_saves_and_ends_when_a_launcher_is_killed(chain, killed):
    """`deepspeed` itself, or the process between it and the ranks."""
    pids, out = chain("deepspeed", "deepspeed.launcher.launch")
    assert out.readline() == "2\n"
    os.kill(pids[killed], signal.SIGKILL)
    rest = out.read()  # ends when the last of them has ended
    assert "rank 0: its launcher is gone" in rest and "saved" in rest


def test_a_script_that_starts_the_launcher_is_none(chain):
    """One may end before what it has started."""
    pids, out = chain("nightly.py", "ace")
    assert out.readline() == "1\n"
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[1], signal.SIGKILL)
    assert "saved" in out.read()
