"""What is true of the Triton kernels alone: launches, assertions, the traps of the interpreter, resources, graphs."""

import pytest
import torch
from ace_kernels import ConceptLayout, concept_cross_entropy, concept_similarity
from ace_kernels.concept_layout import build_layout
from kernel_reference import INTERPRETING, class_offsets, forget_plans, record_launches, reference_logits, unit64

ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(autouse=True, params=["cpu"] if INTERPRETING else [ON_GPU])
def device(request, monkeypatch):
    """Triton alone, in place of every implementation."""
    monkeypatch.setenv("ACE_KERNELS", "triton")
    return torch.device(request.param)


def training_step(device):
    """Forward and backward of the loss at the smallest training shape of the paper (GTEA: 6 classes of 9)."""
    video, text, shadow = (torch.randn(n, 512, device=device, requires_grad=True) for n in (16, 54, 54))
    offsets, labels = torch.arange(0, 55, 9), torch.randint(6, (16,), device=device)
    loss = concept_cross_entropy(video, text, offsets, labels, 0.02, shadow, offsets)
    loss.backward()
    return loss


def test_training_takes_three_launches(device, monkeypatch):
    """Means, logits with losses, gradients: forward and backward in three (the issue allows four)."""
    launches = record_launches(monkeypatch)
    training_step(device)
    assert [name for name, _ in launches] == ["means_kernel", "logits_kernel", "row_gradients_kernel"]


def test_sixteen_bit_products_are_upcast_by_the_interpreter(device, monkeypatch):
    """The interpreter multiplies the bit patterns of bfloat16 and says nothing: errors of 1e11 without the upcast."""
    from ace_kernels import concept_triton

    monkeypatch.setattr(concept_triton, "TENSOR_CORE_PRODUCTS", 0)
    forget_plans()
    video, text = (torch.randn(n, 40, device=device).bfloat16() for n in (6, 9))
    problem = concept_triton.Problem(video, text, None, build_layout(text, [class_offsets((4, 5))], None), 0.01)
    plan = concept_triton.build_plan(concept_triton.build_form(problem))
    assert plan.split and plan.precision == "bf16"
    assert plan.gradient_dot == (torch.float32 if INTERPRETING else torch.bfloat16)
    ours = concept_similarity(video, text, class_offsets((4, 5)), 0.01)
    exact = reference_logits(video.double(), text.double(), (4, 5), 0.01, unit64)
    # The video is exact and a mean keeps 16 bits: 100 · 2^-17 · |m|, far below the 2^-9 of plain bfloat16.
    assert (ours.double() - exact).abs().max() < 100 * 2**-16
    forget_plans()


def test_uses_of_a_table_row_come_in_the_order_of_their_positions(device):
    """Classes that use each row, for the gradient that reads the table row by row."""
    index = torch.tensor([3, 0, 3, 1, 3], device=device)
    read = ConceptLayout.build([class_offsets((2, 3))], [index.cpu()], height=5).to(device)
    unread = ConceptLayout(class_offsets((2, 3)).to(device), index, None, (2,), False, 5)
    for layout in (read, unread):
        owners, starts = layout.row_uses()
        assert owners.tolist() == [0, 1, 0, 1, 1] and starts.tolist() == [0, 1, 2, 2, 5, 5]


@pytest.mark.gpu
def test_step_runs_in_a_cuda_graph(device):
    """No host sync anywhere in forward and backward: a graph captures them and replays with new inputs."""
    video, text = (torch.randn(n, 512, device=device, requires_grad=True) for n in (16, 110))
    labels, offsets = torch.randint(10, (16,), device=device), torch.arange(0, 111, 11)

    def step():
        return torch.autograd.grad(concept_cross_entropy(video, text, offsets, labels, 0.02), (video, text))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        video.normal_()
    graph.replay()
    for mine, theirs in zip(captured, step(), strict=True):
        assert torch.equal(mine, theirs)
