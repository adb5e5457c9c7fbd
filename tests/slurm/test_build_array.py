"""On a real SLURM of two nodes: an array builds one folder of shards, a killed task is repeated, nothing differs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from local_slurm import local_slurm, missing, wait_for

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["dataset.world.train_clips=48", "dataset.world.test_clips=32", "dataset.clips_per_shard=4"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=f"no SLURM: {missing()}")]


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_an_array_with_a_killed_task_builds_what_one_process_builds(tmp_path, launch):
    launch("build_shards", *SETTINGS, f"dataset.shards={tmp_path}/whole")
    parts, launcher = tmp_path / "parts", f"{ROOT}/launchers/build_shards.py"
    command = " ".join([sys.executable, launcher, *SETTINGS, f"dataset.shards={parts}", "dataset.workers=1"])
    with local_slurm() as slurm:
        slurm.environment["OMP_NUM_THREADS"] = "1"

        def submit(array, command):
            options = ["--parsable", f"--array={array}", f"--chdir={tmp_path}", "--output=%a.log"]
            return slurm.command("sbatch", *options, "--wrap", f"exec {command}").strip()

        def all_ended():
            return not slurm.command("squeue", "--noheader").strip()

        job = submit("3-9:2", command)
        wait_for("the last part's first shard", (parts / "test-00003.tar.state.json").exists)
        slurm.command("scancel", "--signal=KILL", "--full", f"{job}_9")
        wait_for(lambda: slurm.command("squeue"), all_ended, timeout_s=120)
        assert not (parts / "manifest.json").exists()
        logs = {index: (tmp_path / f"{index}.log").read_text() for index in (3, 5, 7, 9)}
        assert [f"part {k} of 4 (SLURM_ARRAY_TASK_ID={i})" in logs[i] for k, i in enumerate(logs)] == [True] * 4, logs
        submit("3", f"{command} dataset.tasks=4")
        wait_for(lambda: slurm.command("squeue"), all_ended, timeout_s=120)
    again = (tmp_path / "3.log").read_text()
    assert "part 3 of 4 (dataset.tasks)" in again and "48 training and 32 test clips, 20 shards" in again
    assert "test-00003.tar:" not in again  # finished before the kill
    assert tree(parts) == tree(tmp_path / "whole")
