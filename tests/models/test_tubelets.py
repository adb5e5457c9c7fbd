"""Video models of transformers against the library's own forward pass, what trains of them, and their files."""

import json
from dataclasses import replace

import pytest
import torch
from hub_server import ask_here, hub_server
from image_text_models import SMALL, close, shaken
from safetensors.torch import load_file, save_file
from small_video_models import (
    FRAMES,
    classifier,
    pretraining,
    released_folder,
    video_base,
    video_model_settings,
)
from small_weights import hf_clip_state, saved
from transformers import (
    AutoModelForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)

from ace_dist import cli
from ace_dist.config import load_config
from ace_dist.evaluate.licences import is_non_commercial
from ace_dist.models.convert import known as known_weights
from ace_dist.models.convert import open_clip as pairs
from ace_dist.models.convert.exporting import load_encoders, save_encoders
from ace_dist.models.convert.known import KNOWN
from ace_dist.models.dual_encoder import DualEncoder, build_video_tower
from ace_dist.models.weights import load_video_weights, read_licence
from ace_dist.utils.errors import ConfigError, ModelError, UserError


@pytest.fixture(params=["videomae_b16", "vjepa2_l16"])
def model(request):
    return request.param


@torch.no_grad()
@pytest.mark.parametrize(("frames", "size"), [(FRAMES, 48), (10, 48), (FRAMES, 72)])
def test_clips_are_embedded_as_the_library_does(model, frames, size):
    """Its classes are our dimensions; other numbers of frames and other image sizes too."""
    theirs = classifier(model, frames=frames, size=size)
    ours = build_video_tower(video_model_settings(model, image_size=size).video).eval()
    ours.load_state_dict(without_predictor(theirs))
    video = torch.randn(2, frames, 3, size, size)
    close(ours(video), theirs(video).logits)


def without_predictor(network):
    return {name: tensor for name, tensor in network.state_dict().items() if "predictor." not in name}


def test_the_real_size_has_the_librarys_tensors(model):
    config = load_config(["experiment=demo", f"model={model}", "dataset.clip.frames=16"]).model.video
    if model.startswith("vjepa2"):
        shape = VJEPA2Config(num_labels=512, num_pooler_layers=0)
        kind = VJEPA2ForVideoClassification
    else:  # a table of one position: the real one takes seconds
        shape, kind = VideoMAEConfig(num_labels=512, image_size=16, num_frames=2), VideoMAEForVideoClassification
    with torch.device("meta"):
        theirs, ours = without_predictor(kind(shape)), build_video_tower(config).state_dict()
    assert {name: each.shape for name, each in ours.items()} == {name: each.shape for name, each in theirs.items()}


@pytest.mark.parametrize(("trained", "norm", "head"), [(0, False, True), (2, False, True), (3, True, False)])
def test_what_trains_is_counted_from_the_last_block(model, trained, norm, head):
    config = video_model_settings(model, trained_blocks=trained, train_norm=norm, train_head=head).video
    tower = build_video_tower(config).train()
    tower(torch.randn(2, FRAMES, 3, 48, 48)).sum().backward()
    with_gradient = {name for name, parameter in tower.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    blocks = [sum(p.requires_grad for p in block.parameters()) > 0 for block in tower.blocks]
    assert blocks == [index >= 3 - trained for index in range(3)]
    assert tower.pos_embed.requires_grad == (trained == 3)
    norms = [p.requires_grad for name, p in tower.named_parameters() if tower.norm_names.match(name)]
    assert norms == [norm, norm] and tower.classifier.weight.requires_grad == head


@pytest.mark.parametrize("recompute", ["norms", "blocks"])
def test_cached_features_continue_to_the_same_embedding(model, recompute):
    """And the gradient of what trains is the same, whatever is computed again."""
    config = video_model_settings(model, trained_blocks=1, recompute=recompute).video
    tower = shaken(build_video_tower(config)).train()
    video = torch.randn(2, FRAMES, 3, 48, 48)
    features = tower.frozen_features(video)
    assert features.shape == (2, 2 * 16, SMALL["width"])
    tower(video).square().sum().backward()
    whole = {name: p.grad.clone() for name, p in tower.named_parameters() if p.requires_grad}
    tower.zero_grad()
    close(tower(features).detach(), tower(video).detach())
    tower(features).square().sum().backward()
    for name, gradient in whole.items():
        torch.testing.assert_close(tower.get_parameter(name).grad, gradient)
    state = tower.frozen_features_state()
    assert any(".layer.1." in name for name in state) and not any(".layer.2." in name for name in state)
    assert not any(tower.norm_names.match(name) or tower.head_names.match(name) for name in state)


def test_odd_numbers_of_frames_are_refused(model):
    with pytest.raises(ConfigError, match="dataset.clip.frames=15 is odd.*dataset.clip.frames=16"):
        load_config(["experiment=demo", f"model={model}", "dataset.clip.frames=15"])
    tower = build_video_tower(video_base(model).video)
    with pytest.raises(ModelError, match="3 frames.*dataset.clip.frames"):
        tower(torch.randn(1, 3, 3, 48, 48))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["loader.mean=[0.45,0.45,0.45]"], "loader.mean=.*model.video.mean"),
        (["loader.dtype=uint8"], "loader.dtype=uint8"),
        (["model.video.temporal=adapter"], "model.video.temporal=adapter"),
        (["model.video.pooling=frames", "model.similarity.spotting=true"], "model.video.pooling=frames is for"),
    ],
)
def test_contradictions_are_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        load_config(["experiment=demo", "model=videomae_b16", "dataset.clip.frames=16", *changes])


def test_an_unknown_network_is_refused():
    with pytest.raises(ModelError, match="model.video.arch=videomaf is not one of videomae, vjepa2"):
        build_video_tower(video_model_settings("videomae_b16", arch="videomaf").video)


@pytest.fixture
def small(monkeypatch):
    """The small size stands for the real one in `configs/model`."""

    def stand_for(model):
        config = video_model_settings(model, image_size=48)
        monkeypatch.setattr(pairs, "pair_config", lambda name: config)
        monkeypatch.setattr(known_weights, "pair_config", lambda name: config)
        return config

    return stand_for


def bring(model, source, output):
    return cli.execute(["weights", "import", f"model={model}", f"source={source}", f"output={output}"])


@torch.no_grad()
@pytest.mark.parametrize("release", [classifier, pretraining], ids=["fine-tuned", "pretraining"])
def test_a_released_folder_is_imported_whole(release, model, small, tmp_path, capsys):
    """The library's tokens, and the norm of a fine-tuned model; the head starts anew and its classes are left out."""
    config, theirs = small(model), release(model)
    bring(model, released_folder(theirs, tmp_path / "released"), tmp_path / "weights")
    printed = capsys.readouterr().out
    assert "left out, of its pretraining" in printed and "ace weights get clip_b16" in printed
    tower, path = build_video_tower(config.video).eval(), tmp_path / f"weights/{model}_video.safetensors"
    report = load_video_weights(tower, path)
    assert "classifier.weight" in report.started
    assert is_non_commercial(read_licence(path)) == model.startswith("videomae")
    video = torch.randn(1, FRAMES, 3, 48, 48)
    tokens = tower.frozen_tokens(video)
    for block in tower.blocks[tower.first_trained :]:
        tokens = tower.run_one(block, tokens)
    base = getattr(theirs, tower.config.arch, theirs)
    hidden = base(video).last_hidden_state
    if model.startswith("vjepa2"):
        close(tower.vjepa2.encoder.layernorm(tokens), hidden)
    elif release is classifier:
        close(tower.fc_norm(tokens.mean(1)), theirs.fc_norm(hidden.mean(1)))
    else:
        close(base.layernorm(tokens), hidden)


def test_weights_of_another_image_size_are_refused(small, tmp_path):
    config = small("videomae_b16")
    bring("videomae_b16", released_folder(classifier("videomae_b16"), tmp_path / "released"), tmp_path / "weights")
    path = tmp_path / "weights/videomae_b16_video.safetensors"
    with pytest.raises(
        ModelError, match=r"image_size=72 and weights trained on 48 pixels.*set model.video.image_size=48"
    ):
        load_video_weights(build_video_tower(replace(config.video, image_size=72)), path)
    with pytest.raises(ModelError, match=r"train_head=false keeps the random head.*train_head=true"):
        load_video_weights(build_video_tower(replace(config.video, train_head=False)), path)


@torch.no_grad()
def test_transformers_reads_an_export(model, tmp_path):
    """The library builds and fills its own model from the folder; we read it back, to the last bit."""
    config = video_base(model)
    ours = shaken(DualEncoder(config.video, config.text)).eval()
    loads = save_encoders(ours, tmp_path, FRAMES)
    assert "ForVideoClassification.from_pretrained" in loads["video"]
    theirs, report = AutoModelForVideoClassification.from_pretrained(tmp_path / "video", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    video = torch.randn(2, FRAMES, 3, 48, 48)
    close(ours.encode_video(video), theirs.eval()(video).logits)
    biases = {name.rpartition(".")[2] for name in load_file(tmp_path / "video/model.safetensors") if "bias" in name}
    assert biases == ({"bias"} if model.startswith("vjepa2") else {"bias", "q_bias", "v_bias"})
    again = DualEncoder(config.video, config.text).eval()
    load_encoders(again, tmp_path)
    assert torch.equal(again.encode_video(video), ours.encode_video(video))


def test_bf16_runs(model):
    tower = build_video_tower(video_base(model).video).bfloat16()
    assert tower(torch.randn(1, FRAMES, 3, 48, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16


def other_json(name, **changes):
    def change(folder):
        about = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(about | changes))

    return change


def other_tensors(change):
    def spoil(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return spoil


PATCH = "videomae.embeddings.patch_embeddings.projection.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_json("config.json", image_size=96), "image_size=96"),
        (other_json("config.json", num_attention_heads=4), "num_attention_heads=4"),
        (other_json("config.json", model_type="vivit"), "model_type=vivit"),
        (other_json("preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]), r"mean \[0.5.*model.video.mean"),
        (other_tensors(lambda state: state.update(extra=torch.zeros(2))), r"unexpected +1 +extra"),
        (other_tensors(lambda state: state.pop(PATCH)), rf"missing +1 +{PATCH}"),
        (other_tensors(lambda state: state.update({PATCH: torch.zeros(48, 3, 4, 12, 12)})),
         r"mismatched +1 .*\[48, 3, 4, 12, 12\] for \[48, 3, 2, 12, 12\]"),
        (other_tensors(lambda state: state.update({PATCH: state[PATCH].to(torch.int8)})), "is quantised"),
    ],
)  # fmt: skip
def test_another_models_files_are_refused(small, tmp_path, change, named):
    small("videomae_b16")
    folder = released_folder(classifier("videomae_b16"), tmp_path / "released")
    change(folder)
    with pytest.raises(UserError, match=named):
        bring("videomae_b16", folder, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


@torch.no_grad()
def test_one_command_from_the_hub(small, tmp_path, monkeypatch, capsys):
    """`ace weights get NAME` brings the video model and CLIP's text tower; a licence that restricts is in the file."""

    config, known = small("videomae_b16"), KNOWN["videomae_b16"]
    folder = released_folder(pretraining("videomae_b16"), tmp_path / "released")
    get = ["weights", "get", "videomae_b16", f"output={tmp_path / 'weights'}"]
    with hub_server() as (hub, address):
        ask_here(monkeypatch, address, tmp_path / "cache")
        hub.files[known.repository] = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.files[KNOWN["clip_b16"].repository] = {"pytorch_model.bin": saved(hf_clip_state())}
        with pytest.raises(UserError, match="accept_licence=true"):
            cli.execute(get)
        assert cli.execute([*get, "accept_licence=true"]) == 0
        asked = len(hub.requests)
        assert cli.execute([*get, "accept_licence=true"]) == 0 and len(hub.requests) == asked
    made = sorted(path.name for path in (tmp_path / "weights").glob("*.safetensors"))
    assert made == ["clip_text.safetensors", "videomae_b16_video.safetensors"]
    path = tmp_path / "weights/videomae_b16_video.safetensors"
    load_video_weights(build_video_tower(config.video), path)
    assert is_non_commercial(read_licence(path))
