"""Image towers and text towers of open_clip against the library's own forward pass, and what trains of them."""

import copy
from dataclasses import replace

import open_clip
import pytest
import torch
from image_text_models import (
    FAMILIES,
    SMALL,
    close,
    library_model,
    shaken,
    small_model,
    small_tokenizer,
)
from open_clip.tokenizer import HFTokenizer

from ace_dist.config import choices, load_config
from ace_dist.models.convert.open_clip import join_state, split_state
from ace_dist.models.dual_encoder import DualEncoder, build_text_tower, build_video_tower
from ace_dist.utils.errors import ConfigError, ModelError

PHRASES = ["spin block", "hammer the pin", "Lift a side panel!", "turn"]


@pytest.fixture(params=FAMILIES, scope="module")
def pair(request, tmp_path_factory):
    """The library's model and ours with the same random weights, and the folder of a tokenizer where it has its own."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    folder, file = small_tokenizer(tmp_path)
    own_tokens = request.param.startswith("siglip")
    theirs = library_model(request.param, tmp_path, vocabulary=40 if own_tokens else None)
    embed = {"embed_dim": SMALL["width"]} if own_tokens else {}
    config = small_model(request.param, file if own_tokens else None, **embed)
    ours = DualEncoder(config.video, config.text).eval()
    video, text, scale = split_state(theirs.state_dict())
    ours.video.load_state_dict(video)
    ours.text.load_state_dict(text)
    assert set(scale) == {"similarity.logit_scale", *(["similarity.logit_bias"] if own_tokens else [])}
    return theirs, ours, folder if own_tokens else None


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
def test_clips_are_the_mean_of_the_librarys_frames(pair, frames):
    theirs, ours, _ = pair
    video = torch.randn(2, frames, 3, 48, 48)
    close(ours.encode_video(video), theirs.encode_image(video.flatten(0, 1)).unflatten(0, (2, frames)).mean(1))


@torch.no_grad()
def test_phrases_are_the_librarys_texts(pair):
    theirs, ours, folder = pair
    context = ours.text.config.context
    if folder:
        ids = HFTokenizer(str(folder), context, clean="canonicalize")(PHRASES)
    else:
        ids = open_clip.SimpleTokenizer(context_length=context)(PHRASES)
    close(ours.text(PHRASES), theirs.encode_text(ids))


@torch.no_grad()
def test_another_image_size_is_interpolated_as_the_library_does(pair, tmp_path):
    theirs, ours, _ = pair
    larger = build_video_tower(replace(ours.video.config, image_size=72)).eval()
    state = dict(ours.video.state_dict())
    assert larger.fit_positions(state)
    larger.load_state_dict(state)
    if hasattr(theirs.visual, "set_input_size"):
        theirs = copy.deepcopy(theirs)
        theirs.visual.set_input_size(72)
    else:
        stored = theirs.state_dict()
        model = "clip_b16" if ours.video.config.arch.endswith("quickgelu") else "laion_b16"
        theirs = library_model(model, tmp_path, force_image_size=72)
        open_clip.model.resize_pos_embed(stored, theirs)
        theirs.load_state_dict(stored)
    video = torch.randn(2, 2, 3, 72, 72)
    close(larger(video), theirs.encode_image(video.flatten(0, 1)).unflatten(0, (2, 2)).mean(1))


@pytest.mark.parametrize("model", [name for name in choices("model") if name.endswith(("_b16", "_l14"))])
def test_files_of_models_have_the_librarys_tensors(model):
    """Names and shapes of every tensor, at the real size, without memory for any."""
    config = load_config(["experiment=demo", f"model={model}"]).model
    if config.video.tower != "open_clip" or config.video.temporal == "joint":  # not in the library's sizes
        return
    about = dict(open_clip.get_model_config(config.video.arch))
    kind = open_clip.CustomTextCLIP if about.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        theirs, ours = kind(**about), DualEncoder(config.video, replace(config.text, tokenizer="later"))
    video, text, _ = split_state(theirs.state_dict())
    for state, tower in ((video, ours.video), (text, ours.text)):
        assert {name: each.shape for name, each in tower.state_dict().items()} == {n: t.shape for n, t in state.items()}
    merged = join_state(ours.video.state_dict(), ours.text.state_dict(), kind is open_clip.CustomTextCLIP)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items() if not name.startswith("logit_")}
    assert {name: tensor.shape for name, tensor in merged.items()} == shapes
    mean, std = open_clip_normalisation(config.video.arch)
    assert (config.video.mean, config.video.std) == (mean, std)
    assert config.video.image_size == open_clip.get_model_config(config.video.arch)["vision_cfg"]["image_size"]


def open_clip_normalisation(arch):
    """Mean and deviation that the library's table of released weights has for an architecture."""
    facts = open_clip.pretrained._PRETRAINED[arch]
    return next((list(each["mean"]), list(each["std"])) for each in facts.values())


@pytest.mark.parametrize("temporal", ["transformer", "adapter"])
@pytest.mark.parametrize("model", ["clip_b16", "siglip_b16", "pe_core_b16"])
def test_what_looks_at_several_frames(model, temporal, tmp_path):
    """An adapter starts as the identity; both see the order of frames once trained, and take any number of them."""
    _, file = small_tokenizer(tmp_path)
    tokens = file if model.startswith("siglip") else None
    embed = {"embed_dim": SMALL["width"]} if tokens else {}
    config = small_model(model, tokens, frames=4, temporal=temporal, temporal_layers=2, trained_blocks=2, **embed).video
    plain, tower = (build_video_tower(each).eval() for each in (replace(config, temporal="mean"), config))
    missing = tower.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    new = {"transformer": "temporal", "adapter": "adapters"}[temporal]
    assert {name.split(".")[0] for name in missing.missing_keys} == {new}
    video = torch.randn(2, 4, 3, 48, 48)
    if temporal == "adapter":
        close(tower(video).detach(), plain(video).detach())
    shaken(tower.double())
    backwards = (tower(video.double()) - tower(video.flip(1).double())).abs().max()
    assert backwards > 1e-9  # float64 adds the same frames in another order to 1e-15
    assert tower.float()(torch.randn(1, 7, 3, 48, 48)).shape == (1, tower.config.embed_dim)


@pytest.mark.parametrize("model", ["clip_b16", "pe_core_b16"])
@pytest.mark.parametrize(("trained", "norm", "head"), [(0, False, False), (2, False, True), (3, True, True)])
def test_what_trains_is_counted_from_the_last_block(model, trained, norm, head):
    config = small_model(model, trained_blocks=trained, train_norm=norm, train_head=head).video
    tower = build_video_tower(config).train()
    with_gradient = set()
    tower(torch.randn(2, 2, 3, 48, 48)).sum().backward() if trained or head else None
    for name, parameter in tower.named_parameters():
        if parameter.grad is not None:
            with_gradient.add(name)
    assert with_gradient == {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    blocks = [sum(p.requires_grad for p in block.parameters()) > 0 for block in tower.blocks]
    assert blocks == [index >= 3 - trained for index in range(3)]
    ends = ("visual.proj", "visual.trunk.attn_pool.latent", "visual.ln_post.weight", "visual.trunk.norm.weight")
    trains = {name: parameter.requires_grad for name, parameter in tower.named_parameters() if name in ends}
    assert trains == {name: (head if "proj" in name or "pool" in name else norm) for name in trains}
    assert tower.pos_embed.requires_grad == (trained == 3)


def test_nothing_is_stored_of_frozen_blocks():
    """The output of the frozen blocks has no history, so they keep no activations."""
    tower = build_video_tower(small_model("pe_core_b16", trained_blocks=1).video).train()
    assert not tower.frozen_tokens(torch.randn(2, 3, 48, 48)).requires_grad
    assert tower(torch.randn(1, 2, 3, 48, 48)).requires_grad


@pytest.mark.parametrize("model", ["laion_b16", "pe_core_b16"])
def test_cached_features_continue_to_the_same_embedding(model):
    tower = build_video_tower(small_model(model, trained_blocks=1, temporal="adapter").video).eval()
    video = torch.randn(2, 3, 3, 48, 48)
    features = tower.frozen_features(video)
    assert features.shape == (2, 3 * 17, SMALL["width"])
    close(tower(features).detach(), tower(video).detach())
    before = tower.frozen_features_state()
    assert "visual.trunk.blocks.2.norm1.weight" not in before and not any("adapters" in name for name in before)
    assert any(".1." in name for name in before)


def test_rotary_angles_keep_their_digits_in_bf16():
    """The angles of a tower in bf16 are those of fp32, as under the library's autocast."""
    tower = build_video_tower(small_model("pe_core_b16").video)
    angles = tower.trunk.rope.get_embed().clone()
    assert torch.equal(tower.bfloat16().angles, angles)
    assert tower(torch.randn(1, 2, 3, 48, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        ("pe_core_b16", ["loader.mean=[0.45,0.45,0.45]"], "loader.mean=.*model.video.mean"),
        ("pe_core_b16", ["loader.std=[0.2,0.2,0.2]"], "loader.std=.*model.video.std"),
        ("pe_core_b16", ["loader.crop=64", "loader.short_side_min=64"], "loader.crop=64"),
        ("pe_core_b16", ["model.text.arch=ViT-B-16"], "model.text.arch=ViT-B-16"),
        ("pe_core_b16", ["model.video.temporal=transformer", "model.video.temporal_layers=0"], "temporal_layers"),
        ("timesformer_b16", ["model.video.temporal=adapter"], "model.video.temporal=adapter"),
        ("pe_core_b16", ["loader.dtype=uint8"], "loader.dtype=uint8"),
    ],
)
def test_contradictions_are_refused_by_name(model, changes, named):
    with pytest.raises(ConfigError, match=named):
        load_config(["experiment=demo", f"model={model}", *changes])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arch": "RN50"}, "ResNet"),
        ({"arch": "PE-Core-B-61"}, "PE-Core-B-61 is no model of open_clip"),
        ({"arch": None}, "model.video.arch=None"),
        ({"arch": "hf-hub:timm/PE-Core-B-16"}, "hf-hub:timm/PE-Core-B-16 is no model of open_clip"),
        ({"arch": "convnext_base"}, "model.video.arch=convnext_base"),
        ({"temporal": "adapter", "trained_blocks": 0}, "model.video.trained_blocks"),
        ({"drop_path": 0.1}, "model.video.drop_path"),
    ],
)
def test_image_towers_that_cannot_be(changes, named):
    config = small_model("pe_core_b16").video
    with pytest.raises(ModelError, match=named):
        build_video_tower(replace(config, **changes))


def test_tokenizers_that_cannot_be(tmp_path):
    """A text is never cut, and no other model's tokens are read into a text tower."""
    folder, file = small_tokenizer(tmp_path)
    config = small_model("siglip_b16", file).text
    with pytest.raises(ModelError, match="has 65 tokens, more than 64; shorten"):
        build_text_tower(config).tokenize(["spin " * 64])
    with pytest.raises(ModelError, match="another model's tokenizer"):
        build_text_tower(replace(config, vocabulary=12)).tokenize(["spin"])
    with pytest.raises(ModelError, match=r"model.text.tokenizer \(`ace weights get`"):
        build_text_tower(replace(config, tokenizer=None))
    with pytest.raises(ModelError, match="does not say how texts are padded"):
        build_text_tower(replace(config, tokenizer=str(folder / "tokenizer.json"))).tokenize(["spin"])
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ModelError, match="broken.json .* is not a tokenizer.json"):
        build_text_tower(replace(config, tokenizer=str(tmp_path / "broken.json"))).tokenize(["spin"])
    with pytest.raises(ModelError, match="32 in all|more than 32"):
        build_text_tower(small_model("pe_core_b16").text).tokenize(["spin " * 31])
