"""Protects builds in parts: array tasks, in any order and at once, killed or not, give the bytes of one process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from data_worlds import NumberedReader, numbered_frames, plan_build, small_encoding, write_video

from ace_dist.config import ClipConfig
from ace_dist.data.annotations.csv import read_csv
from ace_dist.data.build.shards import array_task, sole_writer
from ace_dist.data.segments import Failure
from ace_dist.utils.errors import DataError

CLIP = ClipConfig(4, 1.5, 3)
CLIPS = 23  # 15 train and 8 test: five shards of 3 and three


def plan(folder, reader=None, **settings):
    encoding = settings.pop("encoding", small_encoding(codec="mjpeg"))
    return plan_build(reader or NumberedReader(CLIPS), folder, CLIP, encoding, **({"clips_per_shard": 3} | settings))


def part(folder, task, tasks, **settings):
    return plan(folder, **settings).run(1, False, task, tasks)


def tree(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes that one process makes."""
    folder = tmp_path_factory.mktemp("whole")
    plan(folder).run(workers=1, progress=False)
    return tree(folder)


@pytest.mark.parametrize("tasks", [2, 3, 8, 11])
def test_parts_in_any_order_are_the_whole(tmp_path, whole, tasks):
    order = np.random.default_rng().permutation(tasks).tolist()  # eleven tasks of eight shards: some have nothing to do
    for task in order:
        made = set(tree(tmp_path))
        finished = part(tmp_path, task, tasks)
        names = sorted(name for name in set(tree(tmp_path)) - made if name.endswith(".tar"))
        assert names == sorted(job.name for job in plan(tmp_path).jobs[8 * task // tasks : 8 * (task + 1) // tasks])
        is_last = len(list(tmp_path.glob("*.tar"))) == 8
        assert (finished is not None) == (tmp_path / "manifest.json").exists() == is_last
    assert finished is not None and len(finished.records) == CLIPS
    assert tree(tmp_path) == whole
    assert part(tmp_path, order[0], tasks).records == finished.records  # a requeued task finds it finished


def test_parts_at_once_are_the_whole(tmp_path, whole):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda task: part(tmp_path, task, 4), range(4)))
    assert sum(result is not None for result in results) >= 1
    assert tree(tmp_path) == whole and not list(tmp_path.glob(".*.partial"))


def test_one_process_finishes_what_parts_left(tmp_path, whole):
    assert part(tmp_path, 1, 3) is None
    plan(tmp_path).run(workers=1, progress=False)
    assert tree(tmp_path) == whole


def test_a_task_that_comes_late_finds_the_finished_build(tmp_path, whole):
    """Another task of the array is still there, so that the late one cannot take the folder for abandoned."""
    assert part(tmp_path, 0, 2) is None
    with plan(tmp_path).among_tasks():
        finished = part(tmp_path, 1, 2)
        assert part(tmp_path, 0, 2).records == finished.records
    assert tree(tmp_path) == whole


def test_locks_serve_on_nfs_too(tmp_path, monkeypatch):
    """flock(2): there a file must be open for writing to be locked alone, and for reading to share its lock."""
    flock = fcntl.flock

    def nfs_flock(descriptor, mode):
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if access not in (os.O_RDWR, os.O_RDONLY if mode & fcntl.LOCK_SH else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, mode)

    monkeypatch.setattr(fcntl, "flock", nfs_flock)
    assert part(tmp_path, 0, 2) is None and part(tmp_path, 1, 2) is not None


SCRIPT = """
import os, sys
sys.path[:0] = {path!r}
from data_worlds import NumberedReader, plan_build, small_encoding
from ace_dist.config import ClipConfig


class Slow(NumberedReader):
    def read(self, segment, start_s, end_s):  # waits for a second process that never comes, past the first shards
        if segment.id == "clip_014":
            open({marker!r}, "w").close()
            os.read(os.pipe()[0], 1)
        return super().read(segment, start_s, end_s)


if __name__ == "__main__":
    encoding = small_encoding(codec="mjpeg")
    plan_build(Slow({clips}), {folder!r}, ClipConfig(4, 1.5, 3), encoding, clips_per_shard=3).{call}
"""


@pytest.mark.parametrize("call", ["run(workers=2, progress=False)", "run(2, False, task=0, tasks=2)"])
def test_kill_9_in_the_middle_and_go_on(tmp_path, whole, call):
    """The workers of a killed build end too, and what it had finished is not made again."""
    folder, marker = tmp_path / "shards", tmp_path / "reached"
    script = tmp_path / "build.py"
    path = [str(Path(__file__).parents[1] / "helpers"), *sys.path]
    script.write_text(SCRIPT.format(path=path, marker=str(marker), clips=CLIPS, folder=str(folder), call=call))
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE)
    wait_until(lambda: (marker.exists() and list(folder.glob("*.state.json"))) or process.poll() is not None)
    assert process.poll() is None, process.stderr.read().decode()
    children = [c for p in Path(f"/proc/{process.pid}/task").glob("*/children") for c in p.read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert len(children) >= 2
    wait_until(lambda: not any(alive(child) for child in children))
    finished = {path.name.removesuffix(".state.json") for path in folder.glob("*.state.json")}
    left = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar") if path.name in finished}
    assert left and not (folder / "manifest.json").exists()
    (folder / ".train-00009.tar.elsewhere-1.partial").write_bytes(b"half a shard")
    if "task" in call:
        assert part(folder, 0, 2) is None and part(folder, 1, 2) is not None
    else:
        plan(folder).run(workers=1, progress=False)
    assert tree(folder) == whole and not list(folder.glob(".*.partial"))
    assert left == {name: (folder / name).stat().st_mtime_ns for name in left}


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_parts_of_other_settings_do_not_mix(tmp_path, whole):
    with plan(tmp_path).among_tasks():
        with pytest.raises(DataError, match=r"other settings or segments are at work in dataset\.shards="):
            part(tmp_path, 0, 2, encoding=small_encoding(codec="mjpeg", gop=4))
        with pytest.raises(DataError, match=r"another process is building dataset\.shards="):
            plan(tmp_path).run(workers=1, progress=False)
    with sole_writer(tmp_path), pytest.raises(DataError, match=r"another process is building dataset\.shards="):
        part(tmp_path, 0, 2)
    assert part(tmp_path, 0, 2, encoding=small_encoding(codec="mjpeg", quality=9)) is None  # alone: may begin anew
    assert part(tmp_path, 0, 2) is None and part(tmp_path, 1, 2) is not None
    assert tree(tmp_path) == whole


def test_a_part_reports_its_own_failures_and_the_ledger_holds_all(tmp_path):
    reader = NumberedReader(CLIPS, broken=frozenset({"clip_001", "clip_022"}))
    with pytest.raises(DataError, match=r"1 of 23 segments(.|\n)*clip_001"):
        part(tmp_path, 0, 2, reader=reader)
    reader.rejected = [Failure("line-9", "", "labels.csv line 9", "start after end")]
    for task in (1, 0):
        shards = part(tmp_path / "all", task, 2, reader=reader, allow_quarantine=True)
    ledger = [json.loads(line)["id"] for line in (tmp_path / "all" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(ledger) == ["clip_001", "clip_022", "line-9"]
    assert len(shards.records) + len(ledger) == CLIPS + 1 == shards.manifest["configuration"]["segments"]


class RepeatingReader(NumberedReader):
    def segments(self):
        return [*super().segments(), super().segments()[4]]


def test_a_repeated_id_is_kept_once_and_listed(tmp_path):
    with pytest.raises(DataError, match="segment id clip_004 occurs twice"):
        plan(tmp_path, RepeatingReader(6))
    shards = plan(tmp_path, RepeatingReader(6), allow_quarantine=True).run(workers=1, progress=False)
    assert len(shards.records) == 6 and shards.manifest["quarantined"] == 1
    assert "clip_004 occurs twice" in (tmp_path / "quarantine.jsonl").read_text()


def test_a_build_with_quarantine_is_one_wherever_its_videos_lie(tmp_path):
    """Reasons name paths, and a data set that moved is the same one."""
    found = []
    for folder in (tmp_path / "here" / "clips", tmp_path / "there" / "clips"):
        (folder / "lift lid").mkdir(parents=True)
        for name in ("a.mp4", "b.mp4"):
            (folder / "lift lid" / name).touch()
        (folder / "lift lid" / "c.mp4").symlink_to(folder / "lift lid" / "b.mp4")  # the same clip again
        rows = [f"{video},{k},{k + 1},spin,block" for k, video in enumerate(("lift lid/a.mp4", "lift lid/gone.mp4"))]
        (folder / "labels.txt").write_text("\n".join(["video,start_s,end_s,verb,object", *rows]) + "\n")
        readers = [read_csv(path, keep_faults=True) for path in (folder / "labels.txt", folder)]
        assert [len(reader.rejected) for reader in readers] == [1, 1]
        found.append([plan(folder / "s", reader, allow_quarantine=True).configuration for reader in readers])
    assert found[0] == found[1]


def test_only_damaged_shards_of_a_finished_build_are_made_again(tmp_path, whole):
    plan(tmp_path).run(workers=1, progress=False)
    (tmp_path / "train-00002.tar").unlink()
    path = tmp_path / "test-00001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar") if path.name != "test-00001.tar"}
    plan(tmp_path).run(workers=1, progress=False)
    assert tree(tmp_path) == whole
    assert kept == {name: (tmp_path / name).stat().st_mtime_ns for name in kept}


def slurm(index, first=0, last=7, count=8, step=1):
    values = {"ID": index, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_who_says_which_part(tmp_path):
    assert array_task(None, None, {})[:2] == (0, 1)
    assert array_task(None, None, slurm(5)) == (5, 8, "SLURM_ARRAY_TASK_ID=5")
    assert array_task(None, None, slurm(7, first=1, last=7, count=3, step=3))[:2] == (2, 3)
    assert array_task(3, 4, slurm(5))[:2] == (3, 4)
    assert array_task(None, 8, slurm(7, first=3, last=7, count=2))[:2] == (7, 8)  # --array=3,7: two of eight again
    assert array_task(None, 1, slurm(3))[:2] == (0, 1)  # what `ace own` gives, in an array of several data sets
    with pytest.raises(DataError, match=r"not evenly spaced.*set dataset\.tasks=N"):
        array_task(None, None, slurm(7, first=1, last=7, count=3))
    with pytest.raises(DataError, match=r"dataset\.task=3 needs dataset\.tasks=N"):
        array_task(3, None, {})
    with pytest.raises(DataError, match=r"dataset\.tasks=4 needs dataset\.task=K \(0 to 3\)"):
        array_task(None, 4, {})
    with pytest.raises(DataError, match=r"part 4 does not exist: dataset\.tasks=4 has parts 0 to 3"):
        array_task(4, 4, {})


def test_the_launcher_follows_the_array(tmp_path, launch, monkeypatch):
    write_video(tmp_path / "a.mp4", numbered_frames(48, 48, 64), rate=12)
    rows = [f"a.mp4,{k / 4},{k / 4 + 1},spin,block,{'test' if k % 3 == 0 else 'train'},p" for k in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["video,start_s,end_s,verb,object,split,group", *rows]) + "\n")
    settings = ["dataset=csv", "dataset.annotations=labels.csv", "dataset.shards=parts", "dataset.clips_per_shard=2"]
    for index, said in ((5, "others are not"), (6, "parts: 5 training and 3 test clips, 5 shards")):
        for key, value in slurm(index, first=5, last=6, count=2).items():
            monkeypatch.setenv(key, value)
        done = launch("build_shards", *settings, cwd=tmp_path)
        assert f"part {index - 5} of 2 (SLURM_ARRAY_TASK_ID={index})" in done.stdout and said in done.stdout
    for key in slurm(0):
        monkeypatch.delenv(key)
    launch("build_shards", *settings, "dataset.shards=whole", cwd=tmp_path)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
