"""Two jobs and one run folder: a living owner keeps it, a dead one is followed, whatever clocks and containers say."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ace_dist.train import run_lock
from ace_dist.train.run_lock import RunLock
from ace_dist.utils.errors import RunError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Beats of tenths of a second."""
    monkeypatch.setattr(run_lock, "BEAT_S", 0.05)
    monkeypatch.setattr(run_lock, "WATCH_S", 0.5)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that knows no `flock`."""

    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def killed_owner(folder):
    """A process that has taken the folder and was killed."""
    pid = os.fork()
    if pid == 0:
        RunLock(folder).acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (folder / "lock.json").exists()
    return pid


def unseen(folder, **other):
    """Make the lock's owner one of another machine or container."""
    path = folder / "lock.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (other or {"boot": "another"})))


def test_two_jobs_cannot_write_one_folder(tmp_path):
    """The second is refused with the first's process, until that gives the folder back."""
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    with pytest.raises(RunError, match=f"is being written by process {os.getpid()} on "):
        second.acquire()
    assert first.owner()["pid"] == os.getpid()
    first.close()
    second.acquire()
    second.close()
    assert second.owner() is None and not (tmp_path / "lock.json").exists()


def test_a_killed_owner_that_can_be_looked_up_is_followed_at_once(tmp_path, capsys):
    pid = killed_owner(tmp_path)
    began = time.monotonic()
    RunLock(tmp_path).acquire()
    assert time.monotonic() - began < run_lock.WATCH_S / 2
    assert f"took over {tmp_path} from process {pid} on" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"boot": "another"}, {"namespace": "pid:[1]"}, {"started": "1", "boot": None}])
def test_a_dead_owner_out_of_sight_is_watched_and_followed(tmp_path, capsys, other):
    """Another machine or container with the same host name; its clock is an hour ahead. The waiting is said."""
    killed_owner(tmp_path)
    unseen(tmp_path, **other)
    os.utime(tmp_path / "lock.json", (time.time() + 3600,) * 2)
    RunLock(tmp_path).acquire()
    said = capsys.readouterr().out
    assert "cannot be seen from here: watching lock.json for 0.5 s" in said and "which is gone" in said


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path):
    """The owner's number lives, but was given to a process that started at another time."""
    killed_owner(tmp_path)
    unseen(tmp_path, pid=os.getpid(), started="1")
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("text", ["{", "", "[1]", '{"host": "h"', "\x00", "7", "[" * 100_000])
def test_a_cut_lock_is_no_traceback(tmp_path, text):
    """A machine that crashes while it writes leaves any of these."""
    (tmp_path / "lock.json").write_text(text)
    assert RunLock(tmp_path).owner() is None
    lock = RunLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    lock.close()


def test_without_file_locks_a_living_owner_out_of_sight_keeps_the_folder(tmp_path, no_locks, monkeypatch, capsys):
    """Its beat is seen; when it stops, the folder is taken over."""
    first = RunLock(tmp_path)
    first.acquire()
    assert "lock.json cannot be locked (No locks available): its beat is the only lock" in capsys.readouterr().out
    assert RunLock(tmp_path).owner()["pid"] == os.getpid()
    with pytest.raises(RunError, match="is being written by process"):
        RunLock(tmp_path).acquire()
    here = run_lock.identity()
    monkeypatch.setattr(run_lock, "identity", lambda: here | {"namespace": "pid:[1]", "pid": 7})
    with pytest.raises(RunError, match=f"is being written by process {os.getpid()} on "):
        RunLock(tmp_path).acquire()
    first.closed.set()  # as a process that stands still
    first.thread.join()
    RunLock(tmp_path).acquire()
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == 7


def test_an_owner_that_stood_still_ends_when_the_folder_is_another_ones(tmp_path, no_locks, capfd):
    """It wakes up, reads who has the folder, and writes nothing more."""
    pid = os.fork()
    if pid == 0:
        RunLock(tmp_path).acquire()
        unseen(tmp_path, pid=77, host="elsewhere")
        time.sleep(30)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == os.EX_SOFTWARE
    assert "was taken over by process 77 on elsewhere while this process stood still" in capfd.readouterr().err
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == 77


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="takes root and unshare")
def test_a_container_with_the_same_host_name_is_another_owner(tmp_path):
    """A living owner in a pid namespace of its own keeps the folder; killed, it is followed after a look."""
    code = f"from ace_dist.train.run_lock import *; RunLock(Path({str(tmp_path)!r})).acquire(); time.sleep(60)"
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", code]
    container = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "lock.json").is_file() or not (tmp_path / "lock.json").stat().st_size:
        if container.poll() is not None:
            pytest.skip(container.stderr.read())
        time.sleep(0.05)
    with pytest.raises(RunError, match="is being written by process 1 on "):
        RunLock(tmp_path).acquire()
    container.kill()
    container.wait()
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.close()


def test_a_lock_file_that_its_owner_removes_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """The newcomer has opened the file that its owner then removes: it must lock the one that others will open."""
    first, second, third = (RunLock(tmp_path) for _ in range(3))
    first.acquire()
    flock, late = fcntl.flock, [first]

    def slow(file, how):
        while late:
            late.pop().close()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    second.acquire()
    with pytest.raises(RunError, match=f"written by process {os.getpid()}"):
        third.acquire()
    second.close()
    assert not (tmp_path / "lock.json").exists() and third.owner() is None
