"""The workbench of the tabletop world as a data set: its segments, and frames rendered on demand."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ace_dist.data.segments import RawClip, Reader, Segment
from ace_dist.utils.errors import DataError
from ace_dist.worlds.tabletop.rendering import render
from ace_dist.worlds.tabletop.world import (
    BASE_ACTIONS,
    NOVEL_ACTIONS,
    SEED_WORKBENCH_TEST,
    SEED_WORKBENCH_TRAIN,
    ClipStyle,
    TabletopConfig,
    draw_person,
    draw_style,
)


@dataclass(frozen=True)
class TabletopReader(Reader):
    """Renders. Train: base actions by some people; test: base and novel actions by other people.

    Clip i of a split is a pure function of (world.seed, split, i), so any process renders the same frames.
    Raises `ConfigError` for settings that cannot be rendered.
    """

    world: TabletopConfig

    def __post_init__(self) -> None:
        self.world.check()

    def source(self) -> dict[str, Any]:
        world = asdict(self.world)
        del world["corpus"]  # it makes the narrated corpus, not these clips
        return {"world": world}

    def segments(self) -> list[Segment]:
        """Training segments, then test segments; classes take turns, so every one has its share."""
        world = self.world
        train = [self._segment("train", i, BASE_ACTIONS[i % len(BASE_ACTIONS)]) for i in range(world.train_clips)]
        both = BASE_ACTIONS + NOVEL_ACTIONS
        return train + [self._segment("test", i, both[i % len(both)]) for i in range(world.test_clips)]

    def read(self, segment: Segment, start_s: float, end_s: float) -> RawClip:
        """Rendered frames [N, size, size, 3] from `start_s` to `end_s`, clamped to the source's `source_s` seconds.

        Frame k of the source shows time k / fps; the first frame returned is the last one at or before `start_s`.
        """
        world = self.world
        available = int(np.floor(world.source_s * world.fps + 1e-6))
        first = max(0, int(np.floor(start_s * world.fps + 1e-6)))
        last = min(available, int(np.ceil(end_s * world.fps - 1e-6)))
        if last <= first:
            raise DataError(
                f"segment {segment.id}: the window {start_s:g} to {end_s:g} s holds no frame of its "
                f"{world.source_s:g} s source (dataset.world.source_s, dataset.world.fps)"
            )
        times = np.arange(first, last) / world.fps
        _, style = self._style(segment.split, int(segment.id.rsplit("-", 1)[1]))
        frames = render(segment.verb, segment.object, style, times, world.size, world.motion_noise)
        return RawClip(frames, world.fps, first / world.fps)

    def _segment(self, split: str, index: int, action: tuple[str, str]) -> Segment:
        person, style = self._style(split, index)
        return Segment(
            id=f"tabletop-{split}-{index:05d}",
            video="",
            start_s=style.segment[0],
            end_s=style.segment[1],
            verb=action[0],
            object=action[1],
            split=split,
            group=f"person-{person:02d}",
        )

    def _style(self, split: str, index: int) -> tuple[int, ClipStyle]:
        """The person of a clip and its style; people of the two splits differ."""
        world = self.world
        train = split == "train"
        rng = np.random.default_rng([world.seed, SEED_WORKBENCH_TRAIN if train else SEED_WORKBENCH_TEST, index])
        first, people = (0, world.train_people) if train else (world.train_people, world.test_people)
        person = first + int(rng.integers(people))
        return person, draw_style(rng, draw_person(world.seed, person, world.domain_shift), world, world.domain_shift)
