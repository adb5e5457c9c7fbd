"""Memory of the host and of a GPU: copies that do not wait for the step, and freed memory given back."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor


def trim_heap() -> None:
    """Give memory that was freed back to the system. glibc keeps it otherwise; elsewhere nothing happens."""
    libc = ctypes.CDLL(None) if Path("/proc/self").exists() else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # type: ignore[union-attr]


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor.to(device)`, to a GPU from pinned memory: from any other the host would wait for all work before."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Upload:
    """Copies clips to a device; to a GPU from pinned memory and on a stream of its own, beside the step before.

    On torch's current stream a copy would begin when that step has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor there; what is queued on the current stream from now on finds it complete."""
        if self.stream is None:
            return tensor.to(self.device)
        with torch.cuda.stream(self.stream):
            there = tensor.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        there.record_stream(current)  # else its memory could serve the next copy while the step still reads it
        return there
