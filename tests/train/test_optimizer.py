"""Protects the fused SGD: within rounding what torch's plain loop over the parameters does, rates by group included."""

from types import SimpleNamespace

import pytest
import torch

from ace_dist.config import TextConfig, TrainingConfig, VideoConfig
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.train.engine import Engine, build_optimizer


def test_fused_sgd_moves_as_the_plain_loop_does():
    start = [torch.randn(40, 30), torch.randn(17), torch.randn(5, 3)]
    settings = TrainingConfig(optimizer="sgd", momentum=0.9, nesterov=True, weight_decay=0.01)
    ours, plain = ([torch.nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    optimizer = build_optimizer([{"params": ours[:2], "lr": 0.1}, {"params": ours[2:], "lr": 0.03}], settings)
    reference = torch.optim.SGD(
        [{"params": plain[:2], "lr": 0.1}, {"params": plain[2:], "lr": 0.03}],
        momentum=0.9, nesterov=True, weight_decay=0.01, foreach=False,
    )  # fmt: skip
    for _ in range(4):
        for a, b in zip(ours, plain, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b, c in zip(ours, plain, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # a fused multiply-add rounds once
        assert not torch.equal(a, c)


def test_rates_by_layer_reach_every_weight_once():
    """All blocks of four train with training.layer_decay=0.5: 1/16 of the video rate before the first, all of it at the
    last and for what stands alone; the last layers' rate is the one that is logged."""
    video = VideoConfig(
        width=16, depth=4, heads=2, patch=8, image_size=16, embed_dim=8, trained_blocks=4, train_head=True
    )
    model = DualEncoder(video, TextConfig(width=16, depth=1, heads=2, embed_dim=8))
    engine = Engine.__new__(Engine)
    engine.settings, engine.module = (
        TrainingConfig(lr_video=0.8, lr_text=0.2, layer_decay=0.5),
        SimpleNamespace(model=model),
    )
    groups = engine.parameter_groups()
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(rates) == len(trained)
    for name, parameter in trained.items():
        block = int(name.split(".")[2]) if "blocks" in name else -1 if "embed" in name or "cls" in name else 3
        assert rates[id(parameter)] == pytest.approx((0.8 if name.startswith("video.") else 0.2) * 0.5 ** (3 - block))
    logged = {group["name"]: group["base_lr"] for group in groups}
    assert logged == {"video": 0.8, "text": 0.2}
    engine.settings = TrainingConfig()
    assert [group["name"] for group in engine.parameter_groups()] == ["video", "text"], "one group a side without it"
