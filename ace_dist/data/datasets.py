"""Owns the way from `dataset.*` settings to a reader, to its shards, and to the split of one fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_dist.concepts import load_class_table
from ace_dist.config import resolve_path
from ace_dist.data.annotations.ata import MANIFEST, ata_recordings
from ace_dist.data.annotations.ata import SOURCE as ATA_SOURCE
from ace_dist.data.annotations.csv import CsvReader
from ace_dist.data.annotations.frames import FrameReader, Recording, to_segments
from ace_dist.data.annotations.gtea import SOURCE as GTEA_SOURCE
from ace_dist.data.annotations.gtea import gtea_recordings
from ace_dist.data.annotations.ikea import SOURCE as IKEA_SOURCE
from ace_dist.data.annotations.ikea import ikea_recordings
from ace_dist.data.annotations.webdataset import WebDatasetReader
from ace_dist.data.build.shards import Build
from ace_dist.data.segments import Reader
from ace_dist.data.shards import ShardSet
from ace_dist.utils.errors import DataError

if TYPE_CHECKING:
    from ace_dist.config import DatasetConfig


def make_reader(dataset: DatasetConfig) -> tuple[Reader, dict[str, Any]]:
    """The reader of `dataset.kind`, and those of its settings that decide what its clips look like."""
    if dataset.views is not None and dataset.kind not in ("ata", "ikea"):
        raise DataError(f"dataset.views={dataset.views} has no meaning for dataset.kind={dataset.kind}; set it to null")
    if dataset.kind == "tabletop":
        from ace_dist.worlds.tabletop.reader import TabletopReader

        world = dataclasses.asdict(dataset.world)
        del world["corpus"]  # it makes the narrated corpus, not these clips
        return TabletopReader(dataset.world), {"kind": dataset.kind, "world": world}
    if dataset.kind == "webdataset":
        return foreign_shards(dataset), {"kind": dataset.kind}
    if dataset.kind != "csv":
        return frame_reader(dataset), {"kind": dataset.kind}
    if not dataset.annotations:
        raise DataError(f"dataset={dataset.name} needs dataset.annotations=FILE, a CSV file of segments")
    reader = CsvReader(
        resolve_path(dataset.annotations),
        fps=dataset.encoding.fps,
        short_side=dataset.encoding.short_side,
        keep_faults=dataset.allow_quarantine,
    )
    return reader, {"kind": "csv"}


def foreign_shards(dataset: DatasetConfig) -> WebDatasetReader:
    """The reader of tar files that others made."""
    return WebDatasetReader(
        data_root(dataset, "tar files in WebDataset's layout"),
        load_class_table(resolve_path(dataset.classes)) if dataset.classes else None,
        fps=dataset.encoding.fps,
        short_side=dataset.encoding.short_side,
        keep_faults=dataset.allow_quarantine,
    )


def frame_reader(dataset: DatasetConfig) -> FrameReader:
    """The reader of one of the paper's data sets."""
    if dataset.classes is None:
        raise DataError(
            f"dataset.kind={dataset.kind} needs dataset.classes=FILE, such as ace_dist/assets/classes/gtea.json"
        )
    table = load_class_table(resolve_path(dataset.classes))
    segments, notes = to_segments(
        recordings(dataset), table, dataset.frame_tolerance_s, as_released=dataset.kind == "ikea"
    )
    return FrameReader(segments, notes, dataset.encoding.fps, dataset.encoding.short_side)


def recordings(dataset: DatasetConfig) -> list[Recording]:
    """The annotated videos of one of the paper's data sets."""
    annotations = resolve_path(dataset.annotations) if dataset.annotations else None
    if dataset.kind == "ata":
        if not dataset.test_groups:
            raise DataError(
                "dataset=ata needs dataset.test_groups=[PERSON, ...]: four of its people test, and its paper does not "
                "print which"
            )
        manifest = annotations or data_root(dataset, ATA_SOURCE) / MANIFEST
        return ata_recordings(manifest, dataset.views)
    if dataset.kind == "ikea":
        return ikea_recordings(data_root(dataset, IKEA_SOURCE), annotations, dataset.views)
    return gtea_recordings(data_root(dataset, GTEA_SOURCE))


def data_root(dataset: DatasetConfig, source: str) -> Path:
    """The data set's folder. Raises `DataError` saying what should lie in it when it is not there."""
    if not dataset.root:
        raise DataError(f"dataset={dataset.name} needs dataset.root=FOLDER: {source}")
    root = resolve_path(dataset.root)
    if not root.is_dir():
        raise DataError(f"dataset.root={root} is not a folder: {source}")
    return root


def build_dataset(dataset: DatasetConfig, progress: bool = True) -> ShardSet:
    """Build the shards of a data set, or go on with an unfinished build, or return the finished one.

    One build serves every fold: the split of the returned set is that of `dataset.test_groups`.
    """
    return split_by_group(plan_dataset(dataset, progress).run(dataset.workers, progress), dataset)


def build_part(dataset: DatasetConfig, task: int, tasks: int) -> ShardSet | None:
    """One of `tasks` parts of `build_dataset`; None while other parts are missing."""
    shards = plan_dataset(dataset, progress=True).run_task(task, tasks, dataset.workers)
    return None if shards is None else split_by_group(shards, dataset)


def plan_dataset(dataset: DatasetConfig, progress: bool) -> Build:
    """The build of a data set, before any video is opened. What its reader has to say is printed."""
    reader, source = make_reader(dataset)
    notes = list(reader.notes) if isinstance(reader, FrameReader) else []
    if dataset.test_groups is not None or dataset.left_out_groups:
        check_groups(dataset, (segment.group for segment in reader.segments()))
        tested = "as stored" if dataset.test_groups is None else ", ".join(dataset.test_groups)
        notes.append(f"tested: {tested} (one build serves every fold)")
    if progress and notes:
        print("\n".join(notes), flush=True)
    return Build.plan(
        reader,
        resolve_path(dataset.shards),
        dataset.clip,
        dataset.encoding,
        clips_per_shard=dataset.clips_per_shard,
        allow_quarantine=dataset.allow_quarantine,
        source=source,
        rejected=reader.rejected if isinstance(reader, CsvReader | WebDatasetReader) else (),
        timeout_s=dataset.timeout_s,
    )


def open_dataset(dataset: DatasetConfig) -> ShardSet:
    """The finished shards of a data set, split by `dataset.test_groups`. Raises `DataError` when there are none."""
    return split_by_group(ShardSet.load(resolve_path(dataset.shards)), dataset)


def split_by_group(shards: ShardSet, dataset: DatasetConfig) -> ShardSet:
    """The same clips, tested where their group is one of `dataset.test_groups` (None: as stored) and trained elsewhere.

    Clips of `dataset.left_out_groups` are in neither split.
    """
    if dataset.test_groups is None and not dataset.left_out_groups:
        return shards
    check_groups(dataset, (record.group for record in shards.records))
    records = [record for record in shards.records if record.group not in dataset.left_out_groups]
    if dataset.test_groups is not None:
        tested = set(dataset.test_groups)
        records = [
            dataclasses.replace(record, split="test" if record.group in tested else "train") for record in records
        ]
    return dataclasses.replace(shards, records=records)


def check_groups(dataset: DatasetConfig, groups: Iterable[str]) -> None:
    """Raise `DataError` when a setting names a group that no segment has, or when one is tested and left out."""
    present = set(groups)
    for setting, chosen in (("test_groups", dataset.test_groups or []), ("left_out_groups", dataset.left_out_groups)):
        if unknown := [name for name in chosen if name not in present]:
            raise DataError(
                f"dataset.{setting} lists {', '.join(map(repr, unknown))} (dataset.fold={dataset.fold}); there are "
                f"{', '.join(sorted(present))}"
            )
    if both := sorted(set(dataset.test_groups or []) & set(dataset.left_out_groups)):
        raise DataError(f"dataset.test_groups and dataset.left_out_groups both list {', '.join(both)}")
