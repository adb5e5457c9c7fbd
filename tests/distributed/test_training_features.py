"""What a run can be asked for besides training, through the real loop on one rank."""

import json
from dataclasses import replace

import pytest
import torch

from ace_dist.config import load_config
from ace_dist.data.loading import Loader
from ace_dist.determinism import NotDeterministic
from ace_dist.methods.objective import ConceptObjective
from ace_dist.training.checkpoints import CheckpointFolder
from ace_dist.training.loop import train
from ace_dist.training.meters import Meters
from ace_dist.training.monitor import Monitor

SMALL_WORLD = ["dataset.world.train_clips=32", "dataset.world.test_clips=36"]
STEPS = 6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory, launch):
    """A small tabletop world."""
    folder = tmp_path_factory.mktemp("shards")
    launch("build_shards", *SMALL_WORLD, f"dataset.shards={folder}")
    return folder


@pytest.fixture
def run(shards, ranks, tmp_path):
    """`run("name", "key=value", ...)`: train `STEPS` steps into a folder of that name; returns the outcome."""

    def start(name, *settings):
        config = load_config(
            [*SMALL_WORLD, f"dataset.shards={shards}", f"run_dir={tmp_path}/{name}", "training.batch_size=4",
             f"training.max_steps={STEPS}", "training.log_every_steps=1", "training.save_every_steps=2",
             "training.device=cpu", *settings]
        )  # fmt: skip
        return train(config, ranks)

    start.folder = tmp_path
    return start


def lines(run, name):
    """`metrics.jsonl`."""
    return [json.loads(line) for line in (run.folder / name / "metrics.jsonl").read_text().splitlines()]


def weights(run, name):
    """Weights and momentum of the newest checkpoint."""
    return CheckpointFolder(run.folder / name / "checkpoints", keep=2).newest().parts


def same_bits(a, b):
    """Whether two checkpoints hold the same, and more than nothing."""
    assert a.keys() == b.keys() and a["weights"]
    names = {(part, name) for part in a for name in a[part]}
    return names == {(part, name) for part in b for name in b[part]} and all(
        torch.equal(a[part][name], b[part][name]) for part, name in names
    )


def test_a_line_of_the_log_covers_its_steps_across_a_stop(run):
    """Stopped after step 3 of a line that ends at 5: its mean losses are those of a run left alone, bit for bit."""
    run("alone", "training.log_every_steps=5")
    run("stopped", "training.log_every_steps=5", "training.stop_after_steps=3")
    run("stopped", "training.log_every_steps=5")
    alone, stopped = lines(run, "alone"), lines(run, "stopped")
    assert [line["step"] for line in alone] == [5, 6]
    kept = ("step", "epoch", "loss", "loss_fixed", "loss_random", "lr_video", "lr_text")
    assert [{key: line[key] for key in kept} for line in stopped] == [
        {key: line[key] for key in kept} for line in alone
    ]
    assert alone[0]["loss"] != alone[1]["loss"]


def test_an_open_line_goes_on_with_other_ranks_and_micro_batches(ranks, tmp_path):
    """Three steps of two ranks, then two steps of one rank in two micro-batches: the mean over the five steps."""
    settings = load_config(["training.accumulation=2", "training.log_every_steps=5"]).training
    before = torch.rand(2, 3, dtype=torch.float64)  # rank, step
    after = torch.rand(2, 2, dtype=torch.float64)  # step, micro-batch
    carried = {"steps": 3, "micro_steps": 3, "taken_s": 2.0, "wait_s": 0.5}
    carried["sums"] = [{"loss": float(part.sum())} for part in before]
    meters = Meters(ranks, settings.batch_size, {})
    with Monitor(tmp_path, replace(ranks), 3, 10, settings, meters, carried) as monitor:
        for step in range(2):
            for value in after[step]:
                monitor.add(type("Losses", (), {"total": value, "fixed": None, "random": None}))
            monitor.record(4 + step, 0.0, {}, 0.25)
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line["loss"] == pytest.approx((float(before.mean(0).sum()) + float(after.mean(1).sum())) / 5)
    assert line["clips_per_s"] == pytest.approx(5 * settings.batch_size / (2.0 + line["elapsed_s"]))
    assert line["data_wait_share"] == pytest.approx((0.5 + 0.25) / (2.0 + line["elapsed_s"]))


def test_deterministic_runs_give_equal_bits(run, monkeypatch):
    """Losses, weights and momentum of two runs; and torch was in the mode that promises it at every batch."""
    seen, stream = [], Loader.stream

    def watched(self, batches):
        for batch in stream(self, batches):
            seen.append(torch.are_deterministic_algorithms_enabled())
            yield batch

    monkeypatch.setattr(Loader, "stream", watched)
    for name in ("one", "two"):
        run(name, "training.deterministic=true", "training.gc_every_steps=2")
    assert seen == [True] * (2 * STEPS) and not torch.are_deterministic_algorithms_enabled()
    assert [line["loss"] for line in lines(run, "one")] == [line["loss"] for line in lines(run, "two")]
    assert same_bits(weights(run, "one"), weights(run, "two"))


def test_an_operator_that_is_not_deterministic_stops_the_run_by_name(run, monkeypatch):
    """A method with `put_` in its loss trains as long as nobody asks for determinism."""
    forward = ConceptObjective.forward

    def careless(self, video, labels, draw):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return forward(self, video, labels, draw)

    monkeypatch.setattr(ConceptObjective, "forward", careless)
    with pytest.raises(NotDeterministic, match=r"training\.deterministic=true, but put_ has no"):
        run("strict", "training.deterministic=true")
    assert run("loose", "training.stop_after_steps=1").step == 1
