"""Owns the registered operators `ace_kernels::*`: schemas, fake implementations, autograd, and the dispatch.

Three operators: the similarity of videos with class means, the losses on it, and the gradient that serves both.
Tables come as (rows, index or None, offsets); a second table holds shadow negatives that are not rows of the first.
The class means are those of the sets, R·C, then those of the shadow negatives, C.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ace_kernels import torch_path
from ace_kernels.checks import KernelInputError, Table, check_values
from ace_kernels.choice import choose

NO_SECOND_DERIVATIVE = "ace_kernels defines no second derivative; run the loss in float64 with plain torch to get one"


class Implementation(Protocol):
    """What both implementations compute; `torch_path` documents it."""

    def similarity(
        self, video_BD: Tensor, tables: tuple[Table, ...], temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means, inverse norms."""

    def cross_entropy(
        self, video_BD: Tensor, tables: tuple[Table, ...], labels_B: Tensor, sets: int, shadowed: bool,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Losses, weights, shadow weights, means, inverse norms."""

    def gradients(
        self, weights_BN: Tensor, shadow_BR: Tensor | None, labels_B: Tensor | None, scales_R: Tensor | None,
        factor: float, video_BD: Tensor, tables: tuple[Table, ...], means_ND: Tensor, inverse_B: Tensor,
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """Gradients of the videos and of every table."""


def implementation(video_BD: Tensor) -> Implementation:
    """The module that computes on the device of the videos."""
    if choose(video_BD.device) == "torch":
        return torch_path
    from ace_kernels import triton_path  # imported late: a machine without CUDA needs no triton

    return triton_path


def tables_of(
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None = None,
    shadow_rows: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
) -> tuple[Table, ...]:
    """One or two tables from the flat arguments of an operator."""
    first = Table(text, rows, offsets)
    if shadow is None or shadow_offsets is None:
        return (first,)
    return first, Table(shadow, shadow_rows, shadow_offsets, "shadow_text")


def no_autocast(kind: str) -> AbstractContextManager[Any]:
    """Autocast off; the context costs as much as a small kernel, so only where it is on. Meta tensors know none."""
    active = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else nullcontext()


def compute_similarity(
    video: Tensor, text: Tensor, rows: Tensor | None, offsets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`ace_kernels::similarity` without the dispatcher."""
    tables = tables_of(text, rows, offsets)
    check_values(tables)
    with no_autocast(video.device.type):
        return implementation(video).similarity(video, tables, temperature)


def compute_cross_entropy(
    video: Tensor,
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None,
    shadow_rows: Tensor | None,
    shadow_offsets: Tensor | None,
    labels: Tensor,
    sets: int,
    shadowed: bool,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`ace_kernels::cross_entropy` without the dispatcher."""
    tables = tables_of(text, rows, offsets, shadow, shadow_rows, shadow_offsets)
    check_values(tables, labels, sum(table.classes for table in tables) // (sets + shadowed))
    with no_autocast(video.device.type):
        return implementation(video).cross_entropy(video, tables, labels, sets, shadowed, temperature)


def compute_gradients(
    weights: Tensor,
    shadow_weights: Tensor | None,
    labels: Tensor | None,
    scales: Tensor | None,
    factor: float,
    video: Tensor,
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None,
    shadow_rows: Tensor | None,
    shadow_offsets: Tensor | None,
    means: Tensor,
    inverse_norms: Tensor,
    needs: list[bool],
) -> tuple[Tensor | None, ...]:
    """`ace_kernels::gradients` without the dispatcher: three gradients, None where not needed."""
    tables = tables_of(text, rows, offsets, shadow, shadow_rows, shadow_offsets)
    wanted = tuple(needs[: len(tables) + 1])
    own = (weights, shadow_weights, labels, scales, factor)
    with no_autocast(video.device.type):
        found = implementation(video).gradients(*own, video, tables, means, inverse_norms, wanted)
    return (*found, None)[:3]


@torch.library.custom_op(
    "ace_kernels::similarity",
    mutates_args=(),
    schema="(Tensor video, Tensor text, Tensor? rows, Tensor offsets, float temperature) -> (Tensor, Tensor, Tensor)",
)
def similarity_op(
    video: Tensor, text: Tensor, rows: Tensor | None, offsets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, N], class means [N, D], inverse norms [B]."""
    return compute_similarity(video, text, rows, offsets, temperature)


@similarity_op.register_fake
def _(
    video: Tensor, text: Tensor, rows: Tensor | None, offsets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    tables = tables_of(text, rows, offsets)
    wide = torch_path.wide_type(tables, video)
    batch, width, classes = video.shape[0], video.shape[1], tables[0].classes
    return (
        video.new_empty((batch, classes), dtype=wide),
        video.new_empty((classes, width), dtype=wide),
        video.new_empty((batch,), dtype=wide),
    )


@torch.library.custom_op(
    "ace_kernels::cross_entropy",
    mutates_args=(),
    schema=(
        "(Tensor video, Tensor text, Tensor? rows, Tensor offsets, Tensor? shadow, Tensor? shadow_rows, "
        "Tensor? shadow_offsets, Tensor labels, int sets, bool shadowed, float temperature) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def cross_entropy_op(
    video: Tensor,
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None,
    shadow_rows: Tensor | None,
    shadow_offsets: Tensor | None,
    labels: Tensor,
    sets: int,
    shadowed: bool,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses [R], weights [B, R·C], shadow weights [B, R] or [0], class means, inverse norms."""
    return compute_cross_entropy(
        video, text, rows, offsets, shadow, shadow_rows, shadow_offsets, labels, sets, shadowed, temperature
    )


@cross_entropy_op.register_fake
def _(
    video: Tensor,
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None,
    shadow_rows: Tensor | None,
    shadow_offsets: Tensor | None,
    labels: Tensor,
    sets: int,
    shadowed: bool,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tables = tables_of(text, rows, offsets, shadow, shadow_rows, shadow_offsets)
    wide = torch_path.wide_type(tables, video)
    batch, width, total = video.shape[0], video.shape[1], sum(table.classes for table in tables)
    columns = total // (sets + shadowed) * sets
    shapes = ((sets,), (batch, columns), (batch, sets) if shadowed else (0,), (total, width), (batch,))
    losses, weights, shadow_weights, means, norms = (video.new_empty(shape, dtype=wide) for shape in shapes)
    return losses, weights, shadow_weights, means, norms


@torch.library.custom_op(
    "ace_kernels::gradients",
    mutates_args=(),
    schema=(
        "(Tensor weights, Tensor? shadow_weights, Tensor? labels, Tensor? scales, float factor, Tensor video, "
        "Tensor text, Tensor? rows, Tensor offsets, Tensor? shadow, Tensor? shadow_rows, Tensor? shadow_offsets, "
        "Tensor means, Tensor inverse_norms, bool[] needs) -> (Tensor, Tensor, Tensor)"
    ),
)
def gradients_op(
    weights: Tensor,
    shadow_weights: Tensor | None,
    labels: Tensor | None,
    scales: Tensor | None,
    factor: float,
    video: Tensor,
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None,
    shadow_rows: Tensor | None,
    shadow_offsets: Tensor | None,
    means: Tensor,
    inverse_norms: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of video, text and shadow text; empty where not needed."""
    found = compute_gradients(
        weights, shadow_weights, labels, scales, factor, video, text, rows, offsets, shadow, shadow_rows,
        shadow_offsets, means, inverse_norms, needs,
    )  # fmt: skip
    results = [video.new_empty(0) if grad is None else grad for grad in found]
    return results[0], results[1], results[2]


@gradients_op.register_fake
def _(
    weights: Tensor,
    shadow_weights: Tensor | None,
    labels: Tensor | None,
    scales: Tensor | None,
    factor: float,
    video: Tensor,
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None,
    shadow_rows: Tensor | None,
    shadow_offsets: Tensor | None,
    means: Tensor,
    inverse_norms: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    results = [
        video.new_empty(0)
        if rows is None or not needed
        else torch.empty_like(rows, memory_format=torch.contiguous_format)
        for rows, needed in zip((video, text, shadow), needs, strict=True)
    ]
    return results[0], results[1], results[2]


def no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    """A second derivative is an error with a reason, not a silent zero."""
    raise RuntimeError(NO_SECOND_DERIVATIVE)


gradients_op.register_autograd(no_second_derivative)


def keep_for_similarity(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What the backward of the similarity reads."""
    video, text, rows, offsets, temperature = inputs
    _, means, inverse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(means, inverse)
    ctx.save_for_backward(video, text, rows, offsets, means, inverse)
    ctx.temperature = temperature


def similarity_backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    """From [B, N] to the videos and the table."""
    if grad is None:
        return (None,) * 5
    video, text, rows, offsets, means, inverse = ctx.saved_tensors
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
    video_grad, text_grad, _ = gradients_by_any_route(video)(
        grad, None, None, None, 1 / ctx.temperature, video, text, rows, offsets, None, None, None, means, inverse, needs
    )
    return video_grad if needs[0] else None, text_grad if needs[1] else None, None, None, None


def keep_for_cross_entropy(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """What the backward of the losses reads: the derivative in the logits was computed by the forward."""
    video, text, rows, offsets, shadow, shadow_rows, shadow_offsets, labels, _, shadowed, temperature = inputs
    _, weights, shadow_weights, means, inverse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(weights, shadow_weights, means, inverse)
    ctx.save_for_backward(
        weights, shadow_weights, labels, video, text, rows, offsets, shadow, shadow_rows, shadow_offsets, means, inverse
    )
    ctx.factor = 1 / (temperature * video.shape[0])
    ctx.shadowed = shadowed


def cross_entropy_backward(ctx: Any, grad: Tensor | None, *unused: Any) -> tuple[Tensor | None, ...]:
    """From [R] to the videos and the tables."""
    if grad is None:
        return (None,) * 11
    weights, shadow_weights, labels, *rest = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 4)]
    own = (shadow_weights, labels) if ctx.shadowed else (None, None)
    found = gradients_by_any_route(rest[0])(weights, *own, grad, ctx.factor, *rest, needs)
    video, text, shadow = (part if needed else None for part, needed in zip(found, needs, strict=True))
    return video, text, None, None, shadow, None, None, None, None, None, None


similarity_op.register_autograd(similarity_backward, setup_context=keep_for_similarity)
cross_entropy_op.register_autograd(cross_entropy_backward, setup_context=keep_for_cross_entropy)


def direct(video: Tensor) -> bool:
    """Whether a call may skip the dispatcher, which costs more than a training step's kernels.

    Tracing (compile, export, fake tensors and other subclasses) needs the registered operators; plain tensors do not.
    """
    return type(video) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()


def gradients_by_any_route(video: Tensor) -> Callable[..., tuple[Tensor | None, ...]]:
    """The gradient operator. The registered one refuses second derivatives, so it serves `create_graph=True`."""
    return compute_gradients if direct(video) and not torch.is_grad_enabled() else gradients_op


class DirectSimilarity(torch.autograd.Function):
    """`ace_kernels::similarity` for plain tensors. (A separate `setup_context` costs 50 µs of `inspect` a call.)"""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        """The outputs of the operator."""
        output = compute_similarity(*inputs)
        keep_for_similarity(ctx, inputs, output)
        return output

    backward = staticmethod(similarity_backward)


class DirectCrossEntropy(torch.autograd.Function):
    """`ace_kernels::cross_entropy` for plain tensors."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        """The outputs of the operator."""
        output = compute_cross_entropy(*inputs)
        keep_for_cross_entropy(ctx, inputs, output)
        return output

    backward = staticmethod(cross_entropy_backward)


def similarity(video: Tensor, text: Tensor, rows: Tensor | None, offsets: Tensor, temperature: float) -> Tensor:
    """Logits [B, C], differentiable in video and text."""
    call: Callable[..., tuple[Tensor, ...]] = DirectSimilarity.apply if direct(video) else similarity_op
    logits: Tensor = call(video, text, rows, offsets, temperature)[0]
    return logits


def cross_entropy(
    video: Tensor,
    text: Tensor,
    rows: Tensor | None,
    offsets: Tensor,
    shadow: Tensor | None,
    shadow_rows: Tensor | None,
    shadow_offsets: Tensor | None,
    labels: Tensor,
    sets: int,
    shadowed: bool,
    temperature: float,
) -> Tensor:
    """Losses [R], differentiable in video, text and shadow."""
    if not video.shape[0]:
        raise KernelInputError("the loss of no video is undefined: video has no row")
    call: Callable[..., tuple[Tensor, ...]] = DirectCrossEntropy.apply if direct(video) else cross_entropy_op
    losses: Tensor = call(
        video, text, rows, offsets, shadow, shadow_rows, shadow_offsets, labels, sets, shadowed, temperature
    )[0]
    return losses
