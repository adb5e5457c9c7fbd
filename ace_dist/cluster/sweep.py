"""Sweeps: a grid of overrides, the folder that says all of it, the state of each run, and submitting what is open.

`runs/sweeps/NAME/` holds `sweep.json` (the paper's table that it repeats, if any; every submission with command,
commit, versions and profile; every run with its overrides and jobs), `uncommitted.patch` when the checkout had
changes, `sweep.lock`, `jobs/` (logs, journals, submitit's files) and one folder a run. A run is finished when its
folder holds `results.json`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from typing_extensions import TypedDict

from ace_dist.cluster.jobs import Job, Main, read_journal
from ace_dist.cluster.profiles import ClusterConfig
from ace_dist.cluster.submit import LocalQueue, check_gpus, describe, log_path, queue, sbatch_text, submit
from ace_dist.config import load_config, quoted
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.files import read_log, write_json, write_text
from ace_dist.utils.locks import lock
from ace_dist.utils.processes import identity, still_runs
from ace_dist.utils.reading import Text, check_shape, read_object
from ace_dist.utils.secrets import redact

RANGE = re.compile(r"-?\d+(\.\.-?\d+)?(,-?\d+(\.\.-?\d+)?)*")
STATES = ("finished", "running", "pending", "pre-empted", "stopped", "failed", "unknown", "new")
UNSEEN = "UNSEEN"  # in the place of SLURM's word: from here nobody can say whether the job has ended
REPLICATES = ("seed", "dataset.fold")  # settings whose values are repetitions of one experiment


@dataclass
class SweepRun:
    """One point of the grid: `settings` are the swept keys (`row`: of a table), `overrides` all but `run`.

    `jobs` are ids; `processes` says which process of which machine a local one is, as a number is used again.
    """

    id: str
    settings: dict[str, str]
    overrides: list[str]
    jobs: list[str] = field(default_factory=list)
    kind: str = ""  # local | slurm: where the last job went
    processes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def line(self) -> dict[str, str]:
        """The swept settings without repetitions: runs that share them are averaged."""
        return {key: value for key, value in self.settings.items() if key not in REPLICATES}

    def local_jobs(self) -> dict[str, str]:
        """The jobs on this machine that run, and those of which it cannot be said, as `queue` has SLURM's."""
        alive = {job: still_runs(process) for job, process in self.processes.items()}
        return {job: UNSEEN if here is None else "RUNNING" for job, here in alive.items() if here is not False}

    def fixed(self) -> set[str]:
        """The settings in which runs of one line must be equal."""
        return {setting for setting in self.overrides if setting.partition("=")[0] not in REPLICATES}

    def replicate(self, composed: bool = False) -> tuple[str | None, ...]:
        """Which repetition it is, `None` where a setting does not say it; `composed`: as the configuration has it."""
        given = dict(setting.split("=", 1) for setting in self.overrides if "=" in setting)
        if not composed:
            return tuple(given.get(key) for key in REPLICATES)
        config = load_config(self.overrides)
        return tuple(str(value) for value in (config.seed, config.dataset.fold))


@dataclass(frozen=True)
class State:
    """Where a run is: one of `STATES`, and one line about it."""

    state: str
    detail: str = ""


def expand(settings: Sequence[str]) -> list[SweepRun]:
    """Every point of a grid as a run, the last swept key running fastest.

    Hydra's grammar (`method=ace,procvlr`, `seed=range(0,5)`, `seed=choice(1,7)`) and `seed=0..4`, which includes both
    ends. A value in brackets or quotes is one value. Raises `ConfigError` naming the setting that cannot be read, or
    the swept one that is given twice.
    """
    fixed, axes = [], []
    given = Counter(setting.partition("=")[0] for setting in settings)
    for setting in settings:
        key, _, text = setting.partition("=")
        values = swept_values(setting, key, text)
        if values is None:
            fixed.append(setting)
        elif given[key] > 1:
            twice = " ".join(setting for setting in settings if setting.partition("=")[0] == key)
            raise ConfigError(f"{key} is swept and given more than once ({twice}); give all its values in one setting")
        else:
            axes.append([(key, value) for value in values])
    points = []
    for point in itertools.product(*axes):
        swept = dict(point)
        points.append(SweepRun(run_id(swept), swept, [*fixed, *(f"{key}={value}" for key, value in swept.items())]))
    return points


def swept_values(setting: str, key: str, text: str) -> list[str] | None:
    """The values of a swept setting, `None` for one that has a single value."""
    if ".." in text and RANGE.fullmatch(text):
        values: list[str] = []
        for part in text.split(","):
            first, _, last = part.partition("..")
            if last and int(last) < int(first):
                raise ConfigError(f"{setting}: {part} counts down; write {last}..{first}")
            values += [str(number) for number in range(int(first), int(last or first) + 1)]
        return list(dict.fromkeys(values))
    try:
        override = OverridesParser.create().parse_override(quoted(setting))
        if not override.is_sweep_override():
            return None
        return list(dict.fromkeys(override.sweep_string_iterator()))
    except (HydraException, TypeError) as error:
        raise ConfigError(f"{setting} is not a setting in Hydra's grammar: {str(error).splitlines()[0]}") from error


def run_id(swept: dict[str, str]) -> str:
    """A folder name out of the swept settings; long or odd ones are cut and made unique by a hash."""
    name = "_".join(f"{key}-{value}" for key, value in swept.items()) or "run"
    plain = re.sub(r"[^\w.-]", "-", name)[:100]  # letters that Hydra's grammar and a shell leave alone
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


class SweepFile(TypedDict):
    """`sweep.json`."""

    table: NotRequired[Text]
    submissions: list[dict[str, Any]]
    runs: list[SweepRun]


class Sweep:
    """A sweep's folder. `table`, `submissions` and `runs` are what `sweep.json` holds.

    Several processes may add to one sweep at the same time (`changing`).
    """

    def __init__(self, folder: Path) -> None:
        if not re.fullmatch(r"[\w.-]+", folder.name):
            raise ConfigError(f"sweep={folder.name}: letters, digits, '.', '_' and '-' make a sweep's name")
        self.folder, self.jobs_folder = folder, folder / "jobs"
        self.table = ""  # name of the paper's table whose rows it runs; empty: none
        self.submissions: list[dict[str, Any]] = []
        self.runs: dict[str, SweepRun] = {}

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """An existing sweep. Raises `ConfigError` when there is none."""
        path = folder / "sweep.json"
        if not path.is_file():
            near = sorted(other.parent.name for other in folder.parent.glob("*/sweep.json"))
            raise ConfigError(f"{path} does not exist; there are the sweeps {', '.join(near) or '(none)'}")
        sweep = cls(folder)
        content = check_shape(read_object(path, ConfigError), SweepFile, str(path), ConfigError)
        sweep.table = content.get("table", "")
        sweep.submissions = content["submissions"]
        sweep.runs = {run.id: run for run in content["runs"]}
        for run in sweep.runs.values():  # of before: a copied or renamed sweep would train into the old folder
            run.overrides = [setting for setting in run.overrides if not setting.startswith("run=")]
        return sweep

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        runs = [asdict(run) for run in self.runs.values()]
        write_json(self.folder / "sweep.json", {"table": self.table, "submissions": self.submissions, "runs": runs})

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Alone with `sweep.json`: what others have written is read first, and the file is written at the end.

        Raises `ConfigError` when another process has made one of the runs with other settings.
        """
        with lock(self.folder / "sweep.lock"):
            if (self.folder / "sweep.json").is_file():
                there = Sweep.read(self.folder)
                there.refuse_other_table(self.table)
                for run in self.runs.values():
                    written = there.include(run)
                    run.jobs, run.kind, run.processes = written.jobs, written.kind, written.processes
                self.submissions, self.runs = there.submissions, there.runs | self.runs
            yield
            self.write()

    def refuse_other_table(self, table: str) -> None:
        if self.runs and self.table != table:
            raise ConfigError(
                f"{self.folder} was made with table={self.table or '(none)'}, not {table or '(none)'}; choose another "
                f"name with sweep=NAME"
            )

    def include(self, new: SweepRun) -> SweepRun:
        """The run of that id, `new` itself where there is none.

        Raises `ConfigError` when it has other settings, or does not belong to the runs that it would be averaged with.
        """
        if new.id not in self.runs:
            self.check_line(new)
        run = self.runs.setdefault(new.id, new)
        if run.overrides != new.overrides:
            changed = sorted(set(run.overrides) ^ set(new.overrides)) or ["the same ones in another order"]
            raise ConfigError(
                f"{self.folder}: run {run.id} was made with other settings ({', '.join(changed[:4])}); choose "
                f"another name with sweep=NAME"
            )
        return run

    def check_line(self, new: SweepRun) -> None:
        """Refuse a new run that differs from those of its line in more than the repetition, or repeats one of them."""
        for run in (run for run in self.runs.values() if run.line() == new.line()):
            if changed := sorted(run.fixed() ^ new.fixed()):
                raise ConfigError(
                    f"{self.folder}: run {new.id} would be averaged with run {run.id}, which has other settings "
                    f"({', '.join(changed[:4])}); choose another name with sweep=NAME"
                )
            ours, theirs = new.replicate(), run.replicate()
            if any((one is None) != (other is None) for one, other in zip(ours, theirs, strict=True)):
                ours, theirs = new.replicate(composed=True), run.replicate(composed=True)
            if ours == theirs:
                raise ConfigError(
                    f"{self.folder}: run {new.id} has the seed and fold of run {run.id}, so that it would count twice; "
                    f"leave it out, or choose another name with sweep=NAME"
                )

    def words(self, run: SweepRun) -> list[str]:
        """All settings of a run, its folder among them: where the sweep lies now."""
        return [*run.overrides, f"run={self.folder.absolute() / run.id}"]

    def add(self, points: Sequence[SweepRun], table: str = "") -> list[SweepRun]:
        """The runs of a grid (`expand`, `expand_table`) in this sweep, new ones added.

        Raises `ConfigError` when one exists with other fixed settings, or the sweep is of another table.
        """
        self.refuse_other_table(table)
        self.table = table
        runs = []
        for point in points:
            for setting in point.overrides:
                if setting.startswith("run="):
                    raise ConfigError(f"{setting}: a sweep gives each of its runs a folder below {self.folder}")
            runs.append(self.include(point))
        return runs

    def note_submission(self, profile: ClusterConfig, runs: Sequence[SweepRun]) -> None:
        """Say in `sweep.json` who is about to run, by which command, commit, versions and profile."""
        from ace_dist.train.run_folder import code_diff, environment

        facts = {key: value for key, value in environment().items() if key != "world_size"}  # of this process
        when = datetime.now(UTC).isoformat(timespec="seconds")
        with self.changing():
            self.submissions.append({"utc": when, "runs": [r.id for r in runs], "profile": asdict(profile), **facts})
        if patch := code_diff():
            write_text(self.folder / "uncommitted.patch", patch)

    def last_profile(self) -> ClusterConfig:
        return ClusterConfig(**self.submissions[-1]["profile"])

    def note_jobs(self, job_ids: Mapping[str, str], kind: str) -> None:
        """Say in `sweep.json` which job each run (by its id) was submitted as."""
        with self.changing():
            for name, job_id in job_ids.items():
                self.runs[name].jobs.append(job_id)
                self.runs[name].kind = kind
                if kind == "local":
                    self.runs[name].processes[job_id] = identity(int(job_id))

    def states(self) -> dict[str, State]:
        """The state of every run, by id; `unknown` where neither SLURM nor the machine of the job can be asked."""
        submitted = [r for r in self.runs.values() if r.jobs and not (self.folder / r.id / "results.json").is_file()]
        waiting: dict[str, str] = {}
        if at_slurm := [job for r in submitted if r.kind == "slurm" for job in r.jobs if job not in r.processes]:
            try:
                waiting |= queue(at_slurm)
            except RunError as error:
                say_once(str(error))
                waiting |= dict.fromkeys(at_slurm, UNSEEN)
        return {run.id: run_state(run, self.folder, waiting | run.local_jobs()) for run in self.runs.values()}


def run_state(run: SweepRun, folder: Path, waiting: dict[str, str]) -> State:
    """A run's state from its results, the queue (`waiting`: job id to SLURM's word) and its journal.

    Of several jobs the last one counts that is in the queue: two commands may have submitted the run at the same time.
    """
    if (folder / run.id / "results.json").is_file():
        return State("finished")
    if not run.jobs:
        return State("new", "not submitted yet")
    job_id = next((job for job in reversed(run.jobs) if waiting.get(job, UNSEEN) != UNSEEN), run.jobs[-1])
    events = [event for event in read_journal(folder / "jobs" / f"{run.id}.jsonl") if event.job_id == job_id]
    log = log_path(folder / "jobs", job_id)
    if waiting.get(job_id) == UNSEEN:
        host = run.processes.get(job_id, {}).get("host")
        return State(
            "unknown",
            f"job {job_id}"
            + (f" of {host}" if host else "")
            + " cannot be asked about from here; retry it with unknown=true",
        )
    if job_id in waiting:
        if waiting[job_id] != "PENDING":
            return State("running", progress(folder / run.id))
        return State("pre-empted", f"requeued after {progress(folder / run.id)}") if events else State("pending")
    # It has left the queue without results.
    if not events:
        return State("failed", f"the job ended before it started{tail(log)}")
    start = max(event.start for event in events)
    first = {event.event: event for event in reversed(events) if event.start == start}  # of each kind
    if failure := first.get("failed"):  # the others are its echo in other ranks
        return State("failed", f"rank {failure.rank} on {failure.host}: {failure.detail}")
    if stop := first.get("stopped"):
        return State("stopped", stop.detail)
    if "finished" in first:  # as training.stop_after_steps asks for
        return State("stopped", f"ended without results after {progress(folder / run.id)}")
    return State("failed", f"killed without a word in start {start}{tail(log)}")


def progress(run_dir: Path) -> str:
    """The last step that a run has logged."""
    rows, _ = read_log(run_dir / "metrics.jsonl")  # whose last line may be half written at this moment
    return f"step {rows[-1]['step']}" if rows else "step 0"


def tail(log: Path) -> str:
    """The last lines of a log without those of progress; says so when there is none."""
    if not log.is_file():
        return f"; no log at {log}"
    text = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace"))
    shown = [line.strip() for line in text if line.strip() and not re.match(r"train:\s+\d+(%| of )", line)]
    return f"; the end of {log.name}: {redact(' | '.join(shown[-3:]))}"


def select(runs: Sequence[SweepRun], states: dict[str, State], verb: str) -> list[SweepRun]:
    """The runs to submit: failed ones for `retry`, else all that are neither finished nor in the queue.

    `retry unknown` takes those, too, of which nobody here can say whether they still run.
    """
    open_states = {"retry": ("failed",), "retry unknown": ("failed", "unknown")}.get(verb, ("new", "failed", "stopped"))
    return [run for run in runs if states[run.id].state in open_states]


def launch(sweep: Sweep, runs: Sequence[SweepRun], profile: ClusterConfig, execute: Main, dry_run: bool) -> int:
    """Submit runs, on SLURM as one job array; locally stay until they end. Returns 1 when a local run failed."""
    folder = sweep.jobs_folder.absolute()
    jobs = [Job(execute, ("train", *sweep.words(run)), str(folder / f"{run.id}.jsonl")) for run in runs]
    print(f"sweep    {sweep.folder}: {len(sweep.runs)} runs, of which {len(runs)} to submit", flush=True)
    if not runs:
        print(status_table(sweep.states()))
        return 0
    check_gpus(profile, len(jobs))
    print(describe(profile, jobs, sweep.jobs_folder), flush=True)
    name = f"ace-{sweep.folder.name}"
    if dry_run:
        if profile.kind == "slurm":
            print(f"\n{sbatch_text(profile, name, sweep.jobs_folder, len(jobs))}")
        return 0
    sweep.note_submission(profile, runs)
    if profile.kind == "local":
        return run_locally(sweep, runs, jobs, profile)
    job_ids = dict(zip((run.id for run in runs), submit(profile, jobs, name, sweep.jobs_folder), strict=True))
    sweep.note_jobs(job_ids, "slurm")
    print(*(f"job      {job_id}  {run}" for run, job_id in job_ids.items()), sep="\n")
    print(f"next     ace sweep status sweep={sweep.folder.name}", flush=True)
    return 0


def run_locally(sweep: Sweep, runs: Sequence[SweepRun], jobs: Sequence[Job], profile: ClusterConfig) -> int:
    """Run on this machine, `profile.parallel` at a time, saying what starts and how it ends."""

    def started(index: int, job_id: str) -> None:
        sweep.note_jobs({runs[index].id: job_id}, "local")
        print(f"started  {runs[index].id} (process {job_id})", flush=True)

    def ended(index: int) -> None:
        state = sweep.states()[runs[index].id]
        print(f"{state.state:<8} {runs[index].id} {state.detail}".rstrip(), flush=True)

    try:
        LocalQueue(profile, sweep.jobs_folder).run(jobs, started, ended)
    except KeyboardInterrupt:
        print("ended by Ctrl-C; the same command continues", flush=True)
    states = sweep.states()
    return int(any(states[run.id].state != "finished" for run in runs))


def status_table(states: dict[str, State]) -> str:
    """One line a run, and the sum of each state."""
    width = max(map(len, states), default=0)
    lines = [f"{name.ljust(width)}  {state.state:<10}  {state.detail}".rstrip() for name, state in states.items()]
    counts = Counter(state.state for state in states.values())
    total = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return "\n".join([*lines, f"{len(states)} runs: {total}"])
