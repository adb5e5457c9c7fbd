"""The one attention call of the video towers, and the choice of the kernel behind it.

Sequences of up to 32 tokens, as the frames of one patch are, go to the project's own Triton kernel on CUDA; all others
go to xformers or to PyTorch's own attention. On a CPU the choice follows benchmarks/results/attention_cpu.csv.
"""

import importlib
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Literal, cast

import torch
from ace_kernels import choose, temporal_attention_packed, temporal_attention_unsupported_reason
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ace_dist.models.recompute import recompute
from ace_dist.utils.console import say
from ace_dist.utils.errors import ModelError

AttentionBackend = Literal["triton", "xformers", "sdpa"]
CUDA_GRID_LIMIT = 65535  # largest y or z size of a CUDA grid, where kernels put the batch (CUDA C++ Guide, table 30)

# Largest difference from PyTorch's attention in float64, in units of its largest number, that the Triton kernel may
# show before it is trusted with a shape: four roundings of the type; float32 products are three TF32 ones.
TOLERANCE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9, torch.float32: 1e-4}

# Keys up to which the formula serves on a CPU instead of PyTorch's tiled kernel; forward and backward in
# benchmarks/results/attention_cpu.csv (one thread of an EPYC). bfloat16: 1.9 to 6.6 times as fast from 8 to 197 keys.
# float32: even with the kernel at 8 keys and, in the demo, 1.06 times as fast at 17; with 12 heads it loses by a fifth
# at 15 keys and by a half at 30.
LONGEST_FORMULA_ON_CPU = {torch.float32: 20, torch.float64: 20, torch.bfloat16: 256, torch.float16: 256}


def attend_packed(qkv: Tensor, backend: AttentionBackend = "sdpa", again: bool = False) -> Tensor:
    """`attend` within the sequences of one qkv tensor: [B,N,3,heads,d] -> [B,N,heads,d].

    Where the short kernel serves, the gradient of qkv is written in place; elsewhere autograd joins three.
    """
    if backend == "triton":
        return temporal_attention_packed(qkv)
    q, k, v = qkv.unbind(2)
    return attend(q, k, v, backend, again)


def attend(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = "sdpa", again: bool = False) -> Tensor:
    """Softmax attention, scaled by 1/sqrt(d): [B,N,heads,d] each -> [B,N,heads,d]; `backend` is not `triton`.

    `k` and `v` may have another N than `q`. Only the last axis must be contiguous: slices of one qkv tensor will do.
    With `again` the backward pass computes short attention on a CPU again; the other kernels store no scores anyway.
    """
    if q.is_cuda and q.shape[0] > CUDA_GRID_LIMIT:
        pieces = [torch.split(tensor, CUDA_GRID_LIMIT) for tensor in (q, k, v)]
        return torch.cat([attend(q_i, k_i, v_i, backend, again) for q_i, k_i, v_i in zip(*pieces, strict=True)])
    if backend == "xformers":
        return cast(Tensor, importlib.import_module("xformers.ops").memory_efficient_attention(q, k, v))
    if not q.is_cuda and k.shape[1] <= LONGEST_FORMULA_ON_CPU.get(k.dtype, 0):
        return recompute(formula, q, k, v) if again else formula(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def short_on_cpu(tokens: int, x: Tensor) -> AbstractContextManager[None]:
    """Context for networks that call PyTorch's attention themselves: the formula where `attend` would take it.

    At the tabletop's 17 tokens in bfloat16 it halves a step of the image tower (0.21 to 0.10 s of one core).
    """
    short = not x.is_cuda and tokens <= LONGEST_FORMULA_ON_CPU.get(x.dtype, 0)
    return sdpa_kernel(SDPBackend.MATH) if short else nullcontext()


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


@lru_cache
def choose_attention(setting: str, device: torch.device) -> AttentionBackend:
    """The backend that `model.video.attention` (auto, triton, xformers or sdpa) means on a device.

    The first call prints the choice with its reason (rank 0 alone). `auto` takes the Triton kernel for short sequences
    on CUDA; for all others, xformers when it runs there, else PyTorch's. Raises `ModelError` for what cannot run.
    """
    if setting != "auto":
        if reason := attention_refused(setting, device):
            raise ModelError(f"model.video.attention={setting} cannot run: {reason}; set it to auto or sdpa")
        say(f"attention: {describe(setting, device)} on {device.type}, as set (model.video.attention={setting})")
        return cast(AttentionBackend, setting)
    reason = xformers_unsupported_reason(device) or "it runs on this device"
    backend = general_backend(device)
    if not triton_unsupported_reason(device):
        backend, reason = "triton", f"one launch for short sequences; beyond, {reason}"
    say(f"attention: {describe(backend, device)} on {device.type}, {reason} (model.video.attention=auto)")
    return backend


def resolve_attention(
    setting: str, device: torch.device, tokens: int, heads: int, width: int, dtype: torch.dtype
) -> AttentionBackend:
    """The kernel behind `attend_packed` for sequences of `tokens`, found before torch.compile looks at the call."""
    backend = choose_attention(setting, device)
    if backend == "triton" and not short_serves(device, tokens, heads, width, dtype):
        return general_backend(device)
    return backend


def general_attention(setting: str, device: torch.device) -> AttentionBackend:
    """The kernel behind `attend`, whose queries and keys may be of unequal number."""
    backend = choose_attention(setting, device)
    return general_backend(device) if backend == "triton" else backend


def describe(backend: str, device: torch.device) -> str:
    """The backend in words: Triton names what serves the sequences that it does not."""
    return f"triton up to 32 tokens and {general_backend(device)} beyond" if backend == "triton" else backend


@lru_cache
def general_backend(device: torch.device) -> AttentionBackend:
    """What serves sequences of any length: xformers where it runs, else PyTorch's own."""
    return "sdpa" if xformers_unsupported_reason(device) else "xformers"


def attention_refused(setting: str, device: torch.device) -> str | None:
    """Why `model.video.attention` cannot run on `device`, or None."""
    check = {"triton": triton_unsupported_reason, "xformers": xformers_unsupported_reason}.get(setting)
    return check(device) if check else None


def triton_unsupported_reason(device: torch.device) -> str | None:
    """Why the Triton kernel cannot serve `device` at any shape, or None."""
    if device.type != "cuda":
        return f"the Triton kernel needs a CUDA device and the model is on {device.type}"
    if choose(device) == "torch":
        return "ace_kernels runs in plain torch here (ACE_KERNELS, or triton is not installed)"
    return None


@lru_cache
def short_serves(device: torch.device, tokens: int, heads: int, width: int, dtype: torch.dtype) -> bool:
    """Whether the Triton kernel takes sequences of this shape: within its limits, and right in a first trial.

    When it does not compile or differs too much from PyTorch's, general kernels serve, and the reason is printed.
    """
    if temporal_attention_unsupported_reason(tokens, width, dtype):
        return False  # beyond the limits: the choice that was printed says so
    if fault := kernel_fault(device, tokens, heads, width, dtype):
        what = f"sequences of {tokens} tokens, {heads} heads of {width} in {str(dtype).removeprefix('torch.')}"
        say(f"attention: {general_backend(device)} instead of triton for {what}: {fault}")
    return not fault


def kernel_fault(device: torch.device, tokens: int, heads: int, width: int, dtype: torch.dtype) -> str | None:
    """How the Triton kernel fails on a small random input, or None when output and gradient are right."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(5, tokens, 3, heads, width, generator=generator).to(device, dtype)
    weight = torch.randn(5, tokens, heads, width, generator=generator).to(device, dtype)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        short, exact = drawn.clone().requires_grad_(), drawn.double().requires_grad_()
        try:
            ours = temporal_attention_packed(short)
            ours_grad = torch.autograd.grad(ours, short, weight)[0]
        except Exception as error:  # whatever a compiler raises, training can go on without this kernel
            return f"the Triton kernel failed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        q, k, v = (x.transpose(1, 2) for x in exact.unbind(2))
        true = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        true_grad = torch.autograd.grad(true, exact, weight.double())[0]
    for name, result, expected in (("output", ours, true), ("gradient", ours_grad, true_grad)):
        gap, allowed = ((result.double() - expected).abs().max() / expected.abs().max()).item(), TOLERANCE[dtype]
        if not gap <= allowed:
            return f"its {name} differs from PyTorch's by {gap:.2g} of the largest number, allowed {allowed:.2g}"
    return None


def xformers_unsupported_reason(device: torch.device) -> str | None:
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
