"""Independent float64 implementation of ACE Eq. 3 and 8 through the B×S matrix, and the plain low-precision formula."""

import os

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"  # this session runs Triton's interpreter

# Values of the fixture `device`: implementation, device of the tensors and, with `INDEX_CASES`, of offsets and rows.
ON_CPU = ["triton-cpu"] if INTERPRETING else ["torch-cpu"]
ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("torch-cuda", "triton-cuda")]
CASES = ON_CPU if INTERPRETING else [*ON_CPU, *ON_GPU]
INDEX_CASES = pytest.mark.parametrize(
    "device",
    ON_CPU
    if INTERPRETING
    else [
        *ON_CPU,
        *(
            pytest.param(f"{name}-cuda-indices_{place}", marks=pytest.mark.gpu)
            for name in ("torch", "triton")
            for place in ("cpu", "cuda")
        ),
    ],
    indirect=True,
)


def forget_plans():
    """Plans are kept by shapes and types; a test that moves the edges between the routes needs new ones."""
    from ace_kernels import concept_triton

    concept_triton.build_forward.cache_clear()
    concept_triton.build_gradients.cache_clear()


def record_launches(monkeypatch):
    """The kernels that start from now on, by name, each with its arguments by name."""
    from ace_kernels.backend import Launch

    launches, start = [], Launch.__call__

    def record(self, grid, tensors, sizes=()):
        launches.append((self.kernel.fn.__name__, self.arguments(tensors, sizes)))
        start(self, grid, tensors, sizes)

    monkeypatch.setattr(Launch, "__call__", record)
    return launches


def class_offsets(sizes, device="cpu"):
    """Class offsets [C+1]."""
    return torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], device=device)


def reference_logits(video, text, sizes, temperature, normalise):
    """Average over each class of the per-synonym cosines, in the dtype of the inputs."""
    similarity = normalise(video) @ normalise(text).T
    return torch.stack([part.mean(1) for part in similarity.split(list(sizes), 1)], 1) / temperature


def unit64(rows):
    """Unit rows; zero rows stay zero."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)


def unit_plain(rows):
    """What anyone would write."""
    return torch.nn.functional.normalize(rows, dim=1)


def reference_loss(video, text, sizes, labels, temperature, shadow=None, shadow_sizes=None, normalise=unit64):
    """Eq. 8, mean over the videos."""
    logits = reference_logits(video, text, sizes, temperature, normalise)
    if shadow is not None:
        wrong = reference_logits(video, shadow, shadow_sizes, temperature, normalise)
        logits = torch.cat([logits, wrong.gather(1, labels[:, None])], 1)
    return torch.nn.functional.cross_entropy(logits, labels)


def value_and_gradients(function, *inputs):
    """Value and gradients of a scalar function in its float inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return value.detach(), torch.autograd.grad(value, leaves)
