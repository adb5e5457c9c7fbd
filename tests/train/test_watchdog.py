"""The watchdog's clock: a stage that is too long ends the process, and time in which the whole process stood still is
no stage's."""

import time
from types import SimpleNamespace

import pytest

from ace_dist.train import health
from ace_dist.train.health import Watchdog
from ace_dist.utils.lost_ranks import HostGroup


class Ended(Exception):
    """In place of the end of the process."""


@pytest.fixture
def watch(tmp_path, monkeypatch, ranks):
    """`watch([seconds, ...])`: a watchdog that wakes so many seconds after it fell asleep, each time."""
    now = [1000.0]
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime))
    monkeypatch.setattr(health.os, "_exit", lambda status: (_ for _ in ()).throw(Ended(status)))

    def start(naps):
        watchdog = Watchdog(tmp_path, ranks, SimpleNamespace(stall_after_s=120.0, collective_timeout_s=600.0))
        waiting = iter(naps)

        def wait(pause_s):
            nap = next(waiting, None)
            now[0] += nap or 0.0
            return nap is None

        watchdog.done = SimpleNamespace(wait=wait)
        watchdog.watch()

    return start


def test_a_stage_that_is_too_long_is_named_and_then_ends_the_process(watch, capsys):
    watch([1.0] * 600)
    assert "takes more than 120 s" in capsys.readouterr().err
    with pytest.raises(Ended):
        watch([1.0] * 606)
    assert "did not end in 600 s (training.collective_timeout_s; there is no other rank)" in capsys.readouterr().err


def test_a_process_that_was_stopped_goes_on(watch, capsys):
    """Ctrl-Z for an hour: the stage before it and after it is as long as it was awake."""
    watch([1.0] * 60 + [3600.0] + [1.0] * 59)
    assert capsys.readouterr().err == ""
    watch([1.0] * 60 + [3600.0] + [1.0] * 62)
    assert "takes more than 120 s" in capsys.readouterr().err


def test_one_rank_misses_no_other(ranks):
    assert isinstance(ranks.hosts, HostGroup) and ranks.hosts.missing() == "there is no other rank"
