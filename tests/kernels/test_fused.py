"""The fused operators against float64, in every dtype, regime and form, on every implementation."""

import os

import pytest
import torch
from ace_kernels import (
    concept_cross_entropy,
    concept_cross_entropy_sets,
    concept_similarity,
    concept_similarity_sets,
)
from kernel_reference import (
    INDEX_CASES,
    INTERPRETING,
    forget_plans,
    reference_logits,
    reference_loss,
    unit64,
    unit_plain,
    value_and_gradients,
)
from torch.testing import assert_close

pytestmark = INDEX_CASES
CUDA = torch.cuda.is_available()
REGIMES = ["small", "large", "tensor_cores"] if INTERPRETING or CUDA else ["small"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Ragged, one video, one synonym each, even, one class; widths that are and are not powers of two. Every one compiles
# kernels of its own on a GPU: the last two in float32 alone.
SHAPES = [(5, (1, 7, 2, 20), 13), (1, (2, 1), 33), (17, (1,) * 18, 24), (4, (3, 3, 3), 16), (3, (4,), 20)]
TEMPERATURES = (0.07, 0.01, 0.02, 0.01, 0.07)
# Allowed above the error of the plain formula in the same dtype: float32 rounding of logits of size 1/τ, and one
# rounding of a gradient to the dtype of its input (Triton's interpreter rounds to bfloat16 by cutting bits off).
LOGIT_EPSILON = 4e-6
# A class mean kept as the sum of two 16-bit numbers has 2 × 9 (2 × 11) bits, where bits are cut off 2 × 8.
PLANES_EPSILON = {torch.float32: 0.0, torch.bfloat16: 2**-16 if INTERPRETING else 2**-18, torch.float16: 2**-22}
GRADIENT_EPSILON = {torch.float32: 2e-5, torch.bfloat16: 2**-7 if INTERPRETING else 2**-8, torch.float16: 2**-10}


def problem(batch, sizes, width, kind, dtype, device):
    """Random, peaked (videos equal phrases) or all-equal inputs; labels; shadow negatives of random sizes."""
    shadow_sizes = torch.randint(1, 4, (len(sizes),)).tolist()
    video, text, shadow = (torch.randn(n, width, device=device) for n in (batch, sum(sizes), sum(shadow_sizes)))
    if kind == "peaked":
        video = text[torch.randint(len(text), (batch,), device=device)] * 3
    if kind == "equal":
        video, text, shadow = torch.ones_like(video), torch.ones_like(text), torch.ones_like(shadow)
    labels = torch.randint(len(sizes), (batch,), device=device)
    return [x.to(dtype) for x in (video, text, shadow)], labels, shadow_sizes


@pytest.fixture(params=REGIMES)
def regime(request, device, monkeypatch):
    """Send small inputs down every route of the Triton implementation."""
    if request.param == "small":
        yield request.param
        return
    if os.environ["ACE_KERNELS"] == "torch":
        pytest.skip("plain torch has one route")
    from ace_kernels import concept_triton

    monkeypatch.setattr(concept_triton, "INLINE_VIDEOS", 0)
    if request.param == "tensor_cores":
        monkeypatch.setattr(concept_triton, "TENSOR_CORE_PRODUCTS", 0)
    forget_plans()
    yield request.param
    forget_plans()


@pytest.mark.parametrize(
    ("regime", "dtype", "kind"),
    [
        (regime, dtype, kind)
        for regime in REGIMES
        for dtype in DTYPES
        for kind in ("random", "peaked", "equal")
        # Every dtype and kind of input on the routes with arithmetic of their own; one of each on the other.
        if regime in ("small", "tensor_cores") or (dtype, kind) in ((DTYPES[0], "random"), (DTYPES[1], "peaked"))
    ],
    indirect=["regime"],
)
def test_error_is_at_most_that_of_the_plain_formula(regime, dtype, kind, device, class_offsets):
    """Loss, logits and gradients: error against float64 ≤ error of plain torch in the same dtype + a stated epsilon."""
    logit_epsilon = LOGIT_EPSILON + (PLANES_EPSILON[dtype] if regime == "tensor_cores" else 0.0)
    cases = list(zip(SHAPES, TEMPERATURES, strict=True))
    for (batch, sizes, width), temperature in cases if dtype == torch.float32 else cases[:3]:
        inputs, labels, shadow_sizes = problem(batch, sizes, width, kind, dtype, device)
        offsets, shadow_offsets = class_offsets(sizes), class_offsets(shadow_sizes)

        def ours(v, t, s):
            return concept_cross_entropy(v, t, offsets, labels, temperature, s, shadow_offsets)  # noqa: B023

        def plain(v, t, s, normalise=unit_plain):
            return reference_loss(v, t, sizes, labels, temperature, s, shadow_sizes, normalise)  # noqa: B023

        logits = concept_similarity(inputs[0], inputs[1], offsets, temperature)
        exact = reference_logits(inputs[0].double(), inputs[1].double(), sizes, temperature, unit64)
        usual = reference_logits(inputs[0], inputs[1], sizes, temperature, unit_plain)
        allowed = (usual.double() - exact).abs().max() + logit_epsilon / temperature
        assert (logits.double() - exact).abs().max() <= allowed
        assert logits.dtype == torch.float32

        value, grads = value_and_gradients(ours, *inputs)
        true_value, true_grads = value_and_gradients(
            lambda v, t, s: plain(v, t, s, unit64), *[x.double() for x in inputs]
        )
        plain_value, plain_grads = value_and_gradients(plain, *inputs)
        usual_error = abs(plain_value.double() - true_value)
        assert abs(value.double() - true_value) <= usual_error + 2 * logit_epsilon / temperature
        for grad, true, other in zip(grads, true_grads, plain_grads, strict=True):
            assert grad.dtype == dtype
            slack = GRADIENT_EPSILON[dtype] * true.abs().max() + logit_epsilon / temperature / batch * true.abs().max()
            slack += 1e-6 / temperature  # gradients that cancel: sums of terms of size 1/τ
            assert (grad.double() - true).abs().max() <= (other.double() - true).abs().max() + slack


def test_thousands_of_synonyms(device, class_offsets):
    """Classes of one and of thousands weigh the same, as do their gradients."""
    sizes = (3000, 1, 3)
    (video, text, _), labels, _ = problem(3, sizes, 16, "random", torch.float32, device)
    text[:3000] = text[0]  # equal phrases: where sums of one after the other drift furthest
    ours = concept_similarity(video, text, class_offsets(sizes), 0.01)
    exact = reference_logits(video.double(), text.double(), sizes, 0.01, unit64)
    assert (ours.double() - exact).abs().max() <= LOGIT_EPSILON / 0.01
    _, (grad,) = value_and_gradients(
        lambda t: concept_cross_entropy(video, t, class_offsets(sizes), labels, 0.07), text
    )
    _, (true,) = value_and_gradients(lambda t: reference_loss(video.double(), t, sizes, labels, 0.07), text.double())
    assert (grad.double() - true).abs().max() <= 1e-4 * true.abs().max()


def test_gather_reads_rows_in_place(regime, device, class_offsets, index_device):
    """`rows` gives what gathering first gives, and the gradient of the table: repeats added, unused rows zero."""
    table = torch.randn(12, 10, dtype=torch.float64, device=device)
    video = torch.randn(4, 10, dtype=torch.float64, device=device)
    sizes, shadow_sizes = (3, 1, 9), (2, 1, 1)
    rows, shadow_rows = (torch.randint(11, (n,), device=index_device) for n in (13, 4))
    labels = torch.randint(3, (4,), device=device)
    offsets, shadow_offsets = class_offsets(sizes), class_offsets(shadow_sizes)

    def gathered(v, t):
        return reference_loss(
            v, t[rows.to(device)], sizes, labels, 0.05, t[shadow_rows.to(device)], shadow_sizes
        )  # fmt: skip

    def one_table(v, t):
        return concept_cross_entropy(
            v, t, offsets, labels, 0.05, None, shadow_offsets, rows=rows, shadow_rows=shadow_rows
        )

    def two_tables(v, t):
        return concept_cross_entropy(v, t, offsets, labels, 0.05, t, shadow_offsets, rows=rows, shadow_rows=shadow_rows)

    def rows_elsewhere(v, t):
        there = device if index_device.type == "cpu" else "cpu"
        moved = {"rows": rows.to(there), "shadow_rows": shadow_rows.to(there)}
        return concept_cross_entropy(v, t, offsets, labels, 0.05, None, shadow_offsets, **moved)

    expected, grads = value_and_gradients(gathered, video, table)
    for form in (one_table, two_tables, rows_elsewhere):
        ours, our_grads = value_and_gradients(form, video, table)
        assert abs(ours - expected) < 1e-10
        for mine, theirs in zip(our_grads, grads, strict=True):
            assert (mine - theirs).abs().max() < 1e-9
        assert torch.equal(our_grads[1][11], torch.zeros(10, dtype=torch.float64, device=device))


def test_sets_equal_one_at_a_time(regime, device, class_offsets, index_device):
    """Many label sets in one launch: the logits of each, and the losses with all gradients."""
    table = torch.randn(9, 11, dtype=torch.float64, device=device)
    video = torch.randn(5, 11, dtype=torch.float64, device=device)
    labels = torch.randint(3, (5,), device=device)
    sizes = [(2, 1, 4), (1, 1, 1), (3, 5, 1)]
    offsets = [class_offsets(part) for part in sizes]
    rows = [torch.randint(9, (sum(part),), device=index_device) for part in sizes]
    together = concept_similarity_sets(video, table, offsets, 0.02, rows)
    for ours, one, index in zip(together, offsets, rows, strict=True):
        assert (ours - concept_similarity(video, table, one, 0.02, index)).abs().max() < 1e-10

    shadow_rows, shadow_offsets = torch.randint(9, (4,), device=index_device), class_offsets((1, 2, 1))
    share = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64, device=device)

    def joint(v, t):
        losses = concept_cross_entropy_sets(v, t, offsets, labels, 0.05, None, shadow_offsets, rows, shadow_rows)
        return (losses * share).sum()

    def separate(v, t):
        losses = [
            concept_cross_entropy(v, t, one, labels, 0.05, t[shadow_rows.to(device)], shadow_offsets, index)
            for one, index in zip(offsets, rows, strict=True)
        ]
        return (torch.stack(losses) * share).sum()

    value, grads = value_and_gradients(joint, video, table)
    expected, expected_grads = value_and_gradients(separate, video, table)
    assert abs(value - expected) < 1e-10
    for mine, theirs in zip(grads, expected_grads, strict=True):
        assert (mine - theirs).abs().max() < 1e-9


def test_sets_one_after_the_other_need_no_rows(device, class_offsets):
    """Without rows the sets follow each other in the table, each with offsets from 0."""
    text, video = torch.randn(7, 8, device=device), torch.randn(2, 8, device=device)
    first, second = concept_similarity_sets(video, text, [class_offsets((2, 1)), class_offsets((1, 3))], 0.1)
    assert_close(first, concept_similarity(video, text[:3], class_offsets((2, 1)), 0.1))  # other shapes, other sums
    assert_close(second, concept_similarity(video, text[3:], class_offsets((1, 3)), 0.1))


def test_layout_of_memory_does_not_matter(device, class_offsets, index_device):
    """Transposed, strided and expanded inputs give what contiguous ones give."""
    video, text = torch.randn(12, 6, device=device).T[::2], torch.randn(5, 24, device=device)[:, ::2]
    labels = torch.tensor([0, 1, 0], device=device)
    offsets = class_offsets((2, 3))
    rows = torch.arange(10, device=index_device)[::2] // 2

    def loss(v, t):
        return concept_cross_entropy(v, t, offsets, labels, 0.05, v[:1].expand(2, 12), class_offsets((1, 1)), rows)

    ours = value_and_gradients(loss, video, text)
    dense = value_and_gradients(loss, video.contiguous(), text.contiguous())
    assert (ours[0] - dense[0]).abs() < 1e-5
    for mine, theirs in zip(ours[1], dense[1], strict=True):
        assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_equal_inputs_give_equal_bits(regime, device, class_offsets):
    """No sum depends on the order in which programs happen to end."""
    (video, text, shadow), labels, shadow_sizes = problem(9, (3, 40, 2), 12, "random", torch.float32, device)

    def loss(v, t, s):
        return concept_cross_entropy(v, t, class_offsets((3, 40, 2)), labels, 0.02, s, class_offsets(shadow_sizes))

    first, grads = value_and_gradients(loss, video, text, shadow)
    again, again_grads = value_and_gradients(loss, video, text, shadow)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, again_grads, strict=True))


def test_more_than_2_to_31_elements(device, large_memory, class_offsets, index_device):
    """Rows beyond the reach of 32-bit offsets are found. On a CPU only touched pages take memory."""
    height = 2**31 // 512 + 2
    table = torch.empty(height, 512, dtype=torch.bfloat16, device=device)
    rows = torch.tensor([0, height - 1, 1, height - 2], device=index_device)
    table[rows.to(device)] = torch.randn(4, 512, device=device).to(torch.bfloat16)
    video = torch.randn(2, 512, device=device)
    ours = concept_similarity(video, table, class_offsets((2, 2)), 1.0, rows)
    exact = reference_logits(video.double(), table[rows.to(device)].double(), (2, 2), 1.0, unit64)
    assert (ours.double() - exact).abs().max() < 1e-5


def test_registered_operators_pass_opcheck(device, class_offsets, index_device, monkeypatch):
    """Schema, fake implementation and AOT dispatch, of the outcome and of the gradients. All that is saved is compared,
    also what lies between the parts of an allocation.
    """
    if os.environ["ACE_KERNELS"] == "triton":
        from ace_kernels import concept_triton

        monkeypatch.setattr(
            concept_triton, "allocate", lambda size, dtype, device: torch.zeros(size, dtype=dtype, device=device)
        )
    video, text = (torch.randn(n, 8, device=device) for n in (3, 6))
    offsets, labels = class_offsets((2, 1, 1, 2)), torch.tensor([0, 1, 0], device=device)
    rows = torch.tensor([0, 1, 5, 2, 2, 4], device=index_device)
    operators = torch.ops.ace_kernels
    for problem in (
        (video, text, None, offsets, 0.05, None, 1, False),
        (video, text, rows, offsets, 0.05, labels, 1, False),
        (video, text, rows, offsets, 0.05, labels, 2, False),
        (video, text, None, offsets, 0.05, labels, 1, True),
    ):
        torch.library.opcheck(operators.concept, problem)
        outcome, saved = operators.concept(*problem)
        torch.library.opcheck(operators.concept_gradients, (torch.randn_like(outcome), saved, [True, False], *problem))


def test_compiled_equals_eager(device, class_offsets):
    """`torch.compile(fullgraph=True)` over loss and gradients: the same bits, no graph break."""
    video, text, shadow = (torch.randn(n, 16, device=device) for n in (4, 9, 3))
    offsets, labels = class_offsets((4, 5)), torch.tensor([0, 1, 1, 0], device=device)
    shadow_offsets = class_offsets((1, 2))

    def loss(v, t, s):
        return concept_cross_entropy(v * 1.0, t, offsets, labels, 0.05, s, shadow_offsets)

    eager = value_and_gradients(loss, video, text, shadow)
    compiled = value_and_gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"), video, text, shadow)
    assert torch.equal(eager[0], compiled[0])
    for mine, theirs in zip(eager[1], compiled[1], strict=True):
        assert torch.equal(mine, theirs)


def test_second_derivatives_are_refused(device, class_offsets):
    """A gradient penalty gets a reason instead of a wrong number."""
    video = torch.randn(2, 4, device=device, requires_grad=True)
    text = torch.randn(3, 4, device=device)
    loss = concept_cross_entropy(video, text, class_offsets((1, 2)), torch.tensor([0, 1], device=device), 0.1)
    (grad,) = torch.autograd.grad(loss, video, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.square().sum().backward()


def test_no_video_gives_no_logit(device, class_offsets):
    """An empty batch of an evaluation is not an error."""
    text = torch.randn(3, 4, device=device)
    assert concept_similarity(text[:0], text, class_offsets((1, 2)), 1.0).shape == (0, 2)


def test_training_with_the_operators_follows_float64(device, class_offsets):
    """Sixty steps of SGD on the loss of Eq. 9, videos and phrases learnt: the losses of a float64 run of the formula.

    A gradient that is wrong by a few percent passes comparisons of one step and shows in sixty.
    """
    sizes, shadow_sizes = (2, 1, 3), (1, 2, 1)
    start = [torch.randn(n, 12, dtype=torch.float64, device=device) for n in (8, 6, 4)]
    labels = torch.randint(3, (8,), device=device)

    def fused(v, t, s):
        return concept_cross_entropy(v, t, class_offsets(sizes), labels, 0.1, s, class_offsets(shadow_sizes))

    def formula(v, t, s):
        return reference_loss(v, t, sizes, labels, 0.1, s, shadow_sizes, unit64)

    def train(loss_function, dtype):
        tensors = [x.to(dtype).clone().requires_grad_() for x in start]
        optimizer, losses = torch.optim.SGD(tensors, lr=0.05, momentum=0.9), []
        for _ in range(60):
            optimizer.zero_grad()
            loss = loss_function(*tensors)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses)

    ours, expected = train(fused, torch.float32), train(formula, torch.float64)
    assert expected[-1] < 0.5 * expected[0], "the problem must be learnable, or the comparison says nothing"
    assert (ours - expected).abs().max() < 1e-4 * expected[0]
