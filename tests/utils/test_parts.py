"""Protects the FLOPs of a step by part: of every tower and objective, by torch's own counter and by hand."""

import random
import secrets

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ace_dist.config import VideoConfig
from ace_dist.models import attention, timesformer
from ace_dist.models import video as tower_base
from ace_dist.models.dual_encoder import build_video_tower
from ace_dist.utils.parts import Flops, PartFlops, part


@pytest.fixture
def draw():
    """Random sizes, new ones every time; a failure prints the seed."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


VIDEO = {
    "timesformer": {},
    "timesformer, all trained": {"trained_blocks": 3, "train_norm": True, "train_head": True},
    "timesformer, nothing but the head": {"trained_blocks": 0, "train_head": True},
    "timesformer, time embedding": {"train_time_embed": True},
    "timesformer, stochastic depth": {"drop_path": 0.3},
    "timesformer, blocks computed again": {"recompute": "blocks"},
    "vit": {"tower": "vit"},
    "vit, transformer over frames": {"tower": "vit", "trained_blocks": 0, "temporal_layers": 2, "clip_style": True},
    "vit, all trained": {"tower": "vit", "trained_blocks": 3, "train_norm": True, "train_head": True},
    "vit, prompts": {"tower": "vit", "trained_blocks": 0, "prompt_tokens": 3, "prompt_depth": 2, "clip_style": True},
    "vit, blocks computed again": {"tower": "vit", "recompute": "blocks"},
    "spacetime": {"tower": "spacetime"},
    "spacetime, all trained": {"tower": "spacetime", "trained_blocks": 3, "train_head": True, "clip_style": True},
}


@pytest.mark.parametrize("settings", VIDEO.values(), ids=VIDEO.keys())
def test_video_towers_equal_torchs_counter(settings, draw, monkeypatch):
    """Torch's counter sees the real network, in which nothing is computed again; ours the network as it is, on meta."""
    heads, patch, grid = draw.choice([1, 2, 3]), draw.choice([4, 6]), draw.choice([2, 3])
    clips, frames, size = draw.randint(1, 3), draw.randint(2, 6), patch * grid
    config = VideoConfig(
        **{"width": 16 * heads, "depth": 3, "heads": heads, "patch": patch, "image_size": size, "frames": frames,
           "embed_dim": 24, "drop_path": 0.0, "trained_blocks": draw.randint(1, 2), "attention": "sdpa", **settings}
    )  # fmt: skip
    tower = build_video_tower(config).train()
    video = torch.randn(clips, frames, 3, size, size)
    with sdpa_kernel(SDPBackend.MATH), PartFlops() as ours:
        tower.to("meta")(video.to("meta")).sum().backward()
    for module in (timesformer, attention, tower_base):
        monkeypatch.setattr(module, "recompute", lambda function, *inputs: function(*inputs))
    tower = build_video_tower(config).train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = tower(video)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert sum(flops.forward for flops in ours.flops.values()) == forward > 0
    assert sum(flops.backward for flops in ours.flops.values()) == counter.get_total_flops() - forward > 0
    assert set(ours.flops) <= {"patch embedding", "frozen blocks", "trained blocks", "head"}


def test_parts_of_a_video_tower_by_hand():
    """One frozen and one trained ViT block: products, the trained one's backward twice its forward less one input."""
    width, tokens, images = 16, 5, 6
    config = VideoConfig(tower="vit", width=width, depth=2, heads=2, patch=4, image_size=8, frames=3, embed_dim=8,
                         drop_path=0.0, trained_blocks=1)  # fmt: skip
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), PartFlops() as counter:
        build_video_tower(config).train()(torch.empty(2, 3, 3, 8, 8)).sum().backward()
    linear, attention = 2 * images * tokens * 12 * width**2, 2 * 2 * images * tokens**2 * width
    assert counter.flops["patch embedding"] == (2 * images * 4 * 3 * 16 * width, 0)
    assert counter.flops["frozen blocks"] == (linear + attention, 0)
    assert counter.flops["trained blocks"] == (linear + attention, 2 * (linear + attention))  # norm1 trains below it
    assert counter.flops["head"] == (2 * images * width * 8, 2 * images * width * 8)  # frozen: its input alone


def test_a_backward_pass_belongs_to_the_part_that_was_forward():
    """Two layers in two parts, one between them in none, and a part without a product."""
    x, first, between, last = (torch.randn(4, 4, requires_grad=name != "x") for name in ("x", "a", "b", "c"))
    with PartFlops() as counter:
        with part("first"):
            x = x @ first
        x = x @ between
        with part("last"):
            x = x @ last
        with part("nothing"):
            x = x + 1
        x.sum().backward()
    product = 2 * 4**3
    assert counter.flops == {
        "first": Flops(product, product), "other": Flops(product, 2 * product), "last": Flops(product, 2 * product),
        "nothing": Flops(0, 0),
    }  # fmt: skip
    with part("first"):  # and costs nothing when nobody counts
        assert PartFlops.active is None
