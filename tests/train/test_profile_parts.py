"""Protects the arithmetic of a profile: who a moment belongs to, the table by hand, and that nothing stays wrapped."""

import itertools

import pytest
import torch

from ace_dist.train import profile as profiling
from ace_dist.train.profile import Parts, parts_table


@pytest.fixture
def parts(monkeypatch):
    """Parts whose clock moves on by one second at every look."""
    clock = itertools.count()
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: float(next(clock)))
    return Parts(torch.device("cpu"))


def test_a_moment_belongs_to_the_innermost_part(parts):
    """Looks at the clock: one a step's start, one a part's start and end; a stage ends the stage before."""
    for _ in range(2):
        parts.begin_step()
        parts.stage("data")
        parts.stage("forward")
        with parts.part("blocks"), parts.part("inner"):
            pass
    parts.close()
    # Seconds: other, data, other (between stages), forward, blocks, inner, blocks, forward, other (to the end).
    expected = {"other": 3.0, "data": 1.0, "forward": 2.0, "blocks": 2.0, "inner": 1.0}
    assert parts.seconds() == {name: [value, value] for name, value in expected.items()}


def test_a_part_that_fails_is_closed(parts):
    parts.begin_step()
    with pytest.raises(KeyError), parts.part("loss"):
        raise KeyError
    assert parts.open == []


def test_watching_leaves_things_as_they_were(parts):
    """A method of an object, a function of a module, and one that the object has of its own."""

    class Thing:
        def work(self):
            return "done"

    thing, other = Thing(), Thing()
    thing.own = lambda: "own"
    plain, own = dict(vars(Thing)), thing.own
    parts.begin_step()
    with parts.watching(thing, "work", "a"), parts.watching(thing, "own", "b"):
        assert (thing.work(), thing.own(), other.work()) == ("done", "own", "done")
    assert dict(vars(Thing)) == plain and vars(thing) == {"own": own}
    parts.close()
    assert parts.seconds().keys() == {"other", "a", "b"}
    assert parts.seconds()["a"] == [1.0]  # of the watched object alone


def test_the_table_by_hand():
    """Medians, shares of the median step, rates of forward and backward products, memory only where there is some."""
    seconds = {"trained blocks": [0.2, 0.4, 0.2], "backward": [0.6, 0.6, 1.6], "other": [0.2, 0.0, 0.2]}
    flops = {"trained blocks": (10**12, 3 * 10**12), "loss": (5, 6 * 10**12)}
    lines = [line.split() for line in parts_table(seconds, flops, {}).splitlines()]
    assert lines[0] == ["part", "of", "a", "step", "ms", "share", "TFLOP/s"]
    assert lines[1] == ["backward", "600.00", "60.0%", "15.0000"]
    assert lines[2] == ["trained", "blocks", "200.00", "20.0%", "5.0000"]
    assert lines[4][:2] == ["whole", "1000.00"] and lines[4][-2:] == ["3", "step(s)"]
    assert "1.50" in parts_table(seconds, flops, {"backward": 1.5}).splitlines()[1].split()
