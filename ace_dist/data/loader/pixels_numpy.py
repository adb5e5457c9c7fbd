"""The two passes of `pixels.py` in NumPy, where numba is not installed: the same pictures, several times slower."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Matrix = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]


def convert(luma: Bytes, blue: Bytes, red: Bytes, top: int, left: int, matrix: Matrix, out: Bytes) -> None:
    """RGB [3, h, w] of the h by w pixels from (`top`, `left`) on of a 4:2:0 picture: see `pixels_numba.convert`."""
    rows, columns = top + np.arange(out.shape[1]), left + np.arange(out.shape[2])
    gain, black, red_cr, green_cb, green_cr, blue_cb = matrix
    y = gain * (luma[rows[:, None], columns].astype(np.float32) - black)
    cb, cr = (full_chroma(plane, rows, columns) - np.float32(128) for plane in (blue, red))
    for channel, value in enumerate((y + red_cr * cr, y - green_cb * cb - green_cr * cr, y + blue_cb * cb)):
        out[channel] = (value.clip(0, 255) + np.float32(0.5)).astype(np.uint8)


def full_chroma(plane: Bytes, rows: Indices, columns: Indices) -> Floats:
    """A chroma plane at luma's rows and columns: 3/4 of the nearer sample and 1/4 of the farther one, both ways."""
    near, far = nearer_and_farther(rows, plane.shape[0])
    half: Floats = np.float32(0.75) * plane[near] + np.float32(0.25) * plane[far]
    near, far = nearer_and_farther(columns, plane.shape[1])
    return (np.float32(0.75) * half[:, near] + np.float32(0.25) * half[:, far]).astype(np.float32, copy=False)


def nearer_and_farther(places: Indices, samples: int) -> tuple[Indices, Indices]:
    near = places // 2
    return near, (near - 1 + 2 * (places & 1)).clip(0, samples - 1)


def resample(
    region: Bytes, rows: Indices, row_weights: Floats, columns: Indices, column_weights: Floats, out: Bytes
) -> None:
    """Filter a region [3, h, w] into `out` [3, H, W] as `Cut` says: first across, then down, rounded once."""
    narrow = sum(weights * region[:, :, columns + t] for t, weights in enumerate(column_weights))
    total = sum(weights[:, None] * narrow[:, rows + t] for t, weights in enumerate(row_weights.T))
    out[:] = (total + np.float32(0.5)).astype(np.uint8)
