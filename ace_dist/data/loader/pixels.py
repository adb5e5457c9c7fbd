"""From a decoded picture to its crop: colours, resizing and flipping in one pass over the crop alone.

The steps are those of DALI's CPU pipeline, so both return the same clips: chroma interpolated bilinearly between sample
centres, BT.601 in the range of the file, rounding to 8 bits, then an antialiased triangle filter. FFmpeg's scaler does
such colours in plain C and over whole pictures: 17 ms for 30 pictures of 256 pixels on one core, against 1.4 ms here.
"""

import math
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.pixels_numpy import Bytes, Floats, Indices, Matrix
from ace_dist.data.sampling import ClipRequest, crop_box, scaled_size
from ace_dist.utils.errors import DataError

try:
    from ace_dist.data.loader.pixels_numba import convert, resample
except ModuleNotFoundError:  # enough to classify; what trains depends on numba
    from ace_dist.data.loader.pixels_numpy import convert, resample


@dataclass(frozen=True)
class Cut:
    """A crop of the resized picture as filters over the stored one.

    Row i of the crop is the sum over t of `row_weights[i, t]` times row `rows[i] + t` of the region, columns likewise
    with `column_weights[t, j]`, which mirror it where it is flipped. The region starts at (`top`, `left`) of the
    picture and holds every pixel in reach.
    """

    top: int
    left: int
    height: int
    width: int
    rows: Indices
    row_weights: Floats
    columns: Indices
    column_weights: Floats
    flip: bool

    @property
    def keeps_size(self) -> bool:
        """Whether the crop shows stored pixels as they are."""
        return bool(self.row_weights.shape[1] == 1 and self.column_weights.shape[0] == 1)


def crop_filters(request: ClipRequest) -> Cut:
    return filters(request.record.height, request.record.width, *crop_box(request), request.crop, request.flip)


def filters(
    stored_height: int, stored_width: int, height: int, width: int, top: int, left: int, crop: int, flip: bool = False
) -> Cut:
    """Of a stored picture resized to `height` by `width`, the crop from (`top`, `left`) on."""
    rows, row_weights = triangle_filter(stored_height, height, top, crop)
    columns, column_weights = triangle_filter(stored_width, width, left, crop)
    if flip:
        columns, column_weights = columns[::-1], column_weights[::-1]
    first_row, first_column = int(rows.min()), int(columns.min())
    return Cut(
        top=first_row,
        left=first_column,
        height=int(rows.max()) + row_weights.shape[1] - first_row,
        width=int(columns.max()) + column_weights.shape[1] - first_column,
        rows=rows - first_row,
        row_weights=row_weights,
        columns=np.ascontiguousarray(columns - first_column),
        column_weights=np.ascontiguousarray(column_weights.T),
        flip=flip,
    )


class TestCrop:
    """The centre crop of a test view, uint8 [3, S, S], of upright RGB pictures [H, W, 3] of one size."""

    __test__ = False  # not a test class, whatever pytest makes of its name

    def __init__(self, height: int, width: int, loader: LoaderConfig) -> None:
        tall, wide = scaled_size(height, width, loader.test_short_side)
        top, left = (math.floor((side - loader.crop) / 2 + 0.5) for side in (tall, wide))
        self.cut, self.size = filters(height, width, tall, wide, top, left, loader.crop), loader.crop

    def __call__(self, picture_HW3: Bytes) -> Bytes:
        cut = self.cut
        region = picture_HW3[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        region = np.ascontiguousarray(region.transpose(2, 0, 1))
        if cut.keeps_size:
            return region
        out = np.empty((3, self.size, self.size), np.uint8)
        resample(region, cut.rows, cut.row_weights, cut.columns, cut.column_weights, out)
        return out


class PictureCrop:
    """`TestCrop` of pictures whose size may change."""

    def __init__(self, loader: LoaderConfig) -> None:
        self.loader, self.size = loader, (0, 0)

    def __call__(self, picture_HW3: Bytes) -> Bytes:
        height, width, _ = picture_HW3.shape
        if self.size != (height, width):
            self.size, self.crop = (height, width), TestCrop(height, width, self.loader)
        return self.crop(picture_HW3)


def triangle_filter(source: int, target: int, first: int, count: int) -> tuple[NDArray[np.int64], Floats]:
    """Antialiased linear resizing of `source` pixels to `target`, of which `count` from `first` on are returned.

    Returns the first source pixel [count] and the weights [count, taps] of each. The triangle about a target pixel's
    centre is as wide as two pixels of the coarser grid, and cut off at the borders.
    """
    scale = source / target
    support = max(1.0, scale)
    centres = (np.arange(first, first + count) + 0.5) * scale
    taps = 1 if source == target else min(source, int(np.ceil(2 * support)) + (scale > 1))
    starts = np.clip(np.floor(centres - support + 0.5).astype(np.int64), 0, source - taps)
    distances = np.abs(starts[:, None] + np.arange(taps) + 0.5 - centres[:, None])
    weights = np.maximum(0.0, 1 - distances / support)
    return starts, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def show(frame: av.VideoFrame, cut: Cut, out: Bytes) -> None:
    """Write the crop of a decoded picture into `out`, uint8 RGB [3, crop, crop]."""
    if cut.keeps_size and not cut.flip:
        convert(*yuv_planes(frame), cut.top, cut.left, colour_matrix(frame), out)
        return
    region = np.empty((3, cut.height, cut.width), np.uint8)
    convert(*yuv_planes(frame), cut.top, cut.left, colour_matrix(frame), region)
    if cut.keeps_size:
        out[:] = region[:, :, ::-1]
    else:
        resample(region, cut.rows, cut.row_weights, cut.columns, cut.column_weights, out)


def picture_rgb(frame: av.VideoFrame) -> Bytes:
    out = np.empty((3, frame.height, frame.width), np.uint8)
    convert(*yuv_planes(frame), 0, 0, colour_matrix(frame), out)
    return out


def yuv_planes(frame: av.VideoFrame) -> tuple[Bytes, Bytes, Bytes]:
    """Luma [H, W], blue and red chroma [H/2, W/2] as views of the decoder's memory."""
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        raise DataError(f"its pictures are {frame.format.name}, and canonical clips are 8-bit 4:2:0")
    luma, blue, red = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        for plane in frame.planes
    )
    return luma, blue, red


def colour_matrix(frame: av.VideoFrame) -> Matrix:
    """BT.601-7 from Y'CbCr to R'G'B' on 0 to 255: gain and black of luma; red/Cr, green/Cb, green/Cr, blue/Cb."""
    if frame.format.name == "yuvj420p" or frame.color_range == ColorRange.JPEG:
        return FULL_RANGE
    return LIMITED_RANGE


def bt601(luma_gain: float, black: float, chroma_gain: float) -> Matrix:
    """See `colour_matrix`; from the weights 0.299 of red and 0.114 of blue in luma."""
    f, red, blue = np.float32, 2 * (1 - 0.299) * chroma_gain, 2 * (1 - 0.114) * chroma_gain
    return f(luma_gain), f(black), f(red), f(0.114 * blue / 0.587), f(0.299 * red / 0.587), f(blue)


FULL_RANGE = bt601(1, 0, 1)
LIMITED_RANGE = bt601(255 / 219, 16, 255 / 224)  # luma 16 to 235, chroma 16 to 240
