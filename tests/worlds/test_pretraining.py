"""Protects the contrastive loss of the pretraining, and that its settings are read or refused by name."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ace_dist.cli import execute
from ace_dist.config import assets_dir, load_config, shipped_file
from ace_dist.models.build import build_model
from ace_dist.models.convert.importing import ImportConfig, import_weights
from ace_dist.models.weights import OWN_LICENCE, read_licence
from ace_dist.utils.errors import ConfigError, UserError
from ace_dist.utils.reading import read_object
from ace_dist.worlds.tabletop.pretraining import (
    PretrainConfig,
    build_towers,
    encode_text,
    info_nce,
    pretrain,
    read_settings,
    sentence_encoder,
    sigmoid_of_pairs,
)


def test_info_nce_against_loops() -> None:
    """Each direction: minus the mean log-probability of the positives, equal sentences counting as positives."""
    rng = np.random.default_rng()
    video, text = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    codes = rng.integers(0, 4, 7)
    unit_v = video / np.linalg.norm(video, axis=1, keepdims=True)
    unit_t = text / np.linalg.norm(text, axis=1, keepdims=True)
    total = 0.0
    for scores in (unit_v @ unit_t.T / 0.07, unit_t @ unit_v.T / 0.07):
        for i in range(7):
            log_p = scores[i] - np.log(np.exp(scores[i]).sum())
            total -= np.mean([log_p[j] for j in range(7) if codes[j] == codes[i]]) / 7
    found = info_nce(torch.from_numpy(video), torch.from_numpy(text), codes.astype(np.int64), 0.07)
    assert float(found) == pytest.approx(total / 2, rel=1e-5)


def test_settings_are_split_from_those_of_the_configuration() -> None:
    settings, rest = read_settings(["pretrain.steps=7", "dataset.world.seed=3", "pretrain.lr=0.5"])
    assert (settings.steps, settings.lr, rest) == (7, 0.5, ["dataset.world.seed=3"])


@pytest.mark.parametrize("old", ["seeing_steps", "seeing_batch", "seeing_lr", "seen"])
def test_old_settings_are_refused_with_their_new_name(old: str) -> None:
    with pytest.raises(ConfigError, match=rf"pretrain\.{old} is now pretrain\.supervised_"):
        read_settings([f"pretrain.{old}=3"])


@pytest.mark.parametrize("argument", ["pretrain.stepz=7", "pretrain.temperature=0", "pretrain.loss=hinge"])
def test_bad_settings_are_named(argument: str) -> None:
    with pytest.raises(ConfigError, match=argument.partition("=")[0].removeprefix("pretrain.")):
        read_settings([argument])


def test_two_worlds_share_supervised_pretraining(tmp_path) -> None:
    """Another narration of the same clips starts from the same tower, and reading it changes no weight."""
    settings = PretrainConfig(supervised_steps=2, supervised_batch=4, steps=2, batch_size=4, test_clips=2)
    settings.supervised_weights = str(tmp_path / "supervised.safetensors")

    def towers(*changes: str, keep: bool = True) -> dict[str, torch.Tensor]:
        """Both towers of a small world."""
        config = load_config(["experiment=demo", "dataset.world.corpus.clips=8", *changes])
        model, *_ = pretrain(config, settings if keep else replace(settings, supervised_weights=None))
        return model.state_dict()

    plain, wrote = towers(keep=False), towers()
    supervised = load_file(settings.supervised_weights)
    read, other = towers(), towers("dataset.world.corpus.verb_noise=1")
    assert all(torch.equal(plain[name], wrote[name]) and torch.equal(plain[name], read[name]) for name in plain)
    assert any(not torch.equal(plain[name], other[name]) for name in plain), "the narrations made no difference"
    assert all(torch.equal(value, load_file(settings.supervised_weights)[name]) for name, value in supervised.items())


def test_of_minilm_only_the_projection_learns() -> None:
    """Its layers stay bit for bit as they came, and sentences encoded ahead are those encoded at once."""
    minilm = ["model.text.tower=minilm", "model.text.width=384", "model.text.depth=6", "model.text.heads=12"]
    config = load_config(["experiment=demo", "dataset.world.corpus.clips=8", *minilm])
    settings = PretrainConfig(supervised_steps=1, supervised_batch=4, steps=2, batch_size=4, test_clips=2, bf16=False)
    model, *_ = pretrain(config, settings)
    torch.manual_seed(settings.seed)
    fresh = build_towers(config.model)
    changed = {
        name for name, value in fresh.text.state_dict().items() if not value.equal(model.text.state_dict()[name])
    }
    assert changed == {"projection.weight"}
    sentences = ["spin block", "a much longer narration of it", "spin block", "lift"]
    ahead = sentence_encoder(model, sentences)(np.array([2, 0, 1]))
    torch.testing.assert_close(ahead, encode_text(model, sentences)[[2, 0, 1]])
    assert ahead.requires_grad


def test_sigmoid_of_pairs_against_loops() -> None:
    """SigLIP's algorithm 1: each pair of a batch alone, equal sentences counting as positives."""
    rng = np.random.default_rng()
    scores, codes = rng.normal(size=(6, 6)) * 5, rng.integers(0, 3, 6)
    total = sum(
        math.log1p(math.exp(-scores[i, j] if codes[i] == codes[j] else scores[i, j]))
        for i in range(6) for j in range(6)
    )  # fmt: skip
    assert float(sigmoid_of_pairs(torch.from_numpy(scores), codes)) == pytest.approx(total / 6, rel=1e-9)


@pytest.mark.parametrize(("model", "loss"), [("tabletop_sigmoid", "sigmoid"), ("tabletop_rotary", "softmax")])
def test_small_encoders_are_made_by_one_command(model: str, loss: str, tmp_path, monkeypatch) -> None:
    """What it writes is what the model's file loads: both towers, tokens, and of the sigmoid loss scale and bias."""
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"ace weights (pretrain .*)", shipped_file("model", model).read_text())
    small = ["dataset.world.corpus.clips=24", "pretrain.test_clips=2"]
    small += [f"pretrain.{name}=2" for name in ("supervised_steps", "supervised_batch", "steps", "batch_size")]
    assert execute(["weights", *command.split(), *small]) == 0
    method = ["method=ace_sigmoid"] if loss == "sigmoid" else []
    names = {
        "video.weights": "video.safetensors",
        "text.weights": "text.safetensors",
        "text.tokenizer": "tokenizer.json",
    }
    made = [f"model.{setting}=weights/{model}/{file}" for setting, file in names.items()]
    config = load_config(["experiment=demo", f"model={model}", *method, *made])
    built = build_model(config.model, seed=0, temperature=config.method.temperature)
    assert built.text(["spin block", "tighten the screwdriver"]).shape == (2, config.model.text.embed_dim)
    assert built.video.temporal is not None
    fresh = build_towers(config.model)
    stored = load_file(tmp_path / "weights" / model / "video.safetensors")
    assert ("similarity.logit_bias" in stored) == (loss == "sigmoid")
    assert read_licence(tmp_path / "weights" / model / "text.safetensors") == OWN_LICENCE
    assert not torch.equal(built.video.temporal.positions, fresh.video.temporal.positions)
    if loss == "sigmoid":  # 1 / pretrain.temperature at the start, and two steps of 1e-3 at most
        scale = built.similarity.log_scale.exp() / config.method.temperature
        assert scale.item() == pytest.approx(1 / PretrainConfig().temperature, rel=0.01)
        assert built.similarity.bias.item() == pytest.approx(-10, abs=0.01)


@pytest.mark.parametrize("model", ["tabletop_attnpool", "tabletop_rotary", "tabletop_sigmoid"])
def test_the_weights_of_small_encoders_ship(model: str) -> None:
    """They were made by the command of the model's file, and can be loaded."""
    folder = assets_dir() / "weights" / model
    (command,) = re.findall(r"ace weights pretrain (.*)", shipped_file("model", model).read_text())
    assert read_object(folder / "provenance.json", UserError)["command"].endswith(f"pretrain_tabletop.py {command}")
    config = load_config(["experiment=demo", f"model={model}"])
    build_model(config.model, seed=0, temperature=config.method.temperature)


@pytest.mark.parametrize("tower", ["vit", "spacetime"])
def test_the_other_towers_are_made_of_the_present_weights(tower: str) -> None:
    """ace_dist/assets/weights/tabletop holds what launchers/import_weights.py makes of its video.safetensors today."""
    folder = assets_dir() / "weights" / "tabletop"
    made, _ = import_weights(ImportConfig(source=str(folder / "video.safetensors"), tower=tower, embed_dim=64))
    kept = load_file(folder / f"{tower}.safetensors")
    assert set(made) == set(kept), sorted(set(made) ^ set(kept))[:4]
    for name, value in kept.items():
        assert torch.equal(value, made[name].to(value.dtype)), name
