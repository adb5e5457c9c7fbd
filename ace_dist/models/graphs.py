"""CUDA graphs of a tower's training pass: launched as one, so that a step does not wait for Python.

A tower of twelve blocks is about 700 launches, 40 ms of host time; at 15 frames a GPU computes them in as long.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ace_dist.utils.console import say

# Largest part of an output or gradient by which a replay may differ from the pass before the capture: a hundred times
# what another order of bf16 sums made on an H100 (1e-4).
TRIAL = 0.01
WARM_UPS = 3  # passes before a capture: they compile, choose kernels and fill caches, which a capture must not


class GraphedFunction:
    """`function(*inputs) -> Tensor` for training, by CUDA graphs of its forward and its backward pass.

    The graphs are captured at the first call and serve inputs of those shapes; others run without. They read the
    weights of `module` where they lie, so optimizer steps are seen; where one was moved, or a frozen one written, both
    are captured anew. Gradients reach the trained weights through autograd, so hooks and accumulation see each of them.
    A forward pass must be followed by its backward pass before the next one: both use the same memory.
    """

    def __init__(self, function: Callable[..., Tensor], module: nn.Module) -> None:
        self.function, self.module = function, module
        self.captured: CapturedPass | None = None
        self.shapes: list[Any] = []
        self.stamps: list[tuple[int, int]] = []  # address of each weight, and version of a frozen one
        self.failed = False

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if self.failed:
            return self.function(*inputs)
        tensors = [tensor for tensor in inputs if tensor is not None]
        shapes = [(tensor.shape, tensor.dtype) for tensor in tensors]
        stamps = [(p.data_ptr(), 0 if p.requires_grad else p._version) for p in self.module.parameters()]
        if self.captured is None or stamps != self.stamps:
            self.capture(inputs)
            self.shapes, self.stamps = shapes, stamps
        if self.captured is None or shapes != self.shapes:
            return self.function(*inputs)
        return cast(Tensor, Replay.apply(self.captured, *tensors, *self.captured.parameters))

    def capture(self, inputs: Sequence[Tensor | None]) -> None:
        """Capture both passes; where CUDA refuses or a replay is wrong, say so and run without from then on."""
        self.captured = None  # frees the memory of the last one
        try:
            self.captured = CapturedPass(self.function, inputs, self.module)
        except RuntimeError as error:
            self.failed = True
            reason = (str(error).splitlines() or [""])[0]
            say(f"CUDA graphs: off, the capture failed ({reason}); model.video.compile=default does not try it")


class CapturedPass:
    """Both graphs on memory of their own: copies of the inputs, the output, the gradients of `parameters`."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor | None], module: nn.Module) -> None:
        self.function, self.module, self.calls = function, module, 0
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # Autograd ties a parameter to the stream that used it first, and DeepSpeed keeps that tie, so a capture on
        # another stream would fail. These are new ones on the same memory.
        self.twins = {parameter: nn.Parameter(parameter.detach()) for parameter in self.parameters}
        self.arguments = [None if tensor is None else tensor.detach().clone() for tensor in inputs]
        self.inputs = [tensor for tensor in self.arguments if tensor is not None]
        self.gradient_in: Tensor | None = None
        self.live: Tensor | None = None
        with torch.enable_grad():
            with side_stream():
                for _ in range(WARM_UPS):
                    expected = [*self.run_forward(), *self.run_backward()]
            self.forward, (self.output,) = record(self.run_forward, None)
            self.backward, self.gradients_out = record(self.run_backward, self.forward.pool())
        self.live = None  # autograd's graph has done its work
        self.try_out(expected)

    @torch.no_grad()
    def try_out(self, expected: Sequence[Tensor | None]) -> None:
        """Replay both graphs once; raises `RuntimeError` when a result is not that of the passes before."""
        self.forward.replay()
        self.backward.replay()
        pairs = zip([self.output, *self.gradients_out], expected, strict=True)
        gaps = [((a.float() - b.float()).norm(), b.float().norm()) for a, b in pairs if a is not None and b is not None]
        if wrong := sum(not bool(gap <= TRIAL * size) for gap, size in gaps):
            raise RuntimeError(f"{wrong} of {len(gaps)} results of a replay differ by more than {TRIAL:.0%}")

    def run_forward(self) -> list[Tensor]:
        with replaced(self.module, self.twins):
            self.live = self.function(*self.arguments)
        return [self.live.detach()]

    def run_backward(self) -> list[Tensor | None]:
        assert self.live is not None
        if self.gradient_in is None:
            self.gradient_in = torch.ones_like(self.live)
        with replaced(self.module, self.twins):  # for what is computed again
            gradients = torch.autograd.grad(self.live, list(self.twins.values()), self.gradient_in, allow_unused=True)
        return [None if gradient is None else gradient.detach() for gradient in gradients]


@contextmanager
def replaced(module: nn.Module, twins: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    """While entered, `twins` stand for the parameters of `module` that are their keys."""
    named = ((owner, name, p) for owner in module.modules() for name, p in owner._parameters.items())
    places = [(owner, name, p) for owner, name, p in named if p is not None and p in twins]
    try:
        for owner, name, parameter in places:
            owner._parameters[name] = twins[parameter]
        yield
    finally:
        for owner, name, parameter in places:
            owner._parameters[name] = parameter


@contextmanager
def side_stream() -> Iterator[None]:
    """A stream beside the current one, as captures use: what is allocated or chosen by stream is so before them."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


def record(run: Callable[[], list[Any]], pool: Any) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """Capture `run`; returns the graph and the result, whose memory a replay writes. Other threads may use the GPU."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return graph, result


class Replay(torch.autograd.Function):
    """A captured pass as a node of autograd's graph. What leaves it is copied: the next replay writes there again."""

    @staticmethod
    def forward(ctx: Any, captured: CapturedPass, *tensors: Tensor) -> Tensor:
        for place, tensor in zip(captured.inputs, tensors, strict=False):
            place.copy_(tensor, non_blocking=True)
        captured.forward.replay()
        captured.calls += 1
        ctx.captured, ctx.call = captured, captured.calls
        return cast(Tensor, captured.output.clone())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        captured: CapturedPass = ctx.captured
        assert ctx.call == captured.calls, "another forward pass has overwritten what this backward pass needs"
        assert captured.gradient_in is not None
        captured.gradient_in.copy_(gradient)
        captured.backward.replay()
        gradients = [None if gradient is None else gradient.clone() for gradient in captured.gradients_out]
        return (None, *(None for _ in captured.inputs), *gradients)
