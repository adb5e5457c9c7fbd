"""The labels of a live stream as soon as they are known: an event when one changes, and one every second."""

import json
import math
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from ace_dist.concepts import FreeLabel
from ace_dist.config import Config
from ace_dist.data.build.live import LiveFrame, grid_pictures
from ace_dist.data.build.live_source import LiveSource
from ace_dist.data.build.single_video import scaled_picture
from ace_dist.data.loader.pixels import PictureCrop
from ace_dist.data.loader.single_video import as_source
from ace_dist.evaluate.protocols import encode_label_sets
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.segment.decoders.live import LiveDecoder
from ace_dist.segment.embed import WindowEncoder
from ace_dist.segment.live_feed import Feed, Notice, Window, live_windows
from ace_dist.segment.live_procedure import Finding, LiveProcedure
from ace_dist.segment.procedure import Procedure
from ace_dist.segment.rejection import Floats
from ace_dist.segment.segmenter import FLOOR, Calibration
from ace_dist.segment.windows import WindowGrid
from ace_dist.utils.errors import ConfigError, DataError

OF_THE_JOB = ("done", "missing", "extra", "repeated", "swapped")


@dataclass(frozen=True)
class LiveEvent:
    """`event`: open, change (of the label), now (every second), jump, lost or end; `note` says why. With a procedure
    also done (the job), missing, extra, repeated or swapped, as `label` begins or the stream ends.

    `time_s`: of the newest frame that it rests on, by the stream's clock. `label` is None for "none of these",
    `start_s` when it seems to have begun, `score` its mean probability over the last `minimum_s`, `runner_up` the next
    best label. `latency_ms`: from when the newest frame was due to the event. `dropped`: frames left out so far.
    """

    event: str
    time_s: float
    dropped: int
    utc: str
    note: str = ""
    label: str | None = None
    start_s: float = 0.0
    score: float = 0.0
    runner_up: str | None = None
    latency_ms: float = 0.0

    @property
    def has_label(self) -> bool:
        return self.event in ("change", "now")

    def as_json(self) -> dict[str, Any]:
        """What there is to say: a label and its numbers, or a note."""
        content, own = asdict(self), ["note"]
        if self.has_label:
            own = ["label", "start_s", "score", "runner_up", "latency_ms"]
        elif self.event in OF_THE_JOB:
            own = ["label", "note"]
        return {name: content[name] for name in ("event", "time_s", *own, "dropped", "utc")}

    def as_line(self) -> str:
        return json.dumps(self.as_json(), ensure_ascii=False)


def build_event(event: str, time_s: float, dropped: int, note: str = "", **label: Any) -> LiveEvent:
    utc = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return LiveEvent(event, round(time_s, 3), dropped, utc, note, **label)


class Labeller:
    """Says the label after each window, from what it was shown so far."""

    def __init__(
        self,
        model: DualEncoder,
        config: Config,
        labels: Sequence[FreeLabel],
        calibration: Calibration,
        grid: WindowGrid,
        minimum_s: float | None,
        procedure: Procedure | None = None,
    ) -> None:
        minimum_s = calibration.decoder.minimum_s if minimum_s is None else minimum_s
        if not 0 <= minimum_s < math.inf:
            raise ConfigError(f"minimum_s={minimum_s} must be a number of seconds, 0 or more")
        self.model, self.config, self.calibration = model, config, calibration
        self.encoder = WindowEncoder(model, config)
        self.temperature = model.similarity.learned_temperature(config.method.temperature)
        self.labels = [*(label.label for label in labels), None]
        self.text = encode_label_sets(model, [tuple(label.phrases for label in labels)])
        self.decoder = LiveDecoder(max(1, round(minimum_s / grid.stride_s)), calibration.decoder.switch_cost)
        self.job = LiveProcedure(procedure) if procedure else None
        self.grid, self.time_s = grid, 0.0
        self.second: int | None = None

    def events(self, item: Window | Notice, dropped: int) -> Iterator[LiveEvent]:
        """What there is to say after an item of the stream; `dropped` frames were left out up to it."""
        self.time_s = item.time_s
        if isinstance(item, Window):
            yield from self.step(item, dropped)
            return
        self.decoder.restart()
        self.second = None
        yield build_event(item.event, item.time_s, dropped, item.note)

    @torch.no_grad()
    def scores(self, window: Window) -> Floats:
        """Log-probabilities [K + 1] of one window; the last is "none of these"."""
        embedding = self.encoder.encode([[each.pixels for each in window.pictures]])
        (cosines,) = self.model.similarity.cosines(torch.from_numpy(embedding), *self.text)
        scores = self.calibration.rejection.log_probabilities(
            embedding.astype(float), cosines.double().numpy(), self.temperature
        )
        floored: Floats = np.maximum(scores[0], FLOOR)
        return floored

    def step(self, window: Window, dropped: int) -> Iterator[LiveEvent]:
        decision, second = self.decoder.step(window.start_s, self.scores(window)), math.floor(window.time_s)
        if decision is None or (not decision.is_new and second == self.second):
            return
        self.second = second
        ranked = np.argsort(-decision.means[:-1], kind="stable").tolist()
        yield build_event(
            "change" if decision.is_new else "now",
            window.time_s,
            dropped,
            label=self.labels[decision.label],
            start_s=round(decision.start_s, 3),
            score=round(float(decision.means[decision.label]), 4),
            runner_up=self.labels[next(place for place in ranked if place != decision.label)],
            latency_ms=round(max(0.0, time.monotonic() - window.pictures[-1].due_s) * 1e3, 1),
        )
        label = self.labels[decision.label]
        if self.job and decision.is_new and label is not None:
            yield from self.findings(self.job.begin(label), dropped)

    def findings(self, found: Sequence[Finding], dropped: int) -> Iterator[LiveEvent]:
        return (build_event(event, self.time_s, dropped, note, label=label) for event, label, note in found)

    def end(self, dropped: int, note: str) -> Iterator[LiveEvent]:
        """The last events: what is missing in a job that was begun, and why the stream ends."""
        yield from self.findings(self.job.give_up() if self.job else [], dropped)
        yield build_event("end", self.time_s, dropped, note)


def watch(
    labeller: Labeller, source: LiveSource, realtime: bool, give_up_s: float | None, stop: threading.Event
) -> Generator[LiveEvent, None, None]:
    """Events of a source until it ends or `stop` is set; the last one says why. Then raises `DataError` if it broke."""
    error: DataError | None = None
    with Feed(source, labeller.config, labeller.grid, realtime, give_up_s) as feed:
        try:
            while (item := feed.take(stop)) is not None:
                yield from labeller.events(item, feed.dropped)
        except DataError as broken:
            error = broken
        note = str(error or ("stopped" if stop.is_set() else f"{source} has ended"))
        yield from labeller.end(feed.dropped, note)
    if error is not None:
        raise error


def watch_frames(
    labeller: Labeller, frames: Iterable[tuple[float, Any]], stop: threading.Event
) -> Generator[LiveEvent, None, None]:
    """Events of pictures in memory, uint8 RGB [H, W, 3], each with its time in seconds; the caller sets the pace.

    They end with the frames, or at the first one after `stop` is set.
    """
    crop, short_side = PictureCrop(labeller.config.loader), labeller.config.dataset.encoding.short_side
    pictures = grid_pictures(
        frames_in_memory(frames, stop),
        lambda picture, _: crop(scaled_picture(picture, short_side)),
        labeller.grid.times,
    )
    dropped = 0
    for item in live_windows(pictures, labeller.grid):
        dropped = item.dropped
        yield from labeller.events(item, dropped)
    yield from labeller.end(dropped, "stopped" if stop.is_set() else "the frames have ended")


def frames_in_memory(frames: Iterable[tuple[float, Any]], stop: threading.Event) -> Iterator[LiveFrame]:
    """Pictures of somebody's own camera, each with its time in seconds. Raises `DataError` for what is neither."""
    for time_s, picture in frames:
        if stop.is_set():
            return
        if not math.isfinite(time_s):
            raise DataError(f"a frame's time is {time_s}; give seconds, such as time.monotonic()")
        (pixels,) = np.asarray(as_source([picture]))
        yield LiveFrame(float(time_s), time.monotonic(), 0, pixels)
