"""Owns the one attention call of the video encoder and the choice between xformers and PyTorch's own kernel."""

from __future__ import annotations

import importlib
import os
from functools import lru_cache
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional

from ace_dist.errors import UserError

__all__ = ["AttentionBackend", "AttentionError", "attend", "choose_attention"]

AttentionBackend = Literal["xformers", "sdpa"]
SETTINGS = ("auto", "xformers", "sdpa")
CUDA_GRID_LIMIT = 65535  # largest y or z size of a CUDA grid, where kernels put the batch (CUDA C++ Guide, table 30)

# Keys up to which the formula itself beats PyTorch's tiled CPU kernel. Forward and backward on two cores of an EPYC:
# 8 keys in 576 sequences 5.0 ms against 10.0, 37 keys in 128 sequences 5.7 against 8.2; 101 keys are even, 197 lose.
SHORT_ON_CPU = 64


class AttentionError(UserError):
    """`model.video.attention` asks for something that this machine cannot do."""


def attend(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = "sdpa") -> Tensor:
    """Softmax attention, scaled by 1/sqrt(d): [B,N,heads,d] each -> [B,N,heads,d].

    `k` and `v` may have another N than `q`. Only the last axis must be contiguous: slices of one qkv tensor will do.
    """
    if q.is_cuda and q.shape[0] > CUDA_GRID_LIMIT:
        pieces = [torch.split(tensor, CUDA_GRID_LIMIT) for tensor in (q, k, v)]
        return torch.cat([attend(q_i, k_i, v_i, backend) for q_i, k_i, v_i in zip(*pieces, strict=True)])
    if backend == "xformers":
        operators = importlib.import_module("xformers.ops")
        return cast(Tensor, operators.memory_efficient_attention(q, k, v))
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if not q.is_cuda and k.shape[2] <= SHORT_ON_CPU:
        scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        return (scores.softmax(-1) @ v).transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@lru_cache
def choose_attention(setting: str, device: torch.device) -> AttentionBackend:
    """Settle `model.video.attention` (auto, xformers or sdpa) for a device.

    The first call prints the choice with its reason (rank 0 alone); later ones are silent. `auto` takes xformers on
    CUDA when it is installed and runs there, else PyTorch's scaled_dot_product_attention. Raises `AttentionError` for
    an unknown setting, and for xformers where it cannot run.
    """
    if setting not in SETTINGS:
        raise AttentionError(f"model.video.attention={setting} is not one of {', '.join(SETTINGS)}")
    obstacle = xformers_obstacle(device) if setting != "sdpa" else None
    if setting == "xformers" and obstacle:
        raise AttentionError(f"model.video.attention=xformers cannot run: {obstacle}; set it to auto or sdpa")
    backend: AttentionBackend = "sdpa" if setting == "sdpa" or obstacle else "xformers"
    if os.environ.get("RANK", "0") == "0":
        reason = (obstacle or "it runs on this device") if setting == "auto" else "as set"
        print(f"attention: {backend} on {device.type}, {reason} (model.video.attention={setting})", flush=True)
    return backend


def xformers_obstacle(device: torch.device) -> str | None:
    """Why xformers cannot serve `device`, or None when a small call of its operator succeeds there."""
    if device.type != "cuda":
        return f"xformers needs a CUDA device and the model is on {device.type}"
    try:
        operators = importlib.import_module("xformers.ops")
    except (ImportError, OSError) as error:
        return f"xformers does not import ({' '.join(str(error).split())})"
    probe = torch.zeros(1, 8, 1, 64, device=device)
    try:
        operators.memory_efficient_attention(probe, probe, probe)
    except (NotImplementedError, RuntimeError) as error:
        return f"xformers has no operator for it ({str(error).splitlines()[0]})"
    return None
