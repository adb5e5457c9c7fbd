"""The losses beside the paper's, against plain Python in float64; off, they are absent; no novel label decides them."""

import math
from dataclasses import replace

import pytest
import torch

from ace_dist.concepts import Action, SynonymTrees
from ace_dist.config import TextConfig, VideoConfig, load_config
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.objectives import build_objective
from ace_dist.objectives.text_terms import changed_similarities, concept_margin, pull_to_start
from ace_dist.utils.errors import ConfigError

VIDEO = VideoConfig(
    width=32, depth=2, heads=2, patch=8, image_size=16, frames=2, embed_dim=16, drop_path=0.0, trained_blocks=1
)
TEXT = TextConfig(width=32, depth=1, heads=2, embed_dim=16)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def mean_row(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def test_pull_to_start_by_hand():
    """½ ((3 - 1)² + (0 - 2)² + (5 - 5)²) = 4."""
    trained, start = (
        {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([5.0])},
        {
            "a": torch.tensor([1.0, 2.0]),
            "b": torch.tensor([5.0]),
        },
    )
    assert float(pull_to_start(trained, start)) == 4.0


def test_changed_similarities_pair_by_pair(fresh_seed):
    generator = torch.Generator().manual_seed(fresh_seed)
    now, before = (torch.randn(6, 4, generator=generator) for _ in range(2))
    rows = now.double().tolist(), before.double().tolist()
    pairs = [(a, b) for a in range(6) for b in range(6)]
    wanted = sum((cosine(rows[0][a], rows[0][b]) - cosine(rows[1][a], rows[1][b])) ** 2 for a, b in pairs) / 36
    assert float(changed_similarities(now, before)) == pytest.approx(wanted, abs=1e-5)
    assert float(changed_similarities(3 * before, before)) == pytest.approx(0, abs=1e-10), "lengths do not count"


def test_concept_margin_phrase_by_phrase(fresh_seed):
    generator = torch.Generator().manual_seed(fresh_seed)
    sizes, margin = (3, 1, 2), 0.4
    text = torch.randn(6, 5, generator=generator)
    groups = [[unit(row) for row in part.double().tolist()] for part in text.split(list(sizes))]
    means = [mean_row(group) for group in groups]
    short = []
    for own, group in enumerate(groups):
        for phrase in group:
            nearest = max(cosine(phrase, means[other]) for other in range(3) if other != own)
            short.append(max(0.0, margin - cosine(phrase, means[own]) + nearest))
    assert float(concept_margin(text, sizes, margin)) == pytest.approx(sum(short) / 6, abs=1e-5)
    assert float(concept_margin(text, (6,), margin)) == 0, "one class alone"


def build(actions, trees, novel=(), **switches):
    torch.manual_seed(3)
    model = DualEncoder(VIDEO, TEXT)
    config = load_config([])
    config = replace(config, method=replace(config.method, **switches), seed=11)
    return build_objective(config, model, actions, trees, novel)


def test_terms_stand_beside_the_losses_and_start_at_nothing(actions, trees):
    """Off: the losses of the paper alone. On: nothing has moved yet, so both pulls are 0, until a weight moves."""
    video, labels = torch.randn(2, 2, 3, 16, 16), torch.tensor([0, 1])
    plain = build(actions, trees)
    losses = plain(video, labels, plain.sampler.draw(5))
    assert list(losses) == ["fixed", "random"]
    objective = build(actions, trees, l2_sp=0.5, distil=2.0, margin=0.2)
    draw = objective.sampler.draw(5)
    more = objective(video, labels, draw)
    assert list(more) == ["fixed", "random", "l2_sp", "distil", "margin"]
    assert all(torch.equal(more[name], losses[name]) for name in losses)
    assert float(more["l2_sp"]) == 0 and float(more["distil"]) == pytest.approx(0, abs=1e-6)
    weight = objective.model.text.parts.projection.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(torch.linspace(0.5, 1.5, len(weight))[:, None])
    moved = objective(video, labels, draw)
    assert float(moved["l2_sp"]) == pytest.approx(0.25 * float((weight - before).square().sum()), rel=1e-5)
    assert float(moved["distil"]) > 1e-4
    text = [phrase for group in draw.fixed for phrase in group]
    table = objective.text_features.encode(objective.text_features.indices(text))
    by_hand = concept_margin(table, [len(group) for group in draw.fixed], 0.2) / objective.settings.temperature
    assert float(moved["margin"]) == pytest.approx(float(by_hand), rel=1e-4)


def test_a_band_keeps_the_ranks_that_it_names(actions, trees):
    """[0, 0.9] leaves out the nearest tenth, [0.5, 0.9] the farther half too; every draw is from what is left."""
    whole = build(actions, trees)
    nearness = whole.shadow_similarities()
    for low, high in ((0.0, 0.9), (0.5, 0.9), (0.99, 1.0)):
        band = build(actions, trees, shadow_band=[low, high])
        for pool, left, near in zip(whole.sampler.shadow_verbs, band.sampler.shadow_verbs, nearness, strict=True):
            ranked = [pool[place] for place in sorted(range(len(pool)), key=near.__getitem__)]
            kept = ranked[int(low * len(pool)) : math.ceil(high * len(pool))]
            assert sorted(left) == sorted(kept) and left
            assert left == [entry for entry in pool if entry in left], "in the order of before"
        drawn = {phrase for step in range(50) for group in band.sampler.draw(step).shadow for phrase in group}
        assert drawn <= {
            band.sampler.phrases[row] for pool in band.sampler.shadow_verbs for entry in pool for row in entry
        }


@pytest.mark.parametrize(
    "switches", [{}, {"l2_sp": 0.1}, {"distil": 1.0}, {"margin": 0.1}, {"shadow_band": [0.5, 0.9]}]
)
def test_no_candidate_reads_a_novel_label(actions, trees, switches):
    """With the novel actions left out, and their trees: the same draws, the same losses to the bit."""
    novel = [Action(verb, "novel thing") for verb in trees.roots if verb not in {action.verb for action in actions}]
    own = {action.verb for action in actions}
    fewer = SynonymTrees({root: {c: trees.children(root, c) for c in trees.children(root)} for root in own})
    video, labels = torch.randn(2, 2, 3, 16, 16), torch.tensor([0, 1])
    found = []
    for known, file in ((novel, trees), ([], fewer)):
        objective = build(actions, file, known, **switches)
        with torch.no_grad():
            objective.model.text.parts.projection.weight.mul_(torch.linspace(0.5, 1.5, 16)[:, None])
        draw = objective.sampler.draw(7)
        found.append((draw.fixed, draw.random, draw.shadow, objective(video, labels, draw)))
    assert found[0][:3] == found[1][:3]
    assert all(torch.equal(found[0][3][name], found[1][3][name]) for name in found[0][3])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["method=procvlr", "method.margin=0.1"], "method.margin=0.1 is for method.objective=concept with a text side"),
        (["method=vifi_ft", "method.distil=1"], "method.distil=1.0 is for method.objective=concept"),
        (["method.l2_sp=-1"], "method.l2_sp=-1.0 must be at least 0"),
        (["method.l2_sp=0.1", "deepspeed=zero3"], "method.l2_sp=0.1 does not go with deepspeed=zero3"),
        (["method.shadow_band=[0.9,0.5]"], "must be two shares"),
        (["method=ace_no_shadow", "method.shadow_band=[0,0.9]"], "set method.shadow_negatives=true"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        load_config(settings)
