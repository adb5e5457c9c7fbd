"""The whole training step against Algorithm 1 written plainly on the library's models (`benchmarks/naive_step.py`)."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_text_models import shaken, small_model

from ace_dist.concepts import ConceptSampler
from ace_dist.config import MethodConfig, TextConfig, VideoConfig
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.tokenizer import VOCABULARY
from ace_dist.objectives import ConceptObjective, total_loss

VIDEO = VideoConfig(width=32, depth=3, heads=2, patch=8, image_size=16, frames=4, embed_dim=16, trained_blocks=2)
TEXT = TextConfig(width=32, depth=1, heads=2, embed_dim=16)
STEPS, B, T = 50, 4, 6  # six frames on four learned times: the time embedding is resized on the way


@pytest.fixture
def naive_step(monkeypatch):
    """The module of the benchmark that holds the plain formulation."""
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[2] / "benchmarks"), *sys.path])
    return pytest.importorskip("naive_step")


def train(module, loss_of, sampler, clips, labels, steps=STEPS):
    """Losses of steps of SGD with momentum on what trains, or on fp32 copies of it when that is bfloat16."""
    trained = [p for p in module.parameters() if p.requires_grad]
    moved = [p.detach().float() if p.dtype == torch.bfloat16 else p for p in trained]
    optimizer = torch.optim.SGD(moved, lr=0.01, momentum=0.9)
    losses = []
    for step in range(steps):
        loss = loss_of(clips[step % len(clips)], labels[step % len(clips)], sampler.draw(step))
        loss.backward()
        for low, high in zip(trained, moved, strict=True):
            high.grad = None if low.grad is None else low.grad.to(high.dtype)
        optimizer.step()
        with torch.no_grad():
            for low, high in zip(trained, moved, strict=True):
                low.copy_(high)
                low.grad = None
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def test_fifty_steps_equal_the_plain_formulation(naive_step, actions, trees):
    """Frozen blocks, layout, text feature cache and kernels leave the losses of a training run as they are."""
    VIDEO.drop_path = 0.0  # Hugging Face's configuration takes no fraction
    settings = MethodConfig(temperature=0.1)
    model = DualEncoder(VIDEO, TEXT).double()
    for block in model.video.blocks:
        torch.nn.init.trunc_normal_(block.temporal_fc.weight, std=0.1)
    sampler = ConceptSampler(actions, trees, seed=int(torch.randint(1000, ())))
    plain = naive_step.NaiveStep(model, T, settings).double()
    ours = ConceptObjective(model, sampler, settings)
    clips = torch.randn(5, B, T, 3, 16, 16, dtype=torch.float64)
    labels = torch.randint(len(actions), (5, B))
    found = train(ours, lambda *batch: total_loss(ours(*batch)), sampler, clips, labels)
    expected = train(plain, plain, sampler, clips, labels)
    assert expected[-5:].mean() < 0.95 * expected[:5].mean(), "nothing was learnt, so nothing was compared"
    assert (found - expected).abs().max() < 1e-6 * expected[0]


@pytest.mark.parametrize("encoder", ["clip_b16", "siglip_b16", "pe_core_b16"])
def test_steps_on_open_clips_towers_equal_the_plain_formulation(naive_step, actions, trees, encoder):
    """Class token, attention pool or rotary positions; texts that see their padding and texts that do not."""
    settings, config = MethodConfig(temperature=0.1), small_model(encoder, image_size=24, embed_dim=48)
    model = DualEncoder(config.video, replace(config.text, tokenizer=None, vocabulary=VOCABULARY))
    shaken(model).double()
    sampler = ConceptSampler(actions, trees, seed=int(torch.randint(1000, ())))
    plain = naive_step.NaiveStep(model, T, settings).double()
    ours = ConceptObjective(model, sampler, settings)
    clips = torch.randn(5, B, T, 3, 24, 24, dtype=torch.float64)
    labels = torch.randint(len(actions), (5, B))
    found = train(ours, lambda *batch: total_loss(ours(*batch)), sampler, clips, labels, steps=10)
    expected = train(plain, plain, sampler, clips, labels, steps=10)
    assert expected[0] != expected[5], "nothing was learnt, so nothing was compared"
    assert (found - expected).abs().max() < 1e-6 * expected[0]


def test_fifty_steps_in_bfloat16_are_nearer_than_plain_bfloat16(naive_step, actions, trees):
    """Against the plain step in fp32: ours in fp32 within its rounding, in bf16 within the error of plain bf16."""
    VIDEO.drop_path = 0.0
    settings = MethodConfig(temperature=0.1)
    start = DualEncoder(VIDEO, TEXT)
    for block in start.video.blocks:
        torch.nn.init.trunc_normal_(block.temporal_fc.weight, std=0.1)
    sampler = ConceptSampler(actions, trees, seed=int(torch.randint(1000, ())))
    clips, labels = torch.randn(5, B, T, 3, 16, 16), torch.randint(len(actions), (5, B))

    def plain(dtype):
        module = naive_step.NaiveStep(copy.deepcopy(start), T, settings).to(dtype)
        return train(module, module, sampler, clips.to(dtype), labels)

    def ours(dtype):
        model = copy.deepcopy(start)
        objective = ConceptObjective(model, sampler, settings).to(dtype)
        return train(objective, lambda *batch: total_loss(objective(*batch)), sampler, clips.to(dtype), labels)

    exact = plain(torch.float32)
    assert (ours(torch.float32) - exact).abs().max() < 1e-5 * exact[0]
    usual = (plain(torch.bfloat16) - exact).abs().mean()
    assert 0 < (ours(torch.bfloat16) - exact).abs().mean() < usual
