"""Reads a live stream in a process of its own: every frame is decoded, and those on a grid of times become pictures.

Frames that would come too late are left out, as are damaged ones and those behind them, up to the next key frame.
"""

import contextlib
import math
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import av
import cloudpickle
import numpy as np
from numpy.typing import NDArray

from ace_dist.data.build.container import open_video
from ace_dist.data.build.decode import BREAK_S, Upright, clock_zero, promised_span, shown_out_of_order
from ace_dist.data.build.isolation import LostError, Worker
from ace_dist.data.build.live_source import LiveSource
from ace_dist.utils.errors import DataError

STALL_S = 30.0  # without a picture, the first one too, for which a stream's parameters and a key frame are awaited
LAG_S = 1.0  # late, after which frames are left out
WAITED_S = 0.005  # for a packet: then no other one was waiting
EARLY_S = 0.002  # that a frame may stand before its time of the grid; containers round to milliseconds
Pixels = NDArray[np.uint8]


class LiveGrid(NamedTuple):
    """Pictures `interval_s` apart, the first one `first_s` behind the first frame; begun anew behind a longer pause."""

    first_s: float
    interval_s: float
    pause_s: float


class LiveFrame(NamedTuple):
    """`due_s`: when it was to be shown, by `time.monotonic`; `dropped`: frames left out so far."""

    time_s: float
    due_s: float
    dropped: int
    picture: Any


class LivePicture(NamedTuple):
    """Pixels uint8 RGB [H, W, 3]. `epoch` counts how often the grid began anew, and `jump` says why, or is empty."""

    time_s: float
    due_s: float
    dropped: int
    epoch: int
    jump: str
    pixels: Pixels


class LiveReader:
    """The pictures of one connection. `close`, which any thread may call, ends the process that reads them.

    `dropped`: frames left out, when all pictures have come.
    """

    def __init__(self, source: LiveSource, realtime: bool, grid: LiveGrid, short_side: int) -> None:
        self.source, self.dropped = source, 0
        with ExitStack() as stack:
            files = []
            if source.kind == "pipe":  # its own standard input is another one, so it gets the pipe under a new number
                files = [os.dup(int(source.place))]
                stack.callback(os.close, files[0])
                source = LiveSource("pipe", str(files[0]))
            self.worker = Worker(cloudpickle.dumps(operator.call), files)
        self.worker.send(STALL_S, read_pictures, source, realtime, grid, short_side)

    def __iter__(self) -> Iterator[LivePicture]:
        """Raises `DataError` when the source cannot be read, or no longer."""
        try:
            while item := self.worker.receive():
                if isinstance(item[0], int):
                    self.dropped = item[0]
                else:
                    yield item[0]
        except LostError as error:
            raise DataError(f"{self.source} sends no picture: {error}") from error

    def close(self) -> None:
        self.worker.process.kill()
        self.worker.process.wait()


def read_pictures(source: LiveSource, realtime: bool, grid: LiveGrid, short_side: int) -> Iterator[LivePicture | int]:
    """Runs in the process of a `LiveReader`. Pictures whose shorter side exceeds `short_side` are scaled down to it.

    The last item is how many frames were left out, also behind the last picture.
    """
    promised_s = 0.0 if source.is_live else promised_span(source)[1]
    with open_video(source, strict=source.kind != "camera") as (container, stream):
        if not source.is_live and shown_out_of_order(container, stream):
            raise DataError(f"{source} does not say when its pictures are shown; first: ffmpeg -i IN OUT.mp4")
        upright = Upright(source, stream, short_side)
        clock = (ArrivalClock if source.is_live else PlayClock)() if realtime else Unhurried()
        frames = LiveFrames(source, container, stream, clock, grid.pause_s)
        yield from grid_pictures(frames, upright.picture, grid)
        yield frames.dropped
        ends_s = max(frames.ends_s, frames.time_s + 1 / float(stream.average_rate or 1))
    if ends_s < promised_s - BREAK_S:
        raise DataError(f"{source} breaks off at {ends_s:.2f} s, although its header promises {promised_s:.2f} s")


def grid_pictures(
    frames: Iterable[LiveFrame], show: Callable[[Any, float], Pixels], grid: LiveGrid
) -> Iterator[LivePicture]:
    """The first frame at or behind each time of the grid, and in a short pause the one before.

    A frame that is not later than its predecessor is left out. Behind a jump of the times, forward by more than
    `grid.pause_s` or back by as much, the grid begins anew.
    """
    held: Pixels | None = None
    next_s, last_s, left_out, before, epoch, jump = math.nan, math.nan, 0, 0, 0, ""
    for time_s, due_s, dropped, frame in frames:
        if last_s - grid.pause_s < time_s <= last_s:
            left_out += 1
            continue
        if not 0 < time_s - last_s <= grid.pause_s:
            if not math.isnan(last_s):
                between = f", {dropped - before} frames between were left out" if dropped > before else ""
                epoch, jump = epoch + 1, f"times jump from {last_s:.2f} to {time_s:.2f} s{between}"
            held, next_s = None, time_s + grid.first_s
        last_s, before = time_s, dropped
        if held is None and time_s >= next_s + grid.interval_s:
            next_s = time_s
        while held is not None and time_s >= next_s + grid.interval_s - EARLY_S:
            yield LivePicture(next_s, due_s, dropped + left_out, epoch, jump, held)
            next_s += grid.interval_s
        if time_s >= next_s - EARLY_S:
            held = show(frame, time_s)
            yield LivePicture(time_s, due_s, dropped + left_out, epoch, jump, held)
            next_s += grid.interval_s


class LiveFrames:
    """Decoded frames in time. After one was left out, all are, until a key frame comes in time.

    `ends_s`: when the last frame that came ends, shown or left out.
    """

    def __init__(self, source: LiveSource, container: Any, stream: Any, clock: "Unhurried", pause_s: float) -> None:
        self.source, self.container, self.stream, self.clock, self.pause_s = source, container, stream, clock, pause_s
        self.zero = None if source.is_live else clock_zero(container)  # else the first packet's time
        self.time_s, self.dropped, self.ends_s = 0.0, 0, 0.0

    def __iter__(self) -> Iterator[LiveFrame]:
        waiting, key_pts, held = True, None, 0  # held: packets whose frames the decoder has not given out yet
        for packet in self.packets():
            intact = not packet.is_corrupt and self.in_time(packet)
            if packet.size and waiting and packet.is_keyframe and intact:
                self.stream.codec_context.flush_buffers()
                self.dropped += held
                waiting, key_pts, held = False, packet.pts, 0
            waiting = waiting or not intact
            frames = None if waiting else self.decoded(packet)
            if frames is None:
                waiting = True
                self.dropped += key_pts is not None and bool(packet.size)  # what stands before the first is not missed
                continue
            held = max(0, held + bool(packet.size) - len(frames))
            for frame in frames:
                if frame.is_corrupt or (None not in (key_pts, frame.pts) and frame.pts < key_pts):
                    self.dropped += 1  # those of an open group lack what stood before the key frame
                    continue
                self.time_s = self.seconds(frame)
                yield LiveFrame(self.time_s, self.clock.due(self.time_s), self.dropped, frame)
        self.dropped += held if waiting else 0

    def packets(self) -> Iterator[Any]:
        """Each with the clock told how long it was awaited."""
        packets = self.container.demux(self.stream)
        while True:
            asked_s = time.monotonic()
            packet = next(packets, None)
            if packet is None:
                return
            self.clock.waited_s = time.monotonic() - asked_s
            if packet.pts is not None and self.zero is not None:
                ends_s = float((packet.pts + (packet.duration or 0)) * packet.time_base - self.zero)
                self.ends_s = max(self.ends_s, ends_s)
            yield packet

    def in_time(self, packet: Any) -> bool:
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None:
            return True
        self.zero = stamp * packet.time_base if self.zero is None else self.zero
        return self.clock.lag(float(stamp * packet.time_base - self.zero), self.pause_s) <= LAG_S

    def decoded(self, packet: Any) -> list[Any] | None:
        """None when it is damaged."""
        with contextlib.suppress(av.error.FFmpegError):
            return list(packet.decode())
        return None

    def seconds(self, frame: Any) -> float:
        if frame.pts is None or self.zero is None:
            raise DataError(
                f"{self.source} is a stream without times; wrap it first: ffmpeg -i IN -c copy -f matroska -"
            )
        return float(frame.pts * self.stream.time_base - self.zero)


class Unhurried:
    """The clock of a stream that is read as fast as it goes: nothing is ever late."""

    waited_s = 0.0

    def lag(self, time_s: float, pause_s: float) -> float:
        return 0.0

    def due(self, time_s: float) -> float:
        return time.monotonic()


class ArrivalClock(Unhurried):
    """Of a stream that comes by itself. What is awaited is in time; what lay ready may be late.

    While packets lie ready, this process lags by as much as it took longer since the last awaited one than the stream's
    own time went on. A sender that sends in bursts makes no lag.
    """

    offset_s, last_s = math.inf, math.nan  # this machine's time less the stream's; the stream's last one

    def lag(self, time_s: float, pause_s: float) -> float:
        now_s = time.monotonic() - time_s
        jumps = not abs(time_s - self.last_s) <= pause_s
        self.last_s = time_s
        self.offset_s = now_s if jumps or self.waited_s > WAITED_S else min(self.offset_s, now_s)
        return now_s - self.offset_s

    def due(self, time_s: float) -> float:
        return min(self.offset_s + time_s, time.monotonic())


class PlayClock(ArrivalClock):
    """Of a file, played at its own pace: `due` waits until it is time."""

    def lag(self, time_s: float, pause_s: float) -> float:
        now_s = time.monotonic() - time_s
        if not abs(time_s - self.last_s) <= pause_s:
            self.offset_s = now_s
        self.last_s = time_s
        return now_s - self.offset_s

    def due(self, time_s: float) -> float:
        due_s = self.offset_s + time_s
        time.sleep(max(0.0, due_s - time.monotonic()))
        return due_s
