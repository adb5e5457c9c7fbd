"""Train and evaluate: `deepspeed launchers/train.py experiment=NAME key=value ...`.

With `--cfg` it prints the whole configuration and stops; with `dry_run=true` it builds everything, takes one batch
forward and back, says what would run, and stops. Both write nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ace_dist.config import load_config, run_launcher, to_yaml, typed_settings
from ace_dist.utils.secrets import redact

if TYPE_CHECKING:
    from ace_dist.train.trainer import Outcome


@dataclass
class Settings:
    """What is no part of a run's configuration."""

    dry_run: bool = False


def main(argv: Sequence[str]) -> Outcome:
    """Parse, train, evaluate, report. A run that was stopped continues where its last checkpoint is."""
    own = [arg for arg in argv if arg.startswith("dry_run=")]
    settings = typed_settings(own, Settings)
    config = load_config([arg for arg in argv if arg not in (*own, "--cfg")])
    from ace_dist.evaluate.report import write_report
    from ace_dist.evaluate.runs import evaluate_run, results_table
    from ace_dist.train.dry_run import dry_run
    from ace_dist.train.trainer import Outcome, train
    from ace_dist.utils.distributed import connect, disconnect
    from ace_dist.worlds import check_world

    check_world(config.dataset)
    if "--cfg" in argv:
        print(redact(to_yaml(config)), end="")
        return Outcome(Path(config.run), 0)
    ranks = connect(config.training.device, config.training.collective_timeout_s)
    outcome = dry_run(config, ranks) if settings.dry_run else train(config, ranks)
    if outcome.stopped is None and not settings.dry_run:
        results = evaluate_run(outcome.run_dir, ranks)
        if ranks.is_first:
            print(f"\n{results_table(results)}\n\nreport: {write_report(outcome.run_dir)}", flush=True)
    disconnect()
    return outcome


if __name__ == "__main__":
    run_launcher(lambda argv: sys.exit(main(argv).exit_code))
