"""Several jobs on one machine at one time: each finds a port of its own, whoever started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ace_dist.utils import meeting
from ace_dist.utils.errors import RunError
from ace_dist.utils.meeting import Meeting, meeting_file, started_on_one_host

JOB = """
import os, sys, time
from pathlib import Path
from ace_dist.utils.distributed import connect, disconnect

ranks = connect("cpu", timeout_s=60)
name, folder = sys.argv[-2], Path(sys.argv[-1])
(folder / f"{name}.{ranks.rank}").touch()
while len(list(folder.iterdir())) < 6:  # until all ranks of all jobs are in their groups
    time.sleep(0.05)
(folder.parent / f"{name}.{ranks.rank}.out").write_text(" ".join(ranks.gather(name)))
disconnect()
"""


def test_jobs_of_deepspeeds_launcher_run_side_by_side(tmp_path):
    """Its default port is the same for all of them; ranks meet those of their own job, and leave no file behind."""
    script, folder, temporary = tmp_path / "job.py", tmp_path / "connected", tmp_path / "tmp"
    script.write_text(JOB)
    folder.mkdir()
    temporary.mkdir()
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary),
    }  # fmt: skip
    jobs = [
        subprocess.Popen(
            [bin_folder / "deepspeed", "--num_gpus", "2", str(script), name, str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("first", "second", "third")
    ]  # fmt: skip
    said = [job.communicate(timeout=240)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    for name in ("first", "second", "third"):
        assert [(tmp_path / f"{name}.{rank}.out").read_text() for rank in (0, 1)] == [f"{name} {name}"] * 2
    assert not list(temporary.glob("ace-dist-*"))


def test_who_chooses_the_port():
    """Ranks of one launcher on one machine; on several nodes, under torchrun and srun it is the launcher."""
    deepspeed = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "CROSS_SIZE": "1", "MASTER_PORT": "29500"}
    assert started_on_one_host(deepspeed) and started_on_one_host({})
    assert started_on_one_host({"SUBMITIT_EXECUTOR": "local", "SLURM_STEP_ID": "0"})
    assert not started_on_one_host({**deepspeed, "CROSS_SIZE": "2", "WORLD_SIZE": "4"})
    assert not started_on_one_host({"RANK": "0", "WORLD_SIZE": "2"}) and not started_on_one_host({"SLURM_STEP_ID": "0"})


def test_a_rank_does_not_wait_for_ever_nor_believe_another_user(tmp_path, monkeypatch):
    """Rank 0 that never comes is named; a file that somebody else put there is not read."""
    monkeypatch.setattr(meeting.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(RunError, match=r"rank 1 of 2 waited 0\.1 s for rank 0 to open a port"):
        Meeting.arrange(1, 2, 0.1)
    meeting_file().write_text("29500")
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    meeting_file().write_text("29500")
    started = time.monotonic()
    with pytest.raises(RunError):
        Meeting.arrange(1, 2, 0.1)
    assert time.monotonic() - started < 30
