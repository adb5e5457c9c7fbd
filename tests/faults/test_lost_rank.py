"""Two ranks of which one is killed, frozen, or signalled: the other ends within a bounded time and says why."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_port

from ace_dist.train.checkpoint import CheckpointFolder

LAUNCHER = Path(__file__).resolve().parents[2] / "launchers" / "train.py"
LONGEST_S = 240  # on a busy machine; the faults themselves end in seconds

pytestmark = pytest.mark.slow


class Pair:
    """Two ranks of one run, started without a launcher above that would end the one for the other."""

    def __init__(self, folder, *settings):
        self.folder = folder
        (folder / "metrics.jsonl").unlink(missing_ok=True)  # what stands there later is of this pair
        arguments = [
            f"run={folder}", "training.batch_size=4",
            "training.log_every_steps=1", "training.save_every_steps=1000", "training.device=cpu", *settings,
        ]  # fmt: skip
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        self.ranks = [
            subprocess.Popen(
                [sys.executable, str(LAUNCHER), *arguments],
                env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip

    def losses(self):
        """Losses logged so far."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.is_file() else []
        return [json.loads(line)["loss"] for line in lines]

    def checkpoints(self):
        """What is saved, oldest first."""
        return CheckpointFolder(self.folder / "checkpoints", keep=2).complete()

    def trained(self, steps):
        """Wait until this pair has logged so many steps."""
        end = time.monotonic() + LONGEST_S
        while len(self.losses()) < steps:
            dead = [rank.poll() for rank in self.ranks]
            assert dead == [None, None] and time.monotonic() < end, [r.communicate(timeout=30) for r in self.ranks]
            time.sleep(0.05)

    def ended(self, rank):
        """Exit status and output of a rank."""
        out, errors = self.ranks[rank].communicate(timeout=LONGEST_S)
        return self.ranks[rank].returncode, out, errors

    def close(self):
        """Leave nothing running, whatever a test found."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
                rank.communicate()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, small_world):
    """Start a pair; every pair after the first continues the same run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    started = []

    def start(*settings):
        started.append(Pair(folder, *small_world(), *settings))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_a_signal_to_one_rank_saves_on_all(pair):
    """USR1 at rank 1 alone: both save after the same step and exit with 75."""
    ranks = pair()
    ranks.trained(3)
    ranks.ranks[1].send_signal(signal.SIGUSR1)
    code, out, errors = ranks.ended(0)
    assert (code, ranks.ended(1)[0]) == (75, 75), errors
    assert f"preempted after step {len(ranks.losses())} of 120; the same command continues" in out
    assert [path.name for path in ranks.checkpoints()] == [f"step-{len(ranks.losses()):08d}"]


def test_a_lost_rank_gives_its_status_whatever_gloos_threads_do_at_the_end():
    """They aborted the process at times, after the message and with status -6."""
    code = """
import atexit, os, sys
from ace_dist.cli.failures import exit_status
from ace_dist.utils.lost_ranks import RankLost

def run(words):
    print("what was said before", end="")
    raise RankLost("rank 0 lost another rank")

atexit.register(os.abort)
sys.exit(exit_status(run, []))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "what was said before"
    assert done.stderr == "error: rank 0 lost another rank\n"


def test_a_killed_rank_ends_the_other_with_the_reason(pair):
    """kill -9 of rank 1 in full training: rank 0 exits and says that it lost a rank, and what to do."""
    ranks = pair()
    ranks.trained(3)
    ranks.ranks[1].kill()
    code, out, errors = ranks.ended(0)
    assert code == 2, errors
    assert f"from {ranks.checkpoints()[-1]}" in out
    assert "error: rank 0 lost another rank in" in errors and "the same command again" in errors, errors
    assert "no answer from rank 1" in errors, errors


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_ends_the_other_in_time_and_is_named(pair, frozen):
    """SIGSTOP: the other says what it waits for, gives up after `collective_timeout_s` and ten seconds, names the rank.

    Rank 0 too, although the ranks met in its process.
    """
    ranks = pair("training.collective_timeout_s=20", "training.stall_after_s=1")
    saved = ranks.checkpoints()
    ranks.trained(3)
    ranks.ranks[frozen].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    code, _, errors = ranks.ended(1 - frozen)
    assert time.monotonic() - began < 20 + 10 + 10  # ten more for a busy machine
    ranks.ranks[frozen].kill()  # which holds the folder, if it is rank 0
    assert code in (2, os.EX_SOFTWARE), errors
    assert "takes more than 1 s; stacks are in" in errors and f"no answer from rank {frozen}" in errors, errors
    assert "take_steps" in (ranks.folder / "stalls" / f"rank-{1 - frozen}.txt").read_text()
    assert ranks.checkpoints() == saved


def test_a_rank_killed_in_the_final_evaluation_is_named(tmp_path, small_world):
    """No traceback of gloo; the same command evaluates again."""
    ranks = Pair(tmp_path, *small_world(), "training.max_steps=2")
    try:
        for line in ranks.ranks[0].stdout:
            if line.startswith("weights that are tested"):
                break
        ranks.ranks[1].kill()
        code, _, errors = ranks.ended(0)
        assert code == 2 and "Traceback" not in errors, errors
        assert "error: rank 0 lost another rank" in errors and "no answer from rank 1" in errors, errors
        assert not (tmp_path / "results.json").exists()
    finally:
        ranks.close()
