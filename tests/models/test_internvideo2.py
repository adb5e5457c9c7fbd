"""InternVideo2 against its published layout written down in plain operations, and its files there and back."""

import copy
from dataclasses import replace
from io import BytesIO

import pytest
import torch
from hub_server import ask_here, hub_server
from image_text_models import SMALL, SMALL_TEXT, close, settings, shaken
from safetensors.torch import load_file
from torch.nn import functional
from transformers import BertConfig, BertModel

from ace_dist import cli
from ace_dist.config import load_config
from ace_dist.evaluate.licences import is_non_commercial
from ace_dist.models.build import build_model
from ace_dist.models.convert import known as known_weights
from ace_dist.models.convert import open_clip as pairs
from ace_dist.models.convert.exporting import INTERNVIDEO2_FILE, load_encoders, save_encoders
from ace_dist.models.convert.known import KNOWN
from ace_dist.models.dual_encoder import DualEncoder, build_video_tower
from ace_dist.models.weights import read_licence
from ace_dist.utils.errors import ModelError, UserError

FRAMES, PLACES, POOL = 4, 16, 768
WIDTH, HEADS, HIDDEN = SMALL["width"], SMALL["heads"], int(SMALL["width"] * 48 / 11)
VIDEO, TEXT = "vision_encoder.", "text_encoder.bert."
PHRASES = ["spin block", "hammer the pin into the side panel"]


@pytest.fixture(scope="module")
def config():
    return load_config([*settings("internvideo2_1b"), "model.text.embed_dim=24"]).model


@pytest.fixture(scope="module")
def bert():
    """BERT at a small size, of three layers, of which the last one sees the video."""
    shape = BertConfig(
        vocab_size=30522, hidden_size=SMALL_TEXT["width"], num_hidden_layers=3, intermediate_size=128,
        num_attention_heads=SMALL_TEXT["heads"], attn_implementation="eager",
    )  # fmt: skip
    return shaken(BertModel(shape, add_pooling_layer=False)).eval()


@pytest.fixture(scope="module")
def released(bert):
    """A random file of the released names and shapes, at the small size, with what a tower does not use."""
    patch, text, embed = SMALL["patch"], SMALL_TEXT["width"], SMALL["embed_dim"]
    block = {
        "norm1.weight": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.q_norm.weight": (WIDTH,),
        "attn.k_norm.weight": (WIDTH,), "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
        "ls1.gamma": (WIDTH,), "norm2.weight": (WIDTH,), "mlp.fc1.weight": (HIDDEN, WIDTH), "mlp.fc1.bias": (HIDDEN,),
        "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,), "ls2.gamma": (WIDTH,),
    }  # fmt: skip
    pool = {f"norm1_{side}.{part}": (WIDTH,) for side in "qkv" for part in ("weight", "bias")}
    pool |= {f"cross_attn.{side}.weight": (WIDTH, WIDTH) for side in "qkv"}
    pool |= {f"cross_attn.{side}_bias": (WIDTH,) for side in "qkv"}
    pool |= {"cross_attn.proj.weight": (POOL, WIDTH), "cross_attn.proj.bias": (POOL,)}
    shapes = {
        f"{VIDEO}cls_token": (1, 1, WIDTH), f"{VIDEO}pos_embed": (1, 1 + FRAMES * PLACES, WIDTH),
        f"{VIDEO}img_pos_embed": (1, 1 + PLACES, WIDTH), f"{VIDEO}clip_pos_embed": (1, 1 + FRAMES * PLACES, WIDTH),
        f"{VIDEO}patch_embed.proj.weight": (WIDTH, 3, 1, patch, patch), f"{VIDEO}patch_embed.proj.bias": (WIDTH,),
        f"{VIDEO}clip_decoder.0.head.weight": (40, WIDTH), f"{VIDEO}final_clip_decoder.head.bias": (40,),
        "vision_proj.weight": (embed, POOL), "vision_proj.bias": (embed,), "text_proj.weight": (embed, text),
        "text_proj.bias": (embed,), "itm_head.weight": (2, text), "text_encoder.cls.predictions.bias": (30522,),
        f"{TEXT}encoder.layer.2.crossattention.self.query.weight": (text, WIDTH),
        **{f"{VIDEO}clip_projector.{name}": shape for name, shape in pool.items()},
        **{f"{VIDEO}blocks.{index}.{name}": shape for index in range(SMALL["depth"]) for name, shape in block.items()},
    }  # fmt: skip
    state = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()} | {"temp": torch.tensor(0.07)}
    return state | {f"{TEXT}{name}": tensor.clone() for name, tensor in bert.state_dict().items()}


def rms(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def attend(q, k, v):
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    return ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def video_by_hand(video, state):
    """Every patch of every frame is a token; queries and keys are normed over all heads; a mean asks in the pool."""
    state = {name.removeprefix(VIDEO): tensor for name, tensor in state.items()}
    weight = state["patch_embed.proj.weight"]
    x = functional.conv3d(video.transpose(1, 2), weight, state["patch_embed.proj.bias"], stride=weight.shape[2:])
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(3).permute(0, 2, 3, 1).flatten(1, 2)], 1)
    x = x + state["pos_embed"]
    for index in range(SMALL["depth"]):
        own = {name.removeprefix(f"blocks.{index}."): tensor for name, tensor in state.items()}
        q, k, v = functional.linear(rms(x, own["norm1.weight"]), own["attn.qkv.weight"]).chunk(3, -1)
        mixed = attend(rms(q, own["attn.q_norm.weight"]), rms(k, own["attn.k_norm.weight"]), v)
        x = x + own["ls1.gamma"] * functional.linear(mixed, own["attn.proj.weight"], own["attn.proj.bias"])
        hidden = functional.linear(rms(x, own["norm2.weight"]), own["mlp.fc1.weight"], own["mlp.fc1.bias"])
        x = x + own["ls2.gamma"] * functional.linear(
            functional.gelu(hidden), own["mlp.fc2.weight"], own["mlp.fc2.bias"]
        )
    own = {name.removeprefix("clip_projector."): tensor for name, tensor in state.items()}
    parts = {"q": x.mean(1, keepdim=True), "k": x, "v": x}
    q, k, v = (
        functional.linear(
            functional.layer_norm(part, (WIDTH,), own[f"norm1_{side}.weight"], own[f"norm1_{side}.bias"]),
            own[f"cross_attn.{side}.weight"], own[f"cross_attn.{side}_bias"],
        )
        for side, part in parts.items()
    )  # fmt: skip
    pooled = functional.linear(attend(q, k, v), own["cross_attn.proj.weight"], own["cross_attn.proj.bias"]).squeeze(1)
    return functional.linear(pooled, state["vision_proj.weight"], state["vision_proj.bias"])


def text_by_hand(phrases, bert, state, tokenizer):
    """BERT's first layers, each phrase alone, without padding; its first token is projected."""
    rows = []
    for phrase in phrases:
        ids = torch.tensor([tokenizer(phrase)["input_ids"]])
        rows.append(bert(input_ids=ids, output_hidden_states=True).hidden_states[2][0, 0])  # before the fused layer
    return functional.linear(torch.stack(rows), state["text_proj.weight"], state["text_proj.bias"])


def imported(config, released, folder, monkeypatch):
    """As DeepSpeed stored the released file, with sizes and sets beside the weights."""
    folder.mkdir(exist_ok=True)
    torch.save({"module": released, "param_shapes": [{"temp": torch.Size([])}], "ranks": {0}}, folder / "released.pt")
    monkeypatch.setattr(pairs, "pair_config", lambda name: config)
    source = f"source={folder / 'released.pt'}"
    cli.execute(["weights", "import", "model=internvideo2_1b", source, f"output={folder / 'weights'}"])
    paths = {part: str(folder / f"weights/internvideo2_1b_{part}.safetensors") for part in ("video", "text")}
    video, text = (replace(getattr(config, part), weights=paths[part]) for part in paths)
    return replace(config, init="weights", video=video, text=text)


@torch.no_grad()
def test_a_released_file_becomes_both_towers(config, released, bert, tmp_path, monkeypatch):
    ours = build_model(imported(config, released, tmp_path, monkeypatch), 0).eval()
    close(ours.text(PHRASES), text_by_hand(PHRASES, bert, released, ours.text.tokenizer))
    video = torch.randn(2, FRAMES, 3, 48, 48)
    close(ours.encode_video(video), video_by_hand(video, released))


def test_one_command_from_the_hub(config, released, tmp_path, monkeypatch):
    """`ace weights get internvideo2_1b`: one file becomes both towers, and a second call asks for nothing."""
    known, stored = KNOWN["internvideo2_1b"], BytesIO()
    torch.save({"module": released}, stored)
    for module in (pairs, known_weights):
        monkeypatch.setattr(module, "pair_config", lambda name: config)
    with hub_server() as (hub, address):
        ask_here(monkeypatch, address, tmp_path / "cache")
        hub.files[known.repository] = {known.file: stored.getvalue()}
        get = ["weights", "get", "internvideo2_1b", f"output={tmp_path / 'weights'}"]
        assert cli.execute(get) == 0
        asked = len(hub.requests)
        assert cli.execute(get) == 0 and len(hub.requests) == asked
    for part in ("video", "text"):
        licence = read_licence(tmp_path / f"weights/internvideo2_1b_{part}.safetensors")
        assert licence == "Apache-2.0" and not is_non_commercial(licence)


@torch.no_grad()
def test_other_numbers_of_frames_and_image_sizes_are_resized(config, released, tmp_path, monkeypatch):
    """Linear in time, for clips of another length than the weights'; bicubic in space."""
    settings = imported(config, released, tmp_path, monkeypatch)
    name = f"{VIDEO}pos_embed"
    grid = released[name][:, 1:].unflatten(1, (FRAMES, PLACES))
    # Of 4 to 8 the half-pixel rule takes times -0.25, 0.25, 0.75, ... of the stored ones, clamped at both ends.
    times = torch.tensor([(index + 0.5) / 2 - 0.5 for index in range(8)]).clamp(0, FRAMES - 1)
    low, share = times.floor().long().clamp(max=FRAMES - 2), (times - times.floor().clamp(max=FRAMES - 2))
    more = grid[:, low] * (1 - share)[None, :, None, None] + grid[:, low + 1] * share[None, :, None, None]
    changed = released | {name: torch.cat([released[name][:, :1], more.flatten(1, 2)], 1)}
    video = torch.randn(2, 8, 3, 48, 48)
    close(build_model(settings, 0).eval().encode_video(video), video_by_hand(video, changed))
    with pytest.raises(ModelError, match=r"set model\.video\.frames=4"):
        build_model(replace(settings, video=replace(settings.video, frames=1)), 0)  # 64 places, a square too
    one = torch.cat([released[name][:, :1], grid.mean(1)], 1)
    video = torch.randn(1, 1, 3, 48, 48)
    close(build_model(settings, 0).eval().encode_video(video), video_by_hand(video, released | {name: one}))
    larger = build_model(replace(settings, video=replace(settings.video, image_size=72)), 0).eval()
    planes = grid[0].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    planes = functional.interpolate(planes, size=(6, 6), mode="bicubic").permute(0, 2, 3, 1).flatten(0, 2)[None]
    assert torch.allclose(larger.video.pos_embed[:, 1:], planes, atol=1e-6)


@torch.no_grad()
def test_an_export_has_the_released_names(config, released, tmp_path, monkeypatch):
    model = build_model(imported(config, released, tmp_path / "in", monkeypatch), 0).eval()
    loads = save_encoders(model, tmp_path / "out", FRAMES, temperature=0.02)
    assert "InternVideo2" in loads["video"]
    stored = load_file(tmp_path / "out" / INTERNVIDEO2_FILE)
    unused = ("clip_pos", "img_pos", "clip_decoder", "cls.pred", "layer.2.", "itm_head", "temp")
    assert stored.keys() == {name for name in released if not any(part in name for part in unused)}
    assert all(torch.equal(tensor, released[name]) for name, tensor in stored.items())
    again = DualEncoder(config.video, config.text).eval()
    load_encoders(again, tmp_path / "out")
    video = torch.randn(1, FRAMES, 3, 48, 48)
    assert torch.equal(again.encode_video(video), model.encode_video(video))
    assert torch.equal(again.text(PHRASES), model.text(PHRASES))


@pytest.mark.parametrize("trained", [0, 2, 3])
def test_what_trains_and_the_cached_part(config, trained):
    tower = shaken(build_video_tower(replace(config.video, trained_blocks=trained, train_head=True))).train()
    video = torch.randn(2, FRAMES, 3, 48, 48)
    tower(video).sum().backward()
    with_gradient = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert tower.pos_embed.requires_grad == (trained == 3)
    features = tower.frozen_features(video)
    assert features.shape == (2, 1 + FRAMES * PLACES, WIDTH)
    close(tower(features).detach(), tower(video).detach())
    assert ("pos_embed" in tower.frozen_features_state()) == (trained < 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop(f"{VIDEO}cls_token"), r"missing +1 +cls_token"),
        (lambda state: state.update({f"{VIDEO}pos_embed": torch.zeros(1, 1 + 8 * PLACES, WIDTH)}), "mismatched"),
        (lambda state: state.update(extra=torch.zeros(2)), r"unexpected +1 +extra"),
        (lambda state: state.pop(f"{TEXT}encoder.layer.2.crossattention.self.query.weight"), "unexpected +16 "),
        (lambda state: state.pop("text_proj.bias"), r"missing +1 +projection\.bias"),
    ],
)
def test_another_models_files_are_refused(config, released, tmp_path, monkeypatch, change, named):
    state = copy.copy(released)
    change(state)
    with pytest.raises(UserError, match=named):
        imported(config, state, tmp_path, monkeypatch)
    assert not (tmp_path / "weights").exists()


def test_a_norm_that_is_not_there_cannot_train(config):
    with pytest.raises(ModelError, match="train_norm=true"):
        build_video_tower(replace(config.video, train_norm=True))
