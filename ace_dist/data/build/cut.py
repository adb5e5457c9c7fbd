"""Makes clips out of segments, in parallel: a worker that dies, or that hangs and is ended, costs its segment only.

What is wrong with the input becomes a `Failure`; a bug is raised.
"""

import dataclasses
import hashlib
import itertools
import math
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

from ace_dist.config import EncodingConfig
from ace_dist.data.build.encode import EncodedClip, encode
from ace_dist.data.build.isolation import LostError, Workers
from ace_dist.data.segments import Failure, RawClip, Reader, Segment, clip_window
from ace_dist.data.shards import ClipRecord
from ace_dist.utils.cores import host_cores
from ace_dist.utils.errors import DataError

AHEAD = 4  # segments handed out per worker: enough to keep it busy, few enough that waiting clips fit into memory

Cut = tuple[ClipRecord, bytes] | Failure


@dataclass(frozen=True)
class Cutter:
    """What a worker needs to make one clip. Picklable. A worker ends when a segment takes longer than `timeout_s`."""

    reader: Reader
    clip_seconds: float
    encoding: EncodingConfig
    timeout_s: float = 0.0  # 0: no limit
    pad: bool = False  # fill a video that is shorter than a clip with its last frame

    def cut(self, segment: Segment) -> Cut:
        """Read, encode and check one segment. The record has no place in a shard yet."""
        try:
            segment, start_s, padded_s, encoded = self.store(self.placed(segment))
        except (DataError, av.error.FFmpegError, OSError) as error:
            return failure(segment, " ".join(str(error).split()))
        record = ClipRecord(
            key=segment.id,
            shard="",
            offset=0,
            size=len(encoded.data),
            frames=encoded.frames,
            fps=encoded.fps,
            width=encoded.width,
            height=encoded.height,
            segment_start_s=round(max(segment.start_s - start_s, 0.0), 6),
            segment_end_s=round(min(segment.end_s - start_s, encoded.frames / encoded.fps), 6),
            verb=segment.verb,
            object=segment.object,
            split=segment.split,
            group=segment.group,
            sha256=hashlib.sha256(encoded.data).hexdigest(),
            padded_s=round(padded_s, 6),
        )
        return record, encoded.data

    def placed(self, segment: Segment) -> Segment:
        """A segment that lasts as long as its video, with the times of that."""
        if math.isfinite(segment.end_s):
            return segment
        first_s, end_s = self.reader.span(segment)
        if segment.start_s >= end_s:
            raise DataError(f"the segment begins at {segment.start_s:g} s, but the video ends at {end_s:.2f} s")
        return dataclasses.replace(segment, start_s=max(segment.start_s, first_s), end_s=end_s)

    def store(self, segment: Segment) -> tuple[Segment, float, float, EncodedClip]:
        """The clip around a segment, the time of its first frame, and for how long its last one is repeated.

        A segment that is annotated before the first picture of its video, or past the last one, begins or ends there.
        Raises `DataError` when that leaves less than half of the segment, or when the whole video is shorter than a
        clip and `pad` does not fill it.
        """
        start_s, end_s = self.window(segment)
        raw = self.reader.read(segment, start_s, end_s)
        half_frame_s, middle_s = 0.5 / raw.fps, (segment.start_s + segment.end_s) / 2
        if raw.start_s > middle_s + half_frame_s:
            raise DataError(
                f"the segment lasts from {segment.start_s:g} to {segment.end_s:g} s, but the video shows nothing "
                f"before {raw.start_s:.2f} s, behind its middle"
            )
        if raw.start_s > segment.start_s + self.encoding.margin_s + half_frame_s:
            return self.store(dataclasses.replace(segment, start_s=raw.start_s))
        from_first = start_s <= 0 or raw.start_s > start_s + half_frame_s
        until_s = end_s - raw.start_s - half_frame_s  # what begins with its video and ends earlier is all of it
        frames = Counted(raw, until_s if from_first else 0.0, self.clip_seconds if self.pad else 0.0)
        encoded = encode(dataclasses.replace(raw, frames=frames), self.encoding)
        ends_s = raw.start_s + frames.own_s
        is_short = from_first and frames.own_s < min(until_s, self.clip_seconds - half_frame_s)
        if is_short and not self.pad:
            raise DataError(
                f"the video lasts {frames.own_s:.2f} s, less than one clip (dataset.clip.seconds="
                f"{self.clip_seconds:g}); make clips shorter, leave the video out, or build with dataset.pad=true, "
                "which repeats its last frame"
            )
        if ends_s < middle_s - half_frame_s:
            raise DataError(
                f"the segment lasts from {segment.start_s:g} to {segment.end_s:g} s, but the video ends at "
                f"{ends_s:.2f} s, before its middle"
            )
        if is_short:  # an action that lasts to the end of the video lasts to that of the clip
            end_s = segment.end_s if segment.end_s < ends_s - half_frame_s else ends_s + frames.padded_s
            return dataclasses.replace(segment, end_s=end_s), raw.start_s, frames.padded_s, encoded
        if ends_s < segment.end_s - half_frame_s:  # its middle is another one now, and so is the window
            return self.store(dataclasses.replace(segment, end_s=ends_s))
        return segment, raw.start_s, 0.0, encoded

    def window(self, segment: Segment) -> tuple[float, float]:
        """The times to read. Where a rate is set, back to a time from which frames fall on the sampling times of the
        training window (`window_frames`): it then shows the very frames that it would have chosen from the video's own.
        """
        start_s, end_s = clip_window(segment, self.clip_seconds, self.encoding.margin_s)
        if fps := self.encoding.fps:
            first_s = (segment.start_s + segment.end_s - self.clip_seconds + 1 / fps) / 2
            start_s = first_s - math.ceil((first_s - start_s) * fps - 1e-6) / fps
        return start_s, end_s


class Counted:
    """The frames of a clip, counted as they pass. Where they end before `until_s`, the last one fills up `pad_s`."""

    def __init__(self, raw: RawClip, until_s: float, pad_s: float) -> None:
        self.raw, self.until_s, self.pad_s = raw, until_s, pad_s
        self.own_s = self.padded_s = 0.0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        count = 0
        for pixels in self.raw.frames:
            count += 1
            yield pixels
        self.own_s = count / self.raw.fps
        if self.own_s < self.until_s and (missing := math.ceil(self.pad_s * self.raw.fps - 0.5) - count) > 0:
            self.padded_s = missing / self.raw.fps
            yield from itertools.repeat(pixels, missing)


def failure(segment: Segment, reason: str) -> Failure:
    return Failure(segment.id, segment.video, segment.origin, reason)


def cut_all(cutter: Cutter, segments: Sequence[Segment], workers: int) -> Generator[Cut, None, None]:
    """Results in the order of `segments`, whatever the number of worker processes (0: one per core).

    A video can crash FFmpeg or hang it, and memory can run out. A segment whose worker died is cut again while no other
    one is cut; when it ends its worker there too, it is a `Failure`. Rendered segments need no worker for one alone.
    """
    if workers == 1 and not cutter.reader.opens_files:
        yield from map(cutter.cut, segments)
        return
    count = max(1, min(workers or host_cores(), len(segments)))
    # At most `AHEAD` segments per worker are under way or wait to be collected.
    ahead: deque[tuple[Segment, Future[Cut]]] = deque()
    rest = iter(segments)
    with Workers(count, cutter.cut) as pool:
        while True:
            for segment in itertools.islice(rest, AHEAD * count - len(ahead)):
                ahead.append((segment, pool.submit(cutter.timeout_s, segment)))
            if not ahead:
                return
            segment, cut = ahead.popleft()
            try:
                yield cut.result()
            except LostError:
                print(f"a worker died; {segment.id} is cut again while no other one is", file=sys.stderr)
                wait(future for _, future in ahead)
                yield cut_alone(pool, cutter, segment)
            except DataError as error:  # of its worker: memory ran out
                yield failure(segment, str(error))


def cut_alone(pool: Workers, cutter: Cutter, segment: Segment) -> Cut:
    try:
        return cast(Cut, pool.run(cutter.timeout_s, segment))
    except LostError as error:
        limit = f"dataset.timeout_s={cutter.timeout_s:g}"
        return failure(segment, f"the process that cuts it dies, also alone ({limit}): {error}")
