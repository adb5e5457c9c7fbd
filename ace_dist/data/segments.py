"""A labelled stretch of video, its decoded frames, and `Reader`, the base of everything that supplies them."""

import abc
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ace_dist.concepts import Action
from ace_dist.utils.errors import DataError

SPLITS = ("train", "test")
VALIDATION = ("val", "valid", "validation", "dev", "eval")


@dataclass(frozen=True)
class Segment:
    """One action in one video. Its verb and object are kept in the one form that labels have (`normalise`).

    `id` is unique in its data set and safe as a file name; times are seconds of the video's own clock, as players show
    them, and `end_s` is infinite when the segment lasts as long as its video; `video` is a path, or empty when the
    reader renders; `group` is whatever a split must not cut (participant, environment, camera);
    `origin` tells a user where the segment was annotated.
    """

    id: str
    video: str
    start_s: float
    end_s: float
    verb: str
    object: str
    split: str
    group: str = ""
    origin: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.id):
            raise DataError(f"segment id {self.id!r} may hold letters, digits, '_' and '-' only: it names files")
        if self.split not in SPLITS:
            raise DataError(f"segment {self.id}: split {self.split!r} is not one of {', '.join(SPLITS)}")
        if not self.start_s < self.end_s:
            raise DataError(f"segment {self.id}: start_s={self.start_s} is not before end_s={self.end_s}")
        action = Action(self.verb, self.object)
        object.__setattr__(self, "verb", action.verb)
        object.__setattr__(self, "object", action.object)

    @property
    def action(self) -> Action:
        return Action(self.verb, self.object)


def parse_split(text: str) -> str:
    """A split as annotations write it, in any case. Raises `DataError` with what to write instead of another one."""
    split = text.strip().lower()
    if split in SPLITS:
        return split
    hint = ""
    if split in VALIDATION:
        hint = (
            "; write train, and let the training hold groups out with evaluation.every_steps=100 and "
            "evaluation.validation_groups='[NAME, ...]' or evaluation.validation_share=0.2"
        )
    elif near := [name for name in SPLITS if split.startswith(name[:2])]:
        hint = f"; did you mean {near[0]}?"
    raise DataError(f"split={text!r} is not one of {', '.join(SPLITS)}{hint}")


class Grouped(Protocol):
    """A segment, or the record of a clip."""

    @property
    def split(self) -> str: ...
    @property
    def group(self) -> str: ...


def shared_groups(clips: Sequence[Grouped]) -> list[str]:
    """A note when clips of one group stand in both splits."""
    train, test = ({clip.group for clip in clips if clip.split == split and clip.group} for split in SPLITS)
    if not (both := sorted(train & test)):
        return []
    more = ", ..." if len(both) > 5 else ""
    return [f"groups in both splits, so that the test is not of unknown ones: {', '.join(both[:5])}{more}"]


@dataclass(frozen=True)
class Failure:
    """A segment that gave no clip: its id (or what was annotated), its video, where it was annotated, and why."""

    id: str
    video: str
    origin: str
    reason: str


@dataclass(frozen=True)
class RawClip:
    """Decoded or rendered frames at a constant rate, uint8 RGB [H, W, 3] each, the first at `start_s` of the source.

    `frames` may be a stream, which is read once: a long segment then takes no more memory than a short one.
    """

    frames: Iterable[NDArray[np.uint8]]
    fps: float
    start_s: float


class Reader(abc.ABC):
    """A data set. Picklable: shard workers receive a copy.

    `notes` is what a user should know of how its segments were made; `rejected` what is annotated and gave no segment.
    """

    opens_files = False  # videos of others, which are read in processes of their own
    notes: Sequence[str] = ()
    rejected: Sequence[Failure] = ()

    @abc.abstractmethod
    def segments(self) -> list[Segment]:
        """Every segment, in an order that depends on the data set alone."""

    @abc.abstractmethod
    def read(self, segment: Segment, start_s: float, end_s: float) -> RawClip:
        """Frames of the segment's source from `start_s` to `end_s` seconds, clamped to what exists.

        Raises `DataError`, now or while the frames are taken, when the source cannot supply a frame of the segment.
        """

    def span(self, segment: Segment) -> tuple[float, float]:
        """When the segment's source shows its first picture, and when its last one ends, in seconds."""
        raw = self.read(segment, 0.0, math.inf)
        return raw.start_s, raw.start_s + sum(1 for _ in raw.frames) / raw.fps

    def source(self) -> dict[str, Any]:
        """Settings beside `dataset.kind`, clip and encoding that decide what the clips look like."""
        return {}


def clip_window(segment: Segment, seconds: float, margin_s: float) -> tuple[float, float]:
    """What a stored clip must cover, in seconds of the source and before clamping to it.

    The segment, and the window of `seconds` about its middle that training and a short segment's test views look at.
    """
    middle = (segment.start_s + segment.end_s) / 2
    start = min(segment.start_s, middle - seconds / 2) - margin_s
    end = max(segment.end_s, middle + seconds / 2) + margin_s
    return start, end
