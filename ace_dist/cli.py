"""Every command: `ace NAME key=value ...`, which `python -m ace_dist NAME` and `python launchers/NAME.py` run too.

`COMMANDS` is the one table of all three. `ace` starts the ranks of a training itself; the others are one rank each, for
DeepSpeed, SLURM and `ace` to start. A command parses its settings, calls the room that does the work, and says what
came out. Rooms that need torch are imported inside the commands: `--help` needs none, nor do the processes that check
shards, which import this file too.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from ace_dist import __version__
from ace_dist.cluster.profiles import ClusterConfig, split_profile
from ace_dist.config import (
    GROUPS,
    Config,
    choices,
    did_you_mean,
    help_asked,
    load_config,
    parse_settings,
    read_config,
    shipped_file,
    split_settings,
)
from ace_dist.tools.timelines.commands import calibrate, evaluate_timelines, segment, watch
from ace_dist.utils.console import VERBOSE
from ace_dist.utils.errors import ConfigError, UserError
from ace_dist.utils.extras import missing_packages_named
from ace_dist.utils.files import check_writable
from ace_dist.utils.processes import end_with_launcher
from ace_dist.utils.secrets import redact
from ace_dist.utils.text import printable

if TYPE_CHECKING:
    from ace_dist.cluster.sweep import Sweep, SweepRun
    from ace_dist.utils.distributed import Ranks

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_SUCH_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
MEETING_TIMEOUT_S = 120.0  # of the ranks in `preflight`


def load_run(argv: Sequence[str]) -> Config:
    """The configuration of a run, with the settings of its rendered world checked too, if it has one."""
    config = load_config(argv)
    from ace_dist.worlds import check_world

    check_world(config.dataset)
    return config


# ------------------------------------------------------------------------------------------------------ training
@dataclass
class RankSettings:
    ranks: int | None = None  # processes that `ace` starts on this machine; null: one a GPU, two without a GPU


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


# --------------------------------------------------------------------------------------------------- trained runs
@dataclass
class ClipsOfRun:
    shards: str | None = None  # folder of the shards; null: where the run read them


@dataclass
class WeightsOfRun:
    interpolate: float | None = None  # weights at this share of the way from before training to after; null: the run's


@dataclass
class ClassifySettings:
    run: str = MISSING  # a run folder, or an export
    video: str = MISSING  # a video file
    actions: list[str] = MISSING  # a list such as '[spin block, hammer pin]'
    start_s: float | None = None  # start of the action in seconds
    end_s: float | None = None  # its end
    evaluation: WeightsOfRun = field(default_factory=WeightsOfRun)


def classify(argv: list[str]) -> None:
    """Classify a video among any labels: `ace classify run=DIR video=FILE actions='[spin block, ...]'`.

    Prints the probability of each label, and what was averaged for it.
    """
    settings = parse_settings(argv, ClassifySettings)
    from ace_dist.classifier import Classifier

    classifier = Classifier.load(settings.run, interpolate=settings.evaluation.interpolate)
    result = classifier.classify(settings.video, settings.actions, start_s=settings.start_s, end_s=settings.end_s)
    print(result.table())


@dataclass
class EvaluateSettings:
    run: str = MISSING  # a run folder
    dataset: ClipsOfRun = field(default_factory=ClipsOfRun)
    output: str | None = None  # another folder for results, page and figures; needed for other clips or weights
    evaluation: WeightsOfRun = field(default_factory=WeightsOfRun)


def evaluate(argv: list[str]) -> None:
    """Evaluate a finished run again: `ace evaluate run=DIR`.

    `dataset.shards=DIR` says where the clips lie now. On other clips, and with other weights
    (`evaluation.interpolate=0.8`), the results go to `output=DIR`.
    """
    settings = parse_settings(argv, EvaluateSettings)
    run_dir, output = Path(settings.run), Path(settings.output) if settings.output else None
    config = evaluated_config(settings)
    from ace_dist.utils.distributed import connected

    with connected(config.training.device, config.training.collective_timeout_s) as ranks:
        evaluate_and_report(run_dir, config, ranks, settings.dataset.shards, output, settings.evaluation.interpolate)


def evaluated_config(settings: EvaluateSettings) -> Config:
    """The configuration of the run. Raises an error when there is none, or when no results could be written."""
    config = read_config(Path(settings.run))
    check_writable(Path(settings.output or settings.run) / "results.json")
    return config


@dataclass
class ExploreSettings:
    run: str = MISSING  # a finished run folder
    port: int = 7860  # of this machine, which alone can reach the page
    device: str = "cpu"
    largest_upload_mb: int = 200
    dataset: ClipsOfRun = field(default_factory=ClipsOfRun)
    token: bool = False  # open only by the address that is printed; for a machine with other users
    videos: str | None = None  # folder of long videos that the Timeline page offers; null: uploads alone
    compare: str | None = None  # another run folder, asked the same side by side; null: none


def explore(argv: list[str]) -> None:
    """Talk to a trained model on a local page: `ace explore run=DIR [port=7860]`."""
    settings = parse_settings(argv, ExploreSettings)
    from ace_dist.tools.explorer.serve import serve

    serve(
        [Path(run) for run in (settings.run, settings.compare) if run],
        settings.port,
        settings.device,
        settings.largest_upload_mb,
        settings.token,
        settings.dataset.shards,
        settings.videos,
    )


@dataclass
class ExportSettings:
    run: str | None = None  # a finished run folder; null with push=: output is an export already
    output: str = MISSING  # a new folder
    push: str | None = None  # OWNER/NAME: publish it on a model hub, with HF_TOKEN, at HF_ENDPOINT
    private: bool = True  # where push= makes the repository: whether its owner alone sees it
    evaluation: WeightsOfRun = field(default_factory=WeightsOfRun)


def export(argv: list[str]) -> None:
    """Export a finished run: `ace export run=DIR output=DIR`; `push=OWNER/NAME` publishes it on a model hub too."""
    settings = parse_settings(argv, ExportSettings)
    if settings.run is None and settings.push is None:
        raise ConfigError("run is not set: give a finished run folder as run=..., or push=OWNER/NAME for an old export")
    from ace_dist.evaluate.export import export_run
    from ace_dist.evaluate.hub import check_repository, push_export

    output, source = Path(settings.output), settings.output
    if settings.push is not None:
        check_repository(settings.push)
    if settings.run is not None:
        export_run(Path(settings.run), output, settings.evaluation.interpolate)
    if settings.push is not None:
        print(f"{settings.push}: {push_export(output, settings.push, settings.private)}")
        source = settings.push
    print(f'{source}: load it with ace_dist.Classifier.from_pretrained("{source}")')


# -------------------------------------------------------------------------------------------------------- reports
@dataclass
class ReportSettings:
    run: str = MISSING  # a run folder
    compare: list[str] | None = None  # other finished runs of the same data set and fold; null: as the page has them
    output: str | None = None  # another folder for the page and its figures; results that lie there are shown
    dataset: ClipsOfRun = field(default_factory=ClipsOfRun)


def report_run(argv: list[str]) -> None:
    """Write a run's report again, beside other runs: `ace report run=DIR compare='[DIR, DIR]'`."""
    settings = parse_settings(argv, ReportSettings)
    from ace_dist.evaluate.report import write_report

    compare = None if settings.compare is None else [Path(folder) for folder in settings.compare]
    output = Path(settings.output) if settings.output else None
    print(f"report: {write_report(Path(settings.run), compare, output, settings.dataset.shards)}")


@dataclass
class RunsSettings:
    runs: str = MISSING  # a pattern of run folders, finished or not


def report_runs(argv: list[str]) -> None:
    """List run folders: `ace report runs='runs/*'`: scores, progress, and which settings differ."""
    settings = parse_settings(argv, RunsSettings)
    from ace_dist.tools.study.run_list import differing_settings, find_runs, runs_table

    runs, others = find_runs(settings.runs)
    print(runs_table(runs), "base, novel, HM, SRT: accuracy / macro F1, in percent", sep="\n")
    if lines := differing_settings(runs):
        print("", "settings that differ, each value with the runs that have it:", *lines, sep="\n  ")
    print(*others, sep="\n", file=sys.stderr)


@dataclass
class StudySettings:
    sweep: str = MISSING  # a sweep's folder
    output: str = MISSING  # the folder of runs.csv, pages and figures
    reference: str = MISSING  # the method that the others are compared with, as runs.csv calls it
    experiment: str = ""  # name in runs.csv; empty: the sweep's table


def report_sweep(argv: list[str]) -> None:
    """Report a study out of a sweep: `ace report sweep=DIR output=DIR reference=procvlr`.

    Adds its runs to `runs.csv` of the output folder and writes the experiment's page and figures there.
    """
    settings = parse_settings(argv, StudySettings)
    from ace_dist.cluster.sweep import Sweep
    from ace_dist.tools.study.report import write_study
    from ace_dist.tools.study.rows import planned_runs
    from ace_dist.tools.study.tables import load_table

    sweep = Sweep.read(Path(settings.sweep))
    experiment = settings.experiment or sweep.table
    if not experiment:
        raise ConfigError("experiment is not set: the sweep has no table, so name its runs with experiment=...")
    table = load_table(sweep.table) if sweep.table else None
    curves = table.curves if table else {}
    commands = [submission["command"] for submission in sweep.submissions]
    planned = planned_runs(sweep, table)
    for path in write_study(planned, Path(settings.output), experiment, settings.reference, curves, commands):
        print(path)


@dataclass
class FiguresSettings:
    figures: str = MISSING  # the folder of runs.csv, where the figures go


def report_figures(argv: list[str]) -> None:
    """Draw the figures of a study again from its `runs.csv`: `ace report figures=DIR`. Takes none of its runs."""
    from ace_dist.tools.study.report import redraw

    print(*redraw(Path(parse_settings(argv, FiguresSettings).figures)), sep="\n")


@dataclass
class GridSettings:
    grid: str = MISSING  # the method whose gain is drawn
    output: str = MISSING  # the folder of runs.csv
    reference: str = MISSING  # the method that it is compared with
    experiment: str = MISSING  # whose cells are drawn, as runs.csv calls it


def report_grid(argv: list[str]) -> None:
    """Draw the gain of a method over a grid of settings, from the `runs.csv` in the output folder.

    `ace report grid=ace reference=procvlr experiment=NAME output=DIR`
    """
    settings = parse_settings(argv, GridSettings)
    from ace_dist.tools.study.grid import write_gains

    print(*write_gains(Path(settings.output), settings.experiment, settings.grid, settings.reference), sep="\n")


# --------------------------------------------------------------------------------------------------- data and trees
@dataclass
class AnnotationsSettings:
    output: str = MISSING  # the CSV file to write


def split_annotations(argv: list[str]) -> None:
    """Check and split annotations: `ace annotations dataset=csv dataset.annotations=FILE output=FILE.csv`.

    Without a split a quarter of the clips is tested, in whole groups (column group, else the video), the same ones each
    time; `dataset.test_groups='[NAME, ...]'` names others.
    """
    own, rest = split_settings(argv, AnnotationsSettings)
    dataset = load_config(rest).dataset
    from ace_dist.tools.annotations import write_annotations

    print(*write_annotations(dataset, Path(own.output)), sep="\n", flush=True)


def build_shards(argv: list[str]) -> None:
    """Make shards: `ace shards dataset=csv dataset.annotations=FILE dataset.shards=DIR`.

    As a SLURM array, each task makes its part and the last one finishes: `sbatch --array=0-7 --wrap "python ..."`.
    """
    dataset = load_config(argv).dataset
    from ace_dist.data.build.shards import array_task
    from ace_dist.data.datasets import build_dataset
    from ace_dist.data.sampling import coinciding_views
    from ace_dist.data.segments import shared_groups
    from ace_dist.worlds import READERS

    task, tasks, reason = array_task(dataset.task, dataset.tasks, os.environ)
    if tasks > 1:
        print(f"part {task} of {tasks} ({reason})", flush=True)
    shards = build_dataset(dataset, READERS, task=task, tasks=tasks)
    if shards is None:
        print(
            f"{dataset.shards}: this part is finished, others are not; the last one writes the manifest "
            "(or, when none is left, this command with dataset.tasks=1)"
        )
        return
    train, test, manifest = shards.split("train"), shards.split("test"), shards.manifest
    print(f"{dataset.shards}: {len(train)} training and {len(test)} test clips, {len(manifest['shards'])} shards")
    if missing := manifest["quarantined"]:
        print(f"{missing} segments left out, listed in {dataset.shards}/quarantine.jsonl")
    if cut := manifest.get("shortened"):
        print(f"{len(cut)} segments reach past what their video shows and are cut there: {', '.join(cut[:5])}")
    if padded := manifest.get("padded"):
        print(f"{len(padded)} clips are filled up with the last frame of their video: {', '.join(padded[:5])}")
    for note in shared_groups(shards.records):
        print(f"note: {note}")
    if shards.older_build:
        print(shards.older_build)
    if same := coinciding_views(test, dataset.clip):
        print(
            f"{same} of {len(test)} test clips are too short for {dataset.clip.views} different views "
            f"(dataset.clip.seconds={dataset.clip.seconds:g})"
        )


def verify_shards(argv: list[str]) -> int:
    """Check shards: `ace shards verify dataset=csv dataset.shards=DIR`. Exits with 1 for faulty ones.

    Give the settings of the training that will read them (`dataset.synonyms`, `loader.backend`, `training.device`).
    """
    config = load_run(argv)
    import torch

    from ace_dist.data.build.verify import verify_shards
    from ace_dist.models.tokenizer import bpe_ids

    on_gpu = config.training.device == "cuda" or (config.training.device == "auto" and torch.cuda.is_available())
    text = config.model.text
    tokenise = bpe_ids if text.tower == "clip" and text.tokenizer is None else list
    report = verify_shards(config, torch.device("cuda" if on_gpu else "cpu"), tokenise)
    print(report.text)
    return int(bool(report.errors))


def convert_ata(argv: list[str]) -> None:
    """Make ATA's manifest: `ace shards ata root=DIR output=manifest.csv [person=REGEX ...]`.

    Reads label files of the forms in use, finds the video of each, and says in one message what does not fit.
    """
    from ace_dist.data.annotations.ata_release import ConvertConfig, convert

    print(*convert(parse_settings(argv, ConvertConfig)), sep="\n")


def build_synonyms(argv: list[str]) -> None:
    """Build synonym trees: `ace synonyms actions=FILE output=FILE source=wordnet children=6`.

    With a language model: `source=model model=NAME domain="toy assembly" [base_url=URL]`, the key in OPENAI_API_KEY.
    By hand: `manual=export trees=FILE sheet=FILE.csv`, edit, `manual=import trees=FILE sheet=FILE.csv output=FILE`.
    """
    from ace_dist.tools.synonyms.build import BuildConfig
    from ace_dist.tools.synonyms.commands import build_command

    build_command(parse_settings(argv, BuildConfig))


def inspect_synonyms(argv: list[str]) -> None:
    """Look for faults in synonym trees: `ace synonyms inspect trees=FILE [actions=FILE]`.

    `embed=minilm` adds how a text tower sees them. Prints the table and the warnings, writes the pictures.
    """
    from ace_dist.tools.synonyms.commands import InspectConfig, inspect_command

    inspect_command(parse_settings(argv, InspectConfig))


def synonym_senses(argv: list[str]) -> None:
    """List every sense of a verb in WordNet: `ace synonyms senses VERB`, such as `ace synonyms senses pick up`.

    One of them is picked in a build with `senses='{VERB: NAME}'`.
    """
    from ace_dist.tools.synonyms.commands import SensesConfig, senses_command

    words = [word for word in argv if "=" not in word and not word.startswith("-")]
    settings = [word for word in argv if word not in words]
    senses_command(parse_settings([*settings, *([f"verb={' '.join(words)}"] if words else [])], SensesConfig))


# -------------------------------------------------------------------------------------------------------- weights
def import_weights(argv: list[str]) -> None:
    """Bring others' weights in: `ace weights source=FILE output=FILE.safetensors [tower=NAME]`.

    Reads, converts, reports, and writes when nothing is missing, left over or of another shape. With `model=NAME` a
    file or folder of open_clip becomes all files of that model, tokenizer included, in the folder `output`.
    """
    from ace_dist.models.convert.importing import ImportConfig, import_command
    from ace_dist.models.convert.open_clip import import_pair

    settings = parse_settings(argv, ImportConfig)
    (import_command if settings.model is None else import_pair)(settings)


def get_weights(argv: list[str]) -> None:
    """Download released weights and convert them: `ace weights get clip_b16`; without a name it lists them.

    Says the licence, and waits for `accept_licence=true` where it restricts. A stopped download goes on.
    HF_HUB_OFFLINE, HF_ENDPOINT (a mirror), HF_TOKEN and HF_HOME hold.
    """
    from ace_dist.models.convert.known import GetSettings, get_command, known_table

    if not argv or help_asked(argv):
        print("", known_table(), sep="\n")
    if argv:
        named = [f"name={word}" if re.fullmatch(r"\w+", word) else word for word in argv[:1]]
        get_command(parse_settings([*named, *argv[1:]], GetSettings))


@dataclass
class ModelsSettings:
    model: str | None = None  # one of configs/model; null: all
    frames: int = 8  # of a clip


def models(argv: list[str]) -> None:
    """List the encoders of configs/model: parameters, FLOPs a clip, licence, where weights come from, what trains.

    `ace models`, or one of them: `ace models model=pe_core_b16 frames=16`.
    """
    settings = parse_settings(argv, ModelsSettings)
    from ace_dist.tools.models import models_table

    print(models_table(settings.frames, settings.model))


def pretrain_tabletop(argv: list[str]) -> None:
    """Pretrain both tabletop towers: `ace weights pretrain [output=DIR] [pretrain.steps=N]`.

    `output=ace_dist/assets/weights/tabletop` replaces the weights that the repository ships; without it they stay.
    """
    from ace_dist.worlds.tabletop.pretraining import pretrain_command

    pretrain_command(argv)


# -------------------------------------------------------------------------------------------------------- cluster
@dataclass
class SubmitSettings:
    launcher: str = "train"  # the command that is submitted; what is not a setting of submitting goes to it
    folder: str = "runs/jobs"  # logs, journals and submitit's files; the nodes must see it
    dry_run: bool = False  # print what would be submitted, and stop
    wait: bool = False  # stay with a SLURM job until its end; a local one is always stayed with


def submit(argv: list[str]) -> int:
    """Submit any command as a job: `ace submit cluster=slurm launcher=train experiment=NAME key=value`.

    Returns 0, or the status of the job that was waited for.
    """
    settings, others = split_settings(argv, SubmitSettings)
    profile, rest = split_profile(others)
    from ace_dist.cluster import submit as jobs

    name, words = find_command([*settings.launcher.split(), *rest])
    if name.split()[0] in ("submit", "sweep", "demo", "own"):
        raise ConfigError(f"launcher={settings.launcher} starts others itself: start it as it is")
    jobs.check_job(load_run, name, words, profile)
    folder = Path(settings.folder)
    job = jobs.build_job(execute, settings.launcher, rest, folder)
    print(jobs.describe(profile, [job], folder), flush=True)
    if settings.dry_run:
        if profile.kind == "slurm":
            print(f"\n{jobs.sbatch_text(profile, f'ace-{settings.launcher}', folder)}")
        return 0
    if profile.kind == "local":
        jobs.run_here(job, profile, folder)
        return jobs.exit_status(job)
    (job_id,) = jobs.submit(profile, [job], f"ace-{settings.launcher}", folder)
    log = jobs.log_path(folder, job_id)
    print(f"job      {job_id}; its first rank prints to {log}, cancel it with: scancel {job_id}", flush=True)
    if not settings.wait:
        return 0
    jobs.stay(log, lambda: not jobs.queue("slurm", [job_id]))
    return jobs.exit_status(job)


@dataclass
class SweepSettings:
    sweep: str = ""  # its name; empty: made of table and data set
    folder: str = "runs/sweeps"  # of all sweeps
    table: str = ""  # a table or figure of the paper: its rows are the grid's first axis
    search: str = ""  # rates: choose the learning rates of method=NAME on base classes of held-out groups
    dry_run: bool = False  # print what would be submitted, and stop


def sweep_run(argv: list[str]) -> int:
    """Run a grid of trainings: `ace sweep sweep=NAME method=ace,procvlr seed=0..4 cluster=slurm ...`.

    Given again, the same command submits whatever is neither finished nor in the queue. With table=table1 (a file of
    ace_dist/assets/tables) the rows of that table of the paper come first in the grid, and the sweep's table has the
    paper's layout with the paper's numbers beside; so says `experiment=table1 dataset=tabletop` in fewer words. On this
    machine the sweep ends with its table. `search=rates method=NAME dataset=NAME` looks for learning rates instead.
    """
    settings, others = split_settings(argv, SweepSettings)
    if settings.search:
        return search_rates(settings, others)
    profile, grid = split_profile(others)
    from ace_dist.cluster.sweep import expand
    from ace_dist.tools.study.tables import expand_table, load_table, name_a_table, rows_without_run

    if not settings.table:
        settings.table, grid = name_a_table(grid)
        if settings.table and not settings.sweep:
            datasets = next(arg.partition("=")[2] for arg in others if arg.startswith("dataset="))
            settings.sweep = "_".join([settings.table, *datasets.split(",")])
    if not settings.sweep:
        raise ConfigError("sweep is not set: name the sweep with sweep=NAME")
    sweep = begun_sweep(Path(settings.folder) / settings.sweep)
    table = load_table(settings.table) if settings.table else None
    runs = sweep.add(expand_table(grid, table) if table else expand(grid), settings.table)
    if table and (absent := rows_without_run(runs, table)):
        print(f"left out {', '.join(absent)}: see ace_dist/assets/tables/{table.name}.yaml", flush=True)
    return launch_runs(sweep, runs, "run", profile, settings.dry_run)


def search_rates(settings: SweepSettings, others: list[str]) -> int:
    """Choose the learning rates of methods on base classes alone, by the rule of `ace_dist/tools/study/rates.py`.

    On a cluster each call submits the runs that the rule asks for next; the same command goes on when they are done.
    """
    from ace_dist.tools.study.rates import build_searches, write_rates

    if settings.search != "rates" or settings.table:
        raise ConfigError(f"search={settings.search} table={settings.table}: there is search=rates, without a table")
    profile, grid = split_profile(others)
    given = dict(word.split("=", 1) for word in grid if "=" in word)
    name = ["rates", given.get("method", ""), given.get("dataset", given.get("experiment", ""))]
    folder = Path(settings.folder) / (settings.sweep or "_".join(name).replace(",", "_"))
    searches = build_searches(grid, folder, load_run)
    sweep = begun_sweep(folder)
    while runs := sweep.add([run for search in searches for run in search.wanted()]):
        code = submit_runs(sweep, runs, "run", profile, settings.dry_run)
        if code or settings.dry_run or profile.kind != "local":
            return code
    write_rates(searches, folder / "rates.csv")
    print(
        (folder / "rates.csv").read_text(encoding="utf-8"),
        "chosen, of the smallest within one standard error:",
        sep="\n",
    )
    print(*(f"  method={search.method} {search.settings_to_use()}" for search in searches), sep="\n")
    return 0


def begun_sweep(folder: Path) -> Sweep:
    """The sweep of a folder, or a new one."""
    from ace_dist.cluster.sweep import Sweep

    return Sweep.read(folder) if (folder / "sweep.json").is_file() else Sweep(folder)


def launch_runs(sweep: Sweep, runs: Sequence[SweepRun], verb: str, profile: ClusterConfig, dry_run: bool) -> int:
    """As `submit_runs`; on this machine the table of the sweep follows."""
    code = submit_runs(sweep, runs, verb, profile, dry_run)
    if profile.kind == "local" and not dry_run:
        print_table(sweep)
    return code


def submit_runs(sweep: Sweep, runs: Sequence[SweepRun], verb: str, profile: ClusterConfig, dry_run: bool) -> int:
    """Check every run's settings, then submit what `verb` asks for."""
    from ace_dist.cluster import submit as jobs
    from ace_dist.cluster.sweep import launch, select

    for run in runs:
        jobs.check_job(load_run, "train", run.overrides, profile)
    return launch(sweep, select(runs, sweep.states(), verb), profile, execute, dry_run)


@dataclass
class KnownSweep:
    sweep: str = MISSING  # its name
    folder: str = "runs/sweeps"  # of all sweeps


def read_sweep(settings: KnownSweep) -> Sweep:
    from ace_dist.cluster.sweep import Sweep

    return Sweep.read(Path(settings.folder) / settings.sweep)


def sweep_status(argv: list[str]) -> None:
    """Say where each run of a sweep is: `ace sweep status sweep=NAME`."""
    sweep = read_sweep(parse_settings(argv, KnownSweep))
    from ace_dist.cluster.sweep import status_table

    print(status_table(sweep.states()))


def sweep_collect(argv: list[str]) -> None:
    """Make a sweep's table: `ace sweep collect sweep=NAME`."""
    print_table(read_sweep(parse_settings(argv, KnownSweep)))


@dataclass
class RetrySettings(KnownSweep):
    dry_run: bool = False  # print what would be submitted, and stop


def sweep_retry(argv: list[str]) -> int:
    """Submit failed runs again: `ace sweep retry sweep=NAME`.

    They go where they were before, unless cluster=... says otherwise.
    """
    settings, others = split_settings(argv, RetrySettings)
    profile, rest = split_profile(others)
    if rest:
        raise ConfigError(f"retry takes no settings of runs, found {rest[0]!r}; give sweep=NAME alone")
    sweep = read_sweep(settings)
    if not others:
        profile = sweep.last_profile()
    return launch_runs(sweep, list(sweep.runs.values()), "retry", profile, settings.dry_run)


def print_table(sweep: Sweep) -> None:
    """Print the table of a sweep, or of the paper, and write it beside the runs; missing runs are in its notes."""
    from ace_dist.tools.study.collect import as_markdown, collect, paper_sheet, sheet, write_tables
    from ace_dist.tools.study.tables import load_table, rows_without_run

    table = load_table(sweep.table) if sweep.table else None
    lines = collect(sweep, sweep.states(), table)
    absent = rows_without_run(list(sweep.runs.values()), table) if table else []
    text = paper_sheet(lines, table, absent) if table else sheet(lines)
    print(as_markdown(text))
    print("\n".join(map(str, write_tables(lines, text, sweep.folder))))


# ------------------------------------------------------------------------------------------------- the installation
@dataclass
class DemoSettings(RankSettings):
    run: str = "runs/demo"  # the run folder of ACE; the other one's is RUN-procvlr


def demo(argv: list[str]) -> int:
    """Build the demo's data, train a method without synonyms and ACE, and compare them: `ace demo [key=value ...]`.

    Settings go to the build and to both trainings, such as `training.max_steps=20`. A run that is there goes on.
    """
    own, settings = split_settings(argv, DemoSettings)
    load_run(["experiment=demo", *settings])  # says what is wrong before anything is made; with --help it ends here
    if fixed := [word for word in settings if word.startswith(("experiment=", "method="))]:
        raise ConfigError(f"{fixed[0]}: the demo compares two methods in its own world; `ace train` takes any")
    ranks = [] if own.ranks is None else [f"ranks={own.ranks}"]
    other = f"{own.run}-procvlr"
    for words in (
        ["shards", "experiment=demo", *settings],
        ["train", "experiment=demo", "method=procvlr", f"run={other}", *settings, *ranks],
        ["train", "experiment=demo", f"run={own.run}", *settings, *ranks],
        ["report", f"run={own.run}", f"compare=[{other}]"],
    ):
        print(f"$ ace {shlex.join(words)}", flush=True)
        if status := start(words):
            return status
    return 0


def own(argv: list[str]) -> int:
    """Train on your own videos, from annotations to the report: `ace own annotations.csv [key=value ...]`.

    Takes a CSV file, an export of ELAN, CVAT, Label Studio or VIA, a folder per label, or a folder in MS-TCN's layout.
    Runs and prints the single commands: the split, synonym trees, shards, a dry run that says how long the training
    takes, the training with its test and report. Settings go to all of them. Given again, it goes on.
    """
    from ace_dist.tools.own import OwnSettings, named_first, stages, training_words

    settings, others = split_settings(named_first(argv), OwnSettings)
    ranks, rest = split_settings(others, RankSettings)
    config = load_run(training_words(settings, rest))  # with --help it ends here
    for words in stages(settings, rest, config, [f"ranks={ranks.ranks}"] if ranks.ranks else []):
        print(f"\n$ ace {shlex.join(words)}", flush=True)
        if status := start(words):
            print("stopped; the same command goes on", file=sys.stderr)
            return status
    return 0


def config_list(argv: list[str]) -> None:
    """List the settings files that come with the package: `ace config list`."""
    parse_settings(argv, NoSettings)
    print(*shipped_choices(), sep="\n")


def shipped_choices() -> list[str]:
    return [f"{group}=  {', '.join(choices(group))}" for group in GROUPS]


def config_get(argv: list[str]) -> None:
    """Print a settings file, to begin yours with: `ace config get dataset=csv > mine.yaml`.

    Yours is used by its path, which ends in `.yaml`: `dataset=mine.yaml`.
    """
    if help_asked(argv):
        print("", *shipped_choices(), sep="\n  ")
        raise SystemExit(0)
    asked = dict(word.partition("=")[::2] for word in argv)
    for group in asked:
        if group not in GROUPS:
            raise ConfigError(f"unknown setting {group!r}{did_you_mean(group, GROUPS)}; there are {', '.join(GROUPS)}")
    if len(asked) != 1:
        raise ConfigError("give one file as GROUP=NAME, for example dataset=csv; `ace config list` shows them")
    print(shipped_file(*asked.popitem()).read_text(encoding="utf-8"), end="")


@dataclass
class NoSettings:
    pass


@dataclass
class CompletionSettings:
    shell: str = "bash"  # or zsh


def doctor(argv: list[str]) -> int:
    """Say what this machine has, what is missing, and what would be slow and why: `ace doctor`.

    Exits with 1 when something must be mended. `ace preflight` checks the settings of a run, on all its ranks.
    """
    parse_settings(argv, NoSettings)
    from ace_dist.tools.doctor import doctor

    text, good = doctor()
    print(text)
    return int(not good)


def completion(argv: list[str]) -> None:
    """Print what completes commands and settings at the tab key: `eval "$(ace completion)"` in ~/.bashrc.

    For zsh: `eval "$(ace completion shell=zsh)"` in ~/.zshrc.
    """
    from ace_dist.tools.completion import complete, script

    if (line := os.environ.get("COMP_LINE")) is not None:  # the shell asks
        print(*complete(line[: int(os.environ.get("COMP_POINT", len(line)))], list(COMMANDS), help_text), sep="\n")
        return
    print(script(parse_settings(argv, CompletionSettings).shell))


def help_text(name: str) -> str:
    """What `ace NAME --help` prints."""
    with redirect_stdout(StringIO()) as said, suppress(SystemExit, UserError):
        execute([*name.split(), "--help"])
    return said.getvalue()


# ------------------------------------------------------------------------------------------------ the command line
Command = Callable[[list[str]], int | None]
COMMANDS: dict[str, Command] = {
    "demo": demo, "own": own,
    "train": train, "evaluate": evaluate, "classify": classify, "explore": explore, "export": export,
    "segment": segment, "watch": watch, "calibrate": calibrate, "timelines": evaluate_timelines,
    "annotations": split_annotations,
    "shards build": build_shards, "shards verify": verify_shards, "shards ata": convert_ata,
    "synonyms build": build_synonyms, "synonyms inspect": inspect_synonyms, "synonyms senses": synonym_senses,
    "models": models,
    "weights import": import_weights, "weights get": get_weights, "weights pretrain": pretrain_tabletop,
    "report run": report_run, "report runs": report_runs, "report sweep": report_sweep,
    "report grid": report_grid, "report figures": report_figures,
    "estimate": estimate, "preflight": preflight, "submit": submit,
    "sweep run": sweep_run, "sweep status": sweep_status, "sweep collect": sweep_collect, "sweep retry": sweep_retry,
    "config get": config_get, "config list": config_list, "doctor": doctor, "completion": completion,
}  # fmt: skip
LAUNCHERS = {command.__name__: name for name, command in COMMANDS.items()}  # launchers/build_shards.py: "shards build"
RANKED = ("train", "evaluate", "preflight")  # `ace` starts their ranks
DEMO_BY_DEFAULT = (*RANKED, "shards build", "shards verify", "estimate", "submit", "weights pretrain")


def ace() -> int:
    """The console command: as `main`, but it starts the ranks of a training, and runs nothing without settings."""
    return main(run=start)


def start(argv: Sequence[str]) -> int:
    """Run a command; one of `RANKED` in as many processes as suit this machine, or as `ranks=N` says."""
    argv = take_verbose(take_umask(with_home(argv)))
    if not argv or argv[0].startswith("-"):
        return execute(argv)
    name, rest = find_command(argv)
    if not rest and name in DEMO_BY_DEFAULT:
        return execute([*name.split(), "--help"])
    if name not in RANKED or help_asked(rest) or "--cfg" in rest or {"RANK", "SLURM_STEP_ID"} & os.environ.keys():
        return execute(argv)
    own, settings = split_settings(rest, RankSettings)
    from ace_dist.cluster.ranks import default_ranks, run_ranks

    if name == "evaluate":
        config = evaluated_config(split_settings(settings, EvaluateSettings)[0])
    else:
        config = load_run(split_settings(settings, TrainSettings)[1])
    return run_ranks([name, *settings], own.ranks or default_ranks(config))


def main(*words: str, run: Callable[[Sequence[str]], int] | None = None) -> int:
    """Run the command of `words` and the program's own arguments; returns the exit status.

    A `UserError` is one line on stderr and 2; so are a full disk, a path that may not be read or written, and one that
    cannot be. Any other `OSError` is a bug and stays one. Ctrl-C gives 130.
    """
    try:
        return (run or execute)([*words, *sys.argv[1:]])
    except UserError as error:
        print(f"error: {printable(redact(str(error)))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (*NO_SPACE, *NO_PERMISSION, *NO_SUCH_PLACE):
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}; {refusal_remedy(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def refusal_remedy(error: OSError) -> str:
    """What the owner of a file can do that could not be read or written."""
    again = "(run=, dataset.shards= or output=), then give the command again"
    if error.errno in NO_SPACE:
        return f"free some space or write to another disk {again}"
    if error.errno in NO_SUCH_PLACE:
        return f"name another path {again}"
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    folders = [folder for folder in path.absolute().parents if os.path.isdir(folder)] if path else []
    closed = folders and not os.access(folders[0], os.X_OK)
    if path and (closed or (os.path.exists(path) and not os.access(path, os.R_OK))):
        return f"let this user read it (`ls -ld {shlex.quote(str(folders[0] if closed else path))}` shows who may)"
    return f"write to a folder of yours {again}"


def execute(argv: Sequence[str]) -> int:
    """Run `NAME [SUBCOMMAND] key=value ...`; returns its exit status. Raises `UserError` for what a user can mend.

    `--local_rank`, which DeepSpeed's launcher puts before the name with `--module ace_dist`, is ignored. `umask=077`
    and `verbose=true` are of every command.
    """
    end_with_launcher(os.environ)
    argv = [word for word in argv if not word.replace("_", "-").lstrip("-").startswith("local-rank")]
    argv = take_verbose(take_umask(with_home(argv)))
    if argv and argv[0] in ("--version", "-V"):
        print(f"ace-dist {__version__}")
        return 0
    if not argv or (argv[0].startswith("-") and help_asked(argv)):
        print(overview())
        return 0
    name, rest = find_command(argv)
    if help_asked(rest):
        return show_help(name, rest)
    with missing_packages_named():
        return COMMANDS[name](without_ranks(name, rest) if name in RANKED else rest) or 0


def without_ranks(name: str, words: list[str]) -> list[str]:
    """The words of one rank without `ranks=N`, which `ace` starts. Raises `ConfigError` when N is another number."""
    own, others = split_settings(words, RankSettings)
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    if own.ranks not in (None, started) and "--cfg" not in words:
        raise ConfigError(
            f"ranks={own.ranks}: `ace` starts ranks, and here {started} was started without it; write "
            f"`ace {name} ...`, or leave ranks= out and give the number to your launcher"
        )
    return others


def with_home(argv: Sequence[str]) -> list[str]:
    """`key=~/x` and `key=[~/x, ~/y]` as some shells hand them over: no command makes or reads a folder called `~`."""
    home = os.path.expanduser("~")
    return [re.sub(r"(?<=[=\[,])(\s*)~(?=/)", lambda found: found[1] + home, word) for word in argv]


def show_help(name: str, words: list[str]) -> int:
    """Print what a command does, examples, its settings, and those of a run that it reads."""
    from ace_dist.tools.help import examples, usual_settings

    shown = examples(name, lambda argv: find_command(argv)[0])
    print(inspect.getdoc(COMMANDS[name]), "", "examples:", "", *(f"  {line}" for line in shown), sep="\n")
    print("", "settings, written key=value:", sep="\n")
    if name in RANKED:
        split_settings(words, RankSettings)
    with suppress(SystemExit):
        COMMANDS[name](words)
    if usual := usual_settings(name):
        head = (
            "usual settings of a run, with the code's defaults (`ace train ... --cfg` prints all as the files set it):"
        )
        print("", head, "", *(f"  {line}" for line in usual), sep="\n")
    return 0


def take_umask(argv: Sequence[str]) -> list[str]:
    """The words without `umask=NNN`, which this process and all that it starts, jobs too, write their files under."""
    for word in argv:
        if word.startswith("umask="):
            if not re.fullmatch(r"umask=0?[0-7]{3}", word):
                raise ConfigError(f"{word} is not three octal digits, such as umask=077 (nobody else reads the files)")
            os.umask(int(word.partition("=")[2], 8))
    return [word for word in argv if not word.startswith("umask=")]


def take_verbose(argv: Sequence[str]) -> list[str]:
    """The words without `verbose=true`, or `--verbose`, which this process and all that it starts go by."""
    for word in argv:
        if word == "--verbose" or word.startswith("verbose="):
            if word not in ("--verbose", "verbose=true", "verbose=false"):
                raise ConfigError(f"{word} is not verbose=true or verbose=false")
            os.environ[VERBOSE] = str(int(word != "verbose=false"))
    return [word for word in argv if word != "--verbose" and not word.startswith("verbose=")]


def find_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command that the words ask for, which may be a launcher's, and the words after it.

    Of a command with subcommands it is the first one; of `report` the one that a setting is called as (`sweep=DIR`).
    Raises `ConfigError` with the nearest name when there is none such.
    """
    first, rest = argv[0].removesuffix(".py").replace("-", "_"), list(argv[1:])
    first = LAUNCHERS.get(first, first)
    if first in COMMANDS:
        return first, rest
    names = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{first} ")]
    if not names:
        known = list(dict.fromkeys(name.split(" ")[0] for name in COMMANDS))
        raise ConfigError(f"there is no command {first!r}; there are {', '.join(known)}{did_you_mean(first, known)}")
    if rest and "=" not in rest[0] and not rest[0].startswith("-"):
        if rest[0] not in names:
            raise ConfigError(f"{first} {rest[0]!r} is not one of {', '.join(names)}{did_you_mean(rest[0], names)}")
        return f"{first} {rest[0]}", rest[1:]
    if help_asked(rest) and len(rest) == 1:
        print(*(f"{first} {name}\n    {first_line(f'{first} {name}')}" for name in names), sep="\n")
    keys = {word.partition("=")[0] for word in rest if first == "report"}
    return f"{first} {next((name for name in names if name in keys), names[0])}", rest


def first_line(name: str) -> str:
    return (inspect.getdoc(COMMANDS[name]) or "").splitlines()[0]


def overview() -> str:
    """Every command with the first line of its docstring, and where to begin."""
    return "\n".join([
        f"ace-dist {__version__}. Its commands, as `ace NAME key=value`:\n",
        *(f"  {name:18} {first_line(name)}" for name in COMMANDS),
        "\nBegin with the demo:    ace demo",
        "or with your own CSV:   ace own annotations.csv",
        "Each one explains itself with --help.",
        "umask=077, which every command takes, makes files that nobody else can read; verbose=true says more.",
    ])  # fmt: skip
