"""Files of open_clip's models become those of a configuration and back: strictly, and nothing runs code."""

import copy
import json
import re
import shutil
from dataclasses import replace

import open_clip
import pytest
import torch
from hub_server import ask_here, hub_server
from image_text_models import SMALL, close, library_model, shaken, small_base, small_model, small_tokenizer
from open_clip.tokenizer import HFTokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from ace_dist import cli
from ace_dist.evaluate.licences import is_non_commercial
from ace_dist.models.build import build_model
from ace_dist.models.convert import known as known_weights
from ace_dist.models.convert import open_clip as pairs
from ace_dist.models.convert.exporting import load_encoders, save_encoders
from ace_dist.models.convert.known import KNOWN
from ace_dist.models.convert.open_clip import join_state, split_state
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.tokenizer import EOS
from ace_dist.models.weights import read_licence
from ace_dist.utils.errors import UserError


@pytest.fixture(params=["laion_b16", "siglip_b16", "pe_core_b16"])
def released(request, tmp_path, monkeypatch):
    """A folder as the hub has it, of a small model, which stands for the real size in `configs/model`."""
    folder = tmp_path / "released"
    folder.mkdir()
    model, own_tokens = request.param, request.param.startswith("siglip")
    theirs = library_model(model, tmp_path, vocabulary=40 if own_tokens else None)
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    tokens = None
    if own_tokens:
        tokens, _ = small_tokenizer(tmp_path)
        for file in tokens.iterdir():
            shutil.copy(file, folder / file.name)
    config = small_model(model, f"weights/{model}_tokenizer.json" if own_tokens else None,
                         **({"embed_dim": SMALL["width"]} if own_tokens else {}))  # fmt: skip
    video = {"mean": config.video.mean, "std": config.video.std}
    about = {"model_cfg": copy.deepcopy(open_clip.get_model_config(config.video.arch)), "preprocess_cfg": video}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    monkeypatch.setattr(pairs, "pair_config", lambda name: config)
    monkeypatch.setattr(known_weights, "pair_config", lambda name: config)
    return model, folder, theirs, config, tokens


def bring(model, source, output, *settings):
    return cli.execute(["weights", "import", f"model={model}", f"source={source}", f"output={output}", *settings])


def loaded(config, weights):
    paths = {part: str(weights / (getattr(config, part).weights.split("/")[-1])) for part in ("video", "text")}
    tokens = config.text.tokenizer and str(weights / config.text.tokenizer.split("/")[-1])
    video = replace(config.video, weights=paths["video"])
    text = replace(config.text, weights=paths["text"], tokenizer=tokens)
    return build_model(replace(config, init="weights", video=video, text=text), 0).eval()


@torch.no_grad()
def test_a_released_folder_is_imported_whole(released, tmp_path, capsys):
    """Both towers, the tokens and what is said of their origin: the library's embeddings, to the last digits."""
    model, folder, theirs, config, tokens = released
    bring(model, folder, tmp_path / "weights")
    ours = loaded(config, tmp_path / "weights")
    video, phrases = torch.randn(1, 2, 3, 48, 48), ["spin block", "Lift the pin."]
    close(ours.encode_video(video), theirs.encode_image(video[0]).mean(0, keepdim=True))
    context = config.text.context
    tokenizer = HFTokenizer(str(tokens), context, clean="canonicalize") if tokens else open_clip.SimpleTokenizer(
        context_length=context)  # fmt: skip
    close(ours.text(phrases), theirs.encode_text(tokenizer(phrases)))
    with safe_open(tmp_path / f"weights/{model}_video.safetensors", "pt") as file:
        assert file.metadata()["arch"] == config.video.arch and file.metadata()["source_sha256"]
        assert "similarity.logit_scale" in file.keys()  # noqa: SIM118


@torch.no_grad()
def test_by_hand_the_licence_of_the_released_file_is_recorded(released, tmp_path, monkeypatch):
    """Nobody knows where such a file is from; it may be the released one, whose licence then binds."""
    model, folder, *_ = released
    monkeypatch.setitem(known_weights.KNOWN, model, replace(KNOWN[model], licence="CC-BY-NC 4.0"))
    bring(model, folder, tmp_path / "weights")
    for part in ("video", "text"):
        licence = read_licence(tmp_path / f"weights/{model}_{part}.safetensors")
        assert is_non_commercial(licence) and f"the released {model} is CC-BY-NC 4.0" in licence


def test_transformers_clip_becomes_the_pair(tmp_path, monkeypatch):
    """OpenAI's CLIP as Hugging Face has it, which `ace weights get clip_b16` fetches: transformers' own embeddings."""
    image = {"hidden_size": SMALL["width"], "intermediate_size": 4 * SMALL["width"], "image_size": 48, "patch_size": 12,
             "num_hidden_layers": SMALL["depth"], "num_attention_heads": SMALL["heads"]}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = CLIPConfig(text_config=text, vision_config=image, projection_dim=SMALL["embed_dim"])
    theirs = shaken(CLIPModel(settings)).eval()
    state = theirs.state_dict() | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = small_model("clip_b16")
    monkeypatch.setattr(pairs, "pair_config", lambda name: config)
    bring("clip_b16", tmp_path / "pytorch_model.bin", tmp_path / "weights")
    ours = loaded(config, tmp_path / "weights")
    video, phrases = torch.randn(1, 2, 3, 48, 48), ["spin block", "hammer the pin"]
    hidden = theirs.vision_model(pixel_values=video[0]).pooler_output
    expected = theirs.visual_projection(hidden).mean(0, keepdim=True)
    close(ours.encode_video(video), expected)
    ids = ours.text.tokenize(phrases)[0]
    rows = theirs.text_model(input_ids=ids).last_hidden_state[torch.arange(2), (ids == EOS).int().argmax(1)]
    close(ours.text(phrases), theirs.text_projection(rows))


def test_export_gives_the_librarys_state_dict_back(released):
    _, _, theirs, _, _ = released
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("logit_")}
    video, text, _ = split_state(theirs.state_dict())
    again = join_state(video, text, any(name.startswith("text.") for name in state))
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


@torch.no_grad()
@pytest.mark.parametrize("temporal", ["mean", "adapter"])
def test_open_clip_reads_an_export(tmp_path, temporal):
    """The library builds and fills its own model from the folder; we read both back, what is over frames too."""
    config = small_model("laion_b16", temporal=temporal)
    model = shaken(DualEncoder(config.video, config.text)).eval()
    loads = save_encoders(model, tmp_path, 8, temperature=0.02)
    assert "open_clip.create_model" in loads["video"]
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'open_clip'}").eval()
    assert theirs.logit_scale.exp().item() == pytest.approx(50, rel=1e-5)
    image = torch.randn(1, 1, 3, 48, 48)
    if temporal == "mean":
        close(theirs.encode_image(image[:, 0]), model.encode_video(image))
    again = DualEncoder(config.video, config.text).eval()
    load_encoders(again, tmp_path)
    assert torch.equal(again.encode_video(image), model.encode_video(image))
    assert torch.equal(again.text(["spin block"]), model.text(["spin block"]))


def test_an_export_of_a_size_that_open_clip_has_not_says_so(tmp_path):
    """timm's towers are of one size a name; ours of another is for our own classifier, and nobody is told otherwise."""
    config = small_model("pe_core_b16")
    loads = save_encoders(DualEncoder(config.video, config.text), tmp_path, 8)
    assert set(loads.values()) == {"ace_dist.Classifier only"}


def change_settings(folder, change):
    about = json.loads((folder / "open_clip_config.json").read_text())
    change(about)
    (folder / "open_clip_config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda about: about["preprocess_cfg"].update(mean=[0.1, 0.2, 0.3]),
            r"mean \[0.1, 0.2, 0.3\].*model.video.mean",
        ),
        (lambda about: about["model_cfg"].update(quick_gelu=True), "quick_gelu=True"),
        (lambda about: about["model_cfg"]["text_cfg"].update(context_length=12), "context_length=12"),
        (lambda about: about["model_cfg"]["vision_cfg"].update(image_size=96), "image_size=96"),
    ],
)
def test_another_models_settings_are_refused(released, tmp_path, change, named):
    model, folder, *_ = released
    change_settings(folder, change)
    with pytest.raises(UserError, match=named):
        bring(model, folder, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def spoil(folder, change):
    state = load_file(folder / "open_clip_model.safetensors")
    change(state)
    save_file(state, folder / "open_clip_model.safetensors")


def wider(state):
    name = next(name for name in state if name.endswith("token_embedding.weight"))
    state[name] = torch.cat([state[name], state[name]], dim=1)


def quantised(state):
    name = next(name for name in state if name.endswith("token_embedding.weight"))
    state[name] = state[name].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (wider, r"mismatched +1 +embeddings.token_embedding.weight \[\d+, 64\] for \[\d+, 32\]"),
        (quantised, r"is quantised \(.*int8\): take the weights that it was made from"),
        (lambda state: state.update(extra=torch.zeros(2)), r"unexpected +1 +extra"),
        (lambda state: state.pop(next(name for name in state if "ln_final" in name)), r"missing +1 +ln_final"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(released, tmp_path, change, named):
    model, folder, *_ = released
    spoil(folder, change)
    with pytest.raises(UserError, match=named):
        bring(model, folder, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_weights_in_several_files(released, tmp_path):
    """Safetensors by their index; a missing file, one elsewhere, and a difference are named."""
    model, folder, _, config, _ = released
    state = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    bring(model, folder, tmp_path / "weights")
    loaded(config, tmp_path / "weights")
    (folder / "model-2.safetensors").rename(tmp_path / "model-2.safetensors")
    with pytest.raises(UserError, match=r"names model-2.safetensors, which is no safetensors file beside it"):
        bring(model, folder, tmp_path / "weights")
    index["weight_map"] = dict.fromkeys(names, "../model-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=re.escape("names ../model-2.safetensors")):
        bring(model, folder, tmp_path / "weights")


def test_pickles_run_no_code(released, tmp_path):
    """A .bin of tensors is read; one that is more is refused, with what to do."""
    model, folder, theirs, *_ = released
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
    bring(model, folder, tmp_path / "weights")
    torch.save({"state_dict": theirs.state_dict(), "args": HFTokenizer}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match="could run code.*allow_pickle=true"):
        bring(model, folder, tmp_path / "weights")


def test_another_tokenizer_is_refused(tmp_path, monkeypatch):
    config = small_base("siglip_b16")
    folder, _ = small_tokenizer(tmp_path)
    text = replace(config.text, vocabulary=10)
    with pytest.raises(UserError, match="has 15 tokens and ViT-B-16-SigLIP 10: it is another model's tokenizer"):
        pairs.read_tokenizer(folder, replace(config, text=text))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer.json"):
        pairs.read_tokenizer(folder, config)


@torch.no_grad()
def test_one_command_from_the_hub(released, tmp_path, monkeypatch, capsys):
    """`ace weights get NAME`: all files of the model from a stand-in of the hub, the older name where the newer misses.

    A second call asks for nothing; a licence that restricts is in every file.
    """

    model, folder, _, config, tokens = released
    known = replace(KNOWN[model], licence="CC-BY-NC 4.0")
    monkeypatch.setitem(KNOWN, model, known)
    if not tokens:  # as older repositories have it
        state = load_file(folder / "open_clip_model.safetensors")
        torch.save(state, folder / "open_clip_pytorch_model.bin")
        (folder / "open_clip_model.safetensors").unlink()
    get = ["weights", "get", model, f"output={tmp_path / 'weights'}"]
    with hub_server() as (hub, address):
        ask_here(monkeypatch, address, tmp_path / "cache")
        hub.files[known.repository] = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UserError, match="accept_licence=true"):
            cli.execute(get)
        assert cli.execute([*get, "accept_licence=true"]) == 0
        asked = len(hub.requests)
        assert cli.execute([*get, "accept_licence=true"]) == 0 and len(hub.requests) == asked
    assert "is there and stays" in capsys.readouterr().out
    loaded(config, tmp_path / "weights")
    for part in ("video", "text"):
        assert is_non_commercial(read_licence(tmp_path / f"weights/{model}_{part}.safetensors"))
