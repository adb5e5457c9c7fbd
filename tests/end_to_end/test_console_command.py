"""The console command `ace`: what it starts, how it ends, and the wheel that brings it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from data_worlds import numbered_frames, write_video
from light import BLOCKED

from ace_dist import __version__, cli
from ace_dist.cli.words import with_home
from ace_dist.cluster.ranks import exit_status
from ace_dist.config import ConfigError, load_config, to_yaml
from ace_dist.data.task import load_test_trees
from ace_dist.evaluate.export import portable
from ace_dist.models.build import build_model
from ace_dist.models.convert.exporting import save_encoders
from ace_dist.tools.completion import complete

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "import sys\nfrom ace_dist.cli import ace\nsys.exit(ace())\n"


def test_training_without_settings_prints_help_and_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "shards", "estimate", "submit"):
        assert cli.start([name]) == 0 and "settings, written key=value:" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert cli.start(["--version"]) == 0 and re.fullmatch(r"ace-dist \d+\.\S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("number", "place", "advice"),
    [
        (errno.ENOSPC, "", "free some space"),
        (errno.EACCES, "", "write to a folder of yours"),
        (errno.EACCES, "closed", "let this user read it (`ls -ld "),
        (errno.EACCES, "file", "let this user read it (`ls -ld "),
        (errno.ENOTDIR, "file/x", "name another path"),
        (errno.EEXIST, "file", "name another path"),  # run=FILE
    ],
)
def test_what_a_file_system_refuses_is_one_sentence(tmp_path, monkeypatch, capsys, number, place, advice):
    """A file that may not be read needs other help than one that may not be written."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in ("closed", "file"))
    (tmp_path / "closed").mkdir()
    name = str(tmp_path / "closed" / "x" if place == "closed" else tmp_path / (place or "new"))

    def run(argv):
        raise OSError(number, os.strerror(number), name)

    assert cli.main("train", run=run) == 2
    assert f"{name}: {os.strerror(number)}; {advice}" in capsys.readouterr().err


def test_home_is_put_in_where_the_shell_does_not(tmp_path, monkeypatch):
    """`bash` leaves `run=~/x` alone; no folder is called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    home, words = str(tmp_path), ["run=~/x", "video=[~/a b.mp4, ~/c.mp4]", "~training.seed", "output=a~/b", "x=~y/z"]
    assert with_home(words) == [f"run={home}/x", f"video=[{home}/a b.mp4, {home}/c.mp4]", *words[2:]]


def test_a_settings_file_is_printed_and_used(tmp_path, capsys):
    """A copy of a file of the package composes to what the file itself does, packages and defaults included."""
    for group, name in (("dataset", "csv"), ("experiment", "demo"), ("method", "procvlr")):
        cli.start(["config", "get", f"{group}={name}"])
        path = tmp_path / f"my {name}.yaml"
        path.write_text(capsys.readouterr().out)
        assert to_yaml(load_config([f"{group}={path}"])) == to_yaml(load_config([f"{group}={name}"]))
    for words, said in (
        ([f"dataset={tmp_path}/none.yaml"], "the file does not exist; `ace config get dataset=NAME`"),
        (["dataset=cvs"], "did you mean 'csv'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            load_config(words)
    with pytest.raises(ConfigError, match="did you mean 'csv'"):
        cli.start(["config", "get", "dataset=cvs"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ace tr", ["train "]),
        ("ace shards v", ["verify "]),
        ("ace classify vi", ["video="]),
        ("ace train experiment=g", ["gtea_ace"]),
        ("ace shards dataset.encoding.c", ["dataset.encoding.codec="]),
        ("ace nothing ", []),
        ("ace own an", []),  # annotations.csv, which the shell completes
        ("ace own annotations.csv out", ["output="]),
    ],
)
def test_the_tab_key(line, expected):
    assert complete(line, list(cli.COMMANDS), cli.help_text) == expected


@pytest.mark.parametrize(
    ("codes", "expected"), [([0, 0], 0), ([75, 75], 75), ([-9, 2], 2), ([0, 130], 130), ([-9, -9], 137)]
)
def test_the_exit_status_is_what_the_ranks_said(codes, expected):
    assert exit_status(codes) == expected


@pytest.mark.slow
def test_a_signal_reaches_the_ranks_which_save_and_say_their_status(small_world, tmp_path):
    """Ctrl-C at the command alone, as a shell script sends it: 130, a checkpoint, and no process left."""
    (tmp_path / "ace").write_text(SCRIPT)
    words = [*small_world(), f"run={tmp_path / 'run'}", "training.batch_size=4", "training.max_steps=100000", "ranks=2",
             "training.log_every_steps=1", "training.save_every_steps=100000", "training.device=cpu"]  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, str(tmp_path / "ace"), "train", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not log.is_file() or len(log.read_text().splitlines()) < 2:
        assert started.poll() is None and time.monotonic() < end, started.communicate()
        time.sleep(0.1)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["world_size"] == 2
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate(timeout=120)
    assert started.returncode == 130 and "Traceback" not in said, said
    assert list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, unpacked as an installation of its own: outside of the checkout, nothing of which is found."""
    pytest.importorskip("hatchling", reason="pip install hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], check=True, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    (folder / "ace").write_text(SCRIPT)
    return folder


def installed_ace(folder, *words, blocked=()):
    """Run the installed command in an empty folder; `blocked` packages are as if they were not there."""
    environment = os.environ | {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}
    program = [str(folder / "ace")]
    if blocked:
        lines = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\nsys.argv = ['ace', *sys.argv[1:]]\n"
        program = ["-c", lines + SCRIPT]
    (folder / "work").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *program, *words], capture_output=True, text=True, check=False, cwd=folder / "work",
        env=environment, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_all_that_a_run_needs(installed):
    site = installed / "site"
    for part in ("configs", "ace_dist", "kernels/ace_kernels"):
        kept = {"configs": site / "ace_dist" / "configs", "ace_dist": site / "ace_dist"}.get(part, site / "ace_kernels")
        files = subprocess.run(["git", "ls-files", part], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        missing = [name for name in files.splitlines() if not (kept / Path(name).relative_to(part)).is_file()]
        assert not missing
    (info,) = site.glob("*.dist-info")
    assert "ace = ace_dist.cli:ace" in (info / "entry_points.txt").read_text()
    assert not [path for path in site.iterdir() if path.name not in ("ace_dist", "ace_kernels", info.name)]


@pytest.mark.slow
def test_the_installed_command_classifies_and_segments(installed):
    """With the files that an export needs, away from the checkout, as in an installation without extras.

    `make test-long` installs the wheel and trains.
    """
    config = load_config(["experiment=demo"])
    folder = installed / "work" / "exported"
    folder.mkdir(parents=True)
    save_encoders(build_model(config.model, config.seed), folder, config.dataset.clip.frames)
    load_test_trees(config).save(folder / "synonyms.json")
    (folder / "config.yaml").write_text(to_yaml(portable(config)))
    video = write_video(installed / "work" / "a.mp4", numbered_frames(24, 48, 64))
    words = ("run=exported", f"video={video}", "actions=[spin block, lift mug]")
    assert installed_ace(installed, "--version") == f"ace-dist {__version__}\n"
    assert "%  spin block" in installed_ace(installed, "classify", *words, blocked=BLOCKED)
    installed_ace(installed, "segment", *words, "output=a.json", "cache=null", blocked=BLOCKED)
    assert json.loads((installed / "work" / "a.json").read_text())
