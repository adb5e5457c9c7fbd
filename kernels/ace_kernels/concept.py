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

The way of a call: a public function checks shapes and joins label sets, `Concept` computes and differentiates, and the
backend (`concept_torch` or `concept_triton`) does the arithmetic. A tracer sees the two registered operators instead.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ace_kernels import concept_torch
from ace_kernels.backend import KernelInputError, choose, is_plain, no_autocast, no_second_derivative
from ace_kernels.concept_problem import (
    Problem,
    Saved,
    check_labels,
    check_positions,
    check_table,
    check_temperature,
    check_values,
)


def concept_similarity(
    video_BD: Tensor, text_SD: Tensor, class_offsets: Tensor, temperature: float, rows: Tensor | None = None
) -> Tensor:
    """Similarity of every video with every class, averaged over the phrases of the class (ACE Eq. 3).

    Args:
        video_BD: un-normalised video embeddings, [B, D], floating point.
        text_SD: un-normalised phrase embeddings, [S, D], rows grouped by class; [P, D] in any order with `rows`.
        class_offsets: [C+1] integers rising from 0 to S. On the CPU they are checked at once; on a GPU by assertions
            of the kernel.
        temperature: τ, greater than 0.
        rows: [S] integers, the row of `text_SD` of every position.

    Returns:
        [B, C] float32 logits `mean_k cos(video_b, text_ck) / temperature` (float64 for float64 input).

    Raises:
        KernelInputError: a class has no row, widths differ, offsets do not rise from 0 to S, rows or labels are out of
            range, τ is not positive.
    """
    check_temperature(temperature)
    check_table(video_BD, text_SD, rows, class_offsets)
    return apply(Problem(video_BD, text_SD, rows, class_offsets, temperature))


def concept_similarity_sets(
    video_BD: Tensor,
    text_PD: Tensor,
    set_offsets: Sequence[Tensor],
    temperature: float,
    set_rows: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """`concept_similarity` for R label sets over one table of phrases, in one launch (the SRT: ten runs).

    Args:
        video_BD: [B, D] video embeddings.
        text_PD: [P, D] phrase embeddings.
        set_offsets: for every set its [C_r+1] offsets, each rising from 0.
        temperature: τ, greater than 0.
        set_rows: for every set the rows of `text_PD` of its positions. Without it the sets lie one after the other in
            the table.

    Returns:
        R views [B, C_r] of one matrix of logits.
    """
    offsets, rows = join_sets(set_offsets, set_rows)
    logits = concept_similarity(video_BD, text_PD, offsets, temperature, rows)
    return list(logits.split([part.numel() - 1 for part in set_offsets], 1))


def concept_cross_entropy(
    video_BD: Tensor,
    text_SD: Tensor,
    class_offsets: Tensor,
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
        class_offsets: [C+1] integers rising from 0 to S.
        labels_B: [B] class indices in [0, C), on the device of the videos. Checked there, without a host sync.
        temperature: τ, greater than 0.
        shadow_text_SD: [S2, D] phrases of the shadow negatives, grouped by class; joined to `text_SD` by a copy of
            both. `None` leaves C classes, unless `shadow_rows` picks the shadow negatives from `text_SD` too.
        shadow_offsets: [C+1] offsets of the shadow phrases. Every class needs one or more.
        rows: [S] integers, the row of `text_SD` of every position.
        shadow_rows: [S2] integers, the row of `shadow_text_SD` (of `text_SD` when that is `None`).

    Returns:
        Scalar float32 (float64 for float64 input): `-1/B Σ_n log P(n, a, a⁻)`.

    Raises:
        KernelInputError: as in `concept_similarity`, and when only one shadow argument is given.
    """
    set_rows = None if rows is None else [rows]
    losses = concept_cross_entropy_sets(
        video_BD, text_SD, [class_offsets], labels_B, temperature, shadow_text_SD, shadow_offsets, set_rows, shadow_rows
    )
    return losses.view(())  # not losses[0]: the backward of an index fills and copies


def concept_cross_entropy_sets(
    video_BD: Tensor,
    text_PD: Tensor,
    set_offsets: Sequence[Tensor],
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
    if not set_offsets or len({part.numel() for part in set_offsets}) != 1:
        raise KernelInputError(f"every set needs the same C+1 offsets, got {[part.numel() for part in set_offsets]}")
    offsets, rows = join_sets(set_offsets, set_rows)
    check_table(video_BD, text_PD, rows, offsets)
    check_labels(labels_B, video_BD)
    if (shadow_text_SD is None and shadow_rows is None) != (shadow_offsets is None):
        raise KernelInputError("shadow_text (or shadow_rows) and shadow_offsets must be given together")
    if shadow_offsets is not None:
        classes = set_offsets[0].numel() - 1
        if shadow_offsets.numel() - 1 != classes:
            raise KernelInputError(
                f"shadow_offsets describes {shadow_offsets.numel() - 1} classes, class_offsets {classes}"
            )
        if shadow_text_SD is not None:
            check_table(video_BD, shadow_text_SD, shadow_rows, shadow_offsets, "shadow_text")
            if is_plain(video_BD):  # each table by itself: two errors could cancel in the joined one
                check_positions(text_PD, rows, offsets)
                check_positions(shadow_text_SD, shadow_rows, shadow_offsets, "shadow_text")
            rows, shadow_rows = joined_rows(text_PD, rows, shadow_text_SD, shadow_rows)
            text_PD = torch.cat([text_PD, shadow_text_SD])
            shadow_offsets = shadow_offsets.to(offsets.device)
        elif rows is None:
            raise KernelInputError("shadow_rows without shadow_text needs rows too: both index into text")
        both = None if rows is None or shadow_rows is None else [rows, shadow_rows]
        offsets, rows = join_sets([offsets, shadow_offsets], both)
    shadowed = shadow_offsets is not None
    return apply(Problem(video_BD, text_PD, rows, offsets, temperature, labels_B, len(set_offsets), shadowed))


def join_sets(set_offsets: Sequence[Tensor], set_rows: Sequence[Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """Offsets and rows of several label sets as those of one set with all their classes. Reads no value."""
    if not set_offsets or (set_rows is not None and len(set_rows) != len(set_offsets)):
        raise KernelInputError(f"{len(set_offsets)} sets of offsets need as many sets of rows, and one at least")
    if len(set_offsets) == 1:
        return set_offsets[0], None if set_rows is None else set_rows[0]
    parts, base = [set_offsets[0]], set_offsets[0][-1]
    for part in set_offsets[1:]:
        parts.append(part[1:] + base)
        base = base + part[-1]
    return torch.cat(parts), None if set_rows is None else torch.cat(list(set_rows))


def joined_rows(
    text: Tensor, rows: Tensor | None, shadow: Tensor, shadow_rows: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Rows of two tables as rows of one that holds the first and then the second; None when both are in order."""
    if rows is None and shadow_rows is None:
        return None, None
    given = rows if rows is not None else shadow_rows
    assert given is not None
    if rows is None:
        rows = torch.arange(text.shape[0], device=given.device)
    if shadow_rows is None:
        shadow_rows = torch.arange(shadow.shape[0], device=given.device)
    return rows, shadow_rows.to(rows.device) + text.shape[0]


def apply(problem: Problem) -> Tensor:
    """Logits [B, N] or losses [R], differentiable in the videos and the table."""
    if is_plain(problem.video_BD):
        check_values(problem)
    outcome: Tensor = Concept.apply(*problem)
    return outcome


class Concept(torch.autograd.Function):
    """The operator. (A separate `setup_context` would cost 50 µs of `inspect` a call.)"""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        video, text, rows, offsets, ctx.temperature, labels, ctx.sets, ctx.shadowed = arguments
        outcome, *saved = (compute if is_plain(video) else concept_op)(*arguments)
        ctx.save_for_backward(video, text, rows, offsets, labels, *saved)
        return outcome

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of videos and table. The registered operator, which refuses second derivatives, serves those."""
        video, text, rows, offsets, labels, *saved = ctx.saved_tensors
        (grad,), needs = grads, list(ctx.needs_input_grad[:2])
        call = compute_gradients if is_plain(video) and not torch.is_grad_enabled() else gradients_op
        video_grad, text_grad = call(
            grad, *saved, needs, video, text, rows, offsets, ctx.temperature, labels, ctx.sets, ctx.shadowed
        )
        return video_grad if needs[0] else None, text_grad if needs[1] else None, None, None, None, None, None, None


def backend_module(video_BD: Tensor) -> ModuleType:
    """The module that computes on the device of the videos: `forward` and `gradients`."""
    if choose(video_BD.device) == "torch":
        return concept_torch
    from ace_kernels import concept_triton  # imported late: a machine without CUDA needs no triton

    return concept_triton


def compute(*arguments: Any) -> tuple[Tensor, ...]:
    """The outcome of a `Problem`, and the fields of `Saved`."""
    problem = Problem(*arguments)
    with no_autocast(problem.video_BD.device.type):
        outcome, saved = backend_module(problem.video_BD).forward(problem)
    return outcome, *saved


def compute_gradients(grad: Tensor, *arguments: Any) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of videos and table, None where `needs` says no: of a grad, `Saved`, needs and a `Problem`."""
    saved, needs, problem = Saved(*arguments[:4]), arguments[4], Problem(*arguments[5:])
    with no_autocast(problem.video_BD.device.type):
        grads: tuple[Tensor | None, Tensor | None] = backend_module(problem.video_BD).gradients(
            problem, saved, grad, needs
        )
    return grads


# What a tracer sees. Only the two operators are registered, not their derivative: `Concept` is traced through.
PROBLEM = (
    "Tensor video, Tensor text, Tensor? rows, Tensor offsets, float temperature, Tensor? labels, int sets, "
    "bool shadowed"
)
SAVED = "Tensor means, Tensor inverse_norms, Tensor weights, Tensor shadow_weights"


@torch.library.custom_op(
    "ace_kernels::concept", mutates_args=(), schema=f"({PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def concept_op(*arguments: Any) -> tuple[Tensor, ...]:
    """`compute`, with the values checked when the traced program runs."""
    check_values(Problem(*arguments))
    return compute(*arguments)


@concept_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    problem = Problem(*arguments)
    (batch, width), sets, labelled = problem.video_BD.shape, problem.sets, problem.labels_B is not None
    shapes = (
        (sets,) if labelled else (batch, problem.means),
        (problem.means, width),
        (batch,),
        (batch, sets * problem.classes) if labelled else (0,),
        (batch, sets) if problem.shadowed else (0,),
    )
    return tuple(problem.video_BD.new_empty(shape, dtype=problem.wide) for shape in shapes)


@torch.library.custom_op(
    "ace_kernels::concept_gradients",
    mutates_args=(),
    schema=f"(Tensor grad, {SAVED}, bool[] needs, {PROBLEM}) -> (Tensor, Tensor)",
)
def gradients_op(*arguments: Any) -> tuple[Tensor, ...]:
    """`compute_gradients`, with an empty tensor where no gradient is needed."""
    return tuple(arguments[0].new_empty(0) if x is None else x for x in compute_gradients(*arguments))


@gradients_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    grad, needs, inputs = arguments[0], arguments[5], arguments[6:8]
    return tuple(
        torch.empty_like(x, memory_format=torch.contiguous_format) if needed else grad.new_empty(0)
        for x, needed in zip(inputs, needs, strict=True)
    )


gradients_op.register_autograd(no_second_derivative)
