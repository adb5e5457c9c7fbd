"""Checks finished shards: that they hold what their manifest says, and that a training can use it.

Nothing is repaired. Errors would end a training or bend its result; warnings are for the reader to judge.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_dist.concepts import SynonymTrees, load_class_table, split_classes
from ace_dist.concepts.actions import normalise
from ace_dist.config import Config, resolve_path
from ace_dist.data.build.encode import check_decodes
from ace_dist.data.build.isolation import LostError, Workers, renew_deadline
from ace_dist.data.build.shards import QUARANTINE, same_makers
from ace_dist.data.datasets import check_fold, split_by_group
from ace_dist.data.segments import SPLITS, shared_groups
from ace_dist.data.shards import (
    MANIFEST,
    ClipRecord,
    ShardSet,
    action_counts,
    clip_description,
    index_text,
    safe_members,
)
from ace_dist.utils.cores import host_cores
from ace_dist.utils.errors import DataError, UserError, listing
from ace_dist.utils.files import file_sha256
from ace_dist.utils.reading import parse_json

if TYPE_CHECKING:
    import torch

LARGEST_DESCRIPTION = 1 << 20  # bytes
FEW = 5  # clips of a class in a split; below, its accuracy moves by more than 20 points with one clip
UNEQUAL = 10  # times that the most frequent class of a split outnumbers the rarest


@dataclass
class Report:
    """What a check found. `decoded` and `frames` count the clips that came out whole; `damaged` names shards.

    `used` are the clips in the splits of the training, `shards` all of them as they are stored.
    """

    shards: ShardSet
    used: ShardSet
    decoded: int = 0
    frames: int = 0
    backend: str = ""
    damaged: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The summary: what there is, a table of classes, warnings, errors, and the verdict in the last line."""
        manifest, records = self.shards.manifest, self.shards.records
        configuration, encoding = manifest["configuration"], manifest["configuration"]["encoding"]
        used = self.used.records
        splits = ", ".join(f"{sum(r.split == split for r in used)} {split}" for split in SPLITS)
        splits += f", {left_out} left out" if (left_out := len(records) - len(used)) else ""
        rates = sorted({round(record.fps, 3) for record in records})
        sizes = sorted({min(record.width, record.height) for record in records})
        lines = [
            f"shards     {self.shards.folder}: {len(manifest['shards'])} with {len(records)} clips ({splits})",
            f"segments   {configuration['segments']} = {len(records)} clips + {manifest['quarantined']} in quarantine",
            f"encoding   {encoding['codec']}, short side {span(sizes)} px, {span(rates)} frames/s, "
            f"a key frame every {encoding['gop']}, av {manifest['tools']['av']}",
            f"decoding   {self.decoded} of {len(records)} clips whole, {self.frames} frames",
            f"backend    {self.backend}",
            "",
            *class_table(used),
        ]
        for title, problems in (("warnings", self.warnings), ("errors", self.errors)):
            if problems:
                lines += ["", f"{title}:{listing(problems)}"]
        if self.damaged:
            again = "delete {} and build again: the other shards are kept"
            if not same_makers(manifest):
                again = "put {} back from a copy: these versions would make all shards again (tools in manifest.json)"
            lines += ["", again.format(", ".join(self.damaged))]
        verdict = f"FAILED, errors: {len(self.errors)}" if self.errors else "passed"
        return "\n".join([*lines, "", f"{verdict}, warnings: {len(self.warnings)}"])


def verify_shards(
    config: Config, device: torch.device, tokenise: Callable[[Sequence[str]], object] = lambda labels: None
) -> Report:
    """Check the shards of `config.dataset` byte by byte and frame by frame, for a training of `config` on `device`.

    `tokenise` raises a `UserError` for labels that the text encoder cannot take. Decodes on `dataset.workers`
    processes. Raises `DataError` when there is no readable manifest at all.
    """
    from ace_dist.data.loader import choose_backend  # imports torch, which a process that checks a shard can do without

    dataset = config.dataset
    shards = ShardSet.read(resolve_path(dataset.shards))
    report = Report(shards, shards)
    try:
        check_fold(shards, dataset)
        report.used = split_by_group(shards, dataset)
    except DataError as error:
        report.errors.append(f"split: {error}")
    by_shard: dict[str, list[ClipRecord]] = defaultdict(list)
    for record in shards.records:
        by_shard[record.shard].append(record)
    gop = int(shards.manifest["configuration"]["encoding"]["gop"])
    entries = shards.manifest["shards"]
    jobs = [(shards.folder, entry, by_shard.pop(entry["name"], []), shards.codec, gop) for entry in entries]
    report.errors += [f"{MANIFEST} places clips in {name}, which it does not list" for name in sorted(by_shard)]
    for entry, (whole, errors) in zip(entries, run_checks(jobs, dataset.workers, dataset.timeout_s), strict=True):
        report.damaged += [str(entry["name"])] if errors else []
        report.errors += errors
        report.decoded += len(whole)
        report.frames += sum(record.frames for record in whole)
    report.errors += accounting_errors(shards)
    report.errors += label_errors(config, report.used.records, tokenise)
    try:
        backend, reason = choose_backend(config.loader.backend, shards.codec, device)
        report.backend = f"{backend} ({reason})"
    except DataError as error:
        report.errors.append(f"backend: {error}")
        report.backend = f"none for {shards.codec} on {device.type}"
    report.warnings += quality_warnings(report.used)
    return report


ShardCheck = tuple[Path, Mapping[str, Any], Sequence[ClipRecord], str, int]  # the arguments of `check_shard`
ShardResult = tuple[list[ClipRecord], list[str]]  # clips that came out whole, and errors


def run_checks(jobs: Sequence[ShardCheck], workers: int, timeout_s: float) -> Iterator[ShardResult]:
    """Results in the order of the shards, each from a process of its own."""

    with Workers(min(workers or host_cores(), max(len(jobs), 1)), check_shard) as pool:
        for job, result in [(job, pool.submit(timeout_s, *job)) for job in jobs]:
            try:
                yield result.result()
            except LostError as error:
                yield [], [f"{job[1]['name']} cannot be checked (dataset.timeout_s={timeout_s:g}): {error}"]


def check_shard(
    folder: Path, entry: Mapping[str, Any], records: Sequence[ClipRecord], codec: str, gop: int
) -> ShardResult:
    """Checksum, members, index and every clip of a shard: `entry` of the manifest, and the clips that should lie in it.

    A damaged shard is read on, to name its damaged clips.
    """
    name, path = str(entry["name"]), folder / entry["name"]
    if not path.is_file():
        return [], [f"{name} is missing; it should hold {len(records)} clips"]
    whole, errors = [], []
    if file_sha256(path) != entry["sha256"]:
        size = path.stat().st_size
        cut = f" ({size} bytes instead of {entry['size']})" if size != entry["size"] else ""
        errors.append(f"{name} differs from its checksum{cut}")
    if len(records) != entry["clips"]:
        errors.append(f"{name} should hold {entry['clips']} clips, {MANIFEST} lists {len(records)}")
    index = path.with_suffix(".idx")
    if not index.is_file() or index.read_text(encoding="utf-8") != index_text(records):
        errors.append(f"{index.name} is missing or does not fit {name}")
    errors += member_errors(path, records)
    with path.open("rb") as file:
        for record in records:
            renew_deadline()
            file.seek(record.offset)
            try:
                check_clip(file.read(record.size), record, codec, gop)
            except DataError as error:
                errors.append(f"clip {record.key} in {name}: {error}")
            else:
                whole.append(record)
    return whole, errors


def check_clip(data: bytes, record: ClipRecord, codec: str, gop: int) -> None:
    """Raise `DataError` unless a clip is the one recorded, and decodes to the frames that its record promises."""
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DataError("its bytes differ from its checksum")
    check_decodes(data, record.frames, record.height, record.width, gop, record.fps, codec)
    if not 0 <= record.segment_start_s < record.segment_end_s <= record.frames / record.fps + 1e-6:
        raise DataError(
            f"its segment, {record.segment_start_s:g} to {record.segment_end_s:g} s, does not lie in its "
            f"{record.frames / record.fps:.2f} s"
        )


def member_errors(path: Path, records: Sequence[ClipRecord]) -> list[str]:
    """Where a tar file's members are not exactly the clips and descriptions that they should be."""
    described = {f"{record.key}.json": clip_description(record) for record in records}
    errors = []
    try:
        members = safe_members(path)
        with tarfile.open(path) as tar:
            for member in members:
                file = tar.extractfile(member) if member.name in described else None
                if file is None:
                    continue
                said = parse_json(file.read(LARGEST_DESCRIPTION), member.name, DataError)
                if said != json.loads(json.dumps(described[member.name])):
                    errors.append(f"{member.name} in {path.name} says something else than {MANIFEST}")
    except (DataError, tarfile.TarError) as error:
        return [f"{path.name} cannot be read as a shard: {error}"]
    names = {member.name for member in members}
    for name in sorted({*described, *(f"{record.key}.mp4" for record in records)} ^ names):
        errors.append(f"{path.name} {'holds an unlisted' if name in names else 'does not hold'} {name}")
    return errors


def accounting_errors(shards: ShardSet) -> list[str]:
    """Where the manifest's own numbers, or its ledger, contradict each other."""
    manifest, errors = shards.manifest, []
    segments, missing = manifest["configuration"]["segments"], manifest["quarantined"]
    if len(shards.records) + missing != segments:
        errors.append(f"{segments} segments are not {len(shards.records)} clips and {missing} in quarantine")
    ledger = shards.folder / QUARANTINE
    lines = len(ledger.read_text(encoding="utf-8").splitlines()) if ledger.is_file() else 0
    if lines != missing:
        errors.append(f"{QUARANTINE} has {lines} lines for {missing} segments in quarantine")
    if {split: one_form(counts) for split, counts in manifest["counts"].items()} != action_counts(shards.records):
        errors.append(f"the counts in {MANIFEST} are not those of its clips")
    keys = Counter(record.key for record in shards.records)
    return errors + [f"clip {key} is listed {count} times" for key, count in keys.items() if count > 1]


def one_form(counts: Mapping[str, int]) -> Counter[str]:
    """Clips of each label in its one form; shards of earlier versions count "Pick_up screw" by itself."""
    merged: Counter[str] = Counter()
    for label, count in counts.items():
        merged[normalise(label)] += count
    return merged


def label_errors(
    config: Config, records: Sequence[ClipRecord], tokenise: Callable[[Sequence[str]], object]
) -> list[str]:
    """What a training would say of the labels: classes without a rule, labels too long, verbs without a tree."""
    dataset, errors = config.dataset, []
    try:
        actions = {split: [record.action for record in records if record.split == split] for split in SPLITS}
        table = load_class_table(resolve_path(dataset.classes)) if dataset.classes else None
        split_classes(actions["train"], actions["test"], dataset.novel, novel_share=dataset.novel_share, table=table)
    except UserError as error:
        errors.append(f"labels: {error}")
    try:
        tokenise(sorted({str(record.action) for record in records}))
    except UserError as error:
        errors.append(f"labels: {error}")
    try:
        if dataset.synonyms:
            SynonymTrees.load(resolve_path(dataset.synonyms)).require(record.action.verb for record in records)
    except UserError as error:
        errors.append(f"labels: {error}")
    return errors


def quality_warnings(shards: ShardSet) -> list[str]:
    warnings = []
    for split, counts in action_counts(shards.records).items():
        if rare := [f"{action} ({count})" for action, count in counts.items() if count < FEW]:
            more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
            warnings.append(f"balance: {split} has fewer than {FEW} clips of {', '.join(rare[:5])}{more}")
        if counts and max(counts.values()) > UNEQUAL * min(counts.values()):
            most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
            warnings.append(f"balance: {split} has {counts[most]} clips of {most} and {counts[least]} of {least}")
    warnings += shared_groups(shards.records)
    if shortened := shards.manifest.get("shortened"):
        warnings.append(f"{len(shortened)} segments reach past what their video shows and are cut there")
    if padded := shards.manifest.get("padded"):
        warnings.append(f"{len(padded)} clips are filled up with the last frame of their video (dataset.pad)")
    if shards.older_build:
        warnings.append(shards.older_build)
    listed = {shard["name"] for shard in shards.manifest["shards"]}
    strange = sorted(path.name for path in shards.folder.glob("*.tar") if path.name not in listed)
    return warnings + [f"{name} is not in {MANIFEST}; nothing reads it" for name in strange]


def class_table(records: Sequence[ClipRecord]) -> list[str]:
    counts = action_counts(records)
    actions = sorted({action for split in counts.values() for action in split})
    width = max([len(action) for action in actions], default=0)
    lines = [f"{'class':<{width}}  {'train':>6}  {'test':>6}"]
    return lines + [f"{a:<{width}}  {counts['train'].get(a, 0):>6}  {counts['test'].get(a, 0):>6}" for a in actions]


def span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
