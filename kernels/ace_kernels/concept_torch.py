"""The concept operators in plain torch: prototype algebra with hand-written gradients, fast on a CPU.

Shapes: B videos, S positions, P table rows, N class means (R·C of the label sets, then C of the shadow negatives),
D width. Everything is computed in `Problem.wide`: float32, or float64 when an input is float64.

`embedding_bag` gathers and weighs rows without storing them, and adds those of a bag one after the other, in float32 on
every device: 1,000 equal phrases came out wrong by 1e-5, which is 0.001 in a logit at τ = 0.01. So classes are cut into
short bags, whose sums are added in a second step. On a CPU a table is read once, in blocks of rows that fit the cache;
on other devices nothing waits for the device.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ace_kernels.backend import no_autocast
from ace_kernels.concept_problem import Problem

BAG = 32  # rows added one after the other in float32; longer classes are summed in two levels, each this short or so
BLOCK_ELEMENTS = 2**18  # 1 MiB of float32: half of an EPYC core's L2 cache, so that a block is read from memory once


Saved = Sequence[Tensor]  # what the backward reads beside the arguments: see `forward`


def forward(problem: Problem) -> tuple[Tensor, Saved]:
    """Logits [B, N], or losses [R].

    Saved are the class means [N, D], 1 over the length of each video [B], of losses the derivatives of B · loss in the
    logits [B, R·C], and with shadow negatives those in the logit of each video's own one [B, R].
    """
    with no_autocast(problem.video_BD.device.type):
        return compute(problem)


def compute(problem: Problem) -> tuple[Tensor, Saved]:
    """`forward`, whatever autocast says."""
    video_BD, wide = problem.video_BD, problem.wide
    means_ND, inverse_B = class_means(problem), inverse_norms(video_BD, wide)
    logits_BN = (video_BD.to(wide) * inverse_B[:, None]) @ means_ND.T / problem.temperature
    if problem.labels_B is None:
        return logits_BN, (means_ND, inverse_B)
    losses_R, weights_BN, shadow_BR = losses(logits_BN, problem.labels_B.long(), problem.sets, problem.shadowed)
    saved = (means_ND, inverse_B, weights_BN)
    return losses_R, saved if shadow_BR is None else (*saved, shadow_BR)


def losses(logits_BN: Tensor, labels_B: Tensor, sets: int, shadowed: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses [R] (ACE Eq. 8); derivatives of B·loss in the logits of sets, [B, R·C], and of shadows, [B, R]."""
    classes = logits_BN.shape[1] // (sets + shadowed)
    logits_BRC = logits_BN[:, : sets * classes].reshape(-1, sets, classes)
    own_BR1 = labels_B[:, None, None].expand(-1, sets, 1)
    true_BR = logits_BRC.gather(2, own_BR1).squeeze(2)
    lse_BR = logits_BRC.logsumexp(2)
    shadow_BR = None
    if shadowed:
        shadow_B1 = logits_BN[:, sets * classes :].gather(1, labels_B[:, None])
        lse_BR = torch.logaddexp(lse_BR, shadow_B1)
        shadow_BR = (shadow_B1 - lse_BR).exp()
    weights_BRC = (logits_BRC - lse_BR[:, :, None]).exp_()
    weights_BRC.scatter_add_(2, own_BR1, weights_BRC.new_full((1, 1, 1), -1.0).expand_as(own_BR1))
    return (lse_BR - true_BR).mean(0), weights_BRC.flatten(1), shadow_BR


def pack(problem: Problem, saved: Saved) -> Tensor:
    """What `forward` saves as the one tensor of the registered operators."""
    room = problem.room
    packed = saved[0].new_zeros(room.size)
    for start, part in zip((0, *room), saved, strict=False):
        packed[start : start + part.numel()] = part.flatten()
    return packed


def unpack(problem: Problem, packed: Tensor) -> Saved:
    batch, width = problem.video_BD.shape
    shapes = [torch.Size((problem.layout.means, width)), torch.Size((batch,))]
    if problem.labels_B is not None:
        shapes.append(torch.Size((batch, problem.sets * problem.classes)))
    if problem.shadowed:
        shapes.append(torch.Size((batch, problem.sets)))
    starts = (0, *problem.room)
    return [packed[start : start + x.numel()].view(x) for start, x in zip(starts, shapes, strict=False)]


def gradients(problem: Problem, saved: Saved, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of the videos and of the table, each where `needs` says so, from that of the outcome."""
    with no_autocast(problem.video_BD.device.type):
        return compute_gradients(problem, saved, grad, needs)


def compute_gradients(problem: Problem, saved: Saved, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """`gradients`, whatever autocast says."""
    video_BD, (means_ND, inverse_B) = problem.video_BD, saved[:2]
    factor = 1 / problem.temperature
    if problem.labels_B is None:
        weights_BN = grad.to(means_ND.dtype)
    else:
        factor = 1 / (problem.temperature * len(video_BD))
        weights_BN = (saved[2].unflatten(1, (problem.sets, -1)) * grad[:, None]).flatten(1)
        if problem.shadowed:
            own_B1 = (saved[3] * grad).sum(1, keepdim=True)
            shadow_BC = own_B1.new_zeros(len(own_B1), problem.classes)
            weights_BN = torch.cat([weights_BN, shadow_BC.scatter_(1, problem.labels_B.long()[:, None], own_B1)], 1)
    unit_BD = video_BD.to(means_ND.dtype) * inverse_B[:, None]
    video_grad = text_grad = None
    if needs[0]:
        video_grad = through_norm(unit_BD, inverse_B, weights_BN @ means_ND * factor).to(video_BD.dtype)
    if needs[1]:
        text_grad = table_gradient(problem, weights_BN.T @ unit_BD * factor)
    return [video_grad, text_grad, None]  # there is no second table here


def through_norm(unit: Tensor, inverse: Tensor, grad: Tensor) -> Tensor:
    """Gradient of rows [..., D] from that of their unit vectors: the part across the row, over its length."""
    along = (unit * grad).sum(-1, keepdim=True)
    return torch.addcmul(grad, unit, along, value=-1).mul_(inverse.unsqueeze(-1))


def table_gradient(problem: Problem, grads_ND: Tensor) -> Tensor:
    """Gradient of the table's rows: every phrase of a class receives the same vector before its own norm."""
    rows, bags = problem.text_PD, class_bags(problem)
    share_ND = grads_ND / bags.sizes[:, None]
    owner_S, starts = (bags.owner_S, None) if problem.layout.rows is None else problem.layout.row_uses()
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for first, last in blocks(rows):
        part = rows[first:last].to(grads_ND.dtype)
        inverse = inverse_norms(part, part.dtype)
        if starts is None:
            unit_grads = share_ND.index_select(0, owner_S[first:last])
        else:  # the positions that use these rows, added up in their order
            used = slice(int(starts[first]), int(starts[last])) if rows.device.type == "cpu" else slice(None)
            unit_grads = embedding_bag(
                owner_S[used], share_ND, starts[first : last + 1] - starts[first], mode="sum", include_last_offset=True
            )
        out[first:last] = through_norm(part * inverse[:, None], inverse, unit_grads)
    return out


@dataclass(frozen=True, slots=True)
class Bags:
    """What the offsets determine, on the device of the table.

    `sizes` [N] and `owner_S` [S], the class of every position. How classes are cut into short bags: `edges` of the bags
    and `firsts` [N+1] of the classes in bags. For a CPU also `ranges` of whole bags that fit the cache.
    """

    sizes: Tensor
    owner_S: Tensor
    edges: Tensor
    firsts: Tensor
    places: Tensor
    ranges: tuple[tuple[int, int, int, int], ...]


def class_bags(problem: Problem) -> Bags:
    """The bags of a problem; cached by content where the host knows the sizes of the classes, as training repeats."""
    layout, table = problem.layout, problem.text_PD
    if layout.sizes is not None:
        return cached_bags(layout.sizes, max(1, BLOCK_ELEMENTS // table.shape[1]), str(table.device))
    return bags_on_device(layout.offsets, layout.positions)


def bags_on_device(offsets: Tensor, positions: int) -> Bags:
    """The bags of offsets that the host must not wait for: also cut at every multiple of `BAG`; some bags are empty."""
    sizes, places = offsets.diff(), torch.arange(positions, device=offsets.device)
    rise = (sizes > 0).all() & (offsets[0] == 0) & (offsets[-1] == positions)
    torch._assert_async(rise, "ace_kernels: offsets must rise from 0 to S")
    owner_S = torch.searchsorted(offsets, places, right=True) - 1
    edges = torch.cat([offsets, places[::BAG]]).sort().values
    return Bags(sizes, owner_S, edges, torch.searchsorted(edges, offsets), places, ())


@lru_cache(maxsize=64)
def cached_bags(sizes: tuple[int, ...], limit: int, device: str) -> Bags:
    """Bags of √K rows or `BAG`, and ranges of bags of up to `limit` rows: first and last bag, first and last row."""
    edges, firsts = [0], [0]
    for size in sizes:
        step, start = max(BAG, int(size**0.5)), edges[-1]
        edges.extend(range(start + step, start + size, step))
        edges.append(start + size)
        firsts.append(len(edges) - 1)
    ranges, start = [], 0
    for stop in range(1, len(edges)):
        if stop + 1 == len(edges) or edges[stop + 1] - edges[start] > limit:
            ranges.append((start, stop, edges[start], edges[stop]))
            start = stop
    counts = torch.tensor(sizes)
    owner_S = torch.arange(len(sizes)).repeat_interleave(counts)
    places = torch.arange(max(last - first for *_, first, last in ranges))
    on_cpu = (counts, owner_S, torch.tensor(edges), torch.tensor(firsts), places)
    counts, owner_S, bags, classes, places = (part.to(device) for part in on_cpu)
    return Bags(counts, owner_S, bags, classes, places, tuple(ranges))


def class_means(problem: Problem) -> Tensor:
    """Class means of unit rows [N, D] (ACE Eq. 3); each class weighs 1 whatever its number of rows."""
    rows, bags, wide, device = problem.text_PD, class_bags(problem), problem.wide, problem.text_PD.device
    index = problem.layout.rows
    if device.type != "cpu":
        return means_on_device(rows, index, bags, wide)
    if index is None:
        parts = []
        for first_bag, last_bag, first, last in bags.ranges:  # each block of rows is read from memory once
            block = rows[first:last].to(wide)
            edges = bags.edges[first_bag : last_bag + 1]
            parts.append(
                bag_sums(
                    bags.places[: last - first], block, edges - first if first else edges, inverse_norms(block, wide)
                )
            )
        partial = parts[0] if len(parts) == 1 else torch.cat(parts)
    else:
        if len(index) < len(rows) or rows.dtype != wide:  # of a large table, or a narrow one, only the rows in use
            used, index = index.unique(return_inverse=True)
            rows = rows[used].to(wide)
        weights = torch.cat([inverse_norms(rows[a:b], wide) for a, b in blocks(rows)])
        partial = bag_sums(index, rows, bags.edges, weights[index])
    if len(partial) > problem.layout.means:
        partial = bag_sums(torch.arange(len(partial)), partial, bags.firsts, None)
    return partial.div_(bags.sizes[:, None])


def means_on_device(rows: Tensor, index: Tensor | None, bags: Bags, wide: torch.dtype) -> Tensor:
    """`class_means` without a host sync: sums of short bags in the wide type, then sums of those in float64."""
    if index is not None and len(index) < len(rows):  # of a large table only the rows in use
        rows, index = rows.index_select(0, index), None
    weights = inverse_norms(rows, wide)
    if index is None:
        index = torch.arange(len(rows), device=rows.device)
    partial = bag_sums(index, rows.to(wide), bags.edges, weights[index]).double()
    sums = bag_sums(torch.arange(len(partial), device=rows.device), partial, bags.firsts, None)
    return (sums / bags.sizes[:, None]).to(wide)


def bag_sums(places: Tensor, rows_ND: Tensor, edges: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted sums of rows, one for each bag `places[edges[i]:edges[i + 1]]`; the rows are not copied."""
    return embedding_bag(
        places, rows_ND, edges, mode="sum", per_sample_weights=weights, include_last_offset=True
    )  # fmt: skip


def blocks(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows that fit the cache; one range on other devices."""
    step = max(1, BLOCK_ELEMENTS // max(1, rows.shape[1])) if rows.device.type == "cpu" else max(1, rows.shape[0])
    for first in range(0, rows.shape[0], step):
        yield first, min(rows.shape[0], first + step)


def inverse_norms(rows_ND: Tensor, wide: torch.dtype) -> Tensor:
    """1 over the length of each row, [N] in the wide type; 0 for a zero row, the largest finite number at most."""
    part = rows_ND.to(wide)
    info = torch.finfo(wide)
    if rows_ND.device.type == "cpu" and len(part):
        norms: Tensor = torch.linalg.vector_norm(part, dim=1)
        shortest, longest = (float(edge) for edge in norms.aminmax())
        # The squares of rows outside these bounds leave the range of the type: such rows are scaled by their peak.
        if info.tiny**0.5 * 2**12 < shortest and longest < info.max**0.5 * 2**-12:
            return norms.reciprocal_()
    norms = scaled_norms(part)
    return torch.where(norms == 0, 0, 1 / norms).clamp_max(info.max)


def scaled_norms(rows_ND: Tensor) -> Tensor:
    """Lengths of rows whose squares may overflow or vanish."""
    peak = rows_ND.abs().amax(1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(rows_ND / torch.where(peak > 0, peak, 1), dim=1)
    return norms * peak.squeeze(1)
