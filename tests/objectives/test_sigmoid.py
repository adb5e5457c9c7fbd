"""The sigmoid loss and its gradients against its equation, clip by clip in float64."""

import itertools

import pytest
import torch
from ace_kernels import ConceptLayout

from ace_dist.concepts import ConceptSampler
from ace_dist.config import MethodConfig, SimilarityConfig, TextConfig, VideoConfig, load_config
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.similarity import LOGIT_BIAS, LOGIT_SCALE, Similarity
from ace_dist.objectives.sigmoid import SigmoidObjective
from ace_dist.utils.errors import ConfigError

VIDEO = VideoConfig(
    width=32, depth=2, heads=2, patch=8, image_size=16, frames=2, embed_dim=16, drop_path=0.0, trained_blocks=1
)
TEXT = TextConfig(width=32, depth=1, heads=2, embed_dim=16)
B = 5


def build(actions, trees, **switches):
    """A small model in float64 whose scale and bias are not those of the start."""
    model = DualEncoder(VIDEO, TEXT, SimilarityConfig(learn_temperature=True, bias=True)).double()
    with torch.no_grad():
        model.similarity.log_scale.fill_(0.3)
        model.similarity.bias.fill_(-2.0)
    settings = MethodConfig(temperature=0.2, objective="sigmoid", **switches)
    kept = {key: getattr(settings, key) for key in ("leaf_augmentation", "shadow_negatives")}
    return SigmoidObjective(model, ConceptSampler(actions, trees, seed=3, **kept), settings)


def expected(objective, video, labels, draw):
    settings, model = objective.settings, objective.model
    similarity = model.similarity
    clips = model.encode_video(video)
    texts = {}

    def score(clip, phrases):
        for phrase in phrases:
            texts.setdefault(phrase, model.text([phrase])[0])
        cosines = [clip @ texts[p] / (clip.norm() * texts[p].norm()) for p in phrases]
        mean = sum(cosines) / len(cosines)
        return mean / settings.temperature * similarity.log_scale[0].exp() + similarity.bias[0]

    total = 0.0
    for name, on in (("fixed", settings.fixed_labels), ("random", settings.random_labels)):
        for clip, label in zip(clips, labels.tolist(), strict=True) if on else ():
            for index, phrases in enumerate(getattr(draw, name)):
                sign = 1 if index == label else -1
                total = total - (1 / (1 + (-sign * score(clip, phrases)).exp())).log() / B
            if settings.shadow_negatives:
                total = total - (1 / (1 + score(clip, draw.shadow[label]).exp())).log() / B
    return total


@pytest.mark.parametrize(
    ("fixed", "rand", "leaf", "shadow"),
    [switches for switches in itertools.product([True, False], repeat=4) if switches[0] or switches[1]],
)
def test_loss_and_gradients(actions, trees, fixed, rand, leaf, shadow):
    """Value, and gradients of both towers, scale and bias, under every combination of ACE's switches."""
    objective = build(
        actions, trees, fixed_labels=fixed, random_labels=rand, leaf_augmentation=leaf, shadow_negatives=shadow
    )
    video = torch.randn(B, 2, 3, 16, 16, dtype=torch.float64)
    labels, draw = torch.randint(len(actions), (B,)), objective.sampler.draw(int(torch.randint(1000, ())))
    losses = objective(video, labels, draw)
    assert tuple(losses) == tuple(name for name, on in (("fixed", fixed), ("random", rand)) if on)
    ours, theirs = sum(losses.values()), expected(objective, video, labels, draw)
    assert abs(float(ours.detach() - theirs.detach())) < 1e-9
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (ours, theirs)), strict=True):
        assert (a - b).abs().max() <= 1e-8 * max(1.0, float(b.abs().max()))


def test_scale_and_bias_start_as_the_weights_say():
    """Beside 1/τ the learned factor makes the model's own scale; without such weights SigLIP's start stays."""
    model = DualEncoder(VIDEO, TEXT, SimilarityConfig(learn_temperature=True, bias=True))
    assert model.similarity.bias.item() == -10
    scale, bias = torch.tensor([4.7]), torch.tensor([-12.9])
    model.similarity.start_at({}, 0.1)
    assert model.similarity.bias.item() == -10
    model.similarity.start_at({LOGIT_SCALE: scale, LOGIT_BIAS: bias}, 0.1)
    scores = model.similarity.scale([torch.tensor([[0.25]]) / 0.1])
    torch.testing.assert_close(scores[0], scale.exp() * 0.25 + bias[None])


@torch.no_grad()
def test_cosines_know_no_scale_and_no_bias():
    """Of unit vectors along the axes they are 1 and 0, and a softmax at the learned temperature is that of scores."""
    similarity = Similarity(SimilarityConfig(learn_temperature=True, bias=True))
    similarity.log_scale.fill_(0.3)
    layout, axes = ConceptLayout.build([[0, 1, 2]], [range(2)]), 3 * torch.eye(4)
    (cosines,) = similarity.cosines(axes[:3], axes[:2], layout)
    assert cosines.tolist() == [[1, 0], [0, 1], [0, 0]]
    (scores,) = similarity(axes[:3], axes[:2], layout, 0.2)
    torch.testing.assert_close((cosines / similarity.learned_temperature(0.2)).softmax(1), scores.softmax(1))


@pytest.mark.parametrize(
    "changes",
    [
        ["method=ace", "method.objective=sigmoid"],
        ["method=ace", "model.similarity.bias=true", "model.similarity.learn_temperature=true"],
        ["method=ace_sigmoid", "model.similarity.learn_temperature=false"],
    ],
)
def test_a_bias_goes_with_the_sigmoid_loss_alone(changes):
    with pytest.raises(ConfigError, match=r"model.similarity.bias.*method=ace_sigmoid"):
        load_config(["experiment=demo", *changes])
