"""Videos and data sets for the tests of the data room: every frame carries its own number, readable after any codec."""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np

from ace_dist.config import DatasetConfig, EncodingConfig, LoaderConfig
from ace_dist.data.build.decode import read_window
from ace_dist.data.build.shards import Build
from ace_dist.data.segments import RawClip, Reader, Segment

BITS = 8


def numbered_frames(count, height, width, seed=0, first=0):
    """Smooth coloured noise uint8 [count, H, W, 3]; the lower half shows the frame's number as black and white bars.

    Upright bars over the whole width, most significant bit left, so that `frame_number` can read them after scaling.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (height // 8 + 3, width // 8 + 3, 3))
    rows, columns = np.linspace(0, len(coarse) - 2, height), np.linspace(0, coarse.shape[1] - 2, width)
    y, x = rows.astype(int)[:, None], columns.astype(int)[None]
    fy, fx = (rows % 1)[:, None, None], (columns % 1)[None, :, None]
    top = coarse[y, x] * (1 - fx) + coarse[y, x + 1] * fx
    bottom = coarse[y + 1, x] * (1 - fx) + coarse[y + 1, x + 1] * fx
    picture = top * (1 - fy) + bottom * fy
    frames = np.repeat(picture[None], count, 0).round().astype(np.uint8)
    bar = np.arange(width) * BITS // width
    for index in range(count):
        lit = ((first + index) >> (BITS - 1 - bar)) & 1
        frames[index, height // 2 :] = np.where(lit, 255, 0)[None, :, None]
    return frames


def frame_number(frame):
    """The number that a frame [H, W, 3] (any size, values 0 to 255) shows."""
    height, width = frame.shape[:2]
    row = np.asarray(frame, float)[height * 3 // 4].mean(-1)
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    return int(sum(int(row[c] > 128) << (BITS - 1 - bit) for bit, c in enumerate(centres)))


def write_video(path, frames, rate=12, codec="libx264", pix_fmt="yuv420p", times=None, options=None, aspect=None):
    """Write uint8 RGB frames [N, H, W, 3]. `times`: seconds of each frame instead of the constant rate."""
    base = Fraction(1, 12000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            second = times[index] if times is not None else index / rate
            frame.pts, frame.time_base = round(second / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@dataclass(frozen=True)
class Window(RawClip):
    """Frames that were read, as one array [N, H, W, 3]."""

    @property
    def end_s(self):
        return self.start_s + len(self.frames) / self.fps


def read_frames(path, *arguments, **settings):
    """`read_window` to its end."""
    raw = read_window(path, *arguments, **settings)
    return Window(np.stack(list(raw.frames)), raw.fps, raw.start_s)


def rotate_on_display(path, degrees_clockwise):
    """Set the display matrix of an mp4 file's track header, as a phone held upright does."""
    turn_on_display(
        path, *{0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees_clockwise]
    )


def turn_on_display(path, a, b, c, d):
    """Show the pixel at (x, y) of an mp4 file's pictures at (ax + cy, bx + dy) (ISO/IEC 14496-12, 8.3.2)."""
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    data[place : place + 36] = matrix
    path.write_bytes(data)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_hdr(path, transfer):
    """Grey 10-bit BT.2020 video that says it is PQ (16) or HLG (18) (ITU-T H.273), as HDR cameras and phones do."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=12, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
        for index in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 148, np.uint8), format="rgb24").reformat(
                format="yuv420p10le"
            )
            frame.color_trc, frame.color_primaries, frame.colorspace = transfer, 9, 9
            frame.pts, frame.time_base = index, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def remux(source, path, skip=0, **options):
    """Copy the packets of a video into another container, without the first `skip` of them."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.dts is not None and number >= skip:
                packet.stream = stream
                new.mux(packet)
    return path


@dataclass
class NumberedReader(Reader):
    """A rendering reader: `count` sources of `frames` numbered frames; source i is `sizes[i % len(sizes)]` (H, W)."""

    count: int
    frames: int = 24
    fps: float = 8.0
    sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    segment: tuple[float, float] = (0.4, 2.6)
    test_every: int = 3
    broken: frozenset[str] = field(default_factory=frozenset)

    def segments(self):
        verbs, objects = ("spin", "lift"), ("block", "pin", "cup")
        return [
            Segment(
                f"clip_{i:03d}",
                "",
                *self.segment,
                verbs[i % 2],
                objects[i % 3],
                "test" if i % self.test_every == 0 else "train",
                f"person{i % 4}",
            )
            for i in range(self.count)
        ]

    def read(self, segment, start_s, end_s):
        if segment.id in self.broken:
            raise av.error.InvalidDataError(1, f"{segment.id} is broken on purpose")
        index = int(segment.id.split("_")[1])
        first = max(0, round(start_s * self.fps))
        last = min(self.frames, round(end_s * self.fps))
        height, width = self.sizes[index % len(self.sizes)]
        frames = numbered_frames(last - first, height, width, seed=index, first=first)
        return RawClip(frames, self.fps, first / self.fps)


class DyingReader(NumberedReader):
    """Kills its own process at clip_011, as the kernel does when memory runs out."""

    def read(self, segment, start_s, end_s):
        if segment.id == "clip_011":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(segment, start_s, end_s)


@dataclass
class HangingReader(NumberedReader):
    """At clip_011 FFmpeg opens a named pipe into which nobody writes, and stands still in the kernel."""

    pipe: str = ""

    def read(self, segment, start_s, end_s):
        if segment.id == "clip_011":
            wait_for_ever(self.pipe)
        return super().read(segment, start_s, end_s)


def wait_for_ever(pipe):
    av.open(pipe)


def plan_build(reader, folder, clip, encoding, kind="csv", **settings):
    """A build of `reader` into `folder`; `settings` are those of `dataset`."""
    dataset = DatasetConfig("test", kind, shards=str(folder), clip=clip, encoding=encoding, **settings)
    return Build.plan(reader, dataset)


def build_shards(reader, folder, clip, encoding, *, workers=1, **settings):
    return plan_build(reader, folder, clip, encoding, **settings).run(workers, progress=False)


def small_encoding(**settings):
    """Encoding of the tests: 64 pixels, short GOPs."""
    codec = settings.get("codec", "vp9")
    return EncodingConfig(**{"short_side": 64, "gop": 5, "quality": {"mjpeg": 3}.get(codec, 20), **settings})


def small_loader(**settings):
    """Loader settings of the tests: 48-pixel crops."""
    return LoaderConfig(
        **{"crop": 48, "short_side_min": 48, "short_side_max": 80, "test_short_side": 56, "threads": 2, **settings}
    )
