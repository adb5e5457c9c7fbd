"""A run with LoRA on both sides through training, a stop, validation, test, export, interpolation, and as a parent."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ace_dist.config import load_config, read_config
from ace_dist.data.run_inputs import replaced
from ace_dist.evaluate.export import export_run, read_exported
from ace_dist.evaluate.runs import evaluate_run, trained_model
from ace_dist.models.build import build_model
from ace_dist.train.trainer import starting_model

pytestmark = pytest.mark.slow
LORA = [
    "model.video.lora_rank=4", "model.text.trained_layers=1", "model.text.lora_rank=2", "training.keep_best=true",
    "evaluation.every_steps=2", "evaluation.validation_share=0.2", "evaluation.batch_size=16",
]  # fmt: skip
NO_LORA = {"lora_rank": 0, "lora_alpha": None}
CPU = torch.device("cpu")


@torch.no_grad()
def outputs(model):
    """In float64, where merging rounds nothing that shows."""
    model = model.double().eval()
    clips = torch.linspace(-1, 1, 8 * 3 * 48 * 48, dtype=torch.float64).sin().view(1, 8, 3, 48, 48)
    return torch.cat([model.encode_video(clips), model.text(["spin block", "lift pin"])])


def plain_settings(config):
    """The model's settings without LoRA."""
    off = {f"model.{side}.{key}": value for side in ("video", "text") for key, value in NO_LORA.items()}
    return replaced(config, off).model


def test_a_run_with_lora_goes_all_the_way(six_steps, ranks, tmp_path):
    run, stopped, export = tmp_path / "run", tmp_path / "stopped", tmp_path / "export"
    six_steps(run, *LORA)
    six_steps(stopped, *LORA, "training.stop_after_steps=3")
    six_steps(stopped, *LORA)
    frozen, trained, start, again = (
        load_file(folder / "model" / f"{name}.safetensors")
        for folder, name in ((run, "frozen"), (run, "trained"), (run, "start"), (stopped, "trained"))
    )
    assert all(torch.equal(trained[name], again[name]) for name in trained | again), "a stop changed the result"
    factors = {name for name in trained if ".lora_" in name}
    assert trained.keys() - factors == {"text.text_projection.weight"}
    assert {name.split(".")[0] for name in factors if not torch.equal(trained[name], start[name])} == {"video", "text"}

    config = read_config(run)
    began = build_model(plain_settings(config), config.seed)
    weights = {name.replace(".base_layer.", "."): tensor for name, tensor in frozen.items()}
    assert all(torch.equal(tensor, began.state_dict()[name]) for name, tensor in weights.items()), "W has moved"
    results = evaluate_run(run, ranks)
    assert results["base"]["accuracy"] >= 0

    unmerged = outputs(build_model(config.model, config.seed, run / "model"))
    export_run(run, export)
    settings, exported = read_exported(export)
    assert (settings.model.video.lora_rank, settings.model.text.lora_rank) == (0, 0)
    assert exported.state_dict().keys() == began.state_dict().keys()
    for merged in (outputs(trained_model(run, config, CPU)), outputs(exported)):
        torch.testing.assert_close(merged, unmerged, rtol=0, atol=1e-6)
    assert not torch.allclose(unmerged, outputs(began), rtol=0, atol=1e-6)

    at_the_start = trained_model(run, replaced(config, {"evaluation.interpolate": 0.0}), CPU)
    torch.testing.assert_close(outputs(at_the_start), outputs(began), rtol=0, atol=1e-12)
    halfway = trained_model(run, replaced(config, {"evaluation.interpolate": 0.5}), CPU)
    ended, old, name = trained_model(run, config, CPU), began.float(), "video.blocks.5.attn.qkv.weight"
    mean = (ended.get_parameter(name) + old.get_parameter(name)) / 2
    torch.testing.assert_close(halfway.get_parameter(name), mean, rtol=1e-4, atol=1e-6)

    for change in (["model.video.lora_rank=2", "model.text.lora_rank=0"], ["model.video.lora_rank=0"]):
        child = load_config([*LORA, *change, f"init_from={run}", f"run={tmp_path / 'child'}"])
        if change[0].endswith("0"):
            child = replace(child, model=plain_settings(child))
        model = starting_model(child, Path(child.run))
        assert any(".lora_" in name for name in model.state_dict()) == (child.model.video.lora_rank > 0)
        torch.testing.assert_close(outputs(model), unmerged, rtol=0, atol=1e-5)  # merged in fp32
