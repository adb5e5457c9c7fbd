"""Torch's deterministic mode: equal inputs give equal bits, or the operator that cannot is named."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from ace_dist.utils.errors import RunError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # ":4096:8": eight buffers of 4 MiB, one of the two values that NVIDIA documents


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """While entered with `on`: equal inputs give equal bits on this device, or a `RunError` names the operator.

    Entered before the first matrix product on CUDA, because cuBLAS reads its workspace setting once. The seeds are
    those of the run anyway; what this adds is torch's choice of algorithms and no search for the fastest of them.
    What was set before comes back on leaving.
    """
    if not on:
        yield
        return
    flags = torch.backends.cudnn
    filling: Any = torch.utils.deterministic  # a module with a property, which no type checker sees
    before = (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        flags.deterministic, flags.benchmark, os.environ.get(WORKSPACE), filling.fill_uninitialized_memory,
    )  # fmt: skip
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    flags.deterministic, flags.benchmark = True, False
    # Filling every new tensor with NaN only matters to a bug that reads it unwritten; it was 87 % of a step on a CPU.
    filling.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        if named := re.match(r"(\S+) does not have a deterministic implementation", str(error)):
            raise RunError(
                f"training.deterministic=true, but {named[1]} has no deterministic form on this device: set "
                f"training.deterministic=false, or choose settings that do without it, such as "
                f"model.video.attention=sdpa or loader.backend=pyav; for a run that has logged steps, in another "
                f"folder (run=DIR)"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        flags.deterministic, flags.benchmark, filling.fill_uninitialized_memory = before[2], before[3], before[5]
        if before[4] is None:
            os.environ.pop(WORKSPACE, None)
