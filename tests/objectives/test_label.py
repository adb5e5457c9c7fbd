"""The loss of ViFi-CLIP, Text4Vis and LaViLa and its gradients against its equation, clip by clip in float64."""

import pytest
import torch

from ace_dist.concepts import ConceptSampler
from ace_dist.config import MethodConfig, SimilarityConfig, TextConfig, VideoConfig
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.objectives.label import LabelObjective

VIDEO = VideoConfig(
    tower="vit",
    width=32,
    depth=2,
    heads=2,
    patch=8,
    image_size=16,
    frames=2,
    embed_dim=16,
    drop_path=0.0,
    trained_blocks=1,
)
TEXT = TextConfig(width=32, depth=1, heads=2, embed_dim=16)
B = 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("learned", [True, False])
def test_loss_and_gradients(actions, trees, smoothing, learned):
    """-sum_k q_k log softmax(cos_k / t)_k: q is 1 - s at the label, and s / K more at each of K classes."""
    model = DualEncoder(VIDEO, TEXT, SimilarityConfig(learn_temperature=learned)).double()
    scale = 1.0
    if learned:
        with torch.no_grad():
            model.similarity.log_scale.fill_(0.3)
        scale = model.similarity.log_scale[0].exp()
    settings = MethodConfig(
        temperature=0.2, objective="label", label_smoothing=smoothing, leaf_augmentation=False,
        shadow_negatives=False, random_labels=False,
    )  # fmt: skip
    sampler = ConceptSampler(actions, trees, seed=3, leaf_augmentation=False, shadow_negatives=False)
    objective = LabelObjective(model, sampler, settings)
    video = torch.randn(B, 2, 3, 16, 16, dtype=torch.float64)
    labels = torch.randint(len(actions), (B,))
    losses = objective(video, labels, sampler.draw(0))
    assert tuple(losses) == ("fixed",)

    texts = [model.text([f"{action.verb} {action.object}"])[0] for action in actions]
    expected = 0.0
    for clip, label in zip(model.encode_video(video), labels.tolist(), strict=True):
        powers = [(clip @ text / (clip.norm() * text.norm()) / settings.temperature * scale).exp() for text in texts]
        for index, power in enumerate(powers):
            share = smoothing / len(actions) + (1 - smoothing if index == label else 0)
            expected = expected - share * (power / sum(powers)).log() / B
    assert abs(float(losses["fixed"].detach() - expected.detach())) < 1e-6  # scores are float32
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (losses["fixed"], expected)), strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max()))
