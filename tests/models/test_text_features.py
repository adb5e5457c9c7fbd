"""Text feature cache: equal to live encoding, gradients too; repeats computed once; unknown phrases named."""

import pytest
import torch

from ace_dist.config import TextConfig
from ace_dist.models import text
from ace_dist.models.dual_encoder import build_text_tower
from ace_dist.models.text_bert import MiniLMTextTower
from ace_dist.models.text_clip import ClipTextTower
from ace_dist.models.text_features import PhraseCache, TextFeatureCache
from ace_dist.utils.errors import ModelError

VERBS = ["spin", "rotate", "turn", "lay down", "pick up", "gently put back onto the"]
PHRASES = [f"{verb} {item}" for verb in VERBS for item in ("block", "side panel", "drawer right side up")]


def tower(name="clip", **changes):
    if name == "minilm":
        return MiniLMTextTower(
            TextConfig(**{"tower": "minilm", "width": 384, "depth": 6, "heads": 12, "embed_dim": 384, **changes})
        )
    return ClipTextTower(TextConfig(**{"width": 128, "depth": 3, "heads": 2, "embed_dim": 32, **changes}))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("clip", {}),
        ("clip", {"train_projection": False}),
        ("clip", {"trained_layers": 2}),
        ("minilm", {}),
        ("minilm", {"trained_layers": 1}),
    ],
)
def test_cache_equals_live_encoding(name, changes, monkeypatch):
    """Live: each phrase alone through the tower. The cache is built in chunks of 5, of other lengths than a call's."""
    monkeypatch.setattr(text, "CHUNK", 5)
    encoder = tower(name, **changes)
    cache, indices = TextFeatureCache(encoder, PHRASES), torch.randint(len(PHRASES), (40,))
    live = torch.cat([encoder([PHRASES[index]]) for index in indices])
    torch.testing.assert_close(cache.encode(indices), live, rtol=1e-4, atol=1e-5)
    if live.requires_grad:
        weights, trained = torch.randn(live.shape), [p for p in encoder.parameters() if p.requires_grad]
        expected = torch.autograd.grad((live * weights).sum(), trained)
        found = torch.autograd.grad((cache.encode(indices) * weights).sum(), trained)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_repeats_are_computed_once(monkeypatch):
    encoder = tower()
    cache, rows = TextFeatureCache(encoder, PHRASES), []
    project = encoder.project
    monkeypatch.setattr(encoder, "project", lambda pooled: rows.append(len(pooled)) or project(pooled))
    cache.encode(torch.tensor([3, 3, 1, 3, 1]))
    cache.encode(torch.tensor([2, 0]))
    assert rows == [2, 2]


def test_frozen_part_runs_once_and_keeps_no_graph(monkeypatch):
    encoder, calls = tower(), []
    features = encoder.frozen_features
    monkeypatch.setattr(encoder, "frozen_features", lambda *args: calls.append(1) or features(*args))
    cache = TextFeatureCache(encoder, PHRASES)
    for _ in range(3):
        cache.encode(torch.arange(len(PHRASES)))
    assert len(calls) == 1 and not cache.frozen.features.requires_grad
    assert cache.memory_mib == pytest.approx(len(PHRASES) * (128 * 4 + 8) / 2**20)


def test_phrases_are_found_and_kept_once():
    cache = TextFeatureCache(tower(), [*PHRASES, *PHRASES])
    assert len(cache) == len(PHRASES)
    assert cache.indices(PHRASES[::-1]).tolist() == list(range(len(PHRASES)))[::-1]


def test_unknown_phrase_is_named():
    cache = TextFeatureCache(tower(), PHRASES)
    with pytest.raises(ModelError, match="'whack pin'"):
        cache.indices(["spin block", "whack pin"])
    with pytest.raises(ModelError, match="no phrase to encode"):
        TextFeatureCache(cache.tower, [])


@pytest.mark.parametrize("changes", [{}, {"train_projection": False}, {"trained_layers": 2}])
def test_a_tower_cast_after_the_cache_was_built_still_encodes(changes):
    """An engine that computes in bf16 casts the tower once the cache holds float32 features."""
    encoder = tower(**changes)
    cache = TextFeatureCache(encoder, PHRASES)
    rows = cache.indices(PHRASES)
    exact = cache.encode(rows)
    encoder.bfloat16()
    rounded = cache.encode(rows)
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rounded.float(), exact).min() > 0.99


@pytest.mark.parametrize("changes", [{}, {"train_projection": False}, {"trained_layers": 2}, {"prompt_tokens": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_released_weights_cost_nothing_and_come_back_for_new_phrases(changes, dtype):
    """A cache goes on as before; what it does not know is encoded as if nothing had been released, again and again."""
    encoder = build_text_tower(TextConfig(width=128, depth=3, heads=2, embed_dim=32, **changes))
    stored = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder.to(dtype)
    cache, rows = TextFeatureCache(encoder, PHRASES), torch.arange(len(PHRASES))
    before, other = cache.encode(rows), TextFeatureCache(encoder, ["whack pin", "lift"]).frozen
    count, kept = sum(p.numel() for p in encoder.parameters()), [p for p in encoder.parameters() if p.requires_grad]
    encoder.release(stored.__getitem__)
    for _ in range(2):
        assert torch.equal(cache.encode(rows), before)
        assert all(map(torch.equal, TextFeatureCache(encoder, ["whack pin", "lift"]).frozen, other))
        held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in encoder.parameters()}
        used = sum(p.numel() * dtype.itemsize for p in kept)
        layers_run = "prompt_tokens" in changes  # learned prompts pass every layer, which must stay
        assert layers_run or sum(held.values()) < used + 1000
        assert sum(p.numel() for p in encoder.parameters()) == count
    assert encoder.released_parameters() and all(p.isnan().all() for p in encoder.released_parameters().values())


def test_kept_phrases_are_encoded_once():
    """Each new phrase once, whatever order it is asked in; the oldest goes beyond the bound, and comes back right."""
    encoder, asked = tower(), []

    def encode(phrases):
        asked.extend(phrases)
        return encoder(list(phrases)).detach()

    cache = PhraseCache(3)
    for phrases, new in (
        (["a", "b", "a"], ["a", "b"]),
        (["b", "c", "a"], ["c"]),
        (["d"], ["d"]),  # b, the oldest, goes
        (["a", "c", "d"], []),
        (["b"], ["b"]),
        (["a", "b", "c", "d", "e"], ["a", "e"]),  # more than are kept: answered all the same
    ):
        torch.testing.assert_close(cache.encode(phrases, encode), encoder(phrases), rtol=1e-4, atol=1e-5)
        assert asked == new and len(cache.kept) <= 3
        asked.clear()
