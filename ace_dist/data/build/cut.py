"""Makes clips out of segments, in parallel: a worker that dies, or that hangs and is ended, costs its segment only.

What is wrong with the input becomes a `Failure`; a bug is raised.
"""

import dataclasses
import hashlib
import itertools
import math
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import cast

import av

from ace_dist.config import EncodingConfig
from ace_dist.data.build.encode import encode
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

    def cut(self, segment: Segment) -> Cut:
        """Read, encode and check one segment. The record has no place in a shard yet."""
        try:
            segment, raw = self.read(segment)
            encoded = encode(raw, self.encoding)
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
            segment_start_s=round(max(segment.start_s - raw.start_s, 0.0), 6),
            segment_end_s=round(min(segment.end_s - raw.start_s, encoded.frames / encoded.fps), 6),
            verb=segment.verb,
            object=segment.object,
            split=segment.split,
            group=segment.group,
            sha256=hashlib.sha256(encoded.data).hexdigest(),
        )
        return record, encoded.data

    def read(self, segment: Segment) -> tuple[Segment, RawClip]:
        """The frames around a segment. One that is annotated past the end of its video ends where the video ends.

        Raises `DataError` when that leaves less than half of the segment, when the video does not show its beginning,
        or when the whole video is shorter than a clip.
        """
        start_s, end_s = clip_window(segment, self.clip_seconds, self.encoding.margin_s)
        if self.encoding.fps:
            # Back to a time from which frames fall on the sampling times of the training window (`window_frames`): it
            # then shows the very frames that it would have chosen from the video's own.
            fps = self.encoding.fps
            first_s = (segment.start_s + segment.end_s - self.clip_seconds + 1 / fps) / 2
            start_s = first_s - math.ceil((first_s - start_s) * fps - 1e-6) / fps
        raw = self.reader.read(segment, start_s, end_s)
        half_frame_s, length_s = 0.5 / raw.fps, raw.end_s - raw.start_s
        is_whole = start_s <= 0 and raw.end_s < end_s - half_frame_s
        if is_whole and length_s < self.clip_seconds - half_frame_s:
            raise DataError(
                f"the video lasts {length_s:.2f} s, less than one clip (dataset.clip.seconds={self.clip_seconds:g}); "
                "make clips shorter or leave the video out"
            )
        if raw.end_s < (segment.start_s + segment.end_s) / 2 - half_frame_s:
            raise DataError(
                f"the segment lasts from {segment.start_s:g} to {segment.end_s:g} s, but the video ends at "
                f"{raw.end_s:.2f} s, before its middle"
            )
        if raw.start_s > segment.start_s + self.encoding.margin_s + half_frame_s:
            raise DataError(
                f"the segment starts at {segment.start_s:g} s, but the video shows nothing before {raw.start_s:.2f} s"
            )
        if raw.end_s < segment.end_s - half_frame_s:  # its middle is another one now, and so is the window
            return self.read(dataclasses.replace(segment, end_s=raw.end_s))
        return segment, raw


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
