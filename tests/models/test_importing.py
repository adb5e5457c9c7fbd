"""Protects weight import: each kind against a forward of the library that owns it, strictness, and safe reading.

Synthetic files carry the exact names of the released ones at small widths. References: transformers' TimeSformer and
CLIP, open_clip's CLIP (OpenAI's names), timm's ViT; LaViLa's tower, which no library has, token by token.
"""

import argparse
import json

import pytest
import torch
from safetensors import safe_open
from small_weights import DEPTH, HEADS, PATCH, D, E, hf_timesformer, openai_clip, shaken
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from ace_dist.config import TextConfig, VideoConfig, assets_dir
from ace_dist.models.convert.importing import ImportConfig, import_weights, read_source, save_imported
from ace_dist.models.dual_encoder import build_video_tower
from ace_dist.models.text_clip import ClipTextTower
from ace_dist.models.tokenizer import EOS, bpe_ids
from ace_dist.models.weights import OWN_LICENCE, load_text_weights, load_video_weights, read_licence, save_safetensors
from ace_dist.utils.errors import ModelError

PHRASES = ["spin block", "lay down the side panel", "hammer pin"]


def official_names(state):
    """Hugging Face's names to those of the official code."""
    pairs = [
        ("timesformer.embeddings.position_embeddings", "pos_embed"),
        ("timesformer.embeddings.time_embeddings", "time_embed"),
        ("timesformer.embeddings.patch_embeddings.projection", "patch_embed.proj"), ("timesformer.embeddings.", ""),
        ("timesformer.encoder.layer.", "blocks."), ("timesformer.layernorm", "norm"), ("classifier", "head"),
        ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("temporal_layernorm", "temporal_norm1"),
        ("temporal_attention.attention.qkv", "temporal_attn.qkv"),
        ("temporal_attention.output.dense", "temporal_attn.proj"),
        ("attention.attention.qkv", "attn.qkv"), ("attention.output.dense", "attn.proj"),
        ("temporal_dense", "temporal_fc"),
        ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
    ]  # fmt: skip
    renamed = {}
    for key, tensor in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        renamed[key] = tensor
    return renamed


def imported(tmp_path, state, loads=torch.save, name="file.pth", **wanted):
    """Import a state, through a file, and load it into the tower that the report describes."""
    source, output = tmp_path / name, tmp_path / "imported.safetensors"
    loads(state, source)
    tensors, report = import_weights(ImportConfig(source=str(source), **wanted))
    assert report.complete, report.table()
    save_imported(tensors, report, output)
    settings = dict(report.settings)
    if report.tower == "text":
        tower = ClipTextTower(TextConfig(heads=HEADS, **settings))
        assert load_text_weights(tower, output).complete
    else:
        settings.setdefault("drop_path", 0)
        tower = build_video_tower(
            VideoConfig(tower=report.tower, heads=HEADS, attention="sdpa", trained_blocks=1, **settings)
        )
        assert load_video_weights(tower, output).complete
    return tower.eval(), report


def same(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def random_frames(clips=2, frames=4, size=16):
    return torch.randn(clips, frames, 3, size, size)


# ------------------------------------------------------------------------------------------------------- TimeSformer
@pytest.mark.parametrize(("frames", "size"), [(8, 16), (96, 16), (16, 32)], ids=["8 frames", "96 frames", "HR"])
@torch.no_grad()
def test_official_timesformer(tmp_path, frames, size):
    """`.pyth` of the official code: `model_state`, every key behind `model.`; 8 to 96 frames and high resolution."""
    theirs = hf_timesformer(frames, size)
    state = {f"model.{key}": tensor for key, tensor in official_names(theirs.state_dict()).items()}
    tower, report = imported(tmp_path, {"epoch": 3, "model_state": state, "cfg": "NUM_GPUS: 8"}, embed_dim=E)
    assert (report.kind, report.tower) == ("timesformer", "timesformer") and report.loaded == 9 + 20 * DEPTH
    video = random_frames(frames=frames, size=size)
    same(tower(video), theirs(video).logits)


@torch.no_grad()
def test_procedurevrl(tmp_path):
    """Stage 2: the order transformer and the text model are left out by name, the projecting head is kept."""
    theirs = hf_timesformer(head=512)
    state = {f"model.{key}": tensor for key, tensor in official_names(theirs.state_dict()).items()}
    extra = {
        "order_tfm.pad_embedding.weight": (1, 512), "order_tfm.type_embedding.weight": (2, 512),
        "order_tfm.temporalEmbedding.weight": (9, 512), "order_tfm.time_mlp.1.weight": (512, 128),
        "order_tfm.temporalModelling.resblocks.0.attn.in_proj_weight": (1536, 512),
        "text_model.token_embedding.weight": (64, 512), "text_model.text_projection": (512, 512),
    }  # fmt: skip
    state |= {f"model.{key}": torch.randn(shape) for key, shape in extra.items()}
    tower, report = imported(tmp_path, {"epoch": 25, "model_state": state}, name="checkpoint_epoch_00025.pyth")
    assert report.kind == "procedurevrl" and sorted(report.ignored) == sorted(extra)
    video = random_frames()
    same(tower(video), theirs(video).logits)


@torch.no_grad()
def test_hugging_face_folder(tmp_path):
    """`save_pretrained` of a TimesformerForVideoClassification, and time positions brought from 4 to 6 frames."""
    theirs, folder = hf_timesformer(), tmp_path / "hf"
    theirs.save_pretrained(folder)
    tower, report = imported(tmp_path, None, lambda *_: None, "hf", embed_dim=E)
    assert report.kind == "hf_timesformer"
    video = random_frames()
    same(tower(video), theirs(video).logits)
    longer, report = imported(tmp_path, None, lambda *_: None, "hf", embed_dim=E, frames=6)
    assert report.resized == [f"time_embed [1, 4, {D}] to [1, 6, {D}]"]
    assert torch.equal(longer.time_embed, tower.time_embed[:, [0, 0, 1, 2, 2, 3]])


def test_a_classifiers_head_is_not_taken_for_a_projection(tmp_path):
    """Kinetics' 400 rows: the import asks what they are; with `allow` a new one starts and is reported."""
    state = {f"model.{key}": tensor for key, tensor in official_names(hf_timesformer(head=400).state_dict()).items()}
    torch.save({"model_state": state}, tmp_path / "k400.pyth")
    with pytest.raises(ModelError, match="its head has 400 rows"):
        import_weights(ImportConfig(source=str(tmp_path / "k400.pyth")))
    _, report = import_weights(ImportConfig(source=str(tmp_path / "k400.pyth"), embed_dim=E))
    assert not report.complete and report.mismatched[0] == f"head.weight [400, {D}] for [{E}, {D}]"
    tower, report = imported(tmp_path, {"model_state": state}, embed_dim=E, allow=["head.*"])
    assert len(report.started) == 2 and tower.head.weight.abs().max() < 0.1


# -------------------------------------------------------------------------------------------------------------- CLIP
def text_embeddings(state_or_model, tower, encode):
    ids = bpe_ids(PHRASES)
    padded = functional.pad(ids, (0, 77 - ids.shape[1]))
    return tower(PHRASES), encode(torch.where(torch.arange(77) < (padded == EOS).int().argmax(1, True) + 1, padded, 0))


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("kind", ["openai_clip", "open_clip"])
@torch.no_grad()
def test_openai_and_open_clip(tmp_path, square, kind):
    """Both towers. A square text_projection fits either way round: only numbers tell that it is the right one."""
    theirs = openai_clip(square)
    state = dict(theirs.state_dict())
    if kind == "openai_clip":
        state |= {
            "input_resolution": torch.tensor(16),
            "context_length": torch.tensor(77),
            "vocab_size": torch.tensor(49408),
        }
    tower, report = imported(tmp_path, state)
    assert (report.kind, report.tower) == (kind, "text")
    ours, wanted = text_embeddings(theirs, tower, theirs.encode_text)
    same(ours, wanted)
    if square:
        tower.text_projection.weight.copy_(tower.text_projection.weight.T.clone())
        assert (tower(PHRASES) - wanted).abs().max() > 0.1 * wanted.abs().max()
    image, report = imported(tmp_path, state, tower="vit")
    assert report.settings["clip_style"] and list(report.derived) == ["head.bias"]
    video = random_frames(frames=3)
    same(image(video), torch.stack([theirs.encode_image(clip).mean(0) for clip in video]))


class OverFrames(torch.nn.Module):
    """What Text4Vis and BIKE learn over T frames, of torch's own parts under their names: 77 positions, blocks."""

    def __init__(self, width, layers, heads):
        super().__init__()

        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.attn = torch.nn.MultiheadAttention(width, heads)
                self.ln_1, self.ln_2 = (torch.nn.LayerNorm(width, eps=1e-12) for _ in range(2))
                self.mlp = torch.nn.Sequential()
                self.mlp.add_module("c_fc", torch.nn.Linear(width, 4 * width))
                self.mlp.add_module("c_proj", torch.nn.Linear(4 * width, width))

            def forward(self, x):
                normed = self.ln_1(x)
                x = x + self.attn(normed, normed, normed, need_weights=False)[0]
                hidden = self.mlp.c_fc(self.ln_2(x))
                return x + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))

        self.frame_position_embeddings = torch.nn.Embedding(77, width)
        self.transformer = torch.nn.Module()
        self.transformer.resblocks = torch.nn.Sequential(*(Block() for _ in range(layers)))

    def forward(self, frames_BTE):
        x = frames_BTE + self.frame_position_embeddings.weight[: frames_BTE.shape[1]]
        return frames_BTE + self.transformer.resblocks(x.transpose(0, 1)).transpose(0, 1)


def kinetics_checkpoint(method, clip, head):
    """A checkpoint of Text4Vis (image side and head in one dict) or BIKE (all of CLIP; the head in a dict beside)."""
    image = {key: tensor for key, tensor in clip.state_dict().items() if key.startswith("visual.")}
    rest = {"epoch": 29, "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 5e-5}]}}
    if method == "text4vis":
        over = {f"fusion_model.{key}": tensor for key, tensor in head.state_dict().items()}
        return {"model_state_dict": {**image, **over, "logit_scale": torch.tensor(4.6)}, **rest}
    prefixed = {f"module.{key}": tensor for key, tensor in clip.state_dict().items()}  # as a wrapped model saves them
    over = {f"module.{key}": tensor for key, tensor in head.state_dict().items()}
    return {"model_state_dict": prefixed, "fusion_model_state_dict": over, **rest}


@pytest.mark.parametrize("method", ["text4vis", "bike"])
@torch.no_grad()
def test_kinetics_weights_of_text4vis_and_bike(tmp_path, method):
    """Every frame through CLIP's image side, then their transformer over the frames, whose first T positions count."""
    clip = openai_clip(square=True)  # 64 wide: one head of 64 over the frames, as ours
    head = shaken(OverFrames(64, layers=3, heads=1))
    state = kinetics_checkpoint(method, clip, head)
    tower, report = imported(tmp_path, state, tower="vit", frames=5, name="k400.pt")
    assert (report.kind, report.settings["temporal_layers"], report.settings["frames"]) == ("text4vis", 3, 5)
    video = random_frames(frames=5)
    frames = torch.stack([clip.encode_image(one) for one in video])
    same(tower(video), head(frames).mean(1))
    if method == "bike":
        text, report = imported(tmp_path, state, tower="text", name="k400.pt")
        ours, wanted = text_embeddings(clip, text, clip.encode_text)
        same(ours, wanted)


def test_kinetics_weights_are_taken_strictly(tmp_path):
    """Without `frames` the import asks for it; a tensor that a block over the frames lacks is named."""
    state = kinetics_checkpoint("text4vis", openai_clip(square=True), OverFrames(64, 2, 1))
    torch.save(state, tmp_path / "k400.pt")
    for frames in (None, 78):
        with pytest.raises(ModelError, match=f"positions for 77 frames and frames={frames}"):
            import_weights(ImportConfig(source=str(tmp_path / "k400.pt"), tower="vit", frames=frames))
    with pytest.raises(ModelError, match="does not hold a text tower"):
        import_weights(ImportConfig(source=str(tmp_path / "k400.pt"), tower="text"))
    del state["model_state_dict"]["fusion_model.transformer.resblocks.1.mlp.c_fc.bias"]
    state["model_state_dict"]["fusion_model.surprise"] = torch.zeros(1)
    torch.save(state, tmp_path / "k400.pt")
    _, report = import_weights(ImportConfig(source=str(tmp_path / "k400.pt"), tower="vit", frames=4))
    assert not report.complete
    assert (report.missing, report.unexpected) == (["temporal.layers.1.mlp.fc1.bias"], ["fusion_model.surprise"])


def test_an_activation_that_no_tensor_tells_is_asked_for_or_said(tmp_path):
    """Weights of a CLIP with GELU fit key by key and give other features: refused when a file says so, else said."""
    state = openai_clip(square=True).state_dict()
    for tower in ("text", "vit"):
        _, report = imported(tmp_path, state, tower=tower)
        assert "assumed      QuickGELU" in report.table() and "have GELU: do not use" in report.table()
    quick, plain = ({"model_cfg": {"embed_dim": 64, **given}} for given in ({"quick_gelu": True}, {}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(quick))
    assert "assumed" not in imported(tmp_path, state)[1].table()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(plain))
    with pytest.raises(ModelError, match=r"trained with GELU \(open_clip_config\.json\)"):
        imported(tmp_path, state)
    (tmp_path / "open_clip_config.json").unlink()
    about = {"model_type": "clip", "text_config": {"hidden_act": "gelu"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=r"trained with GELU \(config\.json\)"):
        imported(tmp_path, state, tower="vit")


@torch.no_grad()
def test_hugging_face_clip(tmp_path):
    """A whole CLIPModel: its text side, and its image side with q, k and v joined."""
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    config = CLIPConfig(
        text_config={**shape, "eos_token_id": EOS}, vision_config={**shape, "image_size": 16, "patch_size": PATCH},
        projection_dim=64,
    )  # fmt: skip
    theirs, folder = shaken(CLIPModel(config)), tmp_path / "clip"
    theirs.save_pretrained(folder)
    tower, report = imported(tmp_path, None, lambda *_: None, "clip")
    assert (report.kind, report.tower, report.assumed) == ("hf_clip", "text", "")  # its config.json says it

    def encode(ids):
        return theirs.text_projection(theirs.text_model(input_ids=ids).pooler_output)

    same(*text_embeddings(theirs, tower, encode))
    image, _ = imported(tmp_path, None, lambda *_: None, "clip", tower="vit")
    video = random_frames(frames=3)
    projected = [theirs.visual_projection(theirs.vision_model(pixel_values=clip).pooler_output) for clip in video]
    same(image(video), torch.stack([clip.mean(0) for clip in projected]))


# ------------------------------------------------------------------------------------------------------------ LaViLa
def lavila_state(frames=4, patches=4):
    """A dual encoder's dict: `module.` before every key, CLIP's text, both projections multiplied from the right."""
    clip = openai_clip(square=False).state_dict()
    shapes = {
        "cls_token": (1, 1, D), "pos_embed": (1, 1 + patches, D), "temporal_embed": (1, frames, D),
        "patch_embed.proj.weight": (D, 3, PATCH, PATCH), "ln_pre.weight": (D,), "ln_pre.bias": (D,),
        "norm.weight": (D,), "norm.bias": (D,),
    }  # fmt: skip
    for i in range(DEPTH):
        for name in ("attn", "timeattn"):
            shapes |= {f"blocks.{i}.{name}.qkv.weight": (3 * D, D), f"blocks.{i}.{name}.qkv.bias": (3 * D,)}
            shapes |= {f"blocks.{i}.{name}.proj.weight": (D, D), f"blocks.{i}.{name}.proj.bias": (D,)}
        shapes |= {f"blocks.{i}.norm{n}.{part}": (D,) for n in (1, 2, 3) for part in ("weight", "bias")}
        shapes |= {f"blocks.{i}.mlp.fc1.weight": (4 * D, D), f"blocks.{i}.mlp.fc1.bias": (4 * D,)}
        shapes |= {f"blocks.{i}.mlp.fc2.weight": (D, 4 * D), f"blocks.{i}.mlp.fc2.bias": (D,)}
    state = {f"visual.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    state |= {key: tensor for key, tensor in clip.items() if not key.startswith("visual.")}
    state["image_projection"] = torch.randn(D, E)
    return {f"module.{key}": tensor for key, tensor in state.items()}


def lavila_forward(state, video):
    """One clip [T,3,H,W], every token's attention as a loop over the tokens that it may see."""
    s = {key.removeprefix("module.").removeprefix("visual."): tensor for key, tensor in state.items()}
    frames = len(video)
    patches = functional.conv2d(video, s["patch_embed.proj.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    count = patches.shape[1]
    rows = [s["cls_token"][0, 0] + s["pos_embed"][0, 0]]
    where = [None]
    for t in range(frames):
        for p in range(count):
            rows.append(patches[t, p] + s["pos_embed"][0, 1 + p] + s["temporal_embed"][0, t])
            where.append((t, p))

    def norm(x, name, eps):
        return functional.layer_norm(x, (D,), s[f"{name}.weight"], s[f"{name}.bias"], eps)

    def attention(x, name, axis):
        q, k, v = (
            functional.linear(x, s[f"{name}.qkv.weight"], s[f"{name}.qkv.bias"])
            .view(-1, 3, HEADS, D // HEADS)
            .unbind(1)
        )
        out = []
        for i, place in enumerate(where):
            seen = [j for j, other in enumerate(where) if place is None or other is None or other[axis] == place[axis]]
            weights = torch.einsum("hd,jhd->hj", q[i], k[seen]) * (D // HEADS) ** -0.5
            out.append(torch.einsum("hj,jhd->hd", weights.softmax(1), v[seen]).flatten())
        return functional.linear(torch.stack(out), s[f"{name}.proj.weight"], s[f"{name}.proj.bias"])

    x = norm(torch.stack(rows), "ln_pre", 1e-5)
    for i in range(DEPTH):
        timed = x + attention(norm(x, f"blocks.{i}.norm3", 1e-6), f"blocks.{i}.timeattn", 1)
        x = x + attention(norm(timed, f"blocks.{i}.norm1", 1e-6), f"blocks.{i}.attn", 0)
        hidden = functional.linear(
            norm(x, f"blocks.{i}.norm2", 1e-6), s[f"blocks.{i}.mlp.fc1.weight"], s[f"blocks.{i}.mlp.fc1.bias"]
        )
        x = x + functional.linear(
            hidden * torch.sigmoid(1.702 * hidden), s[f"blocks.{i}.mlp.fc2.weight"], s[f"blocks.{i}.mlp.fc2.bias"]
        )
    return norm(x, "norm", 1e-6)[0] @ s["image_projection"]


@torch.no_grad()
def test_lavila(tmp_path):
    """Checkpoints carry their argparse settings, which safe loading refuses; both towers arrive."""
    state = lavila_state()
    saved = {"epoch": 5, "state_dict": state, "args": argparse.Namespace(model="CLIP_OPENAI_TIMESFORMER_BASE")}
    torch.save(saved, tmp_path / "lavila.pth")
    with pytest.raises(ModelError, match=r"argparse\.Namespace.*allow_pickle=true"):
        import_weights(ImportConfig(source=str(tmp_path / "lavila.pth")))
    tower, report = imported(tmp_path, saved, allow_pickle=True)
    assert (report.kind, report.tower) == ("lavila", "spacetime")
    video = random_frames(frames=4)
    same(tower(video), torch.stack([lavila_forward(state, clip) for clip in video]))
    text, report = imported(tmp_path, {"state_dict": state}, tower="text")
    assert report.tower == "text" and text(PHRASES).shape == (3, E)


# -------------------------------------------------------------------------------------------------------------- timm
@torch.no_grad()
def test_timm_vit(tmp_path):
    """As an image tower the same function; as a TimeSformer, on a still video, too (no temporal branch yet)."""
    vit = shaken(
        VisionTransformer(img_size=16, patch_size=PATCH, embed_dim=D, depth=DEPTH, num_heads=HEADS, num_classes=E)
    )
    still = random_frames(frames=1).expand(-1, 5, -1, -1, -1)
    image, report = imported(tmp_path, vit.state_dict(), embed_dim=E, tower="vit")
    assert report.kind == "timm_vit" and not report.derived
    same(image(still), vit(still[:, 0]))
    video, report = imported(tmp_path, vit.state_dict(), embed_dim=E)
    assert report.tower == "timesformer" and "zeros, 8 frames" in report.table()
    same(video(still), vit(still[:, 0]))


# -------------------------------------------------------------------------------------------- strictness and messages
def test_every_difference_fails_by_name_and_can_be_allowed(tmp_path):
    state = official_names(hf_timesformer().state_dict())
    del state["blocks.1.norm2.bias"]
    state["blocks.0.mlp.fc1.bias"] = torch.zeros(3)
    state["surprise.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    _, report = import_weights(ImportConfig(source=str(tmp_path / "odd.pth"), embed_dim=E))
    assert not report.complete
    assert (report.missing, report.unexpected) == (["blocks.1.norm2.bias"], ["surprise.weight"])
    assert report.mismatched == [f"blocks.0.mlp.fc1.bias [3] for [{4 * D}]"]
    allow = ["surprise.*", "blocks.1.norm2.bias", "blocks.0.mlp.fc1.bias"]
    tensors, report = import_weights(ImportConfig(source=str(tmp_path / "odd.pth"), embed_dim=E, allow=allow))
    assert report.complete and report.skipped == ["surprise.weight"] and len(report.started) == 2
    assert not tensors["blocks.1.norm2.bias"].any()


def test_prefixes_are_stripped_only_whole(tmp_path):
    """`model` without its dot, or on some keys only, is no prefix."""
    torch.save({"model_a.x": torch.ones(1), "model.b": torch.ones(1)}, tmp_path / "a.pth")
    assert set(read_source(tmp_path / "a.pth")) == {"model_a.x", "model.b"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not a PyTorch checkpoint"), (b"<html>not found</html>", "is a web page.*download the weight file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"import os\n", "is text.*'import os'"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a PyTorch checkpoint or is cut short .10 bytes"),
        ({"weights": [1, 2]}, "holds no tensors by name"), ({"a.weight": torch.ones(2)}, "is none of procedurevrl"),
        ({"blocks.0.attn.qkv.weight": torch.ones(6, 2)}, "no tensor for pos_embed"), (None, "does not exist"),
    ],
)  # fmt: skip
def test_files_that_are_something_else(tmp_path, content, told):
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=told) as caught:
        import_weights(ImportConfig(source=str(path)))
    assert str(path) in str(caught.value)


def test_a_truncated_checkpoint_is_named(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"cut\.pth is not a PyTorch checkpoint or is cut short"):
        read_source(tmp_path / "cut.pth")


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(4.0))

    def forward(self, x):
        return x * self.weight


def test_torchscript_archives_are_programs(tmp_path, capsys):
    """OpenAI ships CLIP so. Refused until `allow_pickle`, then read with a warning."""
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.trace(Scaled(), torch.ones(4)).save(str(path))
    with pytest.raises(ModelError, match=r"TorchScript archive.*allow_pickle=true"):
        read_source(path)
    assert torch.equal(read_source(path, allow_pickle=True)["weight"], torch.arange(4.0))
    assert "warning" in capsys.readouterr().out


def test_the_output_says_where_it_comes_from(tmp_path):
    imported(tmp_path, official_names(hf_timesformer().state_dict()), embed_dim=E)
    with safe_open(tmp_path / "imported.safetensors", "pt") as file:
        facts = file.metadata()
    assert (
        facts["kind"] == "timesformer"
        and "non-commercial" in facts["licence_of_released_files"]
        and len(facts["source_sha256"]) == 64
    )


def test_the_licence_is_that_of_the_file_and_not_of_its_layout(tmp_path):
    """Our own weights in a TimeSformer's layout are ours in each tower; a licence that a file records goes along."""
    folder = assets_dir() / "weights" / "tabletop"
    assert {read_licence(path) for path in folder.glob("*.safetensors")} == {OWN_LICENCE}
    tensors, report = import_weights(ImportConfig(source=str(folder / "video.safetensors"), tower="vit", embed_dim=64))
    save_imported(tensors, report, tmp_path / "vit.safetensors")
    assert read_licence(tmp_path / "vit.safetensors") == OWN_LICENCE

    def save(state, path):
        save_safetensors(state, path, metadata={"licence_of_released_files": "CC0"})

    imported(tmp_path, official_names(hf_timesformer().state_dict()), loads=save, name="a.safetensors", embed_dim=E)
    assert read_licence(tmp_path / "imported.safetensors") == "CC0"
