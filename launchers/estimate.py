"""Forecast a run: `python launchers/estimate.py experiment=NAME device=h100 ranks=1 mfu=0.35 clips=N measure=true`.

Only `experiment` is needed; any setting of the run may be given as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ace_dist.config import load_config, run_launcher, simple_settings
from ace_dist.utils.errors import ConfigError

OWN = {
    "device": "a100, h100 or h200",
    "ranks": "the number of GPUs",
    "mfu": "the share of a GPU's peak that training reaches",
    "clips": "the number of training clips, where there are no shards yet",
    "measure": "true to measure this machine's CPU too",
}


def main(argv: Sequence[str]) -> None:
    """Parse, estimate, print."""
    own = [arg for arg in argv if arg.partition("=")[0] in OWN]
    given = simple_settings(own, {}, OWN)
    config = load_config([arg for arg in argv if arg not in own])
    from ace_dist.tools.estimate import estimate

    print(
        estimate(
            config,
            device=given["device"] or "h100",
            ranks=int(number(given, "ranks", 1)),
            mfu=number(given, "mfu", 0.35),
            clips=int(number(given, "clips", 0)) or None,
            here=given["measure"] == "true",
        )
    )


def number(given: dict[str, Any], key: str, default: float) -> float:
    """A number that was given, or its default."""
    if given[key] is None:
        return default
    try:
        return float(given[key])
    except ValueError:
        raise ConfigError(f"{key}={given[key]} is not a number") from None


if __name__ == "__main__":
    run_launcher(main)
