"""Protects the tabletop world: clips depend on (seed, index) alone, splits keep their promises, settings act."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from ace_dist.config import load_config, to_yaml
from ace_dist.utils.errors import ConfigError, DataError
from ace_dist.worlds import check_world
from ace_dist.worlds.tabletop.motions import PROGRAMS, Manner
from ace_dist.worlds.tabletop.reader import TabletopReader
from ace_dist.worlds.tabletop.rendering import OBJECT_PARTS, object_halves, render
from ace_dist.worlds.tabletop.world import (
    BASE_ACTIONS,
    NOVEL_ACTIONS,
    OBJECTS,
    VERBS,
    CorpusConfig,
    TabletopConfig,
    build_world,
    draw_person,
    draw_style,
)


def small_world(**changes: object) -> TabletopConfig:
    """A world with a fresh seed, so that no test leans on one lucky rendering."""
    seed = int(np.random.default_rng().integers(2**31))
    return replace(TabletopConfig(seed=seed, train_clips=26, test_clips=40, size=32), **changes)  # type: ignore[arg-type]


def test_reading_is_deterministic_and_windows_agree() -> None:
    """A worker that renders part of a clip must get the very frames that another worker gets for the whole."""
    world = small_world()
    segment = TabletopReader(world).segments()[5]
    whole = TabletopReader(world).read(segment, 0.0, world.source_s)
    part = pickle.loads(pickle.dumps(TabletopReader(world))).read(segment, 1.0, 2.0)
    assert whole.frames.dtype == np.uint8 and whole.frames.shape == (24, 32, 32, 3)
    assert (part.start_s, part.fps, len(part.frames)) == (1.0, 8.0, 8)
    np.testing.assert_array_equal(whole.frames[8:16], part.frames)


def test_reader_clamps_to_the_source_and_refuses_an_empty_window() -> None:
    world = small_world()
    reader = TabletopReader(world)
    segment = reader.segments()[0]
    assert reader.read(segment, -5.0, 50.0).start_s == 0.0
    assert len(reader.read(segment, -5.0, 50.0).frames) == 24
    with pytest.raises(DataError, match="source_s"):
        reader.read(segment, 10.0, 12.0)


def test_splits() -> None:
    """Novel actions and their verbs never occur in training; test people are others; ids are unique."""
    segments = TabletopReader(small_world()).segments()
    train = [s for s in segments if s.split == "train"]
    test = [s for s in segments if s.split == "test"]
    assert len({s.id for s in segments}) == len(segments) == 66
    assert {(s.verb, s.object) for s in train} == set(BASE_ACTIONS)
    assert {(s.verb, s.object) for s in test} == {*BASE_ACTIONS, *NOVEL_ACTIONS}
    assert not {verb for verb, _ in BASE_ACTIONS} & {verb for verb, _ in NOVEL_ACTIONS}
    assert not {s.group for s in train} & {s.group for s in test}
    assert all(0 <= s.start_s < s.end_s <= 3.0 for s in segments)
    novel_objects = [name for _, name in NOVEL_ACTIONS]
    assert len(set(novel_objects)) < len(novel_objects), "an object alone must not decide a novel action"


def test_changing_the_seed_or_the_domain_changes_the_clip() -> None:
    world = small_world()
    segment = TabletopReader(world).segments()[0]
    first = TabletopReader(world).read(segment, 0.0, 1.0).frames
    for changed in (replace(world, seed=world.seed + 1), replace(world, domain_shift=0.0)):
        assert np.abs(first.astype(int) - TabletopReader(changed).read(segment, 0.0, 1.0).frames).mean() > 5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_moves_what_it_should(verb: str) -> None:
    """Within a segment something moves, nothing leaves the table by far, and no pose holds a NaN."""
    rng = np.random.default_rng()
    for _ in range(20):
        world = TabletopConfig(seed=int(rng.integers(2**31)))
        style = draw_style(rng, draw_person(world.seed, 0, 0.0), world, 0.0)
        pose = PROGRAMS[verb](np.linspace(0, 1, 32), style.manner)
        arrays = {name: value for name, value in vars(pose).items() if isinstance(value, np.ndarray)}
        assert all(np.isfinite(value).all() and value.shape == (32,) for value in arrays.values())
        assert sum(float(np.ptp(value)) for value in arrays.values()) > 0.1
        for place in (pose.x, pose.y + pose.height, pose.hand_x, pose.hand_y):
            assert np.abs(place).max() < 1.3


def test_opposite_verbs_run_backwards() -> None:
    """Open and close, lift and put down differ by the order of their frames alone: only motion tells them apart."""
    s = np.linspace(0, 1, 9)
    manner = Manner(amplitude=1.0, cycles=2.0, phase=0.2, side=1.0, away=(0.0, 1.0), delay=0.1)
    opened, closed = PROGRAMS["open"](s, manner).flap, PROGRAMS["close"](s, manner).flap
    np.testing.assert_allclose(opened + closed, opened[0] + opened[-1])
    assert opened[-1] > opened[0]
    assert PROGRAMS["lift"](s, manner).height[-1] == PROGRAMS["put down"](s, manner).height[0]


@pytest.mark.parametrize("name", OBJECTS)
def test_halves_make_up_the_object(name: str) -> None:
    """Cutting loses no area (shoelace formula)."""

    def area(polygon: np.ndarray) -> float:
        x, y = polygon.T
        return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))

    left, right = object_halves(name)
    halves = sum(area(polygon) for polygon, _ in left + right)
    assert halves == pytest.approx(sum(area(polygon) for polygon, _ in OBJECT_PARTS[name]))


def test_objects_look_different() -> None:
    """Two objects in the same style differ by more than the grain."""
    rng = np.random.default_rng()
    world = TabletopConfig()
    style = replace(draw_style(rng, draw_person(0, 0, 0.0), world, 0.0), grain=0.0)
    clips = [render("drop", name, style, np.array([0.1, 0.5]), 64, 0.0).astype(int) for name in OBJECTS]
    for i, one in enumerate(clips):
        for other in clips[i + 1 :]:
            assert (np.abs(one - other).max(axis=-1) > 25).sum() > 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"domain_shift": 1.5}, "domain_shift"),
        ({"size": 33}, "size"),
        ({"segment_s": 5.0}, "segment_s"),
        ({"train_clips": 0}, "train_clips"),
        ({"fps": 0.0}, "fps"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TabletopReader(small_world(**changes))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dataset.world.domain_shfit=1", "unknown setting 'dataset.world.domain_shfit'.*'dataset.world.domain_shift'"),
        ("dataset.world.corpus.clip=1", "unknown setting 'dataset.world.corpus.clip'.*'dataset.world.corpus.clips'"),
        ("dataset.world.size=large", "dataset.world.size is not a whole number"),
        ("dataset.world.corpus=3", "dataset.world.corpus=3 is not"),
        ("dataset.world.size=15", "dataset.world.size must be an even number"),
    ],
)
def test_a_setting_the_world_does_not_know_is_refused(setting: str, message: str) -> None:
    """The schema takes `dataset.world` as it comes; the world refuses it before anything is built."""
    config = load_config(["dataset=tabletop", "name=t", setting])
    with pytest.raises(ConfigError, match=message):
        check_world(config.dataset)


def test_the_settings_of_a_world_are_kept_with_the_run() -> None:
    """The resolved configuration shows what was set, and numbers get the types that the world gives them."""
    config = load_config(["dataset=tabletop", "name=t", "dataset.world.fps=4", "dataset.world.corpus.clips=7"])
    assert "world:\n    fps: 4\n    corpus:\n      clips: 7\n" in to_yaml(config)
    world = build_world(config.dataset.world)
    assert world == replace(TabletopConfig(), fps=4.0, corpus=CorpusConfig(clips=7)) and type(world.fps) is float
    check_world(config.dataset)
