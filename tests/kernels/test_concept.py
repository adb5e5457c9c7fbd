"""Concept similarity and loss against an independent float64 implementation of ACE Eq. 3 and 8, written as loops."""

import math

import pytest
import torch
from ace_kernels import concept_cross_entropy, concept_similarity
from kernel_reference import INDEX_CASES

pytestmark = INDEX_CASES

SIZES = [(1,), (1, 1, 1), (3, 3), (1, 7, 2, 40), (5, 1, 1000)]


def cosine(a, b):
    """cos of two vectors as Python floats; zero vectors give zero."""
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def looped_similarity(video, text, offsets, temperature):
    """Eq. 3 literally: for each video and class, the average of the cosines, over τ."""
    starts = offsets.tolist()
    rows = []
    for v in video.double().tolist():
        row = []
        for a, b in zip(starts[:-1], starts[1:], strict=True):
            row.append(sum(cosine(v, t) for t in text[a:b].double().tolist()) / (b - a) / temperature)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)  # on the CPU


def autograd_reference(video, text, offsets, labels, temperature, shadow=None, shadow_offsets=None):
    """Eq. 8 in float64 through the B×S matrix of per-synonym cosines: another route than the prototypes."""
    similarity = torch.nn.functional.cosine_similarity(video[:, None], text[None], dim=2) / temperature
    logits = torch.stack([part.mean(1) for part in similarity.split(offsets.diff().tolist(), 1)], 1)
    true = logits.gather(1, labels[:, None])
    terms = [logits]
    if shadow is not None:
        wrong = torch.nn.functional.cosine_similarity(video[:, None], shadow[None], dim=2) / temperature
        wrong = torch.stack([part.mean(1) for part in wrong.split(shadow_offsets.diff().tolist(), 1)], 1)
        terms.append(wrong.gather(1, labels[:, None]))
    return (torch.cat(terms, 1).logsumexp(1, keepdim=True) - true).mean()


@pytest.fixture
def case(device, class_offsets):
    """`case(sizes, kind)`: video, text, offsets, labels, shadow text and offsets, where the implementation gets them.

    Random, peaked (videos equal phrases), or all-equal inputs.
    """

    def draw(sizes, kind, dtype=torch.float32):
        batch, width = 5, 13
        shadow_sizes = torch.randint(1, 4, (len(sizes),)).tolist()
        video = torch.randn(batch, width, device=device) * 3
        text = torch.randn(sum(sizes), width, device=device) * 0.2
        shadow = torch.randn(sum(shadow_sizes), width, device=device)
        if kind == "peaked":
            video = text[torch.randint(len(text), (batch,), device=device)].clone() * 7
        if kind == "equal":
            video, text, shadow = torch.ones_like(video), torch.ones_like(text), torch.ones_like(shadow)
        labels = torch.randint(len(sizes), (batch,), device=device)
        offsets, shadow_offsets = (class_offsets(part) for part in (sizes, shadow_sizes))
        return video.to(dtype), text.to(dtype), offsets, labels, shadow.to(dtype), shadow_offsets

    return draw


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["random", "peaked", "equal"])
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.07])
def test_similarity_is_the_mean_of_cosines(sizes, kind, temperature, case):
    """Eq. 3 on ragged classes, to float32 rounding of logits of size 1/τ."""
    video, text, offsets, *_ = case(sizes, kind)
    ours = concept_similarity(video, text, offsets, temperature)
    expected = looped_similarity(video, text, offsets, temperature)
    assert ours.dtype == torch.float32 and ours.device == video.device
    assert (ours.double().cpu() - expected).abs().max() <= 4e-6 / temperature


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["random", "peaked", "equal"])
@pytest.mark.parametrize("with_shadow", [False, True])
def test_loss_and_gradients_match_float64(sizes, kind, with_shadow, case):
    """Eq. 8 and its gradient in video, text and shadow text, in float64 to 1e-10 and in float32 to 1e-4 of its size."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        video, text, offsets, labels, shadow, shadow_offsets = case(sizes, kind, dtype)
        extra = (shadow, shadow_offsets) if with_shadow else ()
        inputs = [x.requires_grad_() for x in (video, text, *extra[:1])]
        loss = concept_cross_entropy(video, text, offsets, labels, 0.02, *extra)
        grads = torch.autograd.grad(loss, inputs)
        wide = [x.detach().double().requires_grad_() for x in inputs]
        reference = autograd_reference(
            wide[0], wide[1], offsets, labels, 0.02, *((wide[2], shadow_offsets) if with_shadow else ())
        )
        expected = torch.autograd.grad(reference, wide)
        assert abs(loss.double() - reference) <= tolerance * max(1.0, abs(float(reference.detach())))
        for ours, theirs in zip(grads, expected, strict=True):
            assert (ours.double() - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


def test_each_gradient_alone(case):
    """Whatever input requires a gradient, its gradient is the same as when all do."""
    video, text, offsets, labels, shadow, shadow_offsets = case((2, 5, 3), "random", torch.float64)
    inputs = [video, text, shadow]
    full = [x.clone().requires_grad_() for x in inputs]
    loss = concept_cross_entropy(full[0], full[1], offsets, labels, 0.02, full[2], shadow_offsets)
    everything = torch.autograd.grad(loss, full)
    for k in range(3):
        one = [x.clone().requires_grad_(i == k) for i, x in enumerate(inputs)]
        alone = concept_cross_entropy(one[0], one[1], offsets, labels, 0.02, one[2], shadow_offsets)
        assert torch.equal(torch.autograd.grad(alone, one[k])[0], everything[k])


def test_renormalising_the_mean_is_another_loss(case):
    """Guards the definition: the class mean of unit vectors is not normalised again."""
    video, text, offsets, *_ = case((4, 2, 6), "random", torch.float64)
    unit = torch.nn.functional.normalize(text, dim=1)
    means = torch.stack([part.mean(0) for part in unit.split(offsets.diff().tolist())])
    video_unit = torch.nn.functional.normalize(video, dim=1)
    renormalised = video_unit @ torch.nn.functional.normalize(means, dim=1).T / 0.02
    ours = concept_similarity(video, text, offsets, 0.02)
    assert (ours - video_unit @ means.T / 0.02).abs().max() < 1e-9
    assert (ours - renormalised).abs().max() > 1.0


def test_permutations_and_class_weight(case, class_offsets):
    """Order inside a class and repeated phrases of one class change nothing; permuted classes permute the columns."""
    video, text, offsets, *_ = case((3, 5, 2), "random", torch.float64)
    base = concept_similarity(video, text, offsets, 0.02)
    shuffled = torch.cat([part[torch.randperm(len(part), device=part.device)] for part in text.split([3, 5, 2])])
    assert (concept_similarity(video, shuffled, offsets, 0.02) - base).abs().max() < 1e-9
    doubled = torch.cat([text[:3], text[:3], text[3:]])
    assert (concept_similarity(video, doubled, class_offsets((6, 5, 2)), 0.02) - base).abs().max() < 1e-9
    swapped = torch.cat([text[3:8], text[:3], text[8:]])
    permuted = concept_similarity(video, swapped, class_offsets((5, 3, 2)), 0.02)
    assert (permuted[:, [1, 0, 2]] - base).abs().max() < 1e-9


def test_large_logits_do_not_underflow(device, index_device):
    """Random features at τ=0.01: a softmax shifted by the constant 1/τ would be 0/0 here."""
    video, text = torch.randn(64, 512, device=device), torch.randn(400 * 10, 512, device=device)
    offsets, labels = torch.arange(0, 4001, 10, device=index_device), torch.randint(400, (64,), device=device)
    loss = concept_cross_entropy(video, text, offsets, labels, 0.01)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(dtype, case, device):
    """Half inputs give float32 logits equal to those of the same numbers in float32, under autocast too."""
    video, text, offsets, *_ = case((2, 5), "random", dtype)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        ours = concept_similarity(video, text, offsets, 0.02)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, concept_similarity(video.float(), text.float(), offsets, 0.02))


def test_zero_and_extreme_rows(device, index_device):
    """A zero row has cosine 0 and gradient 0; rows of size 1e±30 have the cosine of their direction."""
    video, text = torch.randn(3, 8, device=device), torch.randn(4, 8, device=device)
    offsets = torch.arange(5, device=index_device)
    text[1] = 0
    text.requires_grad_()
    logits = concept_similarity(video, text, offsets, 1.0)
    assert not logits[:, 1].any()
    logits.sum().backward()
    assert not text.grad[1].any() and torch.isfinite(text.grad).all()
    plain = concept_similarity(video, text.detach(), offsets, 1.0)
    for size in (1e-30, 1e30):
        scaled = concept_similarity(video * size, text.detach() * size, offsets, 1.0)
        assert (scaled - plain).abs().max() < 1e-6
