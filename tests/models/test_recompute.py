"""Activation checkpointing of whole blocks: no bit of a gradient changes, and inputs alone are stored."""

from dataclasses import replace

import pytest
import torch

from ace_dist.config import VideoConfig
from ace_dist.models.dual_encoder import build_video_tower

TINY = {"width": 32, "depth": 4, "heads": 2, "patch": 8, "image_size": 32, "frames": 4, "embed_dim": 16}


@pytest.mark.parametrize(
    "tower", [{"drop_path": 0.3}, {"tower": "vit", "drop_path": 0.0}, {"tower": "spacetime", "drop_path": 0.0}]
)
def test_blocks_are_computed_again_with_the_same_gradients(tower):
    config = VideoConfig(**TINY, **tower, trained_blocks=3)
    plain = build_video_tower(config)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.1)
    again = build_video_tower(replace(config, recompute="blocks"))
    again.load_state_dict(plain.state_dict())
    video, stored, gradients = torch.randn(2, 4, 3, 32, 32), [], []
    for model in (plain, again):
        model.train().set_step(5, 2, 0, 1)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            output = model(video)
        stored.append(sum(sizes))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients.append([output.detach(), *torch.autograd.grad(output.square().sum(), trained)])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert stored[1] < 0.2 * stored[0]
