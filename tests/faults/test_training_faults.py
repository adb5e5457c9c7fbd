"""Faults while one rank trains, through the real loop: each ends with a message naming the cause, and nothing lost."""

import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from ace_dist.config import load_config
from ace_dist.data.loader.base import Loader
from ace_dist.train import checkpoint as checkpoints
from ace_dist.train import trainer as loop
from ace_dist.train.checkpoint import CheckpointFolder
from ace_dist.train.engine import Engine
from ace_dist.train.health import MEANING, Health, NonFiniteLoss, PendingLoss, StopSignal
from ace_dist.utils.errors import DataError, RunError

A_SHARD_A_CLIP = ["dataset.clips_per_shard=1"]  # so that a shard can vanish before it is first opened
STEPS = 6

pytestmark = pytest.mark.slow


@pytest.fixture
def run(six_steps, tmp_path):
    """Train `STEPS` steps, saving every second, into a folder of this test."""

    def start(*settings):
        return six_steps(tmp_path / "run", *settings, world=A_SHARD_A_CLIP)

    start.folder = tmp_path / "run"
    return start


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(3, act)`: call `act(batch)` when the batch of the third step is fetched."""

    def arrange(number, act):
        original = Loader.stream

        def stream(self, batches):
            for count, batch in enumerate(original(self, batches), start=1):
                if count == number:
                    act(batch)
                yield batch

        monkeypatch.setattr(Loader, "stream", stream)

    return arrange


def newest(run):
    """Step of the newest whole checkpoint."""
    return CheckpointFolder(run.folder / "checkpoints", keep=2).newest().about["step"]


def weights(run):
    """What the run exported or saved last."""
    return CheckpointFolder(run.folder / "checkpoints", keep=2).newest().parts


def losses(run):
    """Loss by step; a step that stands there twice is an error."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss"] for line in lines}


@pytest.mark.parametrize("number", MEANING, ids=lambda number: number.name)
def test_a_signal_ends_the_run_after_its_step_saved(run, at_step, number):
    """USR1, USR2, TERM and Ctrl-C in the third step: saved after it, said why, handlers as before, nothing locked."""
    before = {each: signal.getsignal(each) for each in MEANING}
    at_step(3, lambda batch: os.kill(os.getpid(), number))
    outcome = run()
    assert (outcome.step, outcome.stopped) == (3, MEANING[number])
    assert outcome.exit_code == {"preempted": 75, "interrupted": 130}[outcome.stopped]
    assert newest(run) == 3
    assert {each: signal.getsignal(each) for each in MEANING} == before
    assert not (run.folder / "lock.json").exists()


@pytest.mark.parametrize("moment", ["last step", "export"])
def test_a_signal_at_the_very_end_is_not_lost(run, at_step, monkeypatch, moment):
    """A scheduler tells once. Were the run to call itself finished, its evaluation would be killed and not requeued."""
    if moment == "last step":
        at_step(STEPS, lambda batch: os.kill(os.getpid(), signal.SIGUSR1))
    else:
        export = loop.export
        monkeypatch.setattr(loop, "export", lambda *args: (export(*args), os.kill(os.getpid(), signal.SIGUSR1)))
    outcome = run()
    assert (outcome.step, outcome.stopped) == (STEPS, "preempted") and newest(run) == STEPS
    monkeypatch.undo()
    again = run()
    assert (again.step, again.stopped) == (STEPS, None) and (run.folder / "model" / "trained.safetensors").is_file()


def test_a_second_ctrl_c_stops_at_once():
    """Within a second both count as one key press, which a terminal and a launcher both pass on."""
    stop_signal = StopSignal()
    stop_signal.note(signal.SIGINT, None)
    stop_signal.note(signal.SIGINT, None)
    stop_signal.note(signal.SIGTERM, None)
    assert stop_signal.meaning == "interrupted"
    stop_signal.interrupted_s -= 1.1
    with pytest.raises(KeyboardInterrupt):
        stop_signal.note(signal.SIGINT, None)


def test_a_nan_stops_before_the_optimizer_and_names_its_clip(run, at_step, monkeypatch):
    """Pixels of one clip of step 4 are NaN: no step is taken, the clip is named, and the run continues to the end."""
    named = []

    def spoil(batch):
        batch.video[2, 0, 0, 0, 0] = float("nan")
        named.append(batch.ids[2])

    at_step(4, spoil)
    with pytest.raises(NonFiniteLoss, match="the loss of step 4 is not finite") as stopped:
        run()
    assert f"pixels that are not finite in clips {named[0]}" in str(stopped.value)
    assert newest(run) == 2 and sorted(losses(run)) == [1, 2, 3]
    monkeypatch.undo()
    assert run().step == STEPS and sorted(losses(run)) == list(range(1, STEPS + 1))


def test_an_infinite_loss_names_all_clips_of_the_batch(run, monkeypatch):
    """A loss that overflows without a bad pixel: every clip of the batch is a suspect."""
    from ace_dist.objectives.concept import ConceptObjective

    forward = ConceptObjective.forward

    def overflow(self, video, labels, draw):
        losses = forward(self, video, labels, draw)
        return {name: loss * torch.tensor(float("inf")) for name, loss in losses.items()}

    monkeypatch.setattr(ConceptObjective, "forward", overflow)
    with pytest.raises(NonFiniteLoss, match="loss of step 1 .*rank 0: loss inf, clips ([^,]+, ){3}[^,]+ ?.*lower"):
        run()


def test_a_shard_deleted_while_training_is_named(run, small_world, at_step, monkeypatch, tmp_path):
    """The loader cannot read on: the shard is named, the last checkpoint stays, with the shard back it continues."""
    shards, aside = Path(load_config(small_world(*A_SHARD_A_CLIP)).dataset.shards), tmp_path / "aside"
    aside.mkdir()

    def delete(batch):
        for path in shards.glob("*.tar"):
            path.rename(aside / path.name)

    at_step(3, delete)
    reopened = "loader.prefetch=1"
    with pytest.raises((DataError, FileNotFoundError), match=r"\.tar"):
        run(reopened)
    monkeypatch.undo()
    for path in aside.iterdir():
        path.rename(shards / path.name)
    assert newest(run) >= 2
    assert run(reopened).step == STEPS


def test_a_stall_is_named_with_stacks(run, at_step, capfd):
    """A loader that hangs: the stage and step on stderr, the stacks of all threads in the run folder."""
    stacks = run.folder / "stalls" / "rank-0.txt"

    def hang(batch):
        pause = threading.Event()
        while not (stacks.is_file() and "take_steps" in stacks.read_text().partition("'data' of step 2")[2]):
            pause.wait(0.05)

    at_step(2, hang)
    assert run("training.stall_after_s=0.3").stopped is None
    assert "'data' of step 2 takes more than 0.3 s" in capfd.readouterr().err
    assert "'data' of step 2" in stacks.read_text() and "in hang" in stacks.read_text()


def test_saving_by_the_clock(run, at_step, monkeypatch):
    """When the last save is `training.save_every_minutes` old, the next step is saved whatever its number."""
    seen = []
    at_step(5, lambda batch: seen.append(newest(run)))  # step 3 is on the disk, step 4 may still be on its way
    run("training.save_every_steps=100", "training.save_every_minutes=1e-9")
    assert seen in ([3], [4])


def test_a_disk_that_fills_up_while_training_stops_the_run(run, monkeypatch):
    """The write of step 4 fails in its thread: the run ends with the cause, step 2 is intact, and it can continue."""
    write_bytes = checkpoints.write_bytes

    def full(path, data):
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(path, data)

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    with pytest.raises(checkpoints.RunError, match="No space left on device; .*step-00000002, is intact"):
        run()
    monkeypatch.undo()
    assert newest(run) == 2 and run().step == STEPS


class Arriving:
    """A copy that a GPU is still making: `arrived` is set by the test, and waiting for it is counted."""

    def __init__(self):
        self.arrived, self.waits = False, 0

    def query(self):
        return self.arrived

    def synchronize(self):
        self.arrived, self.waits = True, self.waits + 1


def test_on_a_gpu_a_loss_is_read_once_it_has_arrived(ranks):
    """No step that is not logged waits; a bad loss is noticed when it arrives, at the latest where the host waits."""
    with StopSignal() as stop_signal:
        health = Health(ranks, stop_signal)
        events = [Arriving() for _ in range(3)]

        def note(step, loss):
            fine = torch.tensor([True, step != 1])
            health.pending.append(PendingLoss(step, torch.tensor(loss), fine, ("clip a", "clip b"), events[step]))

        note(0, 1.0)
        assert health.check(0) == (None, False) and len(health.pending) == 1
        note(1, float("nan"))
        note(2, float("nan"))  # what the bad one before has spoilt
        events[0].arrived = True
        assert health.check(2) == (None, False) and [part.step for part in health.pending] == [1, 2]
        assert [event.waits for event in events] == [0, 0, 0]
        with pytest.raises(
            NonFiniteLoss, match=r"loss of step 2 is not finite, noticed in step 3, nothing saved"
        ) as bad:
            health.check(2, wait=True)
        assert "in clips clip b)" in str(bad.value) and "in another folder (run=DIR)" in str(bad.value)
        assert events[0].waits == 0 < events[1].waits


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_infinite_gradient_moves_nothing_and_is_told(run, stage, monkeypatch):
    """In bf16, where the host does not look at gradients: the steps after it are left out until it is noticed."""
    backward, weights = Engine.backward, []

    def spoil(self, loss):
        weights.append(self.state("weights")["weights"])
        backward(self, loss * float("inf") if len(weights) == 3 else loss)

    monkeypatch.setattr(Engine, "backward", spoil)
    with pytest.raises(RunError, match="step 3: gradients are not finite although the loss is: train in another"):
        run("training.precision=bf16", f"deepspeed=zero{stage}")
    assert newest(run) == 2
    _, second, third, *later = (torch.cat([w.flatten() for w in each.values()]) for each in weights)
    assert not torch.equal(second, third) and all(torch.equal(third, each) for each in later)


def test_a_line_of_metrics_cut_by_a_kill_is_written_again(run):
    """Lines after the checkpoint, and half a line at the end, are dropped; the continued run writes them again."""
    run("training.stop_after_steps=4")
    path = run.folder / "metrics.jsonl"
    first = losses(run)
    path.write_text(path.read_text() + '{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    run()
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert {step: loss for step, loss in losses(run).items() if step <= 4} == first
