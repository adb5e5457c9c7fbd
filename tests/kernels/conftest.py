"""Every test of the operators runs with plain torch, and again with Triton: interpreted, or compiled on a GPU.

Triton settles whether it interprets when it is imported, and other tests of the session want it as it is. So the
interpreted run is a session of its own, in a subprocess: `test_sessions.py` starts it.
"""

import pytest
import torch
from kernel_reference import INTERPRETING

ON_GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("torch-cuda", "triton-cuda")]


@pytest.fixture(autouse=True, params=["triton-cpu"] if INTERPRETING else ["torch-cpu", *ON_GPU])
def device(request, monkeypatch):
    """The device of the tensors, with `ACE_KERNELS` set to the implementation under test."""
    implementation, device = request.param.split("-")
    monkeypatch.setenv("ACE_KERNELS", implementation)
    return torch.device(device)
