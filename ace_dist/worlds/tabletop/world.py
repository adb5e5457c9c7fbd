"""The tabletop world's settings, its verbs, objects and actions, and the random style of each clip."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ace_dist.config import known_keys
from ace_dist.config.settings import did_you_mean, type_in_words
from ace_dist.utils.errors import ConfigError
from ace_dist.worlds.tabletop.motions import PROGRAMS, Manner

VERBS: tuple[str, ...] = tuple(PROGRAMS)
OBJECTS: tuple[str, ...] = ("block", "pin", "plate", "cup", "ring", "box", "wheel", "cone")

# The workbench's actions, as (verb, object). Base and novel verbs are disjoint, as in ATA; objects overlap, so the
# object alone cannot tell the novel actions apart, as in IKEA-ASM.
BASE_ACTIONS: tuple[tuple[str, str], ...] = (
    ("lift", "box"), ("push", "block"), ("drop", "ring"), ("shake", "cup"), ("stir", "cup"), ("press", "block"),
    ("open", "box"), ("cut", "cone"), ("roll", "wheel"), ("stack", "ring"), ("tap", "pin"), ("fold", "plate"),
)  # fmt: skip
NOVEL_ACTIONS: tuple[tuple[str, str], ...] = (
    ("spin", "block"), ("hammer", "pin"), ("insert", "pin"), ("wipe", "plate"), ("flip", "plate"), ("pull", "block"),
)  # fmt: skip

SEED_CORPUS, SEED_WORKBENCH_TRAIN, SEED_WORKBENCH_TEST, SEED_PERSON, SEED_NARRATION = range(5)


@dataclass
class CorpusConfig:
    """The narrated corpus that pretrains both towers: clips of the first domain, each narrated once.

    `synonym_tail` holds the shares of a verb's words in narrations, most used first; words beyond its length are never
    narrated with that verb. `verb_noise` is the share of narrations that name a wrong verb, `verb_missing` of those
    that name none.
    """

    clips: int = 6144
    synonym_tail: list[float] = field(default_factory=lambda: [0.55, 0.20, 0.10, 0.07, 0.05, 0.03])
    verb_noise: float = 0.4
    verb_missing: float = 0.1

    def check(self) -> None:
        tail = self.synonym_tail
        if not tail or min(tail) < 0 or sum(tail) <= 0:
            raise ConfigError(f"dataset.world.corpus.synonym_tail needs shares >= 0 with a positive sum, found {tail}")
        if self.clips < 1:
            raise ConfigError(f"dataset.world.corpus.clips must be at least 1, found {self.clips}")
        if not 0 <= self.verb_noise <= 1 or not 0 <= self.verb_missing <= 1:
            raise ConfigError(
                f"dataset.world.corpus.verb_noise and verb_missing must lie in [0, 1], "
                f"found {self.verb_noise} and {self.verb_missing}"
            )


@dataclass
class TabletopConfig:
    """Settings of the rendered world (`dataset.world.*`).

    Sizes in pixels, times in seconds, `domain_shift` from 0 (the narrated domain) to 1 (camera turned by 90 degrees,
    washed-out colours, another table). Each clip's source is `source_s` long and its action segment about `segment_s`.
    """

    seed: int = 0
    train_clips: int = 600
    test_clips: int = 360
    train_people: int = 12
    test_people: int = 4
    domain_shift: float = 1.0
    motion_noise: float = 0.02
    size: int = 64
    fps: float = 8.0
    source_s: float = 3.0
    segment_s: float = 2.4
    corpus: CorpusConfig = field(default_factory=CorpusConfig)

    def check(self) -> None:
        if not 0.0 <= self.domain_shift <= 1.0:
            raise ConfigError(f"dataset.world.domain_shift must lie in [0, 1], found {self.domain_shift}")
        if self.size < 16 or self.size % 2:
            raise ConfigError(f"dataset.world.size must be an even number of at least 16 pixels, found {self.size}")
        for name in ("train_clips", "test_clips", "train_people", "test_people"):
            if getattr(self, name) < 1:
                raise ConfigError(f"dataset.world.{name} must be at least 1, found {getattr(self, name)}")
        if self.fps <= 0 or not 0.5 <= self.segment_s <= self.source_s - 0.2:
            raise ConfigError(
                f"dataset.world needs fps > 0 and 0.5 <= segment_s <= source_s - 0.2, "
                f"found fps {self.fps}, segment_s {self.segment_s}, source_s {self.source_s}"
            )
        self.corpus.check()


def build_world(settings: Mapping[str, Any]) -> TabletopConfig:
    """The world of `dataset.world`, a free mapping.

    Raises `ConfigError` for an unknown setting, with the nearest name, and for a mistyped or impossible value.
    """
    if not isinstance(corpus := settings.get("corpus", {}), Mapping):
        raise ConfigError(f"dataset.world.corpus={corpus} is not a group of settings, as dataset.world.corpus.clips=8")
    try:
        world = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TabletopConfig), dict(settings)))
    except ConfigKeyError as error:
        near = did_you_mean(f"dataset.world.{error.full_key}", known_keys(TabletopConfig, "dataset.world."))
        raise ConfigError(f"unknown setting 'dataset.world.{error.full_key}' of the tabletop world{near}") from error
    except OmegaConfBaseException as error:
        expected = type_in_words(str(error)) or " ".join(str(error).split())
        raise ConfigError(f"dataset.world.{error.full_key} is not {expected}") from error
    assert isinstance(world, TabletopConfig)
    world.check()
    return world


Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Person:
    skin: Colour
    sleeve: Colour
    arm_angle: float
    tempo: float
    reach: float
    light: float


@dataclass(frozen=True)
class ClipStyle:
    """Everything about one clip except its verb and object. Angles in radians, lengths in half image widths."""

    manner: Manner
    person: Person
    shift: float
    home: tuple[float, float]
    object_size: float
    object_tilt: float
    hue: Colour
    roll: float
    zoom: float
    light: float
    wash: float
    grain: float
    jitter: float
    segment: tuple[float, float]
    paint_seed: int


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` at share 0, `b` at share 1."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def draw_person(seed: int, person: int, shift: float) -> Person:
    """The person with this number; at domain shift 1 hands wear workshop gloves and sleeves are dark."""
    rng = np.random.default_rng([seed, SEED_PERSON, person])
    tone = rng.uniform(0.55, 1.0)
    skin: Colour = (235.0 * tone, 180.0 * tone, 145.0 * tone)
    glove: Colour = (rng.uniform(60, 200), rng.uniform(110, 200), rng.uniform(120, 210))
    grey = rng.uniform(110, 210)
    sleeve: Colour = (grey * rng.uniform(0.9, 1.1), grey, grey * rng.uniform(0.9, 1.1))
    overall: Colour = (rng.uniform(40, 110), rng.uniform(50, 120), rng.uniform(70, 150))
    return Person(
        skin=mix(skin, glove, shift),
        sleeve=mix(sleeve, overall, shift),
        arm_angle=np.pi / 2 + rng.uniform(-0.3, 0.3),
        tempo=rng.uniform(0.9, 1.1),
        reach=rng.uniform(0.95, 1.08),
        light=rng.uniform(0.92, 1.05),
    )


def draw_style(rng: np.random.Generator, person: Person, world: TabletopConfig, shift: float) -> ClipStyle:
    """The style of one clip, drawn from `rng` alone. `shift` is 0 in the narrated domain."""
    arm = person.arm_angle + rng.normal(0.0, 0.08)
    length = min(world.segment_s * rng.uniform(0.92, 1.08), world.source_s - 0.1)
    start = rng.uniform(0.05, world.source_s - length - 0.04)
    manner = Manner(
        amplitude=person.reach * rng.uniform(0.92, 1.08),
        cycles=person.tempo * length * rng.uniform(0.8, 1.0),
        phase=rng.uniform(),
        side=1.0 if rng.uniform() < 0.5 else -1.0,
        away=(float(np.cos(arm)), float(np.sin(arm))),
        delay=rng.uniform(0.08, 0.2),
    )
    return ClipStyle(
        manner=manner,
        person=person,
        shift=shift,
        home=(rng.uniform(-0.1, 0.1), rng.uniform(-0.24, -0.08)),
        object_size=rng.uniform(0.58, 0.7),
        object_tilt=rng.normal(0.0, 0.12),
        hue=(rng.uniform(0.93, 1.05), rng.uniform(0.93, 1.05), rng.uniform(0.93, 1.05)),
        roll=rng.normal(0.0, 0.06) + shift * np.pi / 2,
        zoom=rng.uniform(0.8, 0.92),
        light=person.light * rng.uniform(0.92, 1.05),
        wash=shift * rng.uniform(0.45, 0.7),
        grain=rng.uniform(1.0, 4.0),
        jitter=world.size * rng.uniform(0.0, 0.02),
        segment=(round(start, 3), round(start + length, 3)),
        paint_seed=int(rng.integers(2**31)),
    )
