"""Builds shards: which segments go into which shard, several tasks in one folder, resuming, the manifest.

Segments in = clips out + failures; nothing is replaced and nothing disappears. A build is a pure function of its
segments and settings: workers, array tasks and kills do not change a byte of it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import av

from ace_dist import __version__
from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.build.cut import Cutter, cut_all, failure
from ace_dist.data.build.encode import CONTAINER, check_encoding, encoder_options
from ace_dist.data.segments import SPLITS, Failure, Reader, Segment
from ace_dist.data.shards import BUILD, FORMAT, MANIFEST, ClipRecord, ShardSet, action_counts, listed, write_shard
from ace_dist.utils.console import Progress
from ace_dist.utils.errors import DataError, listing
from ace_dist.utils.files import file_sha256, write_bytes
from ace_dist.utils.locks import lock, try_lock
from ace_dist.utils.reading import check_shape, parse_json

QUARANTINE = "quarantine.jsonl"
STATE = "state.json"  # suffix of the note beside each finished shard of an unfinished build
PLAN = ".plan.json"  # the configuration that the tasks at work in a folder share
BUILD_LOCK = ".build.lock"  # held while shards are made: by one whole build, or shared by tasks
OTHERS = {"environment.json": "a run folder", "provenance.json": "an export", "sweep.json": "a sweep"}  # by a file
PLAN_LOCK = ".plan.lock"  # held by one process for moments: while it joins the others and while it finishes


@dataclass(frozen=True)
class ShardJob:
    """One shard to make. `fingerprint` changes with anything that changes its bytes."""

    name: str
    segments: Sequence[Segment]
    fingerprint: str


@dataclass(frozen=True)
class ShardState:
    fingerprint: str
    sha256: str
    size: int
    records: list[ClipRecord]
    failures: list[Failure]

    @classmethod
    def parse(cls, text: str) -> Self:
        where = "the note of a finished shard"
        return check_shape(parse_json(text, where, DataError), cls, where, DataError, "; delete the unfinished build")


@dataclass(frozen=True)
class Build:
    """Everything that decides a build; no video has been opened yet. `refused` are failures before any cutting."""

    folder: Path
    cutter: Cutter
    jobs: list[ShardJob]
    refused: list[Failure]
    configuration: dict[str, Any]
    allow_quarantine: bool
    fold: int = 0  # that the stored split is of

    @classmethod
    def plan(cls, reader: Reader, dataset: DatasetConfig) -> Self:
        """Divide the segments of `reader` into shards; what it rejects, and segments that repeat an id, are refused.

        Raises `DataError` for settings that make no sense, and for what is refused without `dataset.allow_quarantine`.
        """
        check_encoding(dataset.encoding)
        if dataset.clips_per_shard < 1:
            raise DataError(f"dataset.clips_per_shard={dataset.clips_per_shard} must be at least 1")
        first: dict[str, Segment] = {}
        refused = list(reader.rejected)
        for segment in reader.segments():
            if (kept := first.setdefault(segment.id, segment)) is not segment:
                where = f" ({kept.origin})" if kept.origin else ""
                refused.append(failure(segment, f"segment id {segment.id} occurs twice; the first one{where} is kept"))
        if not first and not refused:
            raise DataError("the data set has no segment: check dataset.annotations")
        folder, segments = resolve_path(dataset.shards), list(first.values())
        source = {"kind": dataset.kind, **reader.source()}
        configuration = describe(segments, refused, dataset, source)
        if not segments or (refused and not dataset.allow_quarantine):
            raise DataError(failure_report(folder, refused, configuration["segments"]))
        jobs = shard_jobs(segments, dataset.clips_per_shard, configuration)
        cutter = Cutter(reader, dataset.clip.seconds, dataset.encoding, dataset.timeout_s, dataset.pad)
        return cls(folder, cutter, jobs, refused, configuration, dataset.allow_quarantine, dataset.fold)

    def run(self, workers: int = 0, progress: bool = True, task: int = 0, tasks: int = 1) -> ShardSet | None:
        """Make the `task`-th of `tasks` contiguous parts of the shards; whoever finds all there writes the manifest.

        `workers` processes: 0 is one per core, 1 is this process. Shards that are there are not made again, so that a
        killed build goes on behind its last one, and a single process finishes what array tasks left. Other tasks may
        be at work in the folder, also on other nodes: None while their parts are missing.
        Raises `DataError` with the failed segments, unless `allow_quarantine` lists them in quarantine.jsonl and goes
        on (a task among others, those of its own part), and when another build lies or is at work in the folder.
        """
        others = [OTHERS[name] for name in OTHERS if (self.folder / name).is_file()]
        if others and not (self.folder / MANIFEST).is_file():
            raise DataError(f"dataset.shards={self.folder} is {others[0]}; choose another folder for shards")
        mine = self.jobs[len(self.jobs) * task // tasks : len(self.jobs) * (task + 1) // tasks]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"dataset.shards={self.folder} cannot be a folder: {error.strerror}") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise DataError(
                f"dataset.shards={self.folder} cannot be written into; choose another folder, or change its owner"
            )
        with self.among_tasks() if tasks > 1 else sole_writer(self.folder):
            # Which shards of this part are missing? Their notes go, or another task could finish with what they say.
            with lock(self.folder / PLAN_LOCK):
                if finished := self.finished():
                    return finished
                if tasks == 1:
                    self.remove_strays()
                pending = [job for job in mine if (state := self.state(job)) is None or state.failures]
                for job in pending:
                    state_path(self.folder, job.name).unlink(missing_ok=True)
            failures = [entry for state in self.make(pending, workers, progress) for entry in state.failures]
            if failures and tasks > 1 and not self.allow_quarantine:
                raise DataError(failure_report(self.folder, failures, self.configuration["segments"]))
            # The last one finishes for all.
            with lock(self.folder / PLAN_LOCK):
                if finished := self.finished():
                    return finished
                states = [state for job in self.jobs if (state := self.state(job))]
                return self.finish(states) if len(states) == len(self.jobs) else None

    @contextlib.contextmanager
    def among_tasks(self) -> Iterator[None]:
        """Work beside other tasks of this very build. The first one clears away what another configuration left.

        The plan stays behind a finished build: a late task must find it, and the next build's first task replaces it.
        Raises `DataError` when a whole build, or tasks of another configuration, are at work in the folder.
        """
        plan, path = json.dumps(self.configuration, sort_keys=True).encode(), self.folder / PLAN
        # NFS grants a shared lock on a readable file, and one alone on a writable file: this one is both.
        with (self.folder / BUILD_LOCK).open("a+") as file:
            with lock(self.folder / PLAN_LOCK):
                if try_lock(file.fileno(), fcntl.LOCK_EX):  # nobody else is here
                    self.remove_strays()
                    write_bytes(path, plan)
                if not try_lock(file.fileno(), fcntl.LOCK_SH):
                    raise DataError(f"another process is building dataset.shards={self.folder}; wait for it")
                if path.read_bytes() != plan:
                    raise DataError(
                        f"tasks of a build with other settings or segments are at work in "
                        f"dataset.shards={self.folder}; wait for them, or choose another folder"
                    )
            yield

    def make(self, jobs: Sequence[ShardJob], workers: int, progress: bool) -> Iterator[ShardState]:
        """Cut all segments of `jobs` in parallel and write each shard as soon as its last clip is there."""
        segments = [segment for job in jobs for segment in job.segments]
        failed = 0
        with (
            Progress(len(segments), "shards", "clip") if progress else contextlib.nullcontext() as shown,
            contextlib.closing(cut_all(self.cutter, segments, workers)) as results,
        ):
            for job in jobs:
                clips, failures = [], []
                for _ in job.segments:
                    result = next(results)
                    if isinstance(result, Failure):
                        failures.append(result)
                    else:
                        clips.append(result)
                    failed += isinstance(result, Failure)
                    if shown:
                        shown.update(text=f"{failed} failed" if failed else None)
                records, path = write_shard(self.folder, job.name, clips), self.folder / job.name
                yield self.note(job, file_sha256(path), path.stat().st_size, records, failures)

    def note(
        self, job: ShardJob, sha256: str, size: int, records: list[ClipRecord], failures: list[Failure]
    ) -> ShardState:
        """Say beside a shard of an unfinished build that it is whole."""
        state = ShardState(job.fingerprint, sha256, size, records, failures)
        text = json.dumps(dataclasses.asdict(state), sort_keys=True)
        write_bytes(state_path(self.folder, job.name), text.encode())
        return state

    def state(self, job: ShardJob) -> ShardState | None:
        """The finished shard of an earlier run or another task, or None when it is absent or made otherwise."""
        note, tar = state_path(self.folder, job.name), self.folder / job.name
        if not note.is_file():
            return None
        try:
            state = ShardState.parse(note.read_text(encoding="utf-8"))
        except (ValueError, TypeError, KeyError, AttributeError):
            print(f"{note} is damaged: {job.name} is made again", file=sys.stderr)
            return None
        whole = tar.is_file() and tar.stat().st_size == state.size and tar.with_suffix(".idx").is_file()
        return state if whole and state.fingerprint == job.fingerprint else None

    def remove_strays(self) -> None:
        """Delete what an unfinished build left and this one will not overwrite: partial files, shards it has not."""
        names = {job.name for job in self.jobs}
        for note in self.folder.glob(f"*.{STATE}"):
            name = note.name.removesuffix(f".{STATE}")
            if name not in names:
                for path in ((self.folder / name).with_suffix(".idx"), self.folder / name, note):
                    path.unlink(missing_ok=True)
        for partial in self.folder.glob(".*.partial"):
            partial.unlink()

    def finished(self) -> ShardSet | None:
        """The finished build of the same configuration, or None. Raises `DataError` when another one lies there.

        One whose shards are missing or cut short becomes an unfinished one, to which the others still belong.
        """
        if not (self.folder / MANIFEST).is_file():
            return None
        shards = ShardSet.read(self.folder)
        stored, ours = shards.manifest["configuration"], self.configuration
        if differing := {key for key in {*stored, *ours} if stored.get(key) != ours.get(key)}:
            named = sorted({"the annotated segments" if key.startswith("segments") else key for key in differing})
            raise DataError(
                f"dataset.shards={self.folder} holds a build of another configuration (different: {', '.join(named)}); "
                f"choose another folder (of `ace own`: output=) or delete this one"
            )
        if (missing := shards.manifest["quarantined"]) and not self.allow_quarantine:
            raise DataError(
                f"dataset.shards={self.folder} was built without {missing} segments, listed in {QUARANTINE}; "
                "set dataset.allow_quarantine=true to accept that, or repair them and delete the folder"
            )
        if damaged := shards.damaged():
            if not same_makers(shards.manifest):
                raise DataError(
                    f"dataset.shards={self.folder}: damaged or gone: {', '.join(damaged)}. Other versions made the "
                    "build (tools in its manifest.json); these would make all shards again, and runs that train on "
                    "them could not go on. Put the files back from a copy, build with those versions, or delete it all"
                )
            print(f"{', '.join(damaged)}: made again, the other shards are kept", flush=True)
            self.reopen(shards)
            return None
        return shards

    def reopen(self, shards: ShardSet) -> None:
        """Write the notes of a finished build's shards again and take its manifest away."""
        ledger = self.folder / QUARANTINE
        lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.is_file() else []
        entries = [
            check_shape(parse_json(line, str(ledger), DataError), Failure, str(ledger), DataError) for line in lines
        ]
        failures = {entry.id: entry for entry in entries}
        made = {shard["name"]: shard for shard in shards.manifest["shards"]}
        for job in self.jobs:
            records = [record for record in shards.records if record.shard == job.name]
            failed = [failures[segment.id] for segment in job.segments if segment.id in failures]
            self.note(job, made[job.name]["sha256"], made[job.name]["size"], records, failed)
        (self.folder / MANIFEST).unlink()

    def finish(self, states: Sequence[ShardState]) -> ShardSet:
        """Account for every segment, then write the manifest, which is what makes the build finished."""
        records = [record for state in states for record in state.records]
        failures = self.refused + [entry for state in states for entry in state.failures]
        assert len(records) + len(failures) == self.configuration["segments"]
        (self.folder / QUARANTINE).unlink(missing_ok=True)
        if failures:  # a line for every segment that is in no shard, whether the build goes on without it or not
            lines = [json.dumps(dataclasses.asdict(entry), sort_keys=True) + "\n" for entry in failures]
            write_bytes(self.folder / QUARANTINE, "".join(lines).encode())
        if failures and (not self.allow_quarantine or not records):
            raise DataError(failure_report(self.folder, failures, self.configuration["segments"]))
        manifest = {
            "format": FORMAT,
            "build": BUILD,
            "clock": "seconds from the start of each container",
            "configuration": self.configuration,
            "fold": self.fold,
            "container": CONTAINER,
            "encoder": encoder_options(self.cutter.encoding),
            "tools": tool_versions(),
            "counts": action_counts(records),
            "quarantined": len(failures),
            "shortened": self.shortened(records),
            "padded": [record.key for record in records if record.padded_s],
            "shards": [
                {"name": job.name, "sha256": state.sha256, "size": state.size, "clips": len(state.records)}
                for job, state in zip(self.jobs, states, strict=True)
            ],
            "clips": [listed(record) for record in records],
        }
        write_bytes(self.folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        for job in self.jobs:
            state_path(self.folder, job.name).unlink(missing_ok=True)
        return ShardSet.load(self.folder)

    def shortened(self, records: Sequence[ClipRecord]) -> list[str]:
        """Ids of the segments that were annotated past the end of their video, or before what it shows."""
        stored_s = {record.key: record.segment_end_s - record.segment_start_s for record in records}
        frame_s = {record.key: 1 / record.fps for record in records}
        annotated = ((s.id, s.end_s - s.start_s) for job in self.jobs for s in job.segments if s.id in stored_s)
        return [key for key, length_s in annotated if math.inf > length_s > stored_s[key] + frame_s[key]]


def describe(
    segments: Sequence[Segment], refused: Sequence[Failure], dataset: DatasetConfig, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that decides the content of a build, independent of where its videos lie."""
    digest = hashlib.sha256()
    for segment in segments:
        digest.update(json.dumps(segment_identity(segment), sort_keys=True).encode())
    for entry in refused:
        digest.update(json.dumps([entry.id, os.path.basename(entry.video)]).encode())
    return {
        "clip_seconds": dataset.clip.seconds,
        "encoding": dataclasses.asdict(dataset.encoding),
        "clips_per_shard": dataset.clips_per_shard,
        "source": json.loads(json.dumps(source, sort_keys=True, default=str)),
        "segments": len(segments) + len(refused),
        "segments_sha256": digest.hexdigest(),
        **({"pad": True} if dataset.pad else {}),
    }


def segment_identity(segment: Segment) -> dict[str, Any]:
    """A segment with its video's name and size for its path: moving a data set does not make it another one."""
    size = os.stat(segment.video).st_size if segment.video and os.path.isfile(segment.video) else None
    return dataclasses.asdict(segment) | {"video": os.path.basename(segment.video), "video_bytes": size, "origin": ""}


def same_makers(manifest: Mapping[str, Any]) -> bool:
    """Whether clips that are made now are those that a finished build would hold."""
    return bool(manifest.get("build", 1) == BUILD and manifest["tools"] == tool_versions())


def tool_versions() -> dict[str, Any]:
    """Versions that may change the bits of an encoded clip."""
    libraries = {name: ".".join(map(str, number)) for name, number in sorted(av.library_versions.items())}
    return {"ace-dist": __version__, "av": av.__version__, **libraries, "machine": platform.machine()}


def shard_jobs(segments: Sequence[Segment], clips_per_shard: int, configuration: Mapping[str, Any]) -> list[ShardJob]:
    shared = {key: value for key, value in configuration.items() if not key.startswith("segments")}
    jobs = []
    for split in SPLITS:
        chosen = [segment for segment in segments if segment.split == split]
        for number, first in enumerate(range(0, len(chosen), clips_per_shard)):
            part = chosen[first : first + clips_per_shard]
            content = [shared, BUILD, tool_versions(), [segment_identity(segment) for segment in part]]
            fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            jobs.append(ShardJob(f"{split}-{number:05d}.tar", part, fingerprint))
    return jobs


def array_task(task: int | None, tasks: int | None, environment: Mapping[str, str]) -> tuple[int, int, str]:
    """This process's part of a build, the number of parts, and who said so.

    `dataset.task` and `dataset.tasks` come first, then SLURM's array: its indices may start anywhere and step evenly.
    With `dataset.tasks` alone, the array's index is the part, so that `sbatch --array=3,7` repeats two parts; the one
    part of `dataset.tasks=1` is made whatever the index is.
    """
    index = environment.get("SLURM_ARRAY_TASK_ID")
    if tasks is None and task is not None:
        raise DataError(f"dataset.task={task} needs dataset.tasks=N, the number of parts")
    if tasks is not None:
        part = task if task is not None else int(index or 0) if tasks > 1 else 0
        if tasks > 1 and task is None and index is None:
            raise DataError(f"dataset.tasks={tasks} needs dataset.task=K (0 to {tasks - 1}), or a SLURM array")
        if not 0 <= part < tasks:
            raise DataError(f"part {part} does not exist: dataset.tasks={tasks} has parts 0 to {tasks - 1}")
        return part, tasks, "dataset.task" if task is not None else "dataset.tasks"
    if index is None:
        return 0, 1, "one process"
    first, last = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", index)) for name in ("MIN", "MAX"))
    step, count = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", "1")) for name in ("STEP", "COUNT"))
    if (last - first) // step + 1 != count:
        raise DataError(
            f"the array's {count} tasks are not evenly spaced from {first} to {last}, so their order is unknown; set "
            "dataset.tasks=N, and the array's indices are parts of N"
        )
    return (int(index) - first) // step, count, f"SLURM_ARRAY_TASK_ID={index}"


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    with lock(folder / BUILD_LOCK, wait=False) as held:
        if not held:
            raise DataError(f"another process is building dataset.shards={folder}; wait for it")
        yield


def state_path(folder: Path, name: str) -> Path:
    """The note that says that a shard of an unfinished build is whole."""
    return folder / f"{name}.{STATE}"


def failure_report(folder: Path, failures: Sequence[Failure], total: int) -> str:
    lines = [
        f"{entry.id} ({', '.join(filter(None, (entry.video or 'rendered', entry.origin)))}): {entry.reason}"
        for entry in failures
    ]
    return (
        f"{len(failures)} of {total} segments could not be stored in dataset.shards={folder}:{listing(lines)}\n"
        "repair or remove them in dataset.annotations and run again (finished shards are kept), or set "
        f"dataset.allow_quarantine=true to go on without them; {QUARANTINE} lists them all"
    )
