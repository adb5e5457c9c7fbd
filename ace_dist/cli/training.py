"""Training: `ace train`, `ace evaluate`, and what is asked before them: `ace estimate`, `ace preflight`."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from ace_dist.cli.settings import ClipsOfRun, WeightsOfRun, load_run
from ace_dist.config import Config, parse_settings, resolve_path, split_settings
from ace_dist.utils.files import check_writable

if TYPE_CHECKING:
    from ace_dist.utils.distributed import Ranks


MEETING_TIMEOUT_S = 120.0  # of the ranks in `preflight`


@dataclass
class TrainSettings:
    dry_run: bool = False  # build everything, take one batch forward and back, say what would run, and stop


def train(argv: list[str]) -> int:
    """Train and evaluate: `ace train experiment=NAME key=value ...`.

    A run that was stopped continues where its last checkpoint is. With `--cfg` it prints the whole configuration and
    stops; with `dry_run=true` it stops after a rehearsal. Both write nothing.
    """
    own, rest = split_settings(argv, TrainSettings)
    config = load_run([arg for arg in rest if arg != "--cfg"])
    if "--cfg" in rest:
        from ace_dist.config import to_yaml

        print(to_yaml(config), end="")
        return 0
    from ace_dist.data.run_inputs import check_start

    check_start(config)
    from ace_dist.train.dry_run import dry_run
    from ace_dist.train.trainer import train
    from ace_dist.utils.distributed import connected

    importlib.import_module("ace_dist.evaluate.report")  # a package that only the report needs is missed at the start
    with connected(config.training.device, config.training.collective_timeout_s) as ranks:
        outcome = dry_run(config, ranks) if own.dry_run else train(config, ranks)
        if outcome.stopped is None and not own.dry_run:
            if config.evaluation.test:
                evaluate_and_report(outcome.run_dir, config, ranks)
            else:
                from ace_dist.evaluate.runs import keep_validation

                keep_validation(outcome.run_dir, ranks)
    return outcome.exit_code


def evaluate_and_report(
    run_dir: Path,
    config: Config,
    ranks: Ranks,
    shards: str | None = None,
    output: Path | None = None,
    interpolate: float | None = None,
) -> None:
    """Collective. A rank that stands still ends the others as it does in training."""
    from ace_dist.evaluate.report import write_report
    from ace_dist.evaluate.run_files import read_metrics
    from ace_dist.evaluate.runs import evaluate_run, loss_sparkline, results_table
    from ace_dist.train.health import Watchdog

    watchdog = Watchdog(run_dir, ranks, config.training)
    with watchdog if ranks.world > 1 else nullcontext():
        results = evaluate_run(run_dir, ranks, shards, output, watchdog.note, interpolate)
    if ranks.is_first:
        report = write_report(run_dir, output=output, shards=shards)
        loss = loss_sparkline(read_metrics(run_dir)) if sys.stdout.isatty() else ""
        print(f"report: {report}\n\n{loss}{loss and chr(10)}{results_table(results)}", flush=True)


@dataclass
class EvaluateSettings:
    run: str = MISSING  # a run folder
    dataset: ClipsOfRun = field(default_factory=ClipsOfRun)
    output: str | None = None  # another folder for results, page and figures; needed for other clips or weights
    evaluation: WeightsOfRun = field(default_factory=WeightsOfRun)
    device: str = "auto"  # auto: a GPU where there is one | cpu | cuda


def evaluate(argv: list[str]) -> None:
    """Evaluate a finished run again: `ace evaluate run=DIR`.

    `dataset.shards=DIR` says where the clips lie now. On other clips, and with other weights
    (`evaluation.interpolate=0.8`), the results go to `output=DIR`.
    """
    settings = parse_settings(argv, EvaluateSettings)
    config, run_dir = evaluated_config(settings), Path(settings.run)
    from ace_dist.data.run_inputs import results_place
    from ace_dist.utils.distributed import connected

    output = results_place(run_dir, settings.output)
    with connected(config.training.device, config.training.collective_timeout_s) as ranks:
        evaluate_and_report(run_dir, config, ranks, settings.dataset.shards, output, settings.evaluation.interpolate)


def evaluated_config(settings: EvaluateSettings) -> Config:
    """The configuration of the run, on the device asked for.

    Raises an error when the run, its clips or a place for the results is not there.
    """
    from ace_dist.data.run_inputs import replaced, results_place, run_config
    from ace_dist.data.shards import ShardSet

    run_dir = Path(settings.run)
    config = replaced(run_config(run_dir, settings.dataset.shards), {"training.device": settings.device})
    check_writable((results_place(run_dir, settings.output) or run_dir) / "results.json")
    ShardSet.load(resolve_path(config.dataset.shards))
    return config


@dataclass
class EstimateSettings:
    device: str = "h100"  # cpu, l4, a10, rtx4090, a100, h100, h200; or any name, with tflops
    ranks: int = 1  # the number of GPUs
    cores: int | None = None  # of the host, for each GPU; null: 16, or with device=cpu those of this machine
    tflops: float | None = None  # the peak of another device, dense bf16
    mfu: float | None = None  # the share of the peak that training reaches; null: as measured on an H100, or a CPU
    clips: int | None = None  # the number of training clips, where there are no shards yet
    measure: bool = False  # measure this machine's CPU too


def estimate(argv: list[str]) -> None:
    """Forecast a run: `ace estimate experiment=NAME device=h100 ranks=1 clips=N measure=true`.

    Only `experiment` is needed; any setting of the run may be given as well.
    """
    own, rest = split_settings(argv, EstimateSettings)
    config = load_run(rest)
    from ace_dist.tools.estimate import estimate

    print(estimate(config, own.device, own.ranks, own.mfu, own.clips, own.measure, own.cores, own.tflops))


def preflight(argv: list[str]) -> int:
    """Check nodes, network, disk, shards and decoder before a long job, with the settings of the run itself.

    ace submit cluster=slurm cluster.nodes=2 launcher=preflight wait=true experiment=NAME key=value ...

    or on one machine: `ace preflight experiment=NAME ...`. Exits with 1 when a check fails.
    """
    config = load_run(argv)
    from ace_dist.cluster.preflight import preflight, table
    from ace_dist.utils.distributed import connected

    with connected(config.training.device, timeout_s=MEETING_TIMEOUT_S) as ranks:
        text, good = table(preflight(config, ranks))
        if ranks.is_first:
            print(f"{text}\n{'ready' if good else 'NOT ready'}", flush=True)
    return int(not good)
