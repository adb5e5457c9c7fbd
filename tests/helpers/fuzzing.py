"""How many cases a test of tests/fuzz draws: as many as it says in CI, `FUZZ_FACTOR` times as many in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))


def cases(count):
    """Decorator of a property test: `@cases(40) @given(...)` draws 40 inputs, with `make fuzz` more.

    A failure prints the smallest input that fails, and a line that repeats it. Fixtures are shared by all inputs of a
    test: one that writes files writes them into a new folder each (`tempfile.TemporaryDirectory`).
    """
    return settings(
        max_examples=scaled(count),
        deadline=None,  # two busy cores
        print_blob=True,
        phases=set(Phase) - {Phase.explain},  # its guesses at the cause name lines of numpy
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def scaled(count):
    """For a test without hypothesis: the number of inputs it makes itself. It counts them with
    `record_property("cases", number)`."""
    return count * FACTOR
