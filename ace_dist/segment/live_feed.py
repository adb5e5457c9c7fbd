"""From a live source to windows: read by a thread of its own, which connects again when the stream is lost.

The process below it decodes. Between this thread and the caller's, which encodes, waits one window at most: of a stream
that goes on by itself the older one is left out, and a file that may take its time waits.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from operator import attrgetter
from typing import NamedTuple, Self

from ace_dist.config import Config
from ace_dist.data.build.live import LivePicture, LiveReader
from ace_dist.data.build.live_source import LiveSource
from ace_dist.data.loader.pixels import PictureCrop
from ace_dist.segment.windows import WindowGrid
from ace_dist.utils.errors import DataError

RETRY_S = (1.0, 30.0)  # before a new try to connect: the first time, and at most; it doubles
POLL_S = 0.2  # how soon a stop is seen while nothing comes


class Notice(NamedTuple):
    """Of the stream itself, as in `LiveEvent`. What lies before and behind it is not joined."""

    event: str
    time_s: float
    dropped: int
    note: str


class Window(NamedTuple):
    """Neighbouring pictures, uint8 RGB [3, S, S], which stand for the time from `start_s` on."""

    start_s: float
    pictures: list[LivePicture]

    @property
    def time_s(self) -> float:
        return self.pictures[-1].time_s

    @property
    def dropped(self) -> int:
        return self.pictures[-1].dropped


def live_windows(pictures: Iterable[LivePicture], grid: WindowGrid) -> Iterator[Window | Notice]:
    """Each window as soon as its last picture is there."""
    for _, group in groupby(pictures, attrgetter("epoch")):
        first = next(group)
        if first.jump:
            yield Notice("jump", first.time_s, first.dropped, first.jump)
        start_s = first.time_s - grid.first_s
        for number, window in enumerate(grid.windows(chain([first], group), to_end=False)):
            yield Window(start_s + number * grid.stride_s, window)


class Feed:
    """Windows and notices of a source. `dropped`: the frames that were left out up to the last item that was taken."""

    def __init__(
        self, source: LiveSource, config: Config, grid: WindowGrid, realtime: bool, give_up_s: float | None
    ) -> None:
        self.source, self.config, self.grid, self.realtime = source, config, grid, realtime
        self.give_up_s = math.inf if give_up_s is None else give_up_s
        self.waiting: deque[Window | Notice] = deque()
        self.changed, self.is_closed, self.has_ended = threading.Condition(), False, False
        self.error: BaseException | None = None
        self.reader: LiveReader | None = None
        self.dropped = self.earlier = self.late = 0  # frames: in all, of earlier connections, of windows left out here
        self.time_s, self.seen_s = 0.0, -math.inf  # of the newest picture, by the stream's clock and by ours
        self.thread = threading.Thread(target=self.run, name=f"reader of {source}", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End the process that decodes, and the thread."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()
            if self.reader is not None:
                self.reader.close()
        self.thread.join()

    def take(self, stop: threading.Event) -> Window | Notice | None:
        """The next item; None at the end, or when it is to stop. Raises what ended the thread."""
        with self.changed:
            while not (self.waiting or self.has_ended or stop.is_set()):
                self.changed.wait(POLL_S)
            if stop.is_set():
                return None
            if not self.waiting:
                self.dropped = self.earlier + self.late
                if self.error is not None:
                    raise self.error
                return None
            item = self.waiting.popleft()
            self.dropped = item.dropped + self.late
            self.changed.notify_all()
            return item

    # What follows runs in the thread.

    def run(self) -> None:
        try:
            self.read()
        except BaseException as error:
            self.error = error
        with self.changed:
            self.has_ended = True
            self.changed.notify_all()

    def read(self) -> None:
        """All connections, one after the other. Raises `DataError` when there is none, or none any more."""
        wait_s = RETRY_S[0]
        while not self.is_closed:
            before_s, reason = self.seen_s, f"{self.source} has ended"
            try:
                for item in live_windows(self.pictures(), self.grid):
                    self.put(item)
                if not self.source.may_return:
                    return
            except DataError as error:
                if self.is_closed or not self.is_worth_waiting():
                    raise
                reason = str(error)
            wait_s = RETRY_S[0] if self.seen_s > before_s else wait_s
            self.put(Notice("lost", self.time_s, self.earlier, f"{reason}; tries again in {wait_s:g} s"))
            with self.changed:
                self.changed.wait_for(lambda: self.is_closed, wait_s)
            wait_s = min(2 * wait_s, RETRY_S[1])

    def is_worth_waiting(self) -> bool:
        """A source that never showed a picture is a wrong one."""
        silent_s = time.monotonic() - self.seen_s
        return self.source.may_return and math.isfinite(silent_s) and silent_s <= self.give_up_s

    def pictures(self) -> Iterator[LivePicture]:
        """Of one connection; the frames left out of earlier ones count on."""
        crop, short_side = PictureCrop(self.config.loader), self.config.dataset.encoding.short_side
        with self.changed:
            if self.is_closed:
                return
            self.reader = LiveReader(self.source, self.realtime, self.grid.times, short_side)
        earlier, is_first = self.earlier, True
        try:
            for picture in self.reader:
                self.time_s, self.seen_s = picture.time_s, time.monotonic()
                self.earlier = earlier + picture.dropped
                if is_first:
                    self.put(Notice("open", picture.time_s, self.earlier, str(self.source)))
                is_first = False
                yield picture._replace(dropped=self.earlier, pixels=crop(picture.pixels))
            self.earlier = max(self.earlier, earlier + self.reader.dropped)
        finally:
            self.reader.close()

    def put(self, item: Window | Notice) -> None:
        with self.changed:
            windows = [each for each in self.waiting if isinstance(each, Window)]
            if isinstance(item, Window) and windows and self.realtime:
                self.waiting.remove(windows[0])
                self.late += self.grid.step
            elif isinstance(item, Window):
                self.changed.wait_for(lambda: self.is_closed or not self.waiting)
            self.waiting.append(item)
            self.changed.notify_all()
