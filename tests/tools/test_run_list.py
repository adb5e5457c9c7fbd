"""The list of run folders says what each is, and names what is none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ace_dist.config import load_config, to_yaml
from ace_dist.tools.study.run_list import differing_settings, find_runs, runs_table
from ace_dist.train.run_lock import RunLock
from ace_dist.utils.errors import RunError

SCORE = {"accuracy": 71.26, "f1": 60.04}
RESULTS = {
    "method": "ace", "dataset": "tabletop", "fold": 0, "seed": 0, "base": SCORE, "novel": None, "hm": None,
    "srt": {"runs": [SCORE], "accuracy_mean": 44.0, "accuracy_std": 1.0, "f1_mean": 33.0, "f1_std": 1.0},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """`folder("name", "key=value", steps=3, done=True)`: a run folder as training leaves it."""

    def make(name, *settings, steps=0, done=False):
        path = tmp_path / name
        path.mkdir()
        (path / "config.yaml").write_text(to_yaml(load_config([f"run={path}", *settings])))
        git = {"commit": "0123456789abcdef", "modified": done}
        (path / "environment.json").write_text(json.dumps({"git": git}))
        for step in range(1, steps + 1):
            checkpoint = path / "checkpoints" / f"step-{step:08d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "checkpoint.json").write_text("{}")
        if done:
            (path / "results.json").write_text(json.dumps(RESULTS))
        return path

    return make


def rows(pattern):
    """Folder name to its cells from the steps on."""
    runs, _ = find_runs(pattern)
    lines = [line.split() for line in runs_table(runs).splitlines()[1:]]
    return {Path(line[1]).name: line[5:] for line in lines}


def test_finished_stopped_and_running(folder, tmp_path):
    """By results, by the newest checkpoint, and by a living lock; a dead process's lock is no sign of life."""
    folder("a_done", steps=4, done=True)
    folder("b_stopped", steps=3)
    folder("c_new")
    lock = RunLock(folder("d_running", steps=2))
    lock.acquire()
    dead = folder("e_killed", steps=1)
    script = "import sys; from pathlib import Path; from ace_dist.train.run_folder import RunLock; import os, signal\n"
    script += "RunLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", script, str(dead)], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL and (dead / "lock.json").is_file()
    found = rows(f"{tmp_path}/*")
    lock.close()
    assert found["a_done"] == ["4", "finished", "71.3", "/", "60.0", "-", "-", "44.0", "/", "33.0", "01234567+"]
    assert found["b_stopped"][:5] == ["3", "stopped", "at", "step", "3"] and found["b_stopped"][-1] == "01234567"
    assert found["c_new"][:5] == ["0", "stopped", "at", "step", "0"]
    assert found["d_running"][:3] == ["2", "running", "on"]
    assert found["e_killed"][:5] == ["1", "stopped", "at", "step", "1"]
    assert rows(f"{tmp_path}/d*")["d_running"][1] == "stopped"


def test_the_settings_that_differ_are_shown_with_their_runs(folder, tmp_path):
    """Values of nested settings; folder and name, which always differ, are no difference."""
    folder("a", "seed=1", "training.lr_video=0.5")
    folder("b", "seed=1", "training.lr_video=0.25", "dataset.novel=[spin block]")
    folder("c", "seed=2", "training.lr_video=0.5")
    runs, _ = find_runs(f"{tmp_path}/*")
    lines = differing_settings(runs)
    assert "seed: 1 (1, 2); 2 (3)" in lines and "training.lr_video: 0.5 (1, 3); 0.25 (2)" in lines
    assert any(line.startswith("dataset.novel: ") and line.endswith("['spin block'] (2)") for line in lines)
    assert len(lines) == 3
    assert differing_settings(runs[:1]) == []


def test_broken_and_foreign_folders_are_named(folder, tmp_path):
    """Each with its reason, and the others are listed all the same; a pattern without a match is an error."""
    folder("good")
    (tmp_path / "holiday").mkdir()
    (folder("old") / "config.yaml").write_text("training:\n  no_such_setting: 1\n")
    (folder("half", done=True) / "results.json").write_text('{"method": "ace"')
    (folder("bare") / "environment.json").unlink()
    (tmp_path / "notes.txt").write_text("")
    runs, others = find_runs(f"{tmp_path}/*")
    assert [run.folder.name for run in runs] == ["good"]
    said = {Path(line.split(" is not listed: ")[0]).name: line for line in others}
    assert said.keys() == {"bare", "half", "holiday", "old"}
    for name, reason in {
        "bare": "environment.json does not exist", "half": "is not valid JSON", "holiday": "is not a run folder",
        "old": "made by an earlier version",
    }.items():  # fmt: skip
        assert reason in said[name]
    with pytest.raises(RunError, match="matches no folder; quote the pattern"):
        find_runs(f"{tmp_path}/nothing*")
