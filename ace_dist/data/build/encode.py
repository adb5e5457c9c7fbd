"""The canonical form of a stored clip: how raw frames become one small mp4 file, and the proof that it decodes.

Constant frame rate, closed short groups of pictures (GOP) without B-frames, 8-bit 4:2:0, even sizes, BT.601 colours.
In VP9 three of four pictures are ones that no other is predicted from, so that a reader may leave them out: a clip that
shows every third frame decodes in two thirds of the time.
The container is mp4 for every codec: PyAV and both backends of DALI's `fn.decoders.video` read it from memory.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

from ace_dist.config import EncodingConfig
from ace_dist.data.build.container import ClipInMemory, open_video
from ace_dist.data.sampling import scaled_size
from ace_dist.data.segments import RawClip
from ace_dist.utils.errors import DataError

CONTAINER = "mp4"
ENCODERS = {"vp9": "libvpx-vp9", "mjpeg": "mjpeg", "h264": "libx264"}
QUALITY = {"vp9": (0, 63), "mjpeg": (2, 31), "h264": (0, 51)}  # each encoder's own scale, lower is better
REFERENCE_EVERY = 4  # in VP9 only the key frame and every 4th frame behind it are ones that others are predicted from
# libvpx's flags of a frame (vpx/vp8cx.h): predict from the last reference alone; store the picture as that, or nowhere.
FROM_LAST = 1 << 17 | 1 << 21  # VP8_EFLAG_NO_REF_GF, _NO_REF_ARF
AS_LAST = FROM_LAST | 1 << 22 | 1 << 23  # _NO_UPD_GF, _NO_UPD_ARF
NOWHERE = AS_LAST | 1 << 18 | 1 << 20  # _NO_UPD_LAST, _NO_UPD_ENTROPY
# Sharp and repeatable: area averaging against aliasing, every chroma sample used, rounding independent of the CPU.
SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


@dataclass(frozen=True)
class EncodedClip:
    data: bytes
    frames: int
    width: int
    height: int
    fps: float


def check_encoding(encoding: EncodingConfig) -> None:
    if encoding.codec not in ENCODERS:
        raise DataError(f"dataset.encoding.codec={encoding.codec} is not one of {', '.join(ENCODERS)}")
    low, high = QUALITY[encoding.codec]
    if not low <= encoding.quality <= high:
        raise DataError(
            f"dataset.encoding.quality={encoding.quality} is outside {low}..{high}, the scale of {encoding.codec}"
        )
    if encoding.fps is not None and not 0 < encoding.fps < math.inf:
        raise DataError(f"dataset.encoding.fps={encoding.fps} must be greater than zero, or null for the source's rate")
    for key, least in (("gop", 1), ("margin_s", 0), ("short_side", 0)):
        if not getattr(encoding, key) >= least:
            raise DataError(f"dataset.encoding.{key}={getattr(encoding, key)} must be at least {least}")


def encoder_options(encoding: EncodingConfig) -> dict[str, str]:
    """What is asked of FFmpeg's encoder. One thread, because the number of threads changes the bits."""
    gop, quality = str(encoding.gop), str(encoding.quality)
    common = {"g": gop, "keyint_min": gop, "bf": "0", "threads": "1"}
    if encoding.codec == "mjpeg":
        return {"qmin": quality, "qmax": quality, "threads": "1"}
    if encoding.codec == "h264":
        # Chroma is stored between the luma samples, as in the other codecs; h264 means "left" unless it is told.
        special = {"sc_threshold": "0", "x264-params": "open-gop=0:chromaloc=1"}
        return common | special | {"crf": quality, "preset": "veryfast"}
    # Real-time mode at its fastest: a canonical clip is decoded thousands of times and looked at by nobody.
    live = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0"}
    # Error-resilient: no frame takes probabilities or motion from a predecessor that may have been left out.
    return common | live | {"error-resilient": "default", "crf": quality, "b": "0", "row-mt": "0"}


def is_reference(index: int, gop: int, codec: str) -> bool:
    """Whether other frames of a stored clip are predicted from this one, so that a decoder needs it for them."""
    return codec != "vp9" or index % gop % REFERENCE_EVERY == 0


def resampled(raw: RawClip, fps: float) -> Iterator[NDArray[np.uint8]]:
    """The frames at another constant rate, as they come, each the nearest one in time."""
    taken = given = 0
    for pixels in raw.frames:
        taken += 1
        while math.floor(given * raw.fps / fps + 0.5) < taken:
            given += 1
            yield pixels
    count = math.floor((taken - 0.5) * fps / raw.fps) + 1  # while a frame is nearer than half a frame
    yield from itertools.repeat(pixels, max(count - given, 0))


def encode(raw: RawClip, encoding: EncodingConfig) -> EncodedClip:
    """Encode raw frames canonically, one by one; decode them again, and return the file only if every frame is there.

    Raises `DataError` when the frames are too small for an even size, or when something else comes back.
    """
    fps = encoding.fps or raw.fps
    pictures = iter(raw.frames) if fps == raw.fps else resampled(raw, fps)
    first = next(pictures)
    pictures = itertools.chain([first], pictures)
    source_height, source_width = first.shape[:2]
    if encoding.short_side and min(source_height, source_width) > encoding.short_side:
        height, width = (2 * side for side in scaled_size(source_height, source_width, encoding.short_side // 2))
    else:  # never enlarged, which would add bytes and no detail; at most the odd row or column goes
        height, width = source_height - source_height % 2, source_width - source_width % 2
        pictures = (picture[:height, :width] for picture in pictures)
    if min(height, width) < 2:
        raise DataError(f"frames of {source_width}x{source_height} pixels are too small to encode")
    rate = Fraction(fps).limit_denominator(1001)
    data, count = write_file(pictures, rate, height, width, encoding)
    check_decodes(data, count, height, width, encoding.gop, float(rate), encoding.codec)
    return EncodedClip(data, count, width, height, float(rate))


def write_file(
    frames: Iterable[NDArray[np.uint8]], rate: Fraction, height: int, width: int, encoding: EncodingConfig
) -> tuple[bytes, int]:
    """The mp4 file of uint8 RGB frames [H, W, 3], and their number. Resizes on the way when they have another size."""
    buffer, count = io.BytesIO(), 0
    full = encoding.codec == "mjpeg"  # JPEG knows no limited range
    with av.open(buffer, "w", format=CONTAINER, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(ENCODERS[encoding.codec], rate=rate, options=encoder_options(encoding))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if full else "yuv420p"
        context = stream.codec_context
        context.colorspace = Colorspace.ITU601
        context.color_range = ColorRange.JPEG if full else ColorRange.MPEG
        flagged = flagger(width, height, encoding.gop) if encoding.codec == "vp9" else None
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                width,
                height,
                stream.pix_fmt,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=context.color_range,
                interpolation=SCALING,
                threads=1,
            )
            frame = flagged(frame, count) if flagged else frame
            frame.pts, frame.time_base = count, 1 / rate
            count += 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue(), count


def flagger(width: int, height: int, gop: int) -> Callable[[av.VideoFrame, int], av.VideoFrame]:
    """What tells libvpx of each frame, by its index, whether others may be predicted from it.

    FFmpeg hands on the flags that it finds in a frame's metadata, which PyAV can read and FFmpeg's filter can write.
    """
    graphs = {}
    for flags in (AS_LAST, NOWHERE):
        graph = graphs[flags] = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format="yuv420p", time_base=Fraction(1, 1000))
        graph.link_nodes(
            source, graph.add("metadata", f"mode=add:key=vp8-flags:value={flags}"), graph.add("buffersink")
        )
        graph.configure()

    def flagged(frame: av.VideoFrame, index: int) -> av.VideoFrame:
        if index % gop == 0:
            return frame
        graph = graphs[AS_LAST if is_reference(index, gop, "vp9") else NOWHERE]
        graph.vpush(frame)
        return graph.vpull()

    return flagged


def check_decodes(data: bytes, count: int, height: int, width: int, gop: int, fps: float, codec: str) -> None:
    """Decode a stored clip; raise `DataError` unless all frames come back, at that size, constant rate and codec."""
    try:
        with open_video(ClipInMemory(data), containers=("mov",)) as (container, stream):
            keys, shapes, formats, times = [], set(), set(), []
            for frame in container.decode(stream):
                keys.append(frame.key_frame)
                shapes.add((frame.height, frame.width))
                formats.add(frame.format.name)
                times.append(float(frame.pts * stream.time_base))
            stored = stream.codec.canonical_name
    except DataError as error:
        raise DataError(f"cannot be decoded: {error}") from error
    if stored != codec:
        raise DataError(f"is {stored}, not {codec}")
    if len(keys) != count:
        raise DataError(f"promises {count} frames, but {len(keys)} come out")
    if shapes != {(height, width)} or not formats <= {"yuv420p", "yuvj420p"}:
        sizes = ", ".join(f"{across}x{down}" for down, across in sorted(shapes))
        raise DataError(
            f"promises {width}x{height} in 8-bit 4:2:0, but {sizes} in {', '.join(sorted(formats))} come out"
        )
    if not all(keys[::gop]):
        raise DataError(f"has no key frame at every {gop}th frame (dataset.encoding.gop)")
    # Do frames follow each other from 0 at one rate? DALI counts frames, it reads no times.
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if times and abs(times[0]) > 1e-3:
        raise DataError(f"starts at {times[0]:.3f} s instead of 0")
    if steps and max(steps) - min(steps) > max(2e-3, 0.05 * min(steps)):
        raise DataError(f"has a variable rate: frames are {min(steps):.3f} to {max(steps):.3f} s apart")
    if steps and abs(sum(steps) / len(steps) * fps - 1) > 0.01:
        raise DataError(f"promises {fps:g} frames/s, but has {len(steps) / sum(steps):g}")
