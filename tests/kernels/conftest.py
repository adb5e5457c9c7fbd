"""Every test of the operators runs with plain torch, and again with Triton: interpreted, or compiled on a GPU.

Triton settles whether it interprets when it is imported, and other tests of the session want it as it is. So the
interpreted run is a session of its own, in a subprocess: `test_sessions.py` starts it.
"""

from functools import partial

import kernel_reference
import pytest
import torch


@pytest.fixture(autouse=True, params=kernel_reference.CASES)
def device(request, monkeypatch):
    """The device of the tensors, with `ACE_KERNELS` set to the implementation under test."""
    implementation, device, *_ = request.param.split("-")
    monkeypatch.setenv("ACE_KERNELS", implementation)
    return torch.device(device)


@pytest.fixture
def index_device(request, device):
    """Where offsets and rows lie: the operators take them from the CPU (as training gives them) and from the device.

    Modules that ask for it have `pytestmark = INDEX_CASES`. Labels lie beside the videos.
    """
    return torch.device(request.node.callspec.params["device"].partition("indices_")[2] or device)


@pytest.fixture
def class_offsets(index_device):
    """`class_offsets((2, 1))`: the offsets of classes of these sizes, where the case wants them."""
    return partial(kernel_reference.class_offsets, device=index_device)


@pytest.fixture
def large_memory(device):
    """For tests of up to 12 GiB: skipped where a GPU has less to spare, and given back to tests that share the GPU."""
    if device.type != "cuda":
        yield
        return
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < 12:
        pytest.skip(f"needs 12 GiB of GPU memory, {free:.1f} are free")
    yield
    torch.cuda.empty_cache()
