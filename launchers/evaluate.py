"""Evaluate a finished run again: `deepspeed launchers/evaluate.py run=DIR` (or `python` for one rank)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ace_dist.config import read_config, run_launcher, simple_settings


def main(argv: Sequence[str]) -> None:
    """Encode the test videos, score base, novel and SRT, write the results and the report."""
    run_dir = Path(simple_settings(argv, {"run": "a run folder"})["run"])
    config = read_config(run_dir)
    from ace_dist.evaluate.report import write_report
    from ace_dist.evaluate.runs import evaluate_run, results_table
    from ace_dist.utils.distributed import connect, disconnect

    ranks = connect(config.training.device)
    results = evaluate_run(run_dir, ranks)
    if ranks.is_first:
        print(f"\n{results_table(results)}\n\nreport: {write_report(run_dir)}", flush=True)
    disconnect()


if __name__ == "__main__":
    run_launcher(main)
