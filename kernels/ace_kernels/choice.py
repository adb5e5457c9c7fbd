"""Owns the choice between the Triton kernels and the plain-torch implementation (`ACE_KERNELS`)."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import lru_cache

import torch

from ace_kernels.checks import KernelInputError

SETTING = "ACE_KERNELS"


class KernelChoiceError(KernelInputError):
    """`ACE_KERNELS` asks for something unknown or something that this machine cannot run."""


def choose(device: torch.device) -> str:
    """`"triton"` or `"torch"` for tensors on `device`; the first call for a kind of device prints which and why.

    `ACE_KERNELS=triton|torch` settles it. Unset, Triton serves CUDA devices where it is installed, torch the others.
    """
    return settle(os.environ.get(SETTING, ""), device.type)


@lru_cache
def settle(setting: str, kind: str) -> str:
    """The choice for a setting and a kind of device, printed on its first use by rank 0."""
    if setting not in ("", "triton", "torch"):
        raise KernelChoiceError(f"{SETTING}={setting} is not one of triton, torch; unset it to choose automatically")
    obstacle = triton_obstacle(kind) if setting != "torch" else None
    if setting == "triton" and obstacle:
        raise KernelChoiceError(f"{SETTING}=triton cannot run: {obstacle}; set it to torch or unset it")
    chosen = "torch" if setting == "torch" or obstacle or (kind != "cuda" and not setting) else "triton"
    if os.environ.get("RANK", "0") == "0":
        reason = f"{SETTING}={setting}" if setting else obstacle or "it runs on this device"
        print(f"ace_kernels: {chosen} on {kind}, {reason}", flush=True)
    return chosen


def triton_obstacle(kind: str) -> str | None:
    """Why Triton cannot serve a kind of device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if kind == "cuda" or (kind == "cpu" and interpreting()):
        return None
    return f"triton needs a CUDA device and the tensors are on {kind} (TRITON_INTERPRET=1 interprets, for tests)"


def interpreting() -> bool:
    """Whether the kernels run in Triton's interpreter, which is settled when they are defined."""
    defined = sys.modules.get("ace_kernels.triton_kernels")
    if defined is not None:
        return bool(defined.INTERPRETED)
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
