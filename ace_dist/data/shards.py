"""Owns the making of shards: cutting segments, encoding them in parallel, resuming a killed build, and its failures.

Segments in = clips out + failures; nothing is replaced and nothing disappears.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from tqdm import tqdm

from ace_dist.data.encoding import CONTAINER, EncodedClip, check_encoding, encode, encoder_options
from ace_dist.data.segments import SPLITS, DataError, RawClip, Reader, Segment, clip_window
from ace_dist.data.shard_format import (
    FORMAT,
    MANIFEST,
    ClipRecord,
    ShardFiles,
    ShardSet,
    action_counts,
    file_sha256,
    write_atomically,
    write_shard,
)

if TYPE_CHECKING:
    from ace_dist.config import ClipConfig, EncodingConfig

__all__ = ["BuildError", "ClipRecord", "Failure", "ShardFiles", "ShardSet", "build_shards"]

QUARANTINE = "quarantine.jsonl"
STATE = "state.json"  # suffix of the note beside each finished shard of an unfinished build


class BuildError(DataError):
    """A build that cannot finish; the message lists every failed segment."""


@dataclass(frozen=True)
class Failure:
    """A segment that gave no clip: its id, its video, where it was annotated, and why."""

    id: str
    video: str
    origin: str
    reason: str


@dataclass(frozen=True)
class Cutter:
    """What a worker needs to make one clip. Picklable."""

    reader: Reader
    clip_seconds: float
    encoding: EncodingConfig

    def cut(self, segment: Segment) -> tuple[ClipRecord, bytes] | Failure:
        """Read, encode and check one segment. What is wrong with the input becomes a `Failure`; a bug is raised."""
        try:
            segment, raw = self.read(segment)
            encoded = encode(raw, self.encoding)
        except (DataError, av.error.FFmpegError, OSError) as error:
            return Failure(segment.id, segment.video, segment.origin, " ".join(str(error).split()))
        return clip_record(segment, raw, encoded), encoded.data

    def read(self, segment: Segment) -> tuple[Segment, RawClip]:
        """The frames around a segment. One that is annotated past the end of its video ends where the video ends.

        Raises `DataError` when the segment lies wholly past the end, or the whole video is shorter than a clip.
        """
        start_s, end_s = clip_window(segment, self.clip_seconds, self.encoding.margin_s)
        raw = self.reader.read(segment, start_s, end_s)
        if raw.end_s <= segment.start_s:
            raise DataError(f"the segment starts at {segment.start_s:g} s, but the video ends at {raw.end_s:.2f} s")
        half_frame_s, length_s = 0.5 / raw.fps, raw.end_s - raw.start_s
        if raw.end_s < segment.end_s - half_frame_s:  # its middle is another one now, and so is the window
            return self.read(dataclasses.replace(segment, end_s=raw.end_s))
        is_whole = start_s <= 0 and raw.end_s < end_s - half_frame_s
        if is_whole and length_s < self.clip_seconds - half_frame_s:
            raise DataError(
                f"the video lasts {length_s:.2f} s, less than one clip (dataset.clip.seconds={self.clip_seconds:g}); "
                "make clips shorter or leave the video out"
            )
        return segment, raw


def clip_record(segment: Segment, raw: RawClip, encoded: EncodedClip) -> ClipRecord:
    """The record of a clip that has no place in a shard yet; the segment is clamped to what is stored."""
    duration_s = encoded.frames / encoded.fps
    return ClipRecord(
        key=segment.id,
        shard="",
        offset=0,
        size=len(encoded.data),
        frames=encoded.frames,
        fps=encoded.fps,
        width=encoded.width,
        height=encoded.height,
        segment_start_s=round(max(segment.start_s - raw.start_s, 0.0), 6),
        segment_end_s=round(min(segment.end_s - raw.start_s, duration_s), 6),
        verb=segment.verb,
        object=segment.object,
        split=segment.split,
        group=segment.group,
        sha256=hashlib.sha256(encoded.data).hexdigest(),
    )


@dataclass(frozen=True)
class ShardJob:
    """One shard to make. `fingerprint` changes with anything that changes its bytes."""

    name: str
    segments: Sequence[Segment]
    fingerprint: str


@dataclass(frozen=True)
class ShardState:
    """A finished shard: its clips and the segments that failed on the way."""

    fingerprint: str
    sha256: str
    size: int
    records: list[ClipRecord]
    failures: list[Failure]

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    @classmethod
    def parse(cls, text: str) -> ShardState:
        """Inverse of `dump`."""
        fields = json.loads(text)
        fields["records"] = [ClipRecord(**entry) for entry in fields["records"]]
        fields["failures"] = [Failure(**entry) for entry in fields["failures"]]
        return cls(**fields)


def build_shards(
    reader: Reader,
    out_dir: str | Path,
    clip: ClipConfig,
    encoding: EncodingConfig,
    *,
    clips_per_shard: int = 128,
    workers: int = 0,
    allow_quarantine: bool = False,
    source: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ShardSet:
    """Cut, encode and pack every segment of `reader` into `out_dir`.

    `workers` processes (0: one per core; 1: this process) do not change a byte of the result. `source` holds what else
    decides the pixels, such as the settings of a renderer. A killed build goes on behind its last finished shard; a
    finished one returns at once. Raises `BuildError` with all failed segments, unless `allow_quarantine` lists them in
    quarantine.jsonl and goes on; `DataError` when the folder holds another build.
    """
    folder = Path(out_dir)
    check_encoding(encoding)
    if clips_per_shard < 1:
        raise DataError(f"dataset.clips_per_shard={clips_per_shard} must be at least 1")
    segments = reader.segments()
    check_segments(segments)
    configuration = describe(segments, clip, encoding, clips_per_shard, source or {})
    jobs = shard_jobs(segments, clips_per_shard, configuration)
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        if finished := finished_build(folder, configuration, allow_quarantine):
            return finished
        remove_strays(folder, {job.name for job in jobs})
        states = {job.name: state for job in jobs if (state := reusable_state(folder, job))}
        pending = [job for job in jobs if job.name not in states]
        cutter = Cutter(reader, clip.seconds, encoding)
        for job, state in make_shards(folder, cutter, pending, len(segments), workers or cpu_count(), progress):
            states[job.name] = state
        return finish(folder, [states[job.name] for job in jobs], jobs, configuration, encoding, allow_quarantine)


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_segments(segments: Sequence[Segment]) -> None:
    """Raise when there is nothing to build or two segments share an id."""
    if not segments:
        raise DataError("the data set has no segment: check dataset.annotations")
    seen: set[str] = set()
    for segment in segments:
        if segment.id in seen:
            raise DataError(f"segment id {segment.id} occurs twice")
        seen.add(segment.id)


def describe(
    segments: Sequence[Segment],
    clip: ClipConfig,
    encoding: EncodingConfig,
    clips_per_shard: int,
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides the content of a build, independent of where its videos lie."""
    digest = hashlib.sha256()
    for segment in segments:
        digest.update(json.dumps(segment_identity(segment), sort_keys=True).encode())
    return {
        "clip_seconds": clip.seconds,
        "encoding": dataclasses.asdict(encoding),
        "clips_per_shard": clips_per_shard,
        "source": json.loads(json.dumps(dict(source), sort_keys=True, default=str)),
        "segments": len(segments),
        "segments_sha256": digest.hexdigest(),
    }


def segment_identity(segment: Segment) -> dict[str, Any]:
    """A segment with its video's name and size for its path: moving a data set does not make it another one."""
    size = os.stat(segment.video).st_size if segment.video and os.path.isfile(segment.video) else None
    return dataclasses.asdict(segment) | {"video": os.path.basename(segment.video), "video_bytes": size, "origin": ""}


def tool_versions() -> dict[str, Any]:
    """Versions that may change the bits of an encoded clip."""
    libraries = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    return {"av": av.__version__, **libraries, "machine": platform.machine()}


def shard_jobs(segments: Sequence[Segment], clips_per_shard: int, configuration: Mapping[str, Any]) -> list[ShardJob]:
    """Segments in the reader's order, split by split, `clips_per_shard` to a shard."""
    shared = {key: value for key, value in configuration.items() if not key.startswith("segments")}
    jobs = []
    for split in SPLITS:
        chosen = [segment for segment in segments if segment.split == split]
        for number, first in enumerate(range(0, len(chosen), clips_per_shard)):
            part = chosen[first : first + clips_per_shard]
            content = [shared, tool_versions(), [segment_identity(segment) for segment in part]]
            fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            jobs.append(ShardJob(f"{split}-{number:05d}.tar", part, fingerprint))
    return jobs


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The kernel releases it when the process dies, so a killed build leaves none behind."""
    with (folder / ".build.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is building dataset.shards={folder}; wait for it") from None
        yield


def finished_build(folder: Path, configuration: Mapping[str, Any], allow_quarantine: bool) -> ShardSet | None:
    """The finished build of the same configuration, or None. Raises `DataError` when another one lies there."""
    if not (folder / MANIFEST).is_file():
        return None
    shards = ShardSet.load(folder)
    found = shards.manifest["configuration"]
    differing = sorted(key for key in {*found, *configuration} if found.get(key) != configuration.get(key))
    if differing:
        raise DataError(
            f"dataset.shards={folder} holds a build of another configuration (different: {', '.join(differing)}); "
            "choose another folder or delete this one"
        )
    if (missing := shards.manifest["quarantined"]) and not allow_quarantine:
        raise DataError(
            f"dataset.shards={folder} was built without {missing} segments, listed in {QUARANTINE}; "
            "set dataset.allow_quarantine=true to accept that, or repair them and delete the folder"
        )
    return shards


def state_path(folder: Path, name: str) -> Path:
    """The note that says that a shard of an unfinished build is whole."""
    return folder / f"{name}.{STATE}"


def remove_strays(folder: Path, names: set[str]) -> None:
    """Delete what an unfinished build left and this one will not overwrite: partial files, shards it does not have."""
    for state in folder.glob(f"*.{STATE}"):
        name = state.name.removesuffix(f".{STATE}")
        if name not in names:
            for path in ((folder / name).with_suffix(".idx"), folder / name, state):
                path.unlink(missing_ok=True)
    for partial in folder.glob(".*.partial"):
        partial.unlink()


def reusable_state(folder: Path, job: ShardJob) -> ShardState | None:
    """The finished shard of an earlier run, or None when it is absent, differs, or holds a failure worth a retry."""
    note, tar = state_path(folder, job.name), folder / job.name
    if not note.is_file():
        return None
    state = ShardState.parse(note.read_text(encoding="utf-8"))
    whole = tar.is_file() and tar.stat().st_size == state.size and tar.with_suffix(".idx").is_file()
    return state if whole and not state.failures and state.fingerprint == job.fingerprint else None


def make_shards(
    folder: Path, cutter: Cutter, jobs: Sequence[ShardJob], total: int, workers: int, progress: bool
) -> Iterator[tuple[ShardJob, ShardState]]:
    """Cut all segments of `jobs` in parallel and write each shard as soon as its last clip is there."""
    segments = [segment for job in jobs for segment in job.segments]
    done = total - len(segments)
    with (
        tqdm(total=total, initial=done, unit="clip", desc="shards", disable=None if progress else True) as bar,
        contextlib.closing(cut_all(cutter, segments, workers)) as results,
    ):
        for job in jobs:
            clips, failures = [], []
            for _ in job.segments:
                result = next(results)
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    clips.append(result)
                bar.update()
            yield job, store(folder, job, clips, failures)


def cut_all(
    cutter: Cutter, segments: Sequence[Segment], workers: int
) -> Generator[tuple[ClipRecord, bytes] | Failure, None, None]:
    """Results in the order of `segments`, whatever the number of workers."""
    if workers == 1 or len(segments) < 2:
        yield from map(cutter.cut, segments)
        return
    # Spawned, not forked: the parent may hold threads (torch, DALI) that a fork would leave half alive.
    pool = ProcessPoolExecutor(min(workers, len(segments)), get_context("spawn"), initialize_worker, (cutter,))
    try:
        yield from pool.map(cut_in_worker, segments, chunksize=2)
    except BrokenProcessPool as error:
        raise BuildError(
            f"a worker died, perhaps for lack of memory; finished shards are kept, so run again with fewer than "
            f"dataset.workers={workers}"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


worker_cutter: Cutter  # of a worker process, set once by its initializer


def initialize_worker(cutter: Cutter) -> None:
    """Give a worker its reader once, not with every segment."""
    global worker_cutter
    worker_cutter = cutter


def cut_in_worker(segment: Segment) -> tuple[ClipRecord, bytes] | Failure:
    """`Cutter.cut` with the worker's own cutter."""
    return worker_cutter.cut(segment)


def store(
    folder: Path, job: ShardJob, clips: Sequence[tuple[ClipRecord, bytes]], failures: list[Failure]
) -> ShardState:
    """Write a shard, then the note that it is whole."""
    records = write_shard(folder, job.name, clips, CONTAINER)
    path = folder / job.name
    state = ShardState(job.fingerprint, file_sha256(path), path.stat().st_size, records, failures)
    write_atomically(state_path(folder, job.name), state.dump())
    return state


def finish(
    folder: Path,
    states: Sequence[ShardState],
    jobs: Sequence[ShardJob],
    configuration: Mapping[str, Any],
    encoding: EncodingConfig,
    allow_quarantine: bool,
) -> ShardSet:
    """Account for every segment, then write the manifest, which is what makes the build finished."""
    records = [record for state in states for record in state.records]
    failures = [failure for state in states for failure in state.failures]
    assert len(records) + len(failures) == configuration["segments"]
    if failures and (not allow_quarantine or not records):
        raise BuildError(failure_report(folder, failures, configuration["segments"]))
    if failures:
        lines = "".join(json.dumps(dataclasses.asdict(failure), sort_keys=True) + "\n" for failure in failures)
        write_atomically(folder / QUARANTINE, lines.encode())
    manifest = {
        "format": FORMAT,
        "configuration": configuration,
        "container": CONTAINER,
        "encoder": encoder_options(encoding),
        "tools": tool_versions(),
        "counts": action_counts(records),
        "quarantined": len(failures),
        "shards": [
            {"name": job.name, "sha256": state.sha256, "size": state.size, "clips": len(state.records)}
            for job, state in zip(jobs, states, strict=True)
        ],
        "clips": [dataclasses.asdict(record) for record in records],
    }
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    for job in jobs:
        state_path(folder, job.name).unlink(missing_ok=True)
    return ShardSet.load(folder)


def failure_report(folder: Path, failures: Sequence[Failure], total: int) -> str:
    """All failed segments, one a line, and what can be done about them."""
    lines = [
        f"  {failure.id} ({', '.join(filter(None, (failure.video or 'rendered', failure.origin)))}): {failure.reason}"
        for failure in failures
    ]
    return (
        f"{len(failures)} of {total} segments could not be stored in dataset.shards={folder}:\n"
        + "\n".join(lines)
        + "\nrepair or remove them in dataset.annotations and run again (finished shards are kept), or set "
        f"dataset.allow_quarantine=true to go on without them (they are then listed in {QUARANTINE})"
    )
