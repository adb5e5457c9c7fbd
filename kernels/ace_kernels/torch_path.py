"""Owns the plain-torch implementation: prototype algebra with hand-written gradients, fast on a CPU.

Shapes: B videos, S positions, P table rows, N class means over all tables (R·C of the label sets, then C of the shadow
negatives), D width. Everything is computed in `wide_type`: float32, or float64 when an input is float64.

On a CPU a table is read once: a block of rows that fits the cache is normed and then averaged by `embedding_bag`, which
gathers and weighs rows without storing them. On other devices nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ace_kernels.checks import Table, class_sizes

__all__ = ["cross_entropy", "gradients", "similarity", "wide_type"]

BAG = 32  # rows added one after the other in float32; longer classes are summed in two levels, each this short or so
BLOCK_ELEMENTS = 2**18  # 1 MiB of float32: half of an EPYC core's L2 cache, so that a block is read from memory once


def wide_type(tables: tuple[Table, ...], video_BD: Tensor) -> torch.dtype:
    """The type of the arithmetic: float64 when any input is, else float32."""
    wide = any(rows.dtype == torch.float64 for rows in (video_BD, *(table.rows_PD for table in tables)))
    return torch.float64 if wide else torch.float32


def similarity(video_BD: Tensor, tables: tuple[Table, ...], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, N], and for the backward the class means [N, D] and the inverse norms of the videos [B]."""
    wide = wide_type(tables, video_BD)
    means_ND = torch.cat([class_means(table, wide) for table in tables]) if len(tables) > 1 else (
        class_means(tables[0], wide)
    )  # fmt: skip
    inverse_B = inverse_norms(video_BD, wide)
    return (video_BD.to(wide) * inverse_B[:, None]) @ means_ND.T / temperature, means_ND, inverse_B


def cross_entropy(
    video_BD: Tensor, tables: tuple[Table, ...], labels_B: Tensor, sets: int, shadowed: bool, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses [R]; derivatives of B·loss in the logits, [B, R·C] and [B, R] (shadow); means; inverse norms."""
    logits_BN, means_ND, inverse_B = similarity(video_BD, tables, temperature)
    classes = means_ND.shape[0] // (sets + shadowed)
    labels_B = labels_B.long()
    logits_BRC = logits_BN[:, : sets * classes].reshape(-1, sets, classes)
    own_BR1 = labels_B[:, None, None].expand(-1, sets, 1)
    true_BR = logits_BRC.gather(2, own_BR1).squeeze(2)
    lse_BR = logits_BRC.logsumexp(2)
    shadow_BR = logits_BRC.new_empty(0)
    if shadowed:
        shadow_B1 = logits_BN[:, sets * classes :].gather(1, labels_B[:, None])
        lse_BR = torch.logaddexp(lse_BR, shadow_B1)
        shadow_BR = (shadow_B1 - lse_BR).exp()
    weights_BRC = (logits_BRC - lse_BR[:, :, None]).exp_()
    weights_BRC.scatter_add_(2, own_BR1, weights_BRC.new_full((1, 1, 1), -1.0).expand_as(own_BR1))
    return (lse_BR - true_BR).mean(0), weights_BRC.flatten(1), shadow_BR, means_ND, inverse_B


def gradients(
    weights_BN: Tensor,
    shadow_BR: Tensor | None,
    labels_B: Tensor | None,
    scales_R: Tensor | None,
    factor: float,
    video_BD: Tensor,
    tables: tuple[Table, ...],
    means_ND: Tensor,
    inverse_B: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the videos and of every table, each where `needs` says so.

    Args:
        weights_BN: derivative of the outcome in each logit of the sets, before `scales_R` (per set) and `factor`.
        shadow_BR: the same for the shadow logit of each video's own class, or None.
        labels_B: own classes; used with `shadow_BR`.
        scales_R: gradient of each set's loss, or None for 1.
        factor: what all weights are multiplied by: 1/τ, over B for a mean loss.
        video_BD, tables, means_ND, inverse_B: as in the forward.
        needs: for the videos and for each table.
    """
    if scales_R is not None:
        weights_BN = (weights_BN.unflatten(1, (len(scales_R), -1)) * scales_R[:, None]).flatten(1)
    dense = weights_BN.to(means_ND.dtype)
    if shadow_BR is not None and labels_B is not None:
        own_B1 = (shadow_BR if scales_R is None else shadow_BR * scales_R).sum(1, keepdim=True)
        shadow_BC = own_B1.new_zeros(len(own_B1), means_ND.shape[0] - dense.shape[1])
        dense = torch.cat([dense, shadow_BC.scatter_(1, labels_B.long()[:, None], own_B1)], 1)
    unit_BD = video_BD.to(means_ND.dtype) * inverse_B[:, None]
    results: list[Tensor | None] = [None]
    if needs[0]:
        results[0] = through_norm(unit_BD, inverse_B, dense @ means_ND * factor).to(video_BD.dtype)
    mean_grads = (dense.T @ unit_BD * factor if any(needs[1:]) else means_ND).split([t.classes for t in tables])
    for table, grads_CD, needed in zip(tables, mean_grads, needs[1:], strict=True):
        results.append(table_gradient(table, grads_CD) if needed else None)
    return tuple(results)


def through_norm(unit_ND: Tensor, inverse_N: Tensor, grad_ND: Tensor) -> Tensor:
    """Gradient of rows from that of their unit vectors: the part across the row, over its length."""
    along_N = (unit_ND * grad_ND).sum(1)
    return torch.addcmul(grad_ND, unit_ND, along_N[:, None], value=-1).mul_(inverse_N[:, None])


def table_gradient(table: Table, grads_CD: Tensor) -> Tensor:
    """Gradient of the table's rows: every phrase of a class receives the same vector before its own norm."""
    rows = table.rows_PD
    sizes = table.offsets.diff().to(grads_CD.device)
    share_CD = grads_CD / sizes[:, None]
    owner_S = torch.arange(table.classes, device=rows.device).repeat_interleave(sizes, output_size=table.positions)
    starts = None
    if table.index_S is not None:
        order = table.index_S.to(rows.device).long()
        order, by_row = order.sort(stable=True)
        owner_S = owner_S[by_row]
        starts = torch.searchsorted(order, torch.arange(rows.shape[0] + 1, device=rows.device))
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for first, last in blocks(rows):
        part = rows[first:last].to(grads_CD.dtype)
        if starts is None:
            grad_ND = share_CD.index_select(0, owner_S[first:last])
        else:  # the positions that use these rows, added up in their order
            used = slice(int(starts[first]), int(starts[last])) if rows.device.type == "cpu" else slice(None)
            grad_ND = embedding_bag(
                owner_S[used], share_CD, starts[first : last + 1] - starts[first], mode="sum", include_last_offset=True
            )
        inverse = inverse_norms(part, part.dtype)
        out[first:last] = through_norm(part * inverse[:, None], inverse, grad_ND)
    return out


def class_means(table: Table, wide: torch.dtype) -> Tensor:
    """Class means of unit rows [C, D]; each class weighs 1 whatever its number of rows.

    On a CPU in two levels of short sums: adding 1,000 equal phrases one after the other in float32 was wrong by 1e-5,
    which is 0.001 in a logit at τ = 0.01.
    """
    rows, index, device = table.rows_PD, table.index_S, table.rows_PD.device
    offsets = table.offsets.to(device).long()
    if device.type != "cpu":
        weights = inverse_norms(rows, wide)
        places = torch.arange(rows.shape[0], device=device) if index is None else index.to(device).long()
        sums = embedding_bag(
            places, rows.to(wide), offsets, mode="sum", per_sample_weights=weights[places], include_last_offset=True
        )
        return sums / offsets.diff()[:, None]
    bags, bags_of_class = short_bags(table)
    partial = torch.empty(len(bags) - 1, rows.shape[1], dtype=wide)
    if index is None:
        sum_contiguous(rows, bags, partial)
    else:
        place = index.long()
        if len(place) < len(rows) or rows.dtype != wide:  # of a large bank, or a narrow one, only the rows in use
            used, place = place.unique(return_inverse=True)
            rows = rows[used].to(wide)
        weights = torch.cat([inverse_norms(rows[a:b], wide) for a, b in blocks(rows)])
        partial = embedding_bag(
            place, rows, torch.tensor(bags), mode="sum", per_sample_weights=weights[place], include_last_offset=True
        )
    if len(partial) > table.classes:
        everything = torch.arange(len(partial))
        partial = embedding_bag(everything, partial, bags_of_class, mode="sum", include_last_offset=True)
    return partial / offsets.diff()[:, None]


def short_bags(table: Table) -> tuple[list[int], Tensor]:
    """Classes cut into bags of √K rows or `BAG`: edges of the bags, and offsets [C+1] of the classes in bags."""
    edges, firsts = [0], [0]
    for size in class_sizes(table.offsets):
        step = max(BAG, int(size**0.5))
        start = edges[-1]
        edges.extend(range(start + step, start + size, step))
        edges.append(start + size)
        firsts.append(len(edges) - 1)
    return edges, torch.tensor(firsts)


def sum_contiguous(rows: Tensor, bags: list[int], partial: Tensor) -> None:
    """Sums of the unit rows of each bag into `partial`, one cache-sized block of whole bags at a time."""
    limit = max(1, BLOCK_ELEMENTS // rows.shape[1])
    places = torch.arange(max(limit, max(b - a for a, b in pairwise(bags))))
    edges = torch.tensor(bags)
    start = 0
    for stop in range(1, len(bags)):
        if stop + 1 < len(bags) and bags[stop + 1] - bags[start] <= limit:
            continue
        block = rows[bags[start] : bags[stop]].to(partial.dtype)
        partial[start:stop] = embedding_bag(
            places[: len(block)],
            block,
            edges[start : stop + 1] - bags[start],
            mode="sum",
            per_sample_weights=inverse_norms(block, partial.dtype),
            include_last_offset=True,
        )
        start = stop


def blocks(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that fit the cache; one range on other devices."""
    step = max(1, BLOCK_ELEMENTS // max(1, rows.shape[1])) if rows.device.type == "cpu" else max(1, rows.shape[0])
    for first in range(0, rows.shape[0], step):
        yield first, min(rows.shape[0], first + step)


def inverse_norms(rows_ND: Tensor, wide: torch.dtype) -> Tensor:
    """1 over the length of each row, [N] in the wide type; 0 for a zero row, the largest finite number at most."""
    part = rows_ND.to(wide)
    info = torch.finfo(wide)
    norms: Tensor = torch.linalg.vector_norm(part, dim=1)
    # The squares of rows outside these bounds leave the range of the type: such rows are scaled by their peak first.
    low, high = info.tiny**0.5 * 2**12, info.max**0.5 * 2**-12
    if rows_ND.device.type != "cpu" or not bool(((norms > low) & (norms < high)).all()):
        norms = scaled_norms(part)
    return torch.where(norms == 0, 0, 1 / norms).clamp_max(info.max)


def scaled_norms(rows_ND: Tensor) -> Tensor:
    """Lengths of rows whose squares may overflow or vanish."""
    peak = rows_ND.abs().amax(1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(rows_ND / torch.where(peak > 0, peak, 1), dim=1)
    return norms * peak.squeeze(1)
