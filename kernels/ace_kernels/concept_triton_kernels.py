"""The Triton kernels of the concept operators: class means, logits with their softmax, the gradients of all rows.

Letters: b videos, n class means (R·C of the label sets, then C of the shadow negatives), c classes, d width, r sets.
Arithmetic is in `WIDE` (float32 or float64). Nothing is added by atomics: equal inputs give equal bits.
The arguments of a launched kernel begin with what changes from call to call: tensors, then sizes that it is not
specialised on. A scalar that must keep float64 comes as two float32 arguments (`high`, `low`), because Triton passes
floats as float32.
"""
# Arguments of a kernel are pointers, sizes and compile-time numbers; their types are those of the launch.
# ruff: noqa: ANN001, ANN201, SIM108, SIM300
# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def unit_rows(x):
    """Unit vectors of the rows of x [R, D] and 1 over their lengths; a zero row stays zero, with inverse 0.

    Scaling by the peak first keeps the squares of tiny and of huge rows inside the range of the type. The inverse is
    kept finite: it is too small for rows shorter than 1e-38 (1e-300 in float64).
    """
    if x.dtype == tl.float64:
        peak = tl.maximum(tl.max(tl.abs(x), 1), 1e-290)
    else:
        peak = tl.maximum(tl.max(tl.abs(x), 1), 1e-37)
    scale = 1.0 / peak
    y = x * scale[:, None]
    square = tl.sum(y * y, 1)
    inverse = tl.where(square == 0, 0.0, 1.0 / tl.sqrt(tl.where(square == 0, 1.0, square)))
    length = inverse * scale
    if x.dtype == tl.float64:
        length = tl.minimum(length, 1e300)
    else:
        length = tl.minimum(length, 1e38)
    return y * inverse[:, None], length


@triton.jit
def load_rows(rows, places, inside, stride_row, stride_d, width, WIDE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Whole rows [R, BLOCK_D] in the wide type; zeros outside."""
    d = tl.arange(0, BLOCK_D)
    where = places.to(tl.int64)[:, None] * stride_row + d.to(tl.int64)[None, :] * stride_d
    return tl.load(rows + where, mask=inside[:, None] & (d < width)[None, :], other=0.0).to(WIDE)


@triton.jit
def sum_of_units(
    rows, index, first, last, start_row, stride_row, stride_d, height, width,
    INDEXED: tl.constexpr, CHECK: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum of the unit rows at positions [first, last), compensated (Kahan) over blocks of rows.

    Rows are counted from `start_row`, the first of their table, which has `height` of them.
    """
    total = tl.zeros([BLOCK_D], WIDE)
    lost = tl.zeros([BLOCK_D], WIDE)
    for start in range(first, last, BLOCK_R):
        places = start + tl.arange(0, BLOCK_R)
        inside = places < last
        if INDEXED:
            places = tl.load(index + places, mask=inside, other=start_row).to(tl.int64)
        places -= start_row
        if INDEXED and CHECK:
            tl.device_assert((places >= 0) & (places < height), "ace_kernels: rows must lie inside the table")
        unit, _ = unit_rows(load_rows(rows, places, inside, stride_row, stride_d, width, WIDE, BLOCK_D))
        term = tl.sum(unit, 0) - lost
        grown = total + term
        lost = (grown - total) - term
        total = grown
    return total


@triton.jit
def store_mean(means, mean, n, total_n, width, SPLIT: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write class mean n: as it is, or as the sum of two 16-bit numbers in two planes (`SPLIT`)."""
    d = tl.arange(0, BLOCK_D)
    where = means + n * width + d
    if SPLIT:
        high = mean.to(means.dtype.element_ty)
        tl.store(where, high, mask=d < width)
        low = (mean - high.to(mean.dtype)).to(means.dtype.element_ty)
        tl.store(where + tl.cast(total_n, tl.int64) * width, low, mask=d < width)
    else:
        tl.store(where, mean, mask=d < width)


@triton.jit(do_not_specialize=["height", "shadow_height", "positions"])
def means_kernel(
    text, shadow, index, offsets, video, means, inverse_norms, height, shadow_height, positions,
    text_stride, text_stride_d, video_stride, video_stride_d, batch, columns, total_n, width,
    TWO_TABLES: tl.constexpr, INDEXED: tl.constexpr, CHECK: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Class means, a program each, and 1 over the length of every video, a program for `BLOCK_R` of them."""
    program = tl.program_id(0)
    if program < total_n:
        n = program.to(tl.int64)
        first = tl.load(offsets + n).to(tl.int64)
        last = tl.load(offsets + n + 1).to(tl.int64)
        if CHECK:
            rises = (first >= 0) & (last <= positions) & (last > first)
            tl.device_assert(rises, "ace_kernels: offsets must rise from 0 to S")
        start_row = 0
        if TWO_TABLES:  # the shadow negatives lie in the second
            text = tl.where(n < columns, text, shadow)
            start_row = tl.where(n < columns, 0, height)
            height = tl.where(n < columns, height, shadow_height)
        total = sum_of_units(
            text,
            index,
            first,
            last,
            start_row,
            text_stride,
            text_stride_d,
            height,
            width,
            INDEXED,
            CHECK,
            WIDE,
            BLOCK_R,
            BLOCK_D,
        )
        store_mean(means, total / (last - first).to(WIDE), n, total_n, width, SPLIT, BLOCK_D)
    else:
        b = (program - total_n) * BLOCK_R + tl.arange(0, BLOCK_R)
        x = load_rows(video, b, b < batch, video_stride, video_stride_d, width, WIDE, BLOCK_D)
        _, inverse = unit_rows(x)
        tl.store(inverse_norms + b, inverse, mask=b < batch)


@triton.jit
def load_means(means, n, d, total_n, width, SPLIT: tl.constexpr, WIDE: tl.constexpr):
    """Class means at n, d (tiles of one shape after broadcasting) in the wide type; n and d out of range give zero."""
    where = means + n.to(tl.int64) * width + d
    inside = (n >= 0) & (n < total_n) & (d < width)
    value = tl.load(where, mask=inside, other=0.0).to(WIDE)
    if SPLIT:
        value += tl.load(where + tl.cast(total_n, tl.int64) * width, mask=inside, other=0.0).to(WIDE)
    return value


@triton.jit
def shadow_logits(
    video, inverse_norms, means, labels, b, batch, video_stride, video_stride_d, columns, total_n, width, high, low,
    SPLIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Logit of each video with the shadow negative of its own class [BLOCK_B]."""
    own = columns + tl.load(labels + b, mask=b < batch, other=0).to(tl.int64)
    total = tl.zeros([BLOCK_B], WIDE)
    for start in range(0, width, BLOCK_K):
        d = start + tl.arange(0, BLOCK_K)
        inside = (b < batch)[:, None] & (d < width)[None, :]
        where = b.to(tl.int64)[:, None] * video_stride + d.to(tl.int64)[None, :] * video_stride_d
        v = tl.load(video + where, mask=inside, other=0.0).to(WIDE)
        total += tl.sum(v * load_means(means, own[:, None], d[None, :], total_n, width, SPLIT, WIDE), 1)
    inverse = tl.load(inverse_norms + b, mask=b < batch, other=0.0)
    return total * inverse * (tl.cast(high, WIDE) + tl.cast(low, WIDE))


@triton.jit
def logits_kernel(
    video, inverse_norms, means, labels, out, shadow_out, losses, video_stride, video_stride_d, batch, classes,
    columns, total_n, width, sets, high, low,
    SOFTMAX: tl.constexpr, SHADOWED: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of logits of one set; with `SOFTMAX` it holds all videos and classes and ends as losses and derivatives.

    16-bit videos meet the two planes of the means on tensor cores (`SPLIT`): the video is exact, a mean keeps 16 bits
    or more, sums are float32. Other videos are multiplied in `PRECISION`.
    """
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.program_id(2)
    n = r * classes + c
    total = tl.zeros([BLOCK_B, BLOCK_C], WIDE)
    for start in range(0, width, BLOCK_K):
        d = start + tl.arange(0, BLOCK_K)
        where = b.to(tl.int64)[:, None] * video_stride + d.to(tl.int64)[None, :] * video_stride_d
        v = tl.load(video + where, mask=(b < batch)[:, None] & (d < width)[None, :], other=0.0)
        mean = means + n.to(tl.int64)[None, :] * width + d[:, None]
        inside = (c < classes)[None, :] & (d < width)[:, None]
        if SPLIT:
            high_part = tl.load(mean, mask=inside, other=0.0)
            low_part = tl.load(mean + tl.cast(total_n, tl.int64) * width, mask=inside, other=0.0)
            if UPCAST:  # the interpreter multiplies the bit patterns of bfloat16
                v, high_part, low_part = v.to(WIDE), high_part.to(WIDE), low_part.to(WIDE)
            total = tl.dot(v, high_part, total)
            total = tl.dot(v, low_part, total)
        else:
            m = tl.load(mean, mask=inside, other=0.0)
            total = tl.dot(v.to(WIDE), m, total, input_precision=PRECISION, out_dtype=WIDE)
    inverse = tl.load(inverse_norms + b, mask=b < batch, other=0.0)
    logits = total * (inverse * (tl.cast(high, WIDE) + tl.cast(low, WIDE)))[:, None]
    inside = (b < batch)[:, None] & (c < classes)[None, :]
    where = out + b.to(tl.int64)[:, None] * columns + n[None, :]
    if SOFTMAX:
        label = tl.load(labels + b, mask=b < batch, other=0)
        tl.device_assert((label >= 0) & (label < classes), "ace_kernels: labels must lie in [0, C)")
        logits = tl.where((c < classes)[None, :], logits, -float("inf"))
        peak = tl.max(logits, 1)
        if SHADOWED:
            own = shadow_logits(
                video, inverse_norms, means, labels, b, batch, video_stride, video_stride_d, columns, total_n, width,
                high, low, SPLIT, WIDE, BLOCK_B, BLOCK_K,
            )  # fmt: skip
            peak = tl.maximum(peak, own)
        mass = tl.sum(tl.exp(logits - peak[:, None]), 1)
        if SHADOWED:
            mass += tl.exp(own - peak)
        lse = peak + tl.log(mass)
        is_true = c[None, :] == label[:, None]
        loss = tl.where(b < batch, lse - tl.sum(tl.where(is_true, logits, 0.0), 1), 0.0)
        tl.store(where, tl.exp(logits - lse[:, None]) - is_true.to(WIDE), mask=inside)
        if SHADOWED:
            tl.store(shadow_out + b * sets + r, tl.exp(own - lse), mask=b < batch)
        tl.store(losses + r, tl.sum(loss, 0) / batch)
    else:
        tl.store(where, logits, mask=inside)


@triton.jit
def softmax_kernel(
    video, inverse_norms, means, labels, out, shadow_out, losses, video_stride, video_stride_d, batch, classes,
    columns, total_n, width, sets, high, low,
    SHADOWED: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Losses, and logits replaced by their derivatives, when the classes take several tiles: a running maximum."""
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    r = tl.program_id(1)
    label = tl.load(labels + b, mask=b < batch, other=0)
    tl.device_assert((label >= 0) & (label < classes), "ace_kernels: labels must lie in [0, C)")
    peak = tl.full([BLOCK_B], -float("inf"), WIDE)
    mass = tl.zeros([BLOCK_B], WIDE)
    if SHADOWED:
        peak = shadow_logits(
            video, inverse_norms, means, labels, b, batch, video_stride, video_stride_d, columns, total_n, width,
            high, low, SPLIT, WIDE, BLOCK_B, BLOCK_K,
        )  # fmt: skip
        mass += 1.0
    own = peak
    true = tl.zeros([BLOCK_B], WIDE)
    line = out + b.to(tl.int64)[:, None] * columns + r * classes
    for start in range(0, classes, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (b < batch)[:, None] & (c < classes)[None, :]
        logits = tl.load(line + c[None, :], mask=inside, other=-float("inf"))
        grown = tl.maximum(peak, tl.max(logits, 1))
        grown = tl.where(b < batch, grown, 0.0)
        mass = mass * tl.exp(peak - grown) + tl.sum(tl.exp(logits - grown[:, None]), 1)
        true += tl.sum(tl.where(c[None, :] == label[:, None], logits, 0.0), 1)
        peak = grown
    lse = peak + tl.log(mass)
    for start in range(0, classes, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (b < batch)[:, None] & (c < classes)[None, :]
        logits = tl.load(line + c[None, :], mask=inside, other=0.0)
        weight = tl.exp(logits - lse[:, None]) - (c[None, :] == label[:, None]).to(WIDE)
        tl.store(line + c[None, :], weight, mask=inside)
    if SHADOWED:
        tl.store(shadow_out + b * sets + r, tl.exp(own - lse), mask=b < batch)
    tl.store(losses + r * batch + b, lse - true, mask=b < batch)


@triton.jit
def logit_weight(
    b, n, weights, shadow_weights, labels, scales, batch, classes, columns,
    SETS: tl.constexpr, SCALED: tl.constexpr, SHADOWED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Weight of videos b in the gradient of class means n (broadcast to one shape), scaled per set."""
    n = n + b * 0  # a tensor even where the loop that made n gave a number
    of_set = (b < batch) & (n >= 0) & (n < columns)
    weight = tl.load(weights + b.to(tl.int64) * columns + n, mask=of_set, other=0.0).to(WIDE)
    if SCALED:
        # 32 bits: a division of 64 is a subroutine with a stack frame
        weight *= tl.load(scales + n.to(tl.int32) // classes, mask=of_set, other=0.0)
    if SHADOWED:
        own = (b < batch) & (tl.load(labels + b, mask=b < batch, other=0) == n - columns)
        for r in tl.static_range(SETS):
            part = tl.load(shadow_weights + b * SETS + r, mask=own, other=0.0)
            if SCALED:
                part *= tl.load(scales + r)
            weight += part
    return weight


@triton.jit
def own_shadow_weight(
    b, shadow_weights, scales, batch, SETS: tl.constexpr, SCALED: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Weight of the shadow negative of each video's own class, over all sets [BLOCK_B]."""
    weight = tl.zeros([BLOCK_B], WIDE)
    for r in tl.static_range(SETS):
        part = tl.load(shadow_weights + b * SETS + r, mask=b < batch, other=0.0)
        if SCALED:
            part *= tl.load(scales + r)
        weight += part
    return weight


@triton.jit
def mean_gradients_kernel(
    weights, shadow_weights, labels, scales, video, inverse_norms, out, video_stride, video_stride_d, batch, classes,
    columns, total_n, width, high, low,
    SETS: tl.constexpr, SCALED: tl.constexpr, SHADOWED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of class means [N, D], tile by tile: Σ_b weight[b, n] v̂_b."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_N, BLOCK_D], WIDE)
    for start in range(0, batch, BLOCK_K):
        b = start + tl.arange(0, BLOCK_K)
        weight = logit_weight(
            b[None, :], n[:, None], weights, shadow_weights, labels, scales, batch, classes, columns,
            SETS, SCALED, SHADOWED, WIDE,
        )  # fmt: skip
        where = b.to(tl.int64)[:, None] * video_stride + d.to(tl.int64)[None, :] * video_stride_d
        v = tl.load(video + where, mask=(b < batch)[:, None] & (d < width)[None, :], other=0.0).to(WIDE)
        unit = v * tl.load(inverse_norms + b, mask=b < batch, other=0.0)[:, None]
        total = tl.dot(weight.to(DOT), unit.to(DOT), total, input_precision=PRECISION, out_dtype=WIDE)
    total *= tl.cast(high, WIDE) + tl.cast(low, WIDE)
    tl.store(
        out + n.to(tl.int64)[:, None] * width + d[None, :], total, mask=(n < total_n)[:, None] & (d < width)[None, :]
    )


@triton.jit
def video_gradients_kernel(
    weights, shadow_weights, labels, scales, means, out, batch, classes, columns, total_n, width, high, low,
    SETS: tl.constexpr, SCALED: tl.constexpr, SHADOWED: tl.constexpr, SPLIT: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of unit videos [B, D], tile by tile: Σ_n weight[b, n] m_n."""
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_B, BLOCK_D], WIDE)
    for start in range(0, columns, BLOCK_K):
        n = start + tl.arange(0, BLOCK_K)
        weight = logit_weight(
            b[:, None], n[None, :], weights, shadow_weights, labels, scales, batch, classes, columns,
            SETS, SCALED, False, WIDE,
        )  # fmt: skip
        mean = load_means(means, n[:, None], d[None, :], total_n, width, SPLIT and DOT == tl.float32, WIDE)
        total = tl.dot(weight.to(DOT), mean.to(DOT), total, input_precision=PRECISION, out_dtype=WIDE)
    if SHADOWED:
        weight = own_shadow_weight(b, shadow_weights, scales, batch, SETS, SCALED, WIDE, BLOCK_B)
        own = columns + tl.load(labels + b, mask=b < batch, other=0)
        total += weight[:, None] * load_means(means, own[:, None], d[None, :], total_n, width, SPLIT, WIDE)
    total *= tl.cast(high, WIDE) + tl.cast(low, WIDE)
    tl.store(
        out + b.to(tl.int64)[:, None] * width + d[None, :], total, mask=(b < batch)[:, None] & (d < width)[None, :]
    )


@triton.jit
def store_row_gradients(x, gradient, out, places, inside, width, BLOCK_D: tl.constexpr):
    """Gradient of rows x [R, D] from that of their unit vectors [R, D] or [1, D]: the part across, over the length."""
    d = tl.arange(0, BLOCK_D)
    unit, inverse = unit_rows(x)
    along = tl.sum(unit * gradient, 1)
    across = (gradient - unit * along[:, None]) * inverse[:, None]
    where = out + places.to(tl.int64)[:, None] * width + d[None, :]
    tl.store(where, across.to(out.dtype.element_ty), mask=inside[:, None] & (d < width)[None, :])


@triton.jit
def unit_gradient(
    first, last, owners, offsets, weights, shadow_weights, labels, scales, mean_grads,
    video, inverse_norms, video_stride, video_stride_d, batch, classes, columns, width, high, low,
    OWNED: tl.constexpr, INLINE: tl.constexpr, SETS: tl.constexpr, SCALED: tl.constexpr, SHADOWED: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Σ over uses [first, last) of the gradient of the used class's mean, over the class's size: [BLOCK_D].

    A use is the class itself, or with `OWNED` an entry of `owners`. `INLINE` sums over the videos here; else the
    gradients of the means were computed before.
    """
    d = tl.arange(0, BLOCK_D)
    gradient = tl.zeros([BLOCK_D], WIDE)
    if INLINE:
        for start in range(0, batch, BLOCK_B):
            b = start + tl.arange(0, BLOCK_B)
            weight = tl.zeros([BLOCK_B], WIDE)
            for use in range(first, last):
                # 32 bits: there are few means here, and with 64 one register spills on sm_90
                n = tl.load(owners + use).to(tl.int32) if OWNED else use
                size = (tl.load(offsets + n + 1) - tl.load(offsets + n)).to(WIDE)
                weight += logit_weight(
                    b, n, weights, shadow_weights, labels, scales, batch, classes, columns,
                    SETS, SCALED, SHADOWED, WIDE,
                ) / size  # fmt: skip
            v = load_rows(video, b, b < batch, video_stride, video_stride_d, width, WIDE, BLOCK_D)
            unit = v * tl.load(inverse_norms + b, mask=b < batch, other=0.0)[:, None]
            gradient += tl.sum(weight[:, None] * unit, 0)
        gradient *= tl.cast(high, WIDE) + tl.cast(low, WIDE)
    else:
        for use in range(first, last):
            n = tl.load(owners + use).to(tl.int64) if OWNED else use
            size = (tl.load(offsets + n + 1) - tl.load(offsets + n)).to(WIDE)
            gradient += tl.load(mean_grads + n * width + d, mask=d < width, other=0.0) / size
    return gradient


@triton.jit
def table_gradients(
    place, text, text_out, start_row, offsets, owners, starts, text_stride, text_stride_d,
    weights, shadow_weights, labels, scales, mean_grads,
    video, inverse_norms, video_stride, video_stride_d, batch, classes, columns, width, high, low,
    GATHERED: tl.constexpr, INLINE: tl.constexpr, SETS: tl.constexpr, SCALED: tl.constexpr, SHADOWED: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row gradients of class `place`, or with `GATHERED` of row `place` with all its uses. Rows of the table that is
    given are counted from `start_row`.
    """
    first = tl.load((starts if GATHERED else offsets) + place).to(tl.int64)
    last = tl.load((starts if GATHERED else offsets) + place + 1).to(tl.int64)
    gradient = unit_gradient(
        first if GATHERED else place, last if GATHERED else place + 1, owners, offsets,
        weights, shadow_weights, labels, scales, mean_grads,
        video, inverse_norms, video_stride, video_stride_d, batch, classes, columns, width, high, low,
        GATHERED, INLINE, SETS, SCALED, SHADOWED, WIDE, BLOCK_R, BLOCK_D,
    )  # fmt: skip
    if GATHERED:
        row = place - start_row + tl.arange(0, 1)
        x = load_rows(text, row, row >= 0, text_stride, text_stride_d, width, WIDE, BLOCK_D)
        store_row_gradients(x, gradient[None, :], text_out, row, row >= 0, width, BLOCK_D)
    else:
        for start in range(first, last, BLOCK_R):
            rows = start - start_row + tl.arange(0, BLOCK_R)
            inside = rows < last - start_row
            x = load_rows(text, rows, inside, text_stride, text_stride_d, width, WIDE, BLOCK_D)
            store_row_gradients(x, gradient[None, :], text_out, rows, inside, width, BLOCK_D)


@triton.jit(do_not_specialize=["height", "text_programs"])
def row_gradients_kernel(
    text, text_out, shadow, shadow_out, offsets, owners, starts, weights, shadow_weights, labels, scales, mean_grads,
    video_grads, means, video, video_out, inverse_norms, height, text_programs,
    text_stride, text_stride_d, video_stride, video_stride_d, batch, classes, columns, total_n, width, high, low,
    TWO_TABLES: tl.constexpr, GATHERED: tl.constexpr, HAS_TEXT: tl.constexpr, INLINE: tl.constexpr, SETS: tl.constexpr,
    SCALED: tl.constexpr, SHADOWED: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of all rows in one launch: a program a class, or with `GATHERED` a table row, and a program a video."""
    program = tl.program_id(0)
    if program < text_programs:
        if HAS_TEXT:
            place = program.to(tl.int64)
            start_row = 0
            if TWO_TABLES:  # the shadow negatives lie in the second
                first_table = place < (height if GATHERED else columns)
                text = tl.where(first_table, text, shadow)
                text_out = tl.where(first_table, text_out, shadow_out)
                start_row = tl.where(first_table, 0, height)
            table_gradients(
                place, text, text_out, start_row, offsets, owners, starts, text_stride, text_stride_d,
                weights, shadow_weights, labels, scales, mean_grads, video, inverse_norms, video_stride,
                video_stride_d, batch, classes, columns, width, high, low,
                GATHERED, INLINE, SETS, SCALED, SHADOWED, WIDE, BLOCK_R, BLOCK_D,
            )  # fmt: skip
    else:
        b = program - text_programs + tl.arange(0, 1)
        d = tl.arange(0, BLOCK_D)
        gradient = tl.zeros([BLOCK_D], WIDE)
        if INLINE:
            for start in range(0, columns, BLOCK_R):
                n = start + tl.arange(0, BLOCK_R)
                weight = logit_weight(
                    b, n, weights, shadow_weights, labels, scales, batch, classes, columns, SETS, SCALED, False, WIDE
                )
                mean = load_means(means, n[:, None], d[None, :], total_n, width, SPLIT, WIDE)
                gradient += tl.sum(weight[:, None] * mean, 0)
            if SHADOWED:
                own = columns + tl.load(labels + b)
                weight = own_shadow_weight(b, shadow_weights, scales, batch, SETS, SCALED, WIDE, 1)
                mean = load_means(means, own[:, None], d[None, :], total_n, width, SPLIT, WIDE)
                gradient += tl.sum(weight[:, None] * mean, 0)
            gradient *= tl.cast(high, WIDE) + tl.cast(low, WIDE)
        else:
            where = video_grads + b.to(tl.int64)[:, None] * width + d[None, :]
            gradient += tl.sum(tl.load(where, mask=(d < width)[None, :], other=0.0), 0)
        x = load_rows(video, b, b < batch, video_stride, video_stride_d, width, WIDE, BLOCK_D)
        store_row_gradients(x, gradient[None, :], video_out, b, b < batch, width, BLOCK_D)
