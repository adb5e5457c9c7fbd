"""Weights between those before and after training: exact ends, a float64 reference, and every door that takes them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ace_dist.classifier import Classifier
from ace_dist.config import read_config, sealed, to_yaml
from ace_dist.data.run_inputs import replaced
from ace_dist.evaluate.export import export_run, read_exported
from ace_dist.evaluate.runs import evaluate_run, trained_model
from ace_dist.models.build import build_model
from ace_dist.models.interpolation import interpolate, keeps_start, load_interpolated
from ace_dist.utils.errors import ConfigError, ModelError, RunError


def test_interpolation_is_exact_at_both_ends_and_right_between(fresh_seed):
    generator = torch.Generator().manual_seed(fresh_seed)
    start, end = ({"w": torch.randn(7, 5, generator=generator)} for _ in range(2))
    assert torch.equal(interpolate(start, end, 0)["w"], start["w"])
    assert torch.equal(interpolate(start, end, 1)["w"], end["w"])
    between = 0.3 * end["w"].double() + 0.7 * start["w"].double()
    # one rounding of the difference, one of the product, one of the sum; none exceeds the largest of the numbers
    bound = 4 * torch.finfo(torch.float32).eps * (start["w"].abs() + end["w"].abs()).max()
    assert (interpolate(start, end, 0.3)["w"].double() - between).abs().max() <= bound


@pytest.mark.slow
def test_every_door_takes_interpolated_weights(six_steps, ranks, tmp_path, capsys, monkeypatch):
    """The ends are the model that the run began with and the trained one; results, exports and classifiers of other
    weights than the run's own never pass for them. Those from before training are tested unasked where it is cheap."""
    run = tmp_path / "run"
    six_steps(run)
    config = read_config(run)
    models = {share: trained_model(run, at(config, share), torch.device("cpu")) for share in (0, 0.8, 1)}
    began, ended = build_model(config.model, config.seed).state_dict(), load_file(run / "model" / "trained.safetensors")
    assert all(torch.equal(models[0].state_dict()[name], tensor) for name, tensor in began.items())
    assert all(torch.equal(models[1].state_dict()[name], tensor) for name, tensor in ended.items())
    moved = [name for name in ended if not torch.equal(ended[name], began[name])]
    assert any(name.startswith("video.") for name in moved) and any(name.startswith("text.") for name in moved)
    for name in moved:
        between = 0.8 * ended[name].double() + 0.2 * began[name].double()
        torch.testing.assert_close(models[0.8].state_dict()[name].double(), between, rtol=1e-5, atol=1e-6)

    on_gpu = trained_model(run, replaced(config, {"model.video.attention": "xformers"}), torch.device("cpu"))
    assert on_gpu.video.config.attention == "auto", "a CPU has no such kernel, and needs none"
    evaluate_run(run, ranks)
    command = f"ace evaluate run={run} evaluation.interpolate=0 output={run / 'before'}"
    assert command in capsys.readouterr().out and not (run / "before").exists()
    before = (run / "results.json").read_bytes()
    with pytest.raises(RunError, match=r"evaluation.interpolate=0.8 gives other weights.*output=DIR"):
        evaluate_run(run, ranks, interpolate=0.8)
    results = evaluate_run(run, ranks, output=tmp_path / "other", interpolate=0.8)
    assert results["weights"].endswith("tested with evaluation.interpolate=0.8")
    assert not (tmp_path / "other" / "before").exists()
    monkeypatch.setattr("ace_dist.evaluate.runs.CHEAP_TEST", 100)
    evaluate_run(run, ranks)
    assert (run / "results.json").read_bytes() == before and "ace evaluate" not in capsys.readouterr().out
    began_with = json.loads((run / "before" / "results.json").read_text())
    assert began_with["weights"] == "step 6; tested with evaluation.interpolate=0" and began_with["gzsl"]["curve"]
    assert not (run / "before" / "before").exists()

    (run / "calibration.json").write_text(json.dumps({"decoder": None, "rejection": None}))
    export_run(run, tmp_path / "export", 0.8)
    assert not (tmp_path / "export" / "calibration.json").exists(), "it is of other weights"
    card, (_, exported) = (tmp_path / "export" / "README.md").read_text(), read_exported(tmp_path / "export")
    assert "0.8 of the way" in card and "not of those in this folder" in card
    for name, tensor in models[0.8].state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], tensor, rtol=0, atol=0)
    classifier = Classifier.load(run, "cpu", interpolate=0.8)
    assert torch.equal(classifier.model.state_dict()[moved[0]], models[0.8].state_dict()[moved[0]])
    with pytest.raises(ModelError, match="is an export, which holds one set of weights"):
        Classifier.load(tmp_path / "export", interpolate=0.5)
    with pytest.raises(ConfigError, match=r"evaluation.interpolate=1.5 must lie in \[0, 1\]"):
        Classifier.load(run, "cpu", interpolate=1.5)

    (run / "config.yaml").write_text(sealed(to_yaml(at(config, 0.8))))
    child = build_model(config.model, config.seed, parent=run / "model")
    assert all(torch.equal(child.state_dict()[name], models[0.8].state_dict()[name]) for name in ended)
    tested = evaluate_run(run, ranks, output=tmp_path / "own")["weights"]
    assert tested == "step 6; tested with evaluation.interpolate=0.8"

    assert keeps_start(run / "model")
    older(run)
    assert not keeps_start(run / "model")
    with pytest.raises(RunError, match=r"start.safetensors does not hold them.*interpolate=1"):
        load_interpolated(models[1], run / "model", 0.5)


@pytest.mark.slow
def test_validation_looks_at_the_weights_that_are_tested(six_steps, tmp_path):
    """With evaluation.interpolate=0 every validation scores the model that the run began with; losses do not move."""
    held_out = ["evaluation.every_steps=2", "evaluation.validation_share=0.2"]
    found = {}
    for share in (0, 1):
        six_steps(tmp_path / str(share), *held_out, f"evaluation.interpolate={share}")
        found[share] = [json.loads(line) for line in (tmp_path / str(share) / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation_f1"] for line in found[0] if "validation_f1" in line]
    assert len(scores) == 3 and len(set(scores)) == 1
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in found.values()]
    assert losses[0] == losses[1]


def at(config, share):
    return replaced(config, {"evaluation.interpolate": share})


def older(run: Path):
    """As an earlier version left it: the text side alone."""
    path = run / "model" / "start.safetensors"
    kept = {name: tensor.clone() for name, tensor in load_file(path).items() if name.startswith("text.")}
    path.unlink()
    save_file(kept, path)
