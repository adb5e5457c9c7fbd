"""`ace own`: from a CSV file to a report in one command, which goes on after a kill."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from data_worlds import write_video
from page_processes import HANGS_AFTER_S

pytestmark = pytest.mark.slow
SCRIPT = "import sys\nfrom ace_dist.cli import ace\nsys.exit(ace())\n"
SHORT = ("training.max_steps=2", "training.batch_size=4", "training.device=cpu", "dataset.workers=1", "ranks=1")
ACTIONS = (("push", "lever"), ("lift", "lid"), ("spin", "wheel"))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A video of three actions for each of three people, and a CSV without a split."""
    folder, rng = tmp_path_factory.mktemp("project"), np.random.default_rng(0)
    lines = ["video,start_s,end_s,verb,object,group"]
    for person in ("anna", "ben", "carl"):
        texture = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        write_video(folder / f"{person}.mp4", np.stack([np.roll(texture, 3 * k, axis=1) for k in range(45)]))
        lines += [f"{person}.mp4,{k * 1.2},{k * 1.2 + 1.2},{v},{o},{person}" for k, (v, o) in enumerate(ACTIONS)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def start_own(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "own", "labels.csv", *SHORT],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def test_from_a_csv_to_a_report_over_a_kill_between_stages(project):
    """Killed when the shards are there: they are kept, and the same command ends with a tested model."""
    killed = start_own(project)
    said = []
    for line in killed.stdout:
        said.append(line)
        if line.startswith("$ ace train"):
            os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "".join(said)
    shards = {path: path.stat().st_mtime_ns for path in (project / "own" / "shards").glob("*.tar")}
    assert len(shards) == 2 and not (project / "own" / "run").exists()

    again = start_own(project)
    said, _ = again.communicate(timeout=HANGS_AFTER_S)
    assert again.returncode == 0, said
    assert {path: path.stat().st_mtime_ns for path in shards} == shards, "built once"
    assert "trees.json is there and is kept" in said and "time: about" in said and "for 2 steps" in said
    commands = [line.split()[2:4] for line in said.splitlines() if line.startswith("$ ace ")]
    assert [words[0] for words in commands] == ["annotations", "shards", "train", "train"]
    results = json.loads((project / "own" / "run" / "results.json").read_text())
    assert results["base"]["accuracy"] >= 0 and (project / "own" / "run" / "report.html").is_file()
    assert "next: ace classify run=own/run" in said and "ace segment run=own/run" in said
