"""Protects the meters: FLOPs of a whole step, pace and MFU by hand, memory by part against the sizes of the model."""

import secrets
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ace_dist.concepts import Action, SynonymTrees
from ace_dist.config import load_config
from ace_dist.models import attention, timesformer
from ace_dist.models import video as tower_base
from ace_dist.models.build import build_model
from ace_dist.objectives import build_objective, total_loss
from ace_dist.train import metrics as module
from ace_dist.train.engine import Engine
from ace_dist.train.metrics import Meters, matmul_flops_per_s, memory_parts, step_flops
from ace_dist.utils.parts import Flops

VERBS = {
    "spin": {"spin": ["spin", "rotate"], "rotate": ["rotate", "spin"]},
    "lift": {"lift": ["lift", "raise"], "raise": ["raise", "lift"]},
    "push": {"push": ["push", "shove"], "shove": ["shove", "push"]},
}
ACTIONS = [Action("spin", "block"), Action("lift", "block"), Action("push", "pin")]


def build(*settings):
    """A small model of the demo's kind and its objective."""
    config = load_config(
        ["model.init=random", "model.video.depth=3", "model.video.trained_blocks=2", "model.video.frames=2",
         "model.video.width=32", "model.video.heads=2", "model.video.image_size=24", "loader.crop=24",
         "model.text.depth=1", "model.text.width=32", "model.text.heads=2", "training.batch_size=8",
         "dataset.clip.frames=2", "training.device=cpu", f"seed={secrets.randbelow(1000)}", *settings]
    )  # fmt: skip
    return config, build_objective(config, build_model(config.model, config.seed), ACTIONS, SynonymTrees(VERBS))


def draw_and_batch(config, objective, clips, step):
    """A micro-batch of random clips, and the draw of a step."""
    size = config.loader.crop
    video = torch.randn(clips, config.dataset.clip.frames, 3, size, size)
    return video, torch.randint(len(ACTIONS), (clips,)), objective.sampler.draw(step)


@pytest.mark.parametrize(
    "settings",
    [[], ["model.text.trained_layers=1"], ["method=procvlr"], ["method=vifi_ft", "model.video.temporal_layers=1"],
     ["method=bike"]],
    ids=["ace", "ace, text layers", "procvlr", "vifi_ft", "bike"],
)  # fmt: skip
def test_a_steps_flops_equal_torchs_counter(settings, monkeypatch):
    """A micro-batch forward and back, loss included, by torch's counter on the real objective, and the parts' names."""
    config, objective = build(*settings, "training.accumulation=2", "model.video.drop_path=0")
    objective.train()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    random_state = torch.get_rng_state()
    ours = step_flops(config, objective, world=1)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    for place in (timesformer, attention, tower_base):
        monkeypatch.setattr(place, "recompute", lambda function, *inputs: function(*inputs))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        total_loss(objective(*draw_and_batch(config, objective, 4, 0))).backward()
    assert ours.keys() >= {"patch embedding", "trained blocks", "head", "text", "loss"}
    assert all(flops.forward > 0 for name, flops in ours.items() if name != "text")  # frozen in some methods
    total = sum(sum(flops) for flops in ours.values())
    assert total == 2 * counter.get_total_flops()  # two micro-batches
    four = step_flops(replace(config, training=replace(config.training, batch_size=32)), objective, world=4)
    assert four["head"] == Flops(4 * ours["head"].forward, 4 * ours["head"].backward)


def test_pace_by_hand(ranks):
    """Two lines of 64 clips in 2 s and in 4 s, of which 1 s was no training: rates of each line, then of the run."""
    meters = Meters(ranks, 16, {"video": Flops(3 * 10**12, 0), "loss": Flops(0, 10**12)}, ceiling_tflops_per_s=64.0)
    line = meters.line(64, 2.0, 0.5)
    assert (line["clips_per_s"], line["data_wait_share"]) == (32.0, 0.25)
    assert line["model_tflops_per_s"] == 32 / 16 * 4 and line["mfu_percent"] == pytest.approx(12.5)
    meters.aside_s = 1.0
    assert meters.line(64, 4.0, 0.0)["clips_per_s"] == pytest.approx(64 / 3)
    summary = meters.summary()
    assert summary["clips_per_s"] == pytest.approx(64 / 3)  # without the first line, which warmed up
    assert summary["model_tflops_per_step"] == 4.0 and summary["ceiling_tflops_per_s"] == 64.0
    assert summary["memory_gib_by_part"]["activations_and_rest"] == summary["memory_peak_gib"] > 0


def test_without_a_ceiling_there_is_no_mfu(ranks):
    meters = Meters(ranks, 16, {"video": Flops(10**12, 0)})
    assert meters.line(16, 1.0, 0.0)["mfu_percent"] is None
    assert Meters(ranks, 16, {}).summary() is None  # no step was logged
    config, objective = build()
    engine = Engine(config, objective, ranks, 2)
    assert Meters.build(config, engine, {}).ceiling_tflops_per_s is None  # null on a CPU: not measured
    config.training.meters.mfu = True
    assert Meters.build(config, engine, {}).ceiling_tflops_per_s > 0


def test_the_ceiling_is_the_fastest_product(monkeypatch):
    times = iter([0.5, 0.25, 2.0])
    monkeypatch.setattr(module, "timed_product", lambda a, b: next(times))
    assert matmul_flops_per_s(torch.device("cpu"), torch.float32, seconds=0.0) == 2 * 1024**3 / 0.25


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_memory_by_part(stage, precision, ranks):
    """Weights and gradients in the precision, fp32 copies (in bf16), momentum, text features: whatever the stage."""
    config, objective = build(f"deepspeed=zero{stage}", f"training.precision={precision}")
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in objective.parameters() if not p.requires_grad)
    engine = Engine(config, objective, ranks, 2)
    for step in range(2):
        engine.set_learning_rates(step)
        video, labels, draw = draw_and_batch(config, objective, 8, step)
        losses = engine.forward(type("Batch", (), {"video": video, "labels": labels}), draw)
        engine.backward(total_loss(losses))
        if step == 1:
            parts = memory_parts(engine)
        engine.step()
    size = 2 if precision == "bf16" else 4
    buffers = sum(b.untyped_storage().nbytes() for b in objective.buffers())
    assert parts["text_feature_cache"] == sum(
        part.untyped_storage().nbytes() for part in objective.text_features.frozen
    )
    padding = 1 + 0.02 * (stage > 0)  # DeepSpeed aligns the pieces of its flat buffers
    for name, expected in (
        ("weights_trained", trained * size),
        ("weights_frozen", frozen * size + buffers),
        ("gradients", trained * size),
    ):
        assert expected <= parts[name] <= expected * padding, name
    masters = 0 if precision == "fp32" and stage == 0 else trained * 4  # without ZeRO fp32 weights are their own
    assert trained * 4 + masters <= parts["optimizer"] <= (trained * 4 + masters) * padding


def test_memory_is_looked_at_once_and_shared_storages_count_once(ranks):
    first, seen = torch.zeros(10), set()
    assert module.new_bytes([first, first[2:], first.view(2, 5)], seen) == 40
    assert module.new_bytes([first, torch.zeros(3)], seen) == 12
    meters = Meters(replace(ranks), 16, {}, engine=object())
    meters.memory = {"weights": 1}
    meters.on_stage("collective", 1)  # would fail if it looked again
