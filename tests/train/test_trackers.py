"""What trackers are sent: numbers and a configuration without secrets, to the same run after a resume."""

import json
import math
import os
import sqlite3
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ace_dist.train.trackers import build_trackers, require_trackers
from ace_dist.utils.errors import RunError

SECRET = "sk-abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def folder(tmp_path):
    """A run folder as `claim` leaves it: secrets are gone from its config.yaml."""
    run_dir = tmp_path / "some_run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("name: demo\nrun: /home/ann/runs/some_run\ntraining:\n  batch_size: 7\n")
    return run_dir


def follow(folder, name):
    """A run of two lines, stopped, and continued for one more."""
    for start, steps in ((0, (2, 4)), (4, (6,))):
        (tracker,) = build_trackers([name], folder, start)
        for step in steps:
            tracker.log(step, {"loss": 1 / step, "lr_video": 0.5})
        tracker.close(failed=False)


def test_an_absent_package_is_a_sentence(monkeypatch):
    """Before anything is trained; other names are refused with those there are."""
    require_trackers(["tensorboard"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("wandb", "trackio"):
        with pytest.raises(RunError, match=rf"lists {name}, which is not installed: pip install 'ace-dist\[trackers"):
            require_trackers([name])
    with pytest.raises(RunError, match="lists 'mlflow'; there are tensorboard, wandb, trackio"):
        require_trackers(["mlflow"])


def test_nothing_is_imported_that_was_not_chosen(folder, monkeypatch):
    """A broken W&B does not concern a run that does not use it."""
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    follow(folder, "tensorboard")
    assert not (folder / "tracking.json").exists()


def test_tensorboard_shows_every_step_of_a_run_that_goes_on(folder):
    """The step of the checkpoint stays; a later one, that the stopped run had written too, is shown once."""
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        for before in folder.glob("tensorboard/*"):
            before.rename(before.with_name("events.out.tfevents.0"))  # files are read by name, which has their second
        (tracker,) = build_trackers(["tensorboard"], folder, start)
        for step in steps:
            tracker.log(step, {"loss": start + 1 / step})
        tracker.close(failed=False)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    points = {point.step: point.value for point in events.Scalars("loss")}
    assert points == pytest.approx({2: 1 / 2, 4: 1 / 4, 6: 4 + 1 / 6, 8: 4 + 1 / 8})


class FakeRun:
    """Remembers what W&B's run was told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.told.append((name, args, kwargs))


def test_what_wandb_is_told(folder, monkeypatch):
    """One identity over a stop, the configuration without the machine's path, no code, console or machine."""
    inits, run = [], FakeRun()
    fake = ModuleType("wandb")
    fake.Settings = SimpleNamespace
    fake.errors = SimpleNamespace(Error=RuntimeError)
    fake.init = lambda **kwargs: (inits.append(kwargs), run)[1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    follow(folder, "wandb")
    first, second = inits
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["project"] == "ace-dist"
    assert first["config"] == {"name": "demo", "training": {"batch_size": 7}}
    settings = vars(first["settings"])
    assert settings["console"] == "off" and settings["x_disable_meta"] and settings["disable_git"]
    logged = [args[0] for name, args, _ in run.told if name == "log"]
    assert logged == [{"step": step, "loss": 1 / step, "lr_video": 0.5} for step in (2, 4, 6)]
    assert [kwargs for name, _, kwargs in run.told if name == "finish"] == [{"exit_code": 0}] * 2

    fake.init = lambda **kwargs: (_ for _ in ()).throw(RuntimeError("api_key not configured"))
    with pytest.raises(RunError, match="wandb, which says: api_key not configured; WANDB_MODE=offline"):
        build_trackers(["wandb"], folder, 0)


def test_what_trackio_is_told(folder, monkeypatch):
    """The step as it is; one name over a stop, and another for another run in a folder of that name."""
    told = []
    fake = ModuleType("trackio")
    for name in ("init", "log", "finish"):
        setattr(fake, name, lambda *args, name=name, **kwargs: told.append((name, args, kwargs)))
    monkeypatch.setitem(sys.modules, "trackio", fake)
    follow(folder, "trackio")
    names = [args[1] for name, args, _ in told if name == "init"]
    assert names[0] == names[1] and names[0].startswith("some_run-")
    assert [kwargs["step"] for name, _, kwargs in told if name == "log"] == [2, 4, 6]
    (folder / "tracking.json").unlink()
    follow(folder, "trackio")
    assert told[-1][0] == "finish" and [args[1] for name, args, _ in told if name == "init"][-1] != names[0]


def test_wandb_offline_writes_into_the_run_folder(folder, monkeypatch):
    """The real package without a network: numbers in its file, no command line and no environment."""
    pytest.importorskip("wandb", reason="W&B comes with ace-dist[trackers]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.setattr(sys, "argv", ["train.py", "--secret-on-the-command-line"])
    follow(folder, "wandb")
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"batch_size" in written and b"lr_video" in written and len(list(folder.rglob("*.wandb"))) == 2
    for private in (SECRET, "secret-on-the-command-line", "/home/ann"):
        assert private.encode() not in written.replace((folder / "config.yaml").read_bytes(), b"")


def test_trackio_keeps_a_run_in_its_own_database(folder, tmp_path, monkeypatch):
    """The real package without a server, in a process of its own because it reads its folder when imported."""
    pytest.importorskip("trackio", reason="Trackio comes with ace-dist[trackers]")
    script = (
        "import sys, json; from pathlib import Path; from ace_dist.train.trackers import build_trackers\n"
        "for start, steps in ((0, (2, 4)), (4, (6,))):\n"
        "    (tracker,) = build_trackers(['trackio'], Path(sys.argv[1]), start)\n"
        "    for step in steps: tracker.log(step, {'loss': 1 / step})\n"
        "    tracker.close(failed=False)\n"
    )
    offline = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [step for _, step, _ in rows] == [2, 4, 6] and {name.split("-")[0] for name, _, _ in rows} == {"some_run"}
    assert len({name for name, _, _ in rows}) == 1
    assert all(math.isclose(json.loads(values)["loss"], 1 / step) for _, step, values in rows)
