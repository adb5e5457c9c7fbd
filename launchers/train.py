"""Train and evaluate: `deepspeed launchers/train.py experiment=NAME key=value ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ace_dist.config import load_config, run_launcher


def main(argv: Sequence[str]) -> None:
    """Parse, train, evaluate, report. A run that was stopped continues where its last checkpoint is."""
    config = load_config(argv)
    from ace_dist.distributed import connect, disconnect
    from ace_dist.evaluation.report import write_report
    from ace_dist.evaluation.runs import evaluate_run, results_table
    from ace_dist.training.loop import train

    ranks = connect(config.training.device)
    finished = train(config, ranks)
    if finished is not None:
        results = evaluate_run(Path(finished), ranks)
        if ranks.is_first:
            print(f"\n{results_table(results)}\n\nreport: {write_report(finished)}", flush=True)
    disconnect()


if __name__ == "__main__":
    run_launcher(main)
