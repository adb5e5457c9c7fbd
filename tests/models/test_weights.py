"""Protects weight files: strict keys, reported resizing, whole files only, and half-precision storage."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel

from ace_dist.config import ModelConfig, TextConfig, VideoConfig
from ace_dist.models.build import build_model
from ace_dist.models.text_clip import ClipTextTower
from ace_dist.models.timesformer import TimeSformer
from ace_dist.models.weights import load_text_weights, load_video_weights, save_safetensors
from ace_dist.utils.errors import ModelError


def video_model(**changes):
    config = {"width": 64, "depth": 2, "heads": 1, "patch": 8, "image_size": 32, "embed_dim": 16, "trained_blocks": 1}
    model = TimeSformer(VideoConfig(**{**config, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def text_tower(width=64):
    return ClipTextTower(TextConfig(width=width, depth=2, heads=1, embed_dim=width))


def test_video_round_trip_is_exact(tmp_path):
    model, other, path = video_model(), video_model(), tmp_path / "video.safetensors"
    save_safetensors(model.state_dict(), path, metadata={"made_by": "test"})
    report = load_video_weights(other, path)
    assert report.complete and report.loaded == len(model.state_dict()) and not report.resized
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_half_precision_storage_comes_back_as_float32(tmp_path):
    model, other, path = video_model(), video_model(), tmp_path / "half.safetensors"
    save_safetensors(model.state_dict(), path, torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    load_video_weights(other, path)
    for name, tensor in other.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, model.state_dict()[name].half().float())


def test_overflow_in_half_precision_is_refused(tmp_path):
    with pytest.raises(ModelError, match="scale overflows"):
        save_safetensors({"scale": torch.tensor([70000.0])}, tmp_path / "x.safetensors", torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_safetensors({"a": torch.ones(2)}, path)

    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="disk full"):
        save_safetensors({"a": torch.zeros(2)}, path)
    assert torch.equal(load_file(path)["a"], torch.ones(2)) and list(tmp_path.iterdir()) == [path]


def test_embeddings_are_resized_and_reported(tmp_path):
    """8 frames on a 4x4 grid into 15 frames on an 8x8 grid: nearest rows, written out by hand."""
    model, path = video_model(), tmp_path / "video.safetensors"
    other = video_model(frames=15, image_size=64)
    save_safetensors(model.state_dict(), path)
    report = load_video_weights(other, path)
    assert report.complete and [entry.split()[0] for entry in report.resized] == ["pos_embed", "time_embed"]
    assert "[1, 8, 64] to [1, 15, 64]" in str(report)
    rows = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    assert torch.equal(other.time_embed, model.time_embed[:, rows])
    grid, large = model.pos_embed[0, 1:].unflatten(0, (4, 4)), other.pos_embed[0, 1:].unflatten(0, (8, 8))
    assert torch.equal(large, grid.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_every_difference_is_an_error_that_names_the_setting(tmp_path):
    model, path = video_model(), tmp_path / "video.safetensors"
    state = dict(model.state_dict())
    state["order_tfm.pad"] = torch.zeros(1)
    del state["norm.weight"]
    state["head.weight"] = torch.zeros(400, 64)
    save_safetensors(state, path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"model\.video\.weights") as caught:
        load_video_weights(model, path)
    for part in ("1 missing (norm.weight)", "1 unexpected (order_tfm.pad)", "head.weight [400, 64] for [16, 64]"):
        assert part in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["pos_embed", "time_embed"])
def test_embeddings_of_another_width_are_not_resized(tmp_path, name):
    path = tmp_path / "video.safetensors"
    save_safetensors({**video_model().state_dict(), name: torch.zeros(1, 10, 32)}, path)
    with pytest.raises(ModelError, match=rf"{name} \[1, 10, 32\]"):
        load_video_weights(video_model(), path)


@pytest.mark.parametrize(
    ("load", "model", "setting"),
    [(load_video_weights, video_model, "model.video.weights"), (load_text_weights, text_tower, "model.text.weights")],
)
def test_missing_and_broken_files_name_the_setting(tmp_path, load, model, setting):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file")
    for path, told in ((tmp_path / "none.safetensors", "does not exist"), (broken, "readable"), (None, "not set")):
        with pytest.raises(ModelError, match=told) as caught:
            load(model(), path)
        assert setting in str(caught.value)


@pytest.mark.parametrize("tower", ["clip", "open_clip", "bert", "minilm"])
def test_of_text_towers_minilm_alone_needs_no_file(tower):
    """It loads its package's weights on construction; any other would stay random without a word."""
    size = {"width": 384, "depth": 6, "heads": 12} if tower == "minilm" else {"width": 32, "depth": 1, "heads": 2}
    video = VideoConfig(width=32, depth=1, heads=1, patch=8, image_size=16, embed_dim=32, trained_blocks=1)
    text = TextConfig(tower=tower, arch="ViT-B-16", embed_dim=32, **size)
    settings = ModelConfig(video=video, text=text, init="random_video")
    if tower == "minilm":
        build_model(settings, 0)
    else:
        with pytest.raises(ModelError, match=r"model\.text\.weights is not set"):
            build_model(settings, 0)


def test_text_of_a_whole_clip_loads_by_exact_key(tmp_path):
    """The square projection must arrive as stored, not transposed; the image side is told to be ignored."""
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    whole = CLIPModel(
        CLIPConfig(text_config=shape, vision_config={**shape, "image_size": 16, "patch_size": 8}, projection_dim=64)
    )
    path, tower = tmp_path / "clip.safetensors", text_tower()
    save_safetensors(whole.state_dict(), path)
    report = load_text_weights(tower, path)
    assert report.complete and "logit_scale" in report.ignored
    assert torch.equal(tower.text_projection.weight, whole.text_projection.weight)
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
