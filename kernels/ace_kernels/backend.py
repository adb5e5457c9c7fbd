"""What both operators share: the choice between Triton and plain torch (`ACE_KERNELS`), tracing, autocast, launches."""

import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
from torch import Tensor

SETTING = "ACE_KERNELS"
KNOWN_TRITON = ("3.6", "3.7", "3.8", "3.9")  # whose compiled kernels `start` knows how to run
# Triton decides when a kernel is defined whether it is compiled or interpreted on the CPU (for tests).
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


class KernelInputError(ValueError):
    """Arguments whose shapes, types or values do not fit together, or a backend that cannot run."""


def choose(device: torch.device) -> str:
    """`"triton"` or `"torch"` for tensors on `device`; the first call for a kind of device prints which and why.

    `ACE_KERNELS=triton|torch` decides. Unset, Triton serves CUDA devices where it is installed, torch the others.
    """
    return cached_choice(os.environ.get(SETTING, ""), device.type)


@lru_cache
def cached_choice(setting: str, kind: str) -> str:
    """The choice for a setting and a kind of device; rank 0 prints it once."""
    if setting not in ("", "triton", "torch"):
        raise KernelInputError(f"{SETTING}={setting} is not one of triton, torch; unset it to choose automatically")
    reason = unsupported_reason(kind) if setting != "torch" else None
    if setting == "triton" and reason:
        raise KernelInputError(f"{SETTING}=triton cannot run: {reason}; set it to torch or unset it")
    chosen = "torch" if setting == "torch" or reason or (kind != "cuda" and not setting) else "triton"
    if os.environ.get("RANK", "0") == "0":
        why = f"{SETTING}={setting}" if setting else reason or "it runs on this device"
        print(f"ace_kernels: {chosen} on {kind}, {why}", flush=True)
    return chosen


def unsupported_reason(kind: str) -> str | None:
    """Why Triton cannot serve a kind of device, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if kind == "cuda" or (kind == "cpu" and INTERPRETED):
        return None
    return f"triton needs a CUDA device and the tensors are on {kind} (TRITON_INTERPRET=1 interprets, for tests)"


class Launch:
    """A Triton kernel and what is the same at every call of it: the arguments after its tensors and sizes, the warps.

    Triton looks at each argument of each launch to find the compiled kernel, which takes longer than a small kernel
    runs. All that this depends on is settled when a `Launch` is made, but for the alignment of the tensors and the
    range of the sizes. So the compiled kernel is kept, and started directly where these are as usual: tensors at
    multiples of 16 bytes, sizes of 31 bits. A kernel must not be specialised on its sizes (`do_not_specialize`).
    """

    def __init__(self, kernel: Any, warps: int, fixed: dict[str, Any], checked: bool = False) -> None:
        """`checked` compiles the assertions of the kernel in."""
        names = kernel.arg_names
        self.kernel = kernel
        self.fixed = tuple(fixed[name] for name in names[len(names) - len(fixed) :])
        self.settings: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": True}
        if checked:
            self.settings |= {"debug": True, "sanitize_overflow": False}
        self.compiled: Any = None

    def arguments(self, tensors: "Sequence[Tensor | Part]", sizes: tuple[int, ...] = ()) -> dict[str, Any]:
        """All arguments of a call by their names."""
        whole = [x.tensor() if isinstance(x, Part) else x for x in tensors]
        return dict(zip(self.kernel.arg_names, (*whole, *sizes, *self.fixed), strict=True))

    def __call__(
        self, grid: tuple[int, int, int], tensors: "Sequence[Tensor | Part]", sizes: tuple[int, ...] = ()
    ) -> None:
        device = (tensors[0].whole if isinstance(tensors[0], Part) else tensors[0]).get_device()
        if device >= 0 and device != torch.cuda.current_device():  # Triton starts on the current one
            with torch.cuda.device(device):
                self(grid, tensors, sizes)
            return
        addresses = [x.data_ptr() for x in tensors]
        usual = not reduce(or_, addresses) & 15 and not (sizes and max(sizes) >> 31)
        if usual and self.compiled is not None:
            start(self.compiled, grid, (*addresses, *sizes, *self.fixed))
            return
        compiled = self.kernel[grid](**self.arguments(tensors, sizes), **self.settings)
        if usual:
            self.compiled = compiled  # None from the interpreter


class Part(NamedTuple):
    """Numbers of an allocation from `start` on, as an argument of a launch: a tensor is made only if Triton asks."""

    whole: Tensor
    address: int
    start: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address

    def tensor(self) -> Tensor:
        return self.whole[self.start :].view(self.dtype)


def start(compiled: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...]) -> None:
    """Start a compiled kernel on the current stream.

    What `compiled[grid](*arguments)` does but for the hooks of profilers, which cost as much again. So it is used where
    there are hooks, and with versions of Triton whose `run` may take other arguments.
    """
    import triton

    knobs = triton.knobs.runtime
    if triton.__version__[:3] not in KNOWN_TRITON or knobs.launch_enter_hook.calls or knobs.launch_exit_hook.calls:
        compiled[grid](*arguments)
        return
    driver = triton.runtime.driver.active
    stream = driver.get_current_stream(driver.get_current_device())
    compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments)


def is_plain(x: Tensor) -> bool:
    """Whether an operator may compute at once.

    Tracing (compile, export, fake tensors and other subclasses) needs the registered operator instead, whose way
    through the dispatcher costs more than the kernels of a training step.
    """
    return type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()


def no_autocast(kind: str) -> AbstractContextManager[Any]:
    """Autocast off; the context costs as much as a small kernel, so only where it is on. Meta tensors know none."""
    active = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else nullcontext()


def no_second_derivative(ctx: Any, *grads: Any) -> None:
    """The backward of the gradient operators: an error with a reason, not a silent zero."""
    raise RuntimeError("ace_kernels defines no second derivative; run the loss in float64 with plain torch to get one")
