"""Checkpoints on disk under kill -9, full disks and damaged files: the newest whole one is always there, and named."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
import torch

from ace_dist.train.checkpoint import CheckpointFolder, read
from ace_dist.utils import files
from ace_dist.utils.errors import RunError

KILLS = 50
ABOUT = {"world_size": 1, "zero_stage": 1, "precision": "fp32", "frozen_sha256": "0"}


def random_state(step, size=60_000):
    """Weights and momentum that tell their step: about half a megabyte."""
    generator = torch.Generator().manual_seed(step)
    parts = {name: {"a": torch.randn(size, generator=generator)} for name in ("weights", "momentum")}
    parts["weights"]["step"] = torch.tensor(step)
    return parts


def same(a, b):
    """Whether two states are equal to the last bit."""
    return all(torch.equal(a[part][name], b[part][name]) for part in b for name in b[part])


def save_forever(folder, first, confirmed):
    """Save one step after another; write the number of each that returned to the pipe."""
    keeper = CheckpointFolder(folder, keep=2)
    step = first
    while True:
        keeper.write(step, random_state(step), ABOUT)
        os.write(confirmed, step.to_bytes(8, "little"))
        step += 1


def in_child(work, *args):
    """Fork a process that does nothing but `work`."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work(*args)
        os._exit(1)
    return pid


def test_kill_9_at_random_moments_of_saving_loses_nothing(tmp_path):
    """Killed 50 times: the newest whole checkpoint is always the last confirmed one or the one after it, bit by bit."""
    torch.set_num_threads(1)  # a forked child must not find the parent's threads
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    keeper = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    last = 0
    cut_short = 0
    for kill in range(KILLS):
        out, confirmed = os.pipe()
        pid = in_child(save_forever, keeper.folder, last + 1, confirmed)
        os.close(confirmed)
        first = os.read(out, 8)  # one save has returned: from here on a save is always under way
        time.sleep(chance.random() * 0.05)  # the random moment; nothing waits for it
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        data = first
        while more := os.read(out, 65536):
            data += more
        os.close(out)
        done = int.from_bytes(data[-8:], "little")
        cut_short += any(path.suffix == ".partial" for path in keeper.folder.iterdir())
        found = keeper.newest()
        assert found is not None, f"seed {seed}, kill {kill}: no checkpoint"
        last = found.about["step"]
        assert last in (done, done + 1), f"seed {seed}, kill {kill}: newest is {last}, {done} had been confirmed"
        assert same(found.parts, random_state(last)), f"seed {seed}, kill {kill}: step {last} holds another state"
    assert cut_short, f"seed {seed}: no kill fell into a save, so nothing was tested"


@pytest.fixture
def three(tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3."""
    keeper = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        keeper.write(step, random_state(step, 2000), ABOUT)
    return keeper


def flip(path):
    """Flip one random bit."""
    data = bytearray(path.read_bytes())
    where = random.SystemRandom().randrange(len(data))
    data[where] ^= 1 << random.SystemRandom().randrange(8)
    path.write_bytes(data)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, random.SystemRandom().randrange(path.stat().st_size)),
    "bit flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["weights.safetensors", "momentum.safetensors"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(three, capsys, damage, name):
    """Whatever happened to the newest checkpoint's files, the one before it serves."""
    victim = three.folder / "step-00000003" / name
    DAMAGE[damage](victim)
    found = three.newest()
    assert found.about["step"] == 2 and same(found.parts, random_state(2, 2000))
    assert "checkpoint skipped" in (said := capsys.readouterr().out) and str(victim) in said


def test_a_damaged_checkpoint_does_not_count_as_kept(three):
    """Two are kept: the newest was found damaged, so the one that served stays until two good ones are there."""
    keeper = CheckpointFolder(three.folder, keep=2)
    flip(three.folder / "step-00000003" / "weights.safetensors")
    keeper.set_aside(keeper.newest().path)
    keeper.write(4, random_state(4, 2000), ABOUT)
    assert [path.name for path in keeper.complete()] == ["step-00000002", "step-00000004"]
    assert (three.folder / "step-00000003.damaged").is_dir()


def test_a_damaged_description_is_named(three, capsys):
    """`checkpoint.json` cut in half is no JSON."""
    path = three.folder / "step-00000003" / "checkpoint.json"
    os.truncate(path, path.stat().st_size // 2)
    assert three.newest().about["step"] == 2
    assert str(path) in capsys.readouterr().out


def test_no_flipped_bit_of_the_description_is_taken_for_something_else(tmp_path):
    """Every bit of `checkpoint.json`: the checkpoint is refused as damaged, or says what it said before."""
    folder = CheckpointFolder(tmp_path, keep=1).write(3, {"weights": {"a": torch.ones(3)}}, ABOUT)
    before, path = read(folder), folder / "checkpoint.json"
    whole = path.read_bytes()
    accepted = 0
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            try:
                found = read(folder)
            except RunError as error:
                assert str(path) in str(error) or "has format" in str(error)
            else:
                accepted += 1
                assert found.about == before.about and found.parts.keys() == before.parts.keys(), (place, bit)
    assert accepted < len(whole) / 10  # JSON's own white space


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": "2"}', None])
def test_whatever_stands_in_the_description_the_checkpoint_before_serves(three, capsys, content):
    """Other JSON, no JSON, no text, or no file: the search goes on past it, with a line, and nothing is removed."""
    path = three.folder / "step-00000003" / "checkpoint.json"
    path.unlink() if content is None else path.write_bytes(content)
    found = three.newest()
    assert found.about["step"] == 2 and f"checkpoint skipped: {path}" in capsys.readouterr().out
    three.set_aside(found.path)
    three.write(4, random_state(4, 2000), ABOUT)
    assert (three.folder / "step-00000003.damaged" / "weights.safetensors").is_file()


def test_a_checkpoint_of_the_version_before_is_read(three):
    """Its description has no checksum of itself."""
    path = three.folder / "step-00000003" / "checkpoint.json"
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about | {"format": 1}))
    assert three.newest().about["step"] == 3


def test_when_every_checkpoint_is_damaged_the_run_does_not_begin_again_by_itself(three):
    """Beginning at step 0 would throw the run away without a word."""
    for path in three.complete():
        flip(path / "weights.safetensors")
    with pytest.raises(RunError, match="no checkpoint in .* is whole .3 damaged"):
        three.newest()


def test_a_checkpoint_of_pickles_is_refused_unread(three):
    """A folder in another format, such as one with pickles, is refused by its number, and no file of it is opened."""
    path = three.folder / "step-00000003"
    about = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(about | {"format": 0}))
    with pytest.raises(RunError, match="has format 0, this version reads 1 and 2"):
        read(path)


def test_a_state_that_is_not_finite_is_not_saved(three):
    """A NaN in a weight must not push a good checkpoint out."""
    bad = random_state(4, 2000)
    bad["momentum"]["a"][17] = float("inf")
    with pytest.raises(
        RunError, match="momentum of a are not finite after step 4: not saved. Train in another folder .run=DIR"
    ):
        three.write(4, bad, ABOUT)
    assert three.newest().about["step"] == 3


def test_retention_keeps_the_newest(three):
    """Three are kept; what an interrupted save or removal left is cleared."""
    (three.folder / "step-00000009.partial").mkdir()
    three.write(4, random_state(4, 2000), ABOUT)
    assert sorted(path.name for path in three.folder.iterdir()) == [f"step-{n:08d}" for n in (2, 3, 4)]


@pytest.mark.parametrize("left", [(), ("step-00000003.partial", "step-00000003.removed.partial")])
def test_a_checkpoint_takes_the_place_of_one_of_its_step(three, left):
    """Also where a kill left the half of either."""
    for name in left:
        (three.folder / name).mkdir()
    three.write(3, random_state(33, 2000), ABOUT)
    assert same(read(three.folder / "step-00000003").parts, random_state(33, 2000))
    assert sorted(path.name for path in three.folder.iterdir()) == [f"step-{n:08d}" for n in (1, 2, 3)]


def check_full(keeper):
    """A save that the file system refuses leaves the last checkpoint, nothing half-written, and a message."""
    with pytest.raises(RunError) as refused:
        keeper.write(2, random_state(2, 2_000_000), ABOUT)
    found = keeper.newest()
    assert found.about["step"] == 1 and same(found.parts, random_state(1, 2000))
    assert [path.name for path in keeper.folder.iterdir()] == ["step-00000001"]
    return str(refused.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
def test_full_disk(tmp_path):
    """A file system of 1 MiB, a checkpoint of 16."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.strip()}")
    try:
        keeper = CheckpointFolder(folder / "checkpoints", keep=2)
        keeper.write(1, random_state(1, 2000), ABOUT)
        message = check_full(keeper)
        assert "No space left on device" in message and "step-00000001, is intact" in message
    finally:
        subprocess.run(["umount", folder], check=True)


def test_full_quota(tmp_path):
    """The same by the limit on a file's size, which needs no root."""
    keeper = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    keeper.write(1, random_state(1, 2000), ABOUT)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        message = check_full(keeper)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in message and "is intact" in message


@pytest.mark.parametrize("how", ["bytes", "weights"])
def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch, how):
    """Runs of a sweep store the same frozen weights at once; on two hosts two processes can have one number."""
    from ace_dist.models.weights import save_safetensors

    path, replace, others = tmp_path / "file", os.replace, [1]

    def write():
        if how == "bytes":
            files.write_bytes(path, b"content")
        else:
            save_safetensors({"a": torch.arange(3)}, path)

    def meanwhile(source, target):
        if others:
            others.pop()
            write()
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    write()
    assert not others and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_frozen_weights_are_stored_once_and_repaired(tmp_path, capsys):
    """Two runs side by side share one file; a copy of a run has its own; a damaged store is written again, named."""
    from ace_dist.train.checkpoint import store_frozen

    state = {"a": torch.randn(1000), "b": torch.arange(3)}
    one, two = (tmp_path / "runs" / name for name in ("one", "two"))
    assert store_frozen(one, state) == store_frozen(two, state)
    own = two / "model" / "frozen.safetensors"
    assert own.samefile(one / "model" / "frozen.safetensors") and own.stat().st_nlink == 3
    shutil.copytree(two, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "model" / "frozen.safetensors").read_bytes() == own.read_bytes()
    flip(next((tmp_path / "runs" / ".frozen").iterdir()))
    digest = store_frozen(two, state)
    assert "is damaged" in capsys.readouterr().out
    assert own.samefile(tmp_path / "runs" / ".frozen" / f"{digest}.safetensors")
    assert store_frozen(one, {"a": state["a"] + 1, "b": state["b"]}) != digest
