"""A finished run goes on for more steps, or gives its weights to another run; nothing of it is lost on the way."""

import json
import shutil

import pytest
import torch

from ace_dist.config import load_config, read_config
from ace_dist.evaluate.runs import evaluate_run
from ace_dist.models.weights import load_safetensors
from ace_dist.train.trainer import train
from ace_dist.utils.errors import RunError, UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_world, ranks):
    """The folder of a run of three steps that was evaluated; a test that changes it takes a copy."""
    parent = tmp_path_factory.mktemp("runs") / "parent"
    train(settings(parent, small_world()), ranks)
    evaluate_run(parent, ranks)
    return parent


def settings(folder, world, *more):
    return load_config(
        [*world, f"run={folder}", "training.batch_size=4", "training.max_steps=3", "training.log_every_steps=1",
         "training.save_every_steps=2", "training.device=cpu", "training.schedule=cosine", *more]
    )  # fmt: skip


def rates(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["lr_video"] for line in lines if "lr_video" in line]


def test_a_finished_run_grows_and_keeps_what_it_had(finished, tmp_path, small_world, ranks, capsys):
    """Steps done stay as they are; later ones follow the schedule of the new length; the old results stand aside."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    old = {
        name: (run / name).read_bytes() for name in ("results.json", "predictions.json", "model/trained.safetensors")
    }
    assert train(settings(run, small_world(), "training.max_steps=6"), ranks).step == 6
    said = capsys.readouterr().out
    assert "the run grows from 3 to 6 steps" in said and f"kept in {run}/earlier/step-00000003" in said
    assert not (run / "results.json").exists()
    assert {name: (run / "earlier" / "step-00000003" / name).read_bytes() for name in old} == old
    assert read_config(run).training.max_steps == 6
    whole = tmp_path / "whole"
    train(settings(whole, small_world(), "training.max_steps=6"), ranks)
    assert rates(run)[3:] == rates(whole)[3:] and rates(run)[1:3] != rates(whole)[1:3]
    evaluate_run(run, ranks)
    with pytest.raises(RunError, match=r"training\.max_steps was 6, is 4; a run may grow, not shrink from 6 to 4"):
        train(settings(run, small_world(), "training.max_steps=4"), ranks)


def test_a_run_starts_from_the_weights_of_another(finished, tmp_path, small_world, ranks):
    """With another batch size and data set; before its first step it is the parent, and says from whom it comes."""
    child, weights = tmp_path / "child", load_safetensors(finished / "model" / "trained.safetensors")
    bare = (
        f"init_from={finished}",
        "training.batch_size=8",
        "training.max_steps=2",
        "training.lr_video=0",
        "training.lr_text=0",
    )
    train(settings(child, small_world("dataset.clips_per_shard=4"), *bare, "training.weight_decay=0"), ranks)
    own = load_safetensors(child / "model" / "trained.safetensors")
    assert own.keys() == weights.keys() and all(torch.equal(own[name], weights[name]) for name in own)
    assert evaluate_run(child, ranks)["base"] == json.loads((finished / "results.json").read_text())["base"]
    facts = json.loads((child / "inputs" / "inputs.json").read_text())["files"]["init_from"]
    assert facts["path"] == str(finished) and len(facts["sha256"]) == 64 and facts["parent"] is None


def test_a_run_needs_its_parent_only_to_start(finished, tmp_path, small_world, ranks):
    """It goes on without the parent's folder to the same weights, and not from another parent."""
    parent, child, whole = tmp_path / "parent", tmp_path / "child", tmp_path / "whole"
    shutil.copytree(finished, parent)
    train(settings(whole, small_world(), f"init_from={parent}"), ranks)
    train(settings(child, small_world(), f"init_from={parent}", "training.stop_after_steps=1"), ranks)
    with pytest.raises(RunError, match=r"init_from=.*whole is not the file that it was"):
        train(settings(child, small_world(), f"init_from={whole}"), ranks)
    shutil.rmtree(parent)
    train(settings(child, small_world(), f"init_from={parent}"), ranks)
    first, second = (load_safetensors(run / "model" / "trained.safetensors") for run in (child, whole))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert evaluate_run(child, ranks) == evaluate_run(whole, ranks)
    assert (child / "concept_space.npz").read_bytes() == (whole / "concept_space.npz").read_bytes()


def test_what_cannot_be_a_parent_is_refused(finished, tmp_path, small_world, ranks):
    """No run, a run that has not finished, another model, the run itself: one sentence each."""
    world = small_world()
    with pytest.raises(UserError, match="is not a run folder"):
        train(settings(tmp_path / "a", world, f"init_from={tmp_path}"), ranks)
    train(settings(tmp_path / "part", world, "training.stop_after_steps=1"), ranks)
    with pytest.raises(UserError, match=r"trained\.safetensors does not exist: the run has not finished"):
        train(settings(tmp_path / "b", world, f"init_from={tmp_path / 'part'}"), ranks)
    with pytest.raises(UserError, match="does not hold this model"):
        train(settings(tmp_path / "c", world, f"init_from={finished}", "model.video.depth=3"), ranks)
    with pytest.raises(UserError, match="is the run itself"):
        train(settings(finished, world, f"init_from={finished}"), ranks)
    assert not any((tmp_path / name).exists() for name in "abc")
