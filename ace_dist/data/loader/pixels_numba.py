"""The two passes of `pixels.py` as machine code: compiled by numba on first use, without the interpreter's lock.

The machine code is cached beside this file.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numba import float32, uint8

from ace_dist.data.loader.pixels_numpy import Bytes, Floats, Indices, Matrix

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` as machine code. `fastmath` lets sums be reordered, so the last bit of a float may vary by machine."""
    fast: Function = numba.njit(nogil=True, cache=True, fastmath=True)(function)
    return fast


@compiled
def convert(luma: Bytes, blue: Bytes, red: Bytes, top: int, left: int, matrix: Matrix, out: Bytes) -> None:
    """RGB [3, h, w] of the h by w pixels from (`top`, `left`) on of a 4:2:0 picture.

    A chroma sample lies in the middle of four luma pixels: each pixel takes 3/4 of the nearer sample and 1/4 of the
    farther one, in both directions; at the borders the outermost sample counts twice.
    """
    height, width = out.shape[1:]
    first, last = left // 2, (left + width + 1) // 2
    count = last - first
    half = np.empty((2, count + 2), np.float32)  # one chroma row at luma's height, with a neighbour on each side
    full = np.empty((2, 2 * count), np.float32)
    gain, black, red_cr, green_cb, green_cr, blue_cb = matrix
    for i in range(height):
        near = (top + i) // 2
        far = min(max(near - 1 + 2 * ((top + i) & 1), 0), blue.shape[0] - 1)
        for p, plane in enumerate((blue, red)):
            before, after = max(first - 1, 0), min(last, plane.shape[1] - 1)
            mix(plane[near, first:last], plane[far, first:last], half[p, 1 : count + 1])
            mix(plane[near, before : before + 1], plane[far, before : before + 1], half[p, :1])
            mix(plane[near, after : after + 1], plane[far, after : after + 1], half[p, count + 1 :])
            double(half[p], full[p])
        row, cb, cr = luma[top + i, left : left + width], full[0, left - 2 * first :], full[1, left - 2 * first :]
        r, g, b = out[0, i], out[1, i], out[2, i]
        for j in range(width):
            y, u, v = gain * (row[j] - black), cb[j] - float32(128), cr[j] - float32(128)
            r[j] = to_byte(y + red_cr * v)
            g[j] = to_byte(y - green_cb * u - green_cr * v)
            b[j] = to_byte(y + blue_cb * u)


@compiled
def mix(near: Bytes, far: Bytes, out: Floats) -> None:
    for k in range(out.shape[0]):
        out[k] = float32(0.75) * near[k] + float32(0.25) * far[k]


@compiled
def double(half: Floats, out: Floats) -> None:
    """Interpolate along a row of chroma: two pixels for each sample, whose neighbours are in `half` too."""
    for k in range(out.shape[0] // 2):
        near = float32(0.75) * half[k + 1]
        out[2 * k] = near + float32(0.25) * half[k]
        out[2 * k + 1] = near + float32(0.25) * half[k + 2]


@compiled
def to_byte(value: np.float32) -> np.uint8:
    byte: np.uint8 = uint8(min(max(value, float32(0)), float32(255)) + float32(0.5))
    return byte


@compiled
def resample(
    region: Bytes, rows: Indices, row_weights: Floats, columns: Indices, column_weights: Floats, out: Bytes
) -> None:
    """Filter a region [3, h, w] into `out` [3, H, W] as `Cut` says: first across, then down, rounded once."""
    line = np.empty(region.shape[2], np.float32)
    narrow = np.empty((region.shape[1], out.shape[2]), np.float32)
    total = np.empty(out.shape[2], np.float32)
    for channel in range(3):
        for y in range(region.shape[1]):
            line[:] = region[channel, y]
            across(line, columns, column_weights, narrow[y])
        for i in range(len(rows)):
            k = rows[i]
            if row_weights.shape[1] == 2:
                mix_rows(narrow[k], row_weights[i, 0], narrow[k + 1], row_weights[i, 1], out[channel, i])
            else:
                total[:] = 0
                for t in range(row_weights.shape[1]):
                    add_weighted(narrow[k + t], row_weights[i, t], total)
                mix_rows(total, float32(1), total, float32(0), out[channel, i])


@compiled
def across(line: Floats, columns: Indices, weights: Floats, out: Floats) -> None:
    """Filter one row. Two taps, every enlargement, are written out: twice as fast as the loop over taps."""
    if weights.shape[0] == 2:
        for j in range(out.shape[0]):
            k = columns[j]
            out[j] = weights[0, j] * line[k] + weights[1, j] * line[k + 1]
    else:
        for j in range(out.shape[0]):
            total = float32(0)
            for t in range(weights.shape[0]):
                total += weights[t, j] * line[columns[j] + t]
            out[j] = total


@compiled
def add_weighted(row: Floats, weight: np.float32, line: Floats) -> None:
    for x in range(line.shape[0]):
        line[x] += weight * row[x]


@compiled
def mix_rows(one: Floats, weight: np.float32, other: Floats, other_weight: np.float32, out: Bytes) -> None:
    for x in range(out.shape[0]):
        out[x] = uint8(weight * one[x] + other_weight * other[x] + float32(0.5))
