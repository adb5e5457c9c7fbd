"""Concept similarity (ACE Eq. 3) and the cross-entropy on it (Eq. 8), for one label set or many: the public functions.

Shapes: B videos, S phrases, P rows of a phrase table, C classes, R label sets, D embedding width. Phrases are grouped
by class: class c has the positions `offsets[c]:offsets[c + 1]`. Without `rows` position s is row s of the text table;
with `rows` [S] it is row `rows[s]`, read in place: the gathered [S, D] matrix is never stored, and the gradient comes
back in the shape of the table, zero in rows that no class uses.

By linearity the mean of cosines over the K_c phrases of a class is one dot product with the mean of unit vectors,
`S(v, c) = (1/τ) v̂ · m_c` with `m_c = (1/K_c) Σ_k t̂_ck`. The B×S matrix is never formed. `m_c` is *not* normalised
again: that would be another loss (the class whose phrases agree would lose its advantage).

All arithmetic is float32 (float64 when an input is) whatever the input or autocast says; logits and losses come back
in that type. A zero vector has no direction: its unit vector is defined as zero, so its cosine with anything is zero,
and its gradient as zero.

The way of a call: a public function checks shapes and finds the `ConceptLayout` of the label sets, `Concept` computes
and differentiates, and the backend (`concept_torch` or `concept_triton`) does the arithmetic. A tracer sees the two
registered operators instead.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ace_kernels import concept_torch
from ace_kernels.backend import KernelInputError, choose, is_plain, no_second_derivative
from ace_kernels.concept_layout import ConceptLayout, build_layout
from ace_kernels.concept_problem import (
    Problem,
    build_room,
    check_integers,
    check_label_values,
    check_labels,
    check_table,
    check_temperature,
    wide_type,
)


def concept_similarity(
    video_BD: Tensor,
    text_SD: Tensor,
    class_offsets: Tensor | ConceptLayout,
    temperature: float,
    rows: Tensor | None = None,
) -> Tensor:
    """Similarity of every video with every class, averaged over the phrases of the class (ACE Eq. 3).

    Args:
        video_BD: un-normalised video embeddings, [B, D], floating point.
        text_SD: un-normalised phrase embeddings, [S, D], rows grouped by class; [P, D] in any order with `rows`.
        class_offsets: [C+1] integers rising from 0 to S. On the CPU they are checked at once; on a GPU by assertions
            of the kernel. Or a `ConceptLayout`, which holds the rows too and is checked when it is built.
        temperature: τ, greater than 0.
        rows: [S] integers, the row of `text_SD` of every position.

    Returns:
        [B, C] float32 logits `mean_k cos(video_b, text_ck) / temperature` (float64 for float64 input).

    Raises:
        KernelInputError: a class has no row, widths differ, offsets do not rise from 0 to S, rows or labels are out of
            range, τ is not positive.
    """
    check_temperature(temperature)
    check_table(video_BD, text_SD)
    given = class_offsets if isinstance(class_offsets, ConceptLayout) else [class_offsets]
    layout = arrange(text_SD, given, None if rows is None else [rows])
    if layout.shadowed:
        raise KernelInputError("a layout with shadow negatives is for a loss: a similarity has none")
    return apply(Problem(video_BD, text_SD, None, layout, temperature))


def concept_similarity_sets(
    video_BD: Tensor,
    text_PD: Tensor,
    set_offsets: Sequence[Tensor] | ConceptLayout,
    temperature: float,
    set_rows: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """`concept_similarity` for R label sets over one table of phrases, in one launch (the SRT: ten runs).

    Args:
        video_BD: [B, D] video embeddings.
        text_PD: [P, D] phrase embeddings.
        set_offsets: for every set its [C_r+1] offsets, each rising from 0. Or a `ConceptLayout` of the sets.
        temperature: τ, greater than 0.
        set_rows: for every set the rows of `text_PD` of its positions. Without it the sets lie one after the other in
            the table.

    Returns:
        R views [B, C_r] of one matrix of logits.
    """
    check_table(video_BD, text_PD)
    layout = arrange(text_PD, set_offsets, set_rows)
    return list(concept_similarity(video_BD, text_PD, layout, temperature).split(layout.set_classes, 1))


def concept_cross_entropy(
    video_BD: Tensor,
    text_SD: Tensor,
    class_offsets: Tensor | ConceptLayout,
    labels_B: Tensor,
    temperature: float,
    shadow_text_SD: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
    rows: Tensor | None = None,
    shadow_rows: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over C classes, or over C+1 with the shadow negative of each video's own class (ACE Eq. 8).

    Args:
        video_BD: [B, D] video embeddings.
        text_SD: [S, D] phrase embeddings, rows grouped by class; [P, D] in any order with `rows`.
        class_offsets: [C+1] integers rising from 0 to S. Or a `ConceptLayout` of one set, shadow negatives included.
        labels_B: [B] class indices in [0, C), on the device of the videos. Checked there, without a host sync.
        temperature: τ, greater than 0.
        shadow_text_SD: [S2, D] phrases of the shadow negatives, grouped by class. `None` leaves C classes, unless
            `shadow_rows` picks the shadow negatives from `text_SD` too.
        shadow_offsets: [C+1] offsets of the shadow phrases. Every class needs one or more.
        rows: [S] integers, the row of `text_SD` of every position.
        shadow_rows: [S2] integers, the row of `shadow_text_SD` (of `text_SD` when that is `None`).

    Returns:
        Scalar float32 (float64 for float64 input): `-1/B Σ_n log P(n, a, a⁻)`.

    Raises:
        KernelInputError: as in `concept_similarity`, and when only one shadow argument is given.
    """
    given = class_offsets if isinstance(class_offsets, ConceptLayout) else [class_offsets]
    set_rows = None if rows is None else [rows]
    losses = concept_cross_entropy_sets(
        video_BD, text_SD, given, labels_B, temperature, shadow_text_SD, shadow_offsets, set_rows, shadow_rows
    )
    return losses.view(())  # not losses[0]: the backward of an index fills and copies


def concept_cross_entropy_sets(
    video_BD: Tensor,
    text_PD: Tensor,
    set_offsets: Sequence[Tensor] | ConceptLayout,
    labels_B: Tensor,
    temperature: float,
    shadow_text_SD: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
    set_rows: Sequence[Tensor] | None = None,
    shadow_rows: Tensor | None = None,
) -> Tensor:
    """`concept_cross_entropy` under R label sets that share videos, labels and shadow negatives, at the cost of one.

    `losses.sum()` over the fixed and the random labels of a step is the whole of ACE Eq. 9. Arguments as in
    `concept_cross_entropy` and `concept_similarity_sets`; every set has the same C classes.

    Returns:
        [R] losses.
    """
    check_temperature(temperature)
    check_table(video_BD, text_PD)
    check_labels(labels_B, video_BD)
    if isinstance(set_offsets, ConceptLayout):
        classes = set_offsets.set_classes
    else:
        classes = tuple([part.numel() - 1 for part in set_offsets])
    if len(set(classes)) != 1:
        raise KernelInputError(f"every set needs the same C+1 offsets, got {[count + 1 for count in classes]}")
    if shadow_text_SD is not None:
        check_table(video_BD, shadow_text_SD, "shadow_text")
    layout = arrange(text_PD, set_offsets, set_rows, shadow_text_SD, shadow_offsets, shadow_rows)
    if shadow_text_SD is not None and not can_lie_apart(text_PD, shadow_text_SD):
        text_PD, shadow_text_SD = torch.cat([text_PD, shadow_text_SD]), None
    problem = video_BD, text_PD, shadow_text_SD, layout, temperature, labels_B, len(layout.set_classes), layout.shadowed
    return apply(Problem(*problem))


def can_lie_apart(text: Tensor, shadow_text: Tensor) -> bool:
    """Whether the kernels read two tables where they are; else they are joined by a copy."""
    alike = text.dtype == shadow_text.dtype and text.stride() == shadow_text.stride()
    return alike and is_plain(text) and choose(text.device) == "triton"


def arrange(
    text: Tensor,
    given: Sequence[Tensor] | ConceptLayout,
    rows: Sequence[Tensor] | None,
    shadow_text: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
    shadow_rows: Tensor | None = None,
) -> ConceptLayout:
    """The layout of a call: the one that is given, or that of the tensors in its place."""
    if isinstance(given, ConceptLayout):
        if any(x is not None for x in (rows, shadow_offsets, shadow_rows)):
            raise KernelInputError("a ConceptLayout holds all rows and offsets: give no others with it")
        second = 0 if shadow_text is None else shadow_text.shape[0]
        if given.height != text.shape[0] + second or (second and second != given.shadow_height):
            parts = f"{given.height - given.shadow_height} + {given.shadow_height}" if second else given.height
            raise KernelInputError(f"the layout is of tables of {parts} rows, got {text.shape[0]} + {second}")
        return given
    check_integers(given, rows)
    if (shadow_text is None and shadow_rows is None) != (shadow_offsets is None):
        raise KernelInputError("shadow_text (or shadow_rows) and shadow_offsets must be given together")
    if shadow_offsets is not None:
        if shadow_text is None and rows is None:
            raise KernelInputError("shadow_rows without shadow_text needs rows too: both index into text")
        check_integers([shadow_offsets], None if shadow_rows is None else [shadow_rows], "shadow_text")
    return build_layout(text, given, rows, shadow_text, shadow_offsets, shadow_rows)


def apply(problem: Problem) -> Tensor:
    """Logits [B, N] or losses [R], differentiable in the videos and the tables."""
    video, text, shadow, layout, temperature, labels, sets, shadowed = problem
    outcome: Tensor
    if is_plain(video):
        if labels is not None:
            check_label_values(labels, problem.classes)
        there = layout.to(text.device)
        outcome = Concept.apply(video, text, shadow, problem if there is layout else problem._replace(layout=there))
    else:
        outcome = TracedConcept.apply(video, text, layout.rows, layout.offsets, temperature, labels, sets, shadowed)
    return outcome


class Concept(torch.autograd.Function):
    """The operator. (A separate `setup_context` would cost 50 µs of `inspect` a call, every argument one more.)"""

    @staticmethod
    def forward(ctx: Any, video: Tensor, text: Tensor, shadow: Tensor | None, problem: Problem) -> Tensor:
        ctx.backend, ctx.arranged, ctx.sets = backend_module(video), problem[3:5], problem[6:]
        outcome: Tensor
        outcome, saved = ctx.backend.forward(problem)
        ctx.save_for_backward(video, text, shadow, problem.labels_B, *saved)
        return outcome

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of videos and tables. The registered operator, which refuses second derivatives, serves those."""
        video, text, shadow, labels, *saved = ctx.saved_tensors
        (grad,), needs = grads, ctx.needs_input_grad[:3]
        (layout, temperature), (sets, shadowed) = ctx.arranged, ctx.sets
        problem = Problem(video, text, shadow, layout, temperature, labels, sets, shadowed)
        if torch.is_grad_enabled():
            return *registered_gradients(problem, ctx.backend.pack(problem, saved), grad, needs), None
        return *ctx.backend.gradients(problem, saved, grad, needs), None


def registered_gradients(problem: Problem, saved: Tensor, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of videos and tables by the registered operator, which reads one table."""
    video, text, shadow, layout, *rest = problem
    joined = text if shadow is None else torch.cat([text, shadow])
    wanted = [needs[0], needs[1] or needs[2]]
    video_grad, text_grad = gradients_op(grad, saved, wanted, video, joined, layout.rows, layout.offsets, *rest)
    parts = text_grad.split([len(text), len(joined) - len(text)]) if wanted[1] else (None, None)
    return [part if needed else None for part, needed in zip((video_grad, *parts), needs, strict=True)]


class TracedConcept(torch.autograd.Function):
    """The operator as a tracer sees it: tensors in place of the layout, the registered operators inside."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        video, text, rows, offsets, ctx.temperature, labels, ctx.sets, ctx.shadowed = arguments
        outcome: Tensor
        outcome, saved = concept_op(*arguments)
        ctx.save_for_backward(video, text, rows, offsets, labels, saved)
        return outcome

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        video, text, rows, offsets, labels, saved = ctx.saved_tensors
        (grad,), needs = grads, list(ctx.needs_input_grad[:2])
        video_grad, text_grad = gradients_op(
            grad, saved, needs, video, text, rows, offsets, ctx.temperature, labels, ctx.sets, ctx.shadowed
        )
        return video_grad if needs[0] else None, text_grad if needs[1] else None, None, None, None, None, None, None


def backend_module(video_BD: Tensor) -> ModuleType:
    """The module that computes on the device of the videos: `forward` and `gradients`."""
    if choose(video_BD.device) == "torch":
        return concept_torch
    from ace_kernels import concept_triton  # imported late: a machine without CUDA needs no triton

    return concept_triton


# What a tracer sees. Only the two operators are registered, not their derivative: `TracedConcept` is traced through.
PROBLEM = (
    "Tensor video, Tensor text, Tensor? rows, Tensor offsets, float temperature, Tensor? labels, int sets, "
    "bool shadowed"
)


def traced_problem(
    video: Tensor, text: Tensor, rows: Tensor | None, offsets: Tensor, temperature: float, labels: Tensor | None,
    sets: int, shadowed: bool,
) -> Problem:  # fmt: skip
    """The problem of a registered operator's arguments."""
    layout = build_layout(text, [offsets], None if rows is None else [rows])
    return Problem(video, text, None, layout.to(text.device), temperature, labels, sets, shadowed)


@torch.library.custom_op("ace_kernels::concept", mutates_args=(), schema=f"({PROBLEM}) -> (Tensor, Tensor)")
def concept_op(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The outcome, and what the backward reads of the forward as one tensor, whichever backend computes.

    Values are checked when the traced program runs.
    """
    problem = traced_problem(*arguments)
    if problem.labels_B is not None:
        check_label_values(problem.labels_B, problem.classes)
    module = backend_module(problem.video_BD)
    outcome, saved = module.forward(problem)
    return outcome, module.pack(problem, saved)


@concept_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    video, text, _, offsets, _, labels, sets, shadowed = arguments
    (batch, width), means, wide = video.shape, offsets.numel() - 1, wide_type(video, text)
    room = build_room(batch, width, means, sets, shadowed, labels is not None)
    outcome = (batch, means) if labels is None else (sets,)
    return video.new_empty(outcome, dtype=wide), video.new_empty((room.size,), dtype=wide)


@torch.library.custom_op(
    "ace_kernels::concept_gradients",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor saved, bool[] needs, {PROBLEM}) -> (Tensor, Tensor)",
)
def gradients_op(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of videos and table, with an empty tensor where none is needed."""
    (grad, packed, needs), problem = arguments[:3], traced_problem(*arguments[3:])
    module = backend_module(problem.video_BD)
    grads = module.gradients(problem, module.unpack(problem, packed), grad, [*needs, False])[:2]
    return tuple(grad.new_empty(0) if x is None else x for x in grads)


@gradients_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    grad, needs, inputs = arguments[0], arguments[2], arguments[3:5]
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if needed else grad.new_empty(0)
        for x, needed in zip(inputs, needs, strict=True)
    )


gradients_op.register_autograd(no_second_derivative)
