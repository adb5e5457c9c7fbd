"""Through DeepSpeed's launcher: losses do not depend on the number of ranks; a stopped run continues bit for bit."""

import json
import shutil

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow  # the tests of this file build on each other: --dist loadfile

STEPS = 20
SMALL_WORLD = ["dataset.world.train_clips=64", "dataset.world.test_clips=36"]
SETTINGS = [
    *SMALL_WORLD,
    "training.batch_size=8",
    f"training.max_steps={STEPS}",
    "training.log_every_steps=1",
    "training.save_every_steps=5",
    "model.video.drop_path=0.2",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for the runs of this module."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder, launch):
    """Small shards, and a run of 20 steps on two ranks with 4 clips each."""
    launch("build_shards", *SMALL_WORLD, f"dataset.shards={folder}/shards")
    settings = [*SETTINGS, f"dataset.shards={folder}/shards"]
    launch("train", *settings, f"run={folder}/two", ranks=2)
    return settings


def losses(run):
    """Loss of every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


def test_one_rank_with_eight_clips_equals_two_with_four(folder, runs, launch):
    """The same clips, crops, labels and stochastic depth: 20 losses agree to 1e-5, and so does the evaluation."""
    launch("train", *runs, f"run={folder}/one", ranks=1)
    for a, b in zip(losses(folder / "one"), losses(folder / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    one, two = (json.loads((folder / name / "predictions.json").read_text()) for name in ("one", "two"))
    for part in ("base", "novel"):
        assert one[part]["ids"] == two[part]["ids"] and len(set(one[part]["ids"])) == len(one[part]["ids"])
        for a, b in zip(one[part]["probabilities"], two[part]["probabilities"], strict=True):
            assert a == pytest.approx(b, abs=1e-3)


def test_a_stopped_run_continues_bit_for_bit(folder, runs, launch):
    """Stopped at step 7, again at 14, then finished: the same losses, weights and results as one left alone."""
    settings = [*runs, f"run={folder}/stopped"]
    for expected in ("stopped after step 7 of 20", "stopped after step 14 of 20"):
        done = launch("train", *settings, "training.stop_after_steps=7", ranks=2)
        assert expected in done.stdout
    shutil.copytree(folder / "stopped", folder / "damaged")
    done = launch("train", *settings, ranks=2)
    assert "continuing after step 14" in done.stdout
    assert losses(folder / "stopped") == losses(folder / "two")
    ours, theirs = (load_file(folder / name / "model" / "trained.safetensors") for name in ("stopped", "two"))
    assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)
    assert (folder / "stopped" / "results.json").read_text() == (folder / "two" / "results.json").read_text()


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(folder, runs, launch):
    """A flipped byte in the newest checkpoint costs the steps since the one before it, and nothing else."""
    newest = folder / "damaged" / "checkpoints" / "step-00000014"
    victim = newest / "momentum.safetensors"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = launch("train", *runs, f"run={folder}/damaged", ranks=2)
    assert f"{victim} is damaged" in done.stdout
    assert "continuing after step 10" in done.stdout
    ours, theirs = (load_file(folder / name / "model" / "trained.safetensors") for name in ("damaged", "two"))
    assert all((ours[key] == theirs[key]).all() for key in ours)


def test_a_run_of_two_ranks_continues_on_one_and_says_what_changed(folder, runs, launch):
    """Stopped on two ranks under ZeRO 1, continued on one under ZeRO 2 in two micro-batches: equal within rounding."""
    settings = [*runs, f"run={folder}/fewer"]
    launch("train", *settings, "training.stop_after_steps=12", ranks=2)
    done = launch("train", *settings, "deepspeed=zero2", "training.accumulation=2")
    assert "continuing after step 12" in done.stdout and "now with 1 rank(s) (was 2), 2 micro-batch(es)" in done.stdout
    assert losses(folder / "fewer")[:12] == losses(folder / "two")[:12]
    for a, b in zip(losses(folder / "fewer"), losses(folder / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_evaluate_gives_the_same_numbers(folder, runs, launch):
    """`launchers/evaluate.py` on a finished run, on one rank, repeats what training on two ranks reported."""
    before = {name: (folder / "two" / name).read_text() for name in ("results.json", "predictions.json")}
    for name in before:
        (folder / "two" / name).unlink()
    done = launch("evaluate", f"run={folder}/two")
    assert "report.html" in done.stdout
    for name, text in before.items():
        ours, theirs = json.loads((folder / "two" / name).read_text()), json.loads(text)
        if name == "results.json":  # the biases of gzsl are differences of logits, which batches of other sizes round
            for bias in ("bias", "best_bias"):
                mine, other = (results["gzsl"]["curve"].pop(bias) for results in (ours, theirs))
                assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
            assert ours == theirs
        else:
            assert ours["base"]["predictions"] == theirs["base"]["predictions"]


def test_a_finished_run_is_not_trained_again_and_not_overwritten(folder, runs, launch):
    """The same command on a finished run evaluates it; other settings on its folder are refused by name."""
    weights = (folder / "two" / "model" / "trained.safetensors").read_bytes()
    done = launch("train", *runs, f"run={folder}/two", ranks=2)
    assert f"continuing after step {STEPS}" in done.stdout
    assert (folder / "two" / "model" / "trained.safetensors").read_bytes() == weights
    done = launch("train", *runs, f"run={folder}/two", "training.lr_video=0.1", check=False)
    assert done.returncode == 2
    assert "belongs to another configuration" in done.stderr and "training.lr_video" in done.stderr
