"""What the backward pass computes again: no bit of a gradient changes; `auto` stores all where that is small."""

from dataclasses import replace

import pytest
import torch
from image_text_models import FAMILIES, small_model, small_tokenizer
from small_video_models import TOWERS

from ace_dist.config import VideoConfig
from ace_dist.models import attention, video
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


@pytest.mark.parametrize("name", [*TOWERS, *FAMILIES])
def test_auto_computes_again_what_is_too_much_to_store(name, tmp_path, monkeypatch, capsys):
    config = TOWERS.get(name)
    if config is None:
        own_tokens = name.startswith("siglip")
        file = small_tokenizer(tmp_path)[1] if own_tokens else None
        config = small_model(name, file, **({"embed_dim": 48} if own_tokens else {})).video
    model = build_video_tower(replace(config, trained_blocks=2)).train()
    shape = (2, config.frames, 3, config.image_size, config.image_size)
    for limit, chosen in ((1.0, "none"), (1e-6, "norms")):
        monkeypatch.setattr(video, "STORED_ON_CPU_GIB", limit)
        model.choose_recompute(shape)
        assert model.recompute == chosen
        assert f"recompute: {chosen}, since" in capsys.readouterr().out


@pytest.mark.parametrize(("setting", "times"), [("none", 1), ("norms", 2)])
def test_a_setting_holds_for_attention_too(setting, times, monkeypatch):
    """The formula that serves short attention on a CPU runs once in a step, or once more in its backward pass."""
    calls, formula = [], attention.formula
    monkeypatch.setattr(attention, "formula", lambda *tensors: calls.append(1) or formula(*tensors))
    model = build_video_tower(VideoConfig(**TINY, drop_path=0.0, trained_blocks=4, recompute=setting)).train()
    model.choose_recompute((2, 4, 3, 32, 32))
    model(torch.randn(2, 4, 3, 32, 32)).sum().backward()
    assert len(calls) == times * 2 * TINY["depth"]
