"""Owns the way from `dataset.*` settings to a reader and to its shards."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ace_dist.data.csv_reader import AnnotationError, CsvReader
from ace_dist.data.segments import Reader
from ace_dist.data.shards import ShardSet, build_shards

if TYPE_CHECKING:
    from ace_dist.config import DatasetConfig

__all__ = ["build_dataset", "make_reader"]


def make_reader(dataset: DatasetConfig) -> tuple[Reader, dict[str, Any]]:
    """The reader of `dataset.kind`, and those of its settings that decide what its clips look like."""
    if dataset.kind == "tabletop":
        from ace_dist.data.tabletop.reader import TabletopReader

        world = dataclasses.asdict(dataset.world)
        del world["corpus"]  # it makes the narrated corpus, not these clips
        return TabletopReader(dataset.world), {"kind": dataset.kind, "world": world}
    if not dataset.annotations:
        raise AnnotationError(f"dataset={dataset.name} needs dataset.annotations=FILE, a CSV file of segments")
    reader = CsvReader(dataset.annotations, fps=dataset.encoding.fps, short_side=dataset.encoding.short_side)
    return reader, {"kind": dataset.kind}


def build_dataset(dataset: DatasetConfig, progress: bool = True) -> ShardSet:
    """Build the shards of a data set, or go on with an unfinished build, or return the finished one."""
    reader, source = make_reader(dataset)
    return build_shards(
        reader,
        dataset.shards,
        dataset.clip,
        dataset.encoding,
        clips_per_shard=dataset.clips_per_shard,
        workers=dataset.workers,
        allow_quarantine=dataset.allow_quarantine,
        source=source,
        progress=progress,
    )
