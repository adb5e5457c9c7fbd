"""Check nodes, network, disk, shards and decoder before a long job, with the settings of the run itself:

python launchers/submit.py cluster=slurm cluster.nodes=2 launcher=preflight wait=true experiment=NAME key=value ...

or on one machine: `python launchers/preflight.py experiment=NAME ...`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ace_dist.config import load_config, run_launcher

MEETING_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """`exit_code` is 0 when every check passed on every rank, else 1."""

    exit_code: int


def main(argv: Sequence[str]) -> Outcome:
    """Print a table of the checks, each ok or failed with its remedy."""
    config = load_config(argv)
    from ace_dist.cluster.preflight import preflight, table
    from ace_dist.utils.distributed import connect, disconnect

    ranks = connect(config.training.device, timeout_s=MEETING_TIMEOUT_S)
    text, good = table(preflight(config, ranks))
    if ranks.is_first:
        print(f"{text}\n{'ready' if good else 'NOT ready'}", flush=True)
    disconnect()
    return Outcome(int(not good))


if __name__ == "__main__":
    run_launcher(lambda argv: sys.exit(main(argv).exit_code))
