"""The dual encoder: one space, the two groups that train, and the split of its state dict."""

import pytest
import torch

from ace_dist.config import TextConfig, VideoConfig
from ace_dist.models import dual_encoder
from ace_dist.models.dual_encoder import DualEncoder


def build(**text):
    video = VideoConfig(width=64, depth=3, heads=1, patch=8, image_size=16, embed_dim=32, trained_blocks=1)
    return DualEncoder(video, TextConfig(width=64, depth=2, heads=1, embed_dim=32, **text))


def test_default_trainable_set_is_the_papers():
    """ACE: the last three TimeSformer blocks and CLIP's text projection, 30,389,248 parameters (reference 0.5)."""
    with torch.device("meta"):
        groups = DualEncoder(VideoConfig(), TextConfig()).trainable_parameters()
    counts = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    assert counts == {"video": 30_127_104, "text": 262_144} and sum(counts.values()) == 30_389_248


def test_gradients_reach_both_groups():
    model = build(trained_layers=1).train()
    cache = model.build_text_features(["spin block", "hammer pin", "lift the cup"])
    video, text = model.encode_video(torch.randn(2, 4, 3, 16, 16)), cache.encode(torch.tensor([2, 0, 2, 1]))
    assert video.shape == (2, 32) and text.shape == (4, 32)
    assert torch.equal(text[0], text[2])
    (video.square().sum() + text.square().sum()).backward()
    for group in model.trainable_parameters().values():
        assert group and all(parameter.grad is not None for parameter in group)


def test_state_dict_splits_in_two():
    model = build()
    frozen, whole = model.frozen_state_dict(), model.state_dict()
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    assert set(trained) | set(frozen) == set(whole) and not set(trained) & set(frozen)
    assert {name.split(".")[0] for name in trained} == {"video", "text"}
    assert all(name.startswith(("video.blocks.2.", "text.text_projection.")) for name in trained)
    other = build()
    other.load_state_dict({**trained, **frozen}, strict=True)
    video = torch.randn(1, 4, 3, 16, 16)
    assert torch.equal(other.eval().encode_video(video), model.eval().encode_video(video))


@pytest.mark.parametrize(
    ("device", "steps", "tower", "obstacle", "choice", "reason"),
    [
        ("cpu", 9000, "timesformer", None, "none", "on cpu"),
        ("cuda", 9000, "vit", None, "none", "model.video.tower=vit"),
        ("cuda", 9000, "timesformer", "profile=true", "none", "profile=true"),
        ("cuda", 100, "timesformer", None, "cudagraphs", "7000 steps"),
        ("cuda", 9000, "timesformer", None, "reduce-overhead", "torch.compile"),
    ],
)
def test_auto_compiles_where_it_pays_and_says_so(device, steps, tower, obstacle, choice, reason, monkeypatch, capsys):
    monkeypatch.setattr(dual_encoder, "has_triton", lambda: True)
    config = VideoConfig(tower=tower)
    assert dual_encoder.choose_compile(config, torch.device(device), steps, obstacle) == choice
    said = capsys.readouterr().out
    assert said.startswith(f"compile: {choice}") and reason in said
