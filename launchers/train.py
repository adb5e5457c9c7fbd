"""Train and evaluate: `deepspeed launchers/train.py experiment=NAME key=value ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ace_dist.config import load_config, run_launcher

if TYPE_CHECKING:
    from ace_dist.training.loop import Outcome


def main(argv: Sequence[str]) -> Outcome:
    """Parse, train, evaluate, report. A run that was stopped continues where its last checkpoint is."""
    config = load_config(argv)
    from ace_dist.distributed import connect, disconnect
    from ace_dist.evaluation.report import write_report
    from ace_dist.evaluation.runs import evaluate_run, results_table
    from ace_dist.training.loop import train

    ranks = connect(config.training.device, config.training.collective_timeout_s)
    outcome = train(config, ranks)
    if outcome.stopped is None:
        results = evaluate_run(outcome.run_dir, ranks)
        if ranks.is_first:
            print(f"\n{results_table(results)}\n\nreport: {write_report(outcome.run_dir)}", flush=True)
    disconnect()
    return outcome


if __name__ == "__main__":
    run_launcher(lambda argv: sys.exit(main(argv).exit_code))
