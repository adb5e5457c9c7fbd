"""From the settings `dataset.*` to a reader, to shards, and to the split of one fold."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.annotations import ata, csv, gtea, ikea, mstcn, webdataset
from ace_dist.data.annotations.frames import Recording
from ace_dist.data.build.shards import Build
from ace_dist.data.segments import Reader, Segment
from ace_dist.data.shards import ClipRecord, ShardSet
from ace_dist.utils.errors import DataError

Grouped = TypeVar("Grouped", Segment, ClipRecord, Recording)
Readers = Mapping[str, Callable[[DatasetConfig], Reader]]
# By `dataset.kind`. Rendered worlds import this room, so that it cannot import them: who builds their shards hands
# `ace_dist.worlds.READERS` in.
READERS: Readers = {
    "csv": csv.build_reader,
    "gtea": gtea.build_reader,
    "ikea": ikea.build_reader,
    "ata": ata.build_reader,
    "mstcn": mstcn.build_reader,
    "webdataset": webdataset.WebDatasetReader,
}


def build_reader(dataset: DatasetConfig, worlds: Readers | None = None) -> Reader:
    """The reader of `dataset.kind`. Raises `DataError` for a rendered world that `worlds` does not hold."""
    if dataset.views is not None and dataset.kind not in ("ata", "ikea"):
        raise DataError(f"dataset.views={dataset.views} has no meaning for dataset.kind={dataset.kind}; set it to null")
    readers = {**READERS, **(worlds or {})}
    if dataset.kind not in readers:
        raise DataError(f"dataset.kind={dataset.kind} is rendered: build its shards with `ace shards`")
    return readers[dataset.kind](dataset)


def build_dataset(
    dataset: DatasetConfig, worlds: Readers | None = None, progress: bool = True, task: int = 0, tasks: int = 1
) -> ShardSet | None:
    """Build the shards of a data set, or go on with an unfinished build, or return the finished one.

    One build serves every fold: the split of the returned set is that of `dataset.test_groups`. With `tasks` above 1
    this process makes part `task` of them, and gets None while other parts are missing. What the reader has to say is
    printed.
    """
    reader = build_reader(dataset, worlds)
    notes = list(reader.notes)
    if dataset.test_groups is not None or dataset.left_out_groups:
        check_groups(dataset, (segment.group for segment in reader.segments()))
        tested = "as stored" if dataset.test_groups is None else ", ".join(dataset.test_groups)
        notes.append(f"tested: {tested} (one build serves every fold)")
    if progress and notes:
        print("\n".join(notes), flush=True)
    shards = Build.plan(reader, dataset).run(dataset.workers, progress, task, tasks)
    return None if shards is None else split_by_group(shards, dataset)


def load_shards(dataset: DatasetConfig) -> ShardSet:
    """The finished shards of a data set, split by `dataset.test_groups`.

    Raises `DataError` when there are none, and when the stored split is that of another fold.
    """
    shards = ShardSet.load(resolve_path(dataset.shards))
    check_fold(shards, dataset)
    return split_by_group(shards, dataset)


def check_fold(shards: ShardSet, dataset: DatasetConfig) -> None:
    """Raise `DataError` when the stored split is asked for, and is that of another fold."""
    stored, asked = shards.manifest.get("fold", dataset.fold) or 1, dataset.fold or 1  # earlier versions wrote none
    if dataset.kind == "mstcn" and dataset.test_groups is None and stored != asked:
        raise DataError(
            f"dataset.shards={shards.folder} stores the split of fold {stored}, and dataset.fold is {asked}: build "
            "each fold into a folder of its own"
        )


def split_by_group(shards: ShardSet, dataset: DatasetConfig) -> ShardSet:
    """The same clips in the splits of `regrouped`. Raises `DataError` for a group that no clip has."""
    if dataset.test_groups is None and not dataset.left_out_groups:
        return shards
    check_groups(dataset, (record.group for record in shards.records))
    return dataclasses.replace(shards, records=regrouped(shards.records, dataset))


def regrouped(found: Iterable[Grouped], dataset: DatasetConfig) -> list[Grouped]:
    """Tested where the group is one of `dataset.test_groups` (None: as stored), trained elsewhere.

    What is of `dataset.left_out_groups` is in neither split.
    """
    kept = [each for each in found if each.group not in dataset.left_out_groups]
    if dataset.test_groups is None:
        return kept
    tested = set(dataset.test_groups)
    return [dataclasses.replace(each, split="test" if each.group in tested else "train") for each in kept]


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
