"""Files that nobody else can read: temporary folders, also of a process that is told to end, and `umask=077`."""

import os
import signal
import subprocess
import sys

import pytest

from ace_dist.cli.words import take_umask
from ace_dist.utils.errors import ConfigError

HOLDER = """
import sys, time
from pathlib import Path
from ace_dist.utils.files import private_folder
with private_folder("held-", Path(sys.argv[1])) as folder:
    (folder / "secret").write_text("x")
    print(folder.stat().st_mode & 0o777, flush=True)
    time.sleep(60)
"""


def open_to_others(folder):
    """What below `folder` its owner's group, or others, may read, write or enter."""
    return [path for path in folder.rglob("*") if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_temporary_folder_ends_with_its_process(tmp_path, number):
    """Nobody else can read it, and no signal that a terminal or a scheduler sends leaves it behind."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert int(process.stdout.readline()) == 0o700 and len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(30) in (128 + number, -number)
    assert not list(tmp_path.iterdir())


def test_files_of_jobs_follow_the_umask(launch, tmp_path):
    """The shards that a job builds, its pickles, journal and logs."""
    launch(
        "submit", "cluster=local", "launcher=build_shards", "umask=077", f"folder={tmp_path / 'jobs'}",
        f"dataset.shards={tmp_path / 'shards'}", "dataset.world.train_clips=16", "dataset.world.test_clips=36",
    )  # fmt: skip
    names = {path.name for path in tmp_path.rglob("*")}
    assert "manifest.json" in names and any(name.endswith(".pkl") for name in names)
    assert not open_to_others(tmp_path)


def test_a_umask_is_three_octal_digits():
    before = os.umask(0o022)
    try:
        assert take_umask(["train", "umask=027", "seed=1"]) == ["train", "seed=1"] and os.umask(0o022) == 0o027
        for wrong in ("umask=", "umask=77", "umask=088", "umask=private", "umask=7777"):
            with pytest.raises(ConfigError, match="three octal digits"):
                take_umask([wrong])
    finally:
        os.umask(before)
