"""The ACE loss (Eq. 9) and its ablations against an independent float64 computation on live embeddings."""

import itertools

import numpy as np
import pytest
import torch

from ace_dist.concepts import Action, ConceptSampler
from ace_dist.config import MethodConfig, TextConfig, VideoConfig
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.objectives import ConceptObjective, total_loss

VIDEO = VideoConfig(
    width=32, depth=3, heads=2, patch=8, image_size=16, frames=2, embed_dim=16, drop_path=0.0, trained_blocks=1
)
TEXT = TextConfig(width=32, depth=1, heads=2, embed_dim=16)
B, T = 5, 2


def build(actions, trees, **switches):
    """A tiny model in float64 and its objective."""
    model = DualEncoder(VIDEO, TEXT).double()
    settings = MethodConfig(**switches)
    sampler = ConceptSampler(
        actions,
        trees,
        seed=11,
        leaf_augmentation=settings.leaf_augmentation,
        shadow_negatives=settings.shadow_negatives,
    )
    return ConceptObjective(model, sampler, settings)


def similarity(video, texts, temperature):
    """Eq. 3 for one video and one class: average of the cosines over τ, vector by vector."""
    cosines = [torch.dot(video, text) / (video.norm() * text.norm()) for text in texts]
    return sum(cosines) / (len(texts) * temperature)


def expected(objective, video, labels, draw):
    """Eq. 9 with the switches, computed clip by clip from live text encodings."""
    settings, model = objective.settings, objective.model
    video_BD = model.encode_video(video)
    cache = {}

    def text(phrase):
        if phrase not in cache:
            cache[phrase] = model.text([phrase])[0]
        return cache[phrase]

    total = 0.0
    for name, on in (("fixed", settings.fixed_labels), ("random", settings.random_labels)):
        for n in range(B) if on else ():
            classes = getattr(draw, name)
            s = [similarity(video_BD[n], [text(p) for p in group], settings.temperature) for group in classes]
            terms = list(s)
            if settings.shadow_negatives:
                own = draw.shadow[int(labels[n])]
                terms.append(similarity(video_BD[n], [text(p) for p in own], settings.temperature))
            total = total - (s[int(labels[n])] - torch.logsumexp(torch.stack(terms), 0)) / B
    return total


@pytest.mark.parametrize(
    ("fixed", "rand", "leaf", "shadow"),
    [switches for switches in itertools.product([True, False], repeat=4) if switches[0] or switches[1]],
)
def test_loss_and_gradients_of_every_ablation(actions, trees, fixed, rand, leaf, shadow):
    """All combinations of the four switches of Table 3: value and gradients in both towers."""
    objective = build(
        actions, trees, fixed_labels=fixed, random_labels=rand, leaf_augmentation=leaf, shadow_negatives=shadow
    )
    video = torch.randn(B, T, 3, 16, 16, dtype=torch.float64)
    labels = torch.randint(len(actions), (B,))
    draw = objective.sampler.draw(int(torch.randint(1000, ())))
    losses = objective(video, labels, draw)
    reference = expected(objective, video, labels, draw)
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(total_loss(losses), parameters)
    theirs = torch.autograd.grad(reference, parameters)
    assert abs(float(total_loss(losses).detach() - reference.detach())) < 1e-9
    assert ("fixed" in losses, "random" in losses) == (fixed, rand)
    assert any(gradient.abs().max() > 1e-6 for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-8 * max(1.0, float(b.abs().max()))


def test_both_parts_add_up(actions, trees):
    """L = L_fixed + L_rand, with the same shadow negatives in both (Eq. 9)."""
    objective = build(actions, trees)
    video, labels = torch.randn(B, T, 3, 16, 16, dtype=torch.float64), torch.randint(len(actions), (B,))
    losses = objective(video, labels, objective.sampler.draw(0))
    assert torch.allclose(total_loss(losses), losses["fixed"] + losses["random"])


def test_a_draw_is_placed_once_for_all_micro_batches(actions, trees, monkeypatch):
    """The losses of a placed draw are those of the draw, to the bit."""
    objective = build(actions, trees)
    video, labels = torch.randn(B, T, 3, 16, 16, dtype=torch.float64), torch.randint(len(actions), (B,))
    draw = objective.sampler.draw(1)
    whole, placed = objective(video, labels, draw), objective.place(draw)
    monkeypatch.setattr(objective, "place", lambda draw: pytest.fail("placed again"))
    assert all(torch.equal(whole[name], loss) for name, loss in objective(video, labels, placed).items())


def test_a_step_handles_its_phrases_as_integers(actions, trees, monkeypatch):
    """No label is put together, no phrase looked up, and repeats are found once."""
    objective, uniques = build(actions, trees), []
    unique = np.unique
    monkeypatch.setattr(np, "unique", lambda *args, **named: uniques.append(1) or unique(*args, **named))
    monkeypatch.setattr(Action, "__post_init__", lambda action: pytest.fail("a label is put together"))
    objective.text_features.positions = None
    objective(torch.randn(B, T, 3, 16, 16, dtype=torch.float64), torch.arange(B) % 2, objective.sampler.draw(3))
    assert len(uniques) == 1
