"""ViCLIP against its published layout written down in plain operations, and its files there and back."""

import copy
from dataclasses import replace

import pytest
import torch
from image_text_models import SMALL, SMALL_TEXT, close, settings, shaken
from open_clip import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch.nn import functional

from ace_dist import cli
from ace_dist.config import load_config
from ace_dist.models.build import build_model
from ace_dist.models.convert import open_clip as pairs
from ace_dist.models.convert.exporting import VICLIP_FILE, load_encoders, save_encoders
from ace_dist.models.dual_encoder import DualEncoder, build_video_tower
from ace_dist.utils.errors import ConfigError, ModelError, UserError

FRAMES, CONTEXT = 8, 32


@pytest.fixture(scope="module")
def config():
    return load_config([*settings("viclip_b16"), f"dataset.clip.frames={FRAMES}", "model.text.embed_dim=24"]).model


def block_state(width, prefix):
    shapes = {
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,), "ln_1.weight": (width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,), "ln_1.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,), "ln_2.weight": (width,),
        "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,), "ln_2.bias": (width,),
    }  # fmt: skip
    return {f"{prefix}{name}": torch.randn(shape) * 0.2 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def released():
    """A random file of the released names and shapes, at the small size."""
    width, patch, places = SMALL["width"], SMALL["patch"], (SMALL["image_size"] // SMALL["patch"]) ** 2
    embed, text = SMALL["embed_dim"], SMALL_TEXT["width"]
    shapes = {
        "vision_encoder.conv1.weight": (width, 3, 1, patch, patch), "vision_encoder.class_embedding": (width,),
        "vision_encoder.positional_embedding": (1 + places, width), "vision_encoder.ln_pre.weight": (width,),
        "vision_encoder.temporal_positional_embedding": (1, FRAMES, width), "vision_encoder.ln_pre.bias": (width,),
        "vision_encoder.ln_post.weight": (width,), "vision_encoder.ln_post.bias": (width,),
        "vision_encoder.proj": (width, embed), "text_encoder.token_embedding.weight": (49408, text),
        "text_encoder.positional_embedding": (CONTEXT, text), "text_encoder.ln_final.weight": (text,),
        "text_encoder.ln_final.bias": (text,), "text_encoder.text_projection": (text, embed),
    }  # fmt: skip
    state = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()} | {"temp": torch.tensor(0.02)}
    for side, size, depth in (("vision", width, SMALL["depth"]), ("text", text, SMALL_TEXT["depth"])):
        for index in range(depth):
            state |= block_state(size, f"{side}_encoder.transformer.resblocks.{index}.")
    return state


def norm(x, state, name):
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def transform(x, state, prefix, heads, mask=None):
    """Pre-norm blocks with QuickGELU on [B,N,D]."""
    depth = 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix))
    for index in range(depth):
        name = f"{prefix}{index}."
        qkv = functional.linear(norm(x, state, f"{name}ln_1"), state[f"{name}attn.in_proj_weight"],
                                state[f"{name}attn.in_proj_bias"])  # fmt: skip
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        mixed = ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + functional.linear(mixed, state[f"{name}attn.out_proj.weight"], state[f"{name}attn.out_proj.bias"])
        hidden = functional.linear(norm(x, state, f"{name}ln_2"), state[f"{name}mlp.c_fc.weight"],
                                   state[f"{name}mlp.c_fc.bias"])  # fmt: skip
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        x = x + functional.linear(hidden, state[f"{name}mlp.c_proj.weight"], state[f"{name}mlp.c_proj.bias"])
    return x


def video_by_hand(video, state):
    """Every patch of every frame is a token; one class token in front; times are added before the first norm."""
    state = {name.removeprefix("vision_encoder."): tensor for name, tensor in state.items()}
    tokens = functional.conv3d(video.transpose(1, 2), state["conv1.weight"], stride=state["conv1.weight"].shape[2:])
    tokens = tokens.flatten(3).permute(0, 2, 3, 1)  # [B,T,P,D]
    times = state["temporal_positional_embedding"]
    times = times.mean(1, keepdim=True) if tokens.shape[1] == 1 else times
    tokens = tokens + state["positional_embedding"][1:] + times[:, :, None]
    first = (state["class_embedding"] + state["positional_embedding"][0]).expand(len(video), 1, -1)
    tokens = norm(torch.cat([first, tokens.flatten(1, 2)], 1), state, "ln_pre")
    tokens = transform(tokens, state, "transformer.resblocks.", SMALL["heads"])
    return norm(tokens[:, 0], state, "ln_post") @ state["proj"]


def text_by_hand(phrases, state):
    state = {name.removeprefix("text_encoder."): tensor for name, tensor in state.items()}
    ids = SimpleTokenizer(context_length=CONTEXT)(phrases)
    mask = torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1)
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    x = transform(x, state, "transformer.resblocks.", SMALL_TEXT["heads"], mask)
    return norm(x, state, "ln_final")[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]


def imported(config, released, folder, monkeypatch):
    folder.mkdir(exist_ok=True)
    save_file(released, folder / "model.safetensors")
    monkeypatch.setattr(pairs, "pair_config", lambda name: config)
    cli.execute(["weights", "import", "model=viclip_b16", f"source={folder}", f"output={folder / 'weights'}"])
    paths = {part: str(folder / f"weights/viclip_b16_{part}.safetensors") for part in ("video", "text")}
    video, text = (replace(getattr(config, part), weights=paths[part]) for part in paths)
    return replace(config, init="weights", video=video, text=text)


@torch.no_grad()
def test_a_released_file_becomes_both_towers(config, released, tmp_path, monkeypatch):
    ours = build_model(imported(config, released, tmp_path, monkeypatch), 0).eval()
    phrases = ["spin block", "hammer the pin"]
    close(ours.text(phrases), text_by_hand(phrases, released))
    for frames in (FRAMES, 1):
        video = torch.randn(2, frames, 3, 48, 48)
        close(ours.encode_video(video), video_by_hand(video, released))
    stored = load_file(tmp_path / "weights/viclip_b16_video.safetensors")
    assert stored["similarity.logit_scale"].exp().item() == pytest.approx(50, rel=1e-5)


@torch.no_grad()
def test_other_numbers_of_frames_and_image_sizes_are_resized(config, released, tmp_path, monkeypatch):
    """Times by the setting, 8 to 4 frames taking every second; places as open_clip does, whatever the frames."""
    settings = imported(config, released, tmp_path, monkeypatch)
    fewer = build_model(replace(settings, video=replace(settings.video, frames=4)), 0).eval()
    video = torch.randn(2, 4, 3, 48, 48)
    name = "vision_encoder.temporal_positional_embedding"
    close(fewer.encode_video(video), video_by_hand(video, released | {name: released[name][:, ::2]}))
    larger = build_model(replace(settings, video=replace(settings.video, image_size=72)), 0).eval()
    places = larger.video.visual.positional_embedding
    video = torch.randn(1, FRAMES, 3, 72, 72)
    close(larger.encode_video(video), video_by_hand(video, released | {"vision_encoder.positional_embedding": places}))


@torch.no_grad()
def test_an_export_has_the_released_names(config, released, tmp_path, monkeypatch):
    model = build_model(imported(config, released, tmp_path / "in", monkeypatch), 0).eval()
    loads = save_encoders(model, tmp_path / "out", FRAMES, temperature=0.02)
    assert "ViCLIP" in loads["video"]
    stored = load_file(tmp_path / "out" / VICLIP_FILE)
    assert stored.keys() == released.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor.reshape(released[name].shape), released[name], rtol=1e-6, atol=0)
    again = DualEncoder(config.video, config.text).eval()
    load_encoders(again, tmp_path / "out")
    video = torch.randn(1, FRAMES, 3, 48, 48)
    assert torch.equal(again.encode_video(video), model.encode_video(video))
    assert torch.equal(again.text(["spin block"]), model.text(["spin block"]))


@pytest.mark.parametrize("trained", [0, 2, 3])
def test_what_trains_and_the_cached_part(config, trained):
    tower = shaken(build_video_tower(replace(config.video, trained_blocks=trained, train_head=True))).train()
    video = torch.randn(2, FRAMES, 3, 48, 48)
    tower(video).sum().backward()
    with_gradient = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert tower.times.requires_grad == (trained == 3) and not tower.sees_frames_alone
    features = tower.frozen_features(video)
    assert features.shape == (2, 1 + FRAMES * 16, SMALL["width"])
    close(tower(features).detach(), tower(video).detach())
    assert ("times" in tower.frozen_features_state()) == (trained < 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("vision_encoder.temporal_positional_embedding"), r"missing +1 +times"),
        (
            lambda state: state.update({"text_encoder.positional_embedding": torch.zeros(77, 32)}),
            r"\[77, 32\] for \[32",
        ),
        (lambda state: state.update(extra=torch.zeros(2)), r"unexpected +1 +extra"),
        (lambda state: state.update({"vision_encoder.conv1.weight": torch.zeros(48, 3, 2, 12, 12)}), "mismatched"),
    ],
)
def test_another_models_files_are_refused(config, released, tmp_path, monkeypatch, change, named):
    state = copy.copy(released)
    change(state)
    with pytest.raises(UserError, match=named):
        imported(config, state, tmp_path, monkeypatch)
    assert not (tmp_path / "weights").exists()


def test_contradictions_are_refused_by_name(config):
    with pytest.raises(ConfigError, match="model.video.pooling=frames.*joint has no embedding of a frame"):
        load_config(["experiment=demo", "model=viclip_b16", "model.video.pooling=frames",
                     "model.similarity.spotting=true"])  # fmt: skip
    with pytest.raises(ModelError, match="temporal=joint is for CLIP's own"):
        build_video_tower(replace(config.video, arch="PE-Core-B-16"))
