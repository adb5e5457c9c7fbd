"""The format of a shard folder: tar files in WebDataset's layout, DALI's index files, and one manifest for all.

A shard holds, for each clip, `KEY.mp4` and `KEY.json`. Everything that could differ between two builds of the same
input (times, owners, order) is fixed, so that equal input gives equal bytes.
"""

import dataclasses
import hashlib
import io
import json
import os
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NotRequired, Self

from pydantic import Field, Strict
from typing_extensions import TypedDict

from ace_dist.concepts import Action
from ace_dist.data.segments import SPLITS
from ace_dist.utils.errors import DataError
from ace_dist.utils.files import write_bytes
from ace_dist.utils.reading import Number, Text, Whole, check_shape, read_object

FORMAT = "ace-dist shards 1"
# What the same input becomes. 2: times count from the container's start, where sound may begin before the pictures (1:
# from the first picture); mirrored videos are turned right, the default or largest of several streams is read.
BUILD = 2
MANIFEST = "manifest.json"
LONGEST_NAME = 255  # bytes of a file's name, on every file system of Linux
INDEX_VERSION = "v1.2"  # of DALI's wds2idx
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Split = Annotated[str, Strict(), Field(pattern="^(train|test)$")]
Side = Annotated[int, Strict(), Field(ge=1, le=16384)]  # pixels; H.264 and VP9 have levels up to 16384


@dataclass(frozen=True)
class ClipRecord:
    """One stored clip: where its bytes lie, what they hold, and what happens in it.

    `offset` and `size` are the video's bytes inside the tar file `shard`; segment times count from stored frame 0. The
    last `padded_s` seconds repeat the last frame of a video that was shorter than a clip.
    """

    key: Text
    shard: Text
    offset: Whole
    size: Whole
    frames: Whole
    fps: Positive
    width: Side
    height: Side
    segment_start_s: Number
    segment_end_s: Number
    verb: Text
    object: Text
    split: Split
    group: Text
    sha256: Text
    padded_s: Number = 0.0

    @property
    def action(self) -> Action:
        """What it shows, in the one form of labels, which shards of earlier versions do not store."""
        return Action(self.verb, self.object)


class ShardEntry(TypedDict):
    name: Text
    size: Whole


class Encoding(TypedDict):
    codec: Text
    gop: Whole
    fps: Positive | None


class Origin(TypedDict):
    kind: NotRequired[Text]


class BuildConfiguration(TypedDict):
    encoding: Encoding
    clip_seconds: Positive
    source: NotRequired[Origin]


class Manifest(TypedDict):
    """`manifest.json`, as far as it is read."""

    build: NotRequired[Whole]
    configuration: BuildConfiguration
    shards: list[ShardEntry]
    clips: list[ClipRecord]


@dataclass(frozen=True)
class ShardSet:
    folder: Path
    manifest: dict[str, Any]
    records: list[ClipRecord]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read `manifest.json`.

        Raises `DataError` when there is none, when it lists a clip twice, or when a shard is missing or cut short.
        """
        shards = cls.read(folder)
        keys = Counter(record.key for record in shards.records)
        if repeated := [key for key, count in keys.items() if count > 1]:
            raise DataError(
                f"{shards.folder / MANIFEST} lists clip {repeated[0]} twice, so that results could not be told apart; "
                f"build dataset.shards={folder} again"
            )
        for name, (size, promised) in shards.damaged().items():
            state = "is missing" if size is None else f"has {size} bytes instead of {promised}"
            raise DataError(f"{shards.folder / name} {state}; build dataset.shards={folder} again")
        return shards

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read `manifest.json` and look at no shard. Raises `DataError` when there is none of this version."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: dataset.shards={folder} holds no finished build; make it with "
                f"ace shards dataset=NAME dataset.shards={folder} (of your own videos: dataset=csv "
                "dataset.annotations=FILE), or set dataset.shards to the folder of a finished one"
            )
        again = "; build dataset.shards again"
        manifest = read_object(path, DataError, again)
        if manifest.get("format") != FORMAT:
            found = manifest.get("format")
            raise DataError(f"{path} has format {found!r}, this version reads {FORMAT!r}{again}")
        fields = check_shape(manifest, Manifest, str(path), DataError, again)
        check_places(path, fields)
        return cls(folder, manifest, fields["clips"])

    def damaged(self) -> dict[str, tuple[int | None, int]]:
        """Shards that are missing or have another size than promised: name -> size, promised size, in bytes."""
        paths = {shard["name"]: self.folder / shard["name"] for shard in self.manifest["shards"]}
        sizes = {name: path.stat().st_size if path.is_file() else None for name, path in paths.items()}
        promised = {shard["name"]: int(shard["size"]) for shard in self.manifest["shards"]}
        return {name: (size, promised[name]) for name, size in sizes.items() if size != promised[name]}

    def split(self, name: str) -> list[ClipRecord]:
        """The clips of `train` or `test`, in manifest order."""
        assert name in SPLITS
        return [record for record in self.records if record.split == name]

    @property
    def codec(self) -> str:
        """Codec of every stored clip: vp9, mjpeg or h264."""
        return str(self.manifest["configuration"]["encoding"]["codec"])

    @property
    def older_build(self) -> str:
        """What an older version may have made otherwise of the same annotations; empty when this one made the shards.

        Labels in frames and rendered worlds have no clock that could be read in two ways.
        """
        build, kind = self.manifest.get("build", 1), self.manifest["configuration"].get("source", {}).get("kind")
        if build >= BUILD or kind not in ("csv", "webdataset"):
            return ""
        return (
            f"dataset.shards={self.folder} was built by an older version, which counted times from a video's first "
            "picture: its clips are right where picture and sound begin together, and up to seconds late elsewhere, as "
            "in files of capture devices; to be sure, build into another folder"
        )

    @property
    def seconds(self) -> float:
        return float(self.manifest["configuration"]["clip_seconds"])


class ShardFiles:
    """Random access to the clips of a folder. One descriptor a shard, opened when first needed; thread-safe.

    A copy, also in another process, opens the shards anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.descriptors: dict[str, int] = {}
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.folder,)

    def read(self, record: ClipRecord) -> bytes:
        """The bytes of a stored video. Raises `DataError` when the shard cannot be read, is cut short, or was changed.

        Every read is compared with the checksum, at 0.6 ms a MiB: decoders paint over most damage and say nothing.
        """
        data = self.read_raw(record)
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise DataError(
                f"the bytes of clip {record.key} in {self.folder / record.shard} are not those that were stored: the "
                "shard was changed or damaged after its build; `ace shards verify` says where else"
            )
        if data[4:8] != b"ftyp":  # a playlist would make a decoder open the files that it names
            raise DataError(f"clip {record.key} in {self.folder / record.shard} cannot be decoded: it is no mp4 file")
        return data

    def read_raw(self, record: ClipRecord) -> bytes:
        """As `read`, without comparing the bytes with their checksum."""
        try:
            data = os.pread(self.descriptor(record), record.size, record.offset)
        except OSError as error:  # pread knows no name
            raise DataError(f"{self.folder / record.shard} cannot be read: {error.strerror}") from error
        if len(data) != record.size:
            raise DataError(f"{self.folder / record.shard} ends inside clip {record.key}; build dataset.shards again")
        return data

    def announce(self, record: ClipRecord) -> None:
        """Have the kernel fetch a clip while others are decoded; without effect where it takes no such advice."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor(record), record.offset, record.size, os.POSIX_FADV_WILLNEED)

    def descriptor(self, record: ClipRecord) -> int:
        with self.lock:
            if record.shard not in self.descriptors:
                self.descriptors[record.shard] = os.open(self.folder / record.shard, os.O_RDONLY)
            return self.descriptors[record.shard]

    def close(self) -> None:
        with self.lock:
            while self.descriptors:
                os.close(self.descriptors.popitem()[1])


def check_places(path: Path, manifest: Manifest) -> None:
    """Raise `DataError` for a clip that does not lie in a shard of the manifest's own folder.

    A symbolic link out of it would show another file's bytes.
    """
    folder = path.parent
    sizes = {shard["name"]: shard["size"] for shard in manifest["shards"]}
    names = {*sizes, *(record.shard for record in manifest["clips"])}
    strange = (
        name for name in names if Path(name).name != name or name == ".." or len(os.fsencode(name)) > LONGEST_NAME
    )
    if outside := sorted(strange):
        raise DataError(
            f"{path} names shard {outside[0][:80]!r}, which is not a file of dataset.shards={folder}; refused"
        )
    links = [name for name in names if (folder / name).is_symlink()]
    if away := sorted(name for name in links if not (folder / name).resolve().is_relative_to(folder.resolve())):
        raise DataError(
            f"{folder / away[0]} is a symbolic link out of dataset.shards={folder}; put the file itself there, or set "
            f"dataset.shards to the folder that it is in"
        )
    for record in manifest["clips"]:
        if record.offset + record.size > sizes.get(record.shard, 0):
            raise DataError(
                f"{path}: clip {record.key} ends at byte {record.offset + record.size:,} of {record.shard}, which has "
                f"{sizes.get(record.shard, 0):,}; build dataset.shards again"
            )


def write_shard(folder: Path, name: str, clips: Iterable[tuple[ClipRecord, bytes]]) -> list[ClipRecord]:
    """Write `name` and its index; returns the records with `shard`, `offset` and `size` filled in.

    The index is written first: a tar file that exists is complete and has its index.
    """
    buffer, placed = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for record, data in clips:
            offset = tar.offset + tarfile.BLOCKSIZE  # behind the header
            placed.append(dataclasses.replace(record, shard=name, offset=offset, size=len(data)))
            description = json.dumps(clip_description(record), sort_keys=True).encode()
            for suffix, content in (("mp4", data), ("json", description)):
                info = tarfile.TarInfo(f"{record.key}.{suffix}")  # of no owner and no time
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
    write_bytes((folder / name).with_suffix(".idx"), index_text(placed).encode())
    write_bytes(folder / name, buffer.getvalue())
    return placed


def index_text(records: Sequence[ClipRecord]) -> str:
    """The index file of a shard, as DALI's `wds2idx` writes it: kind, offset, size and name of both members of a clip.

    A description stands behind its video, whose bytes are filled up to whole blocks, and its own header.
    """
    lines = [f"{INDEX_VERSION} {len(records)}"]
    for record in records:
        size = len(json.dumps(clip_description(record), sort_keys=True).encode())
        blocks = (record.size + tarfile.BLOCKSIZE - 1) // tarfile.BLOCKSIZE
        offset = record.offset + (blocks + 1) * tarfile.BLOCKSIZE
        lines.append(f"mp4 {record.offset} {record.size} {record.key}.mp4 json {offset} {size} {record.key}.json")
    return "\n".join(lines) + "\n"


def safe_members(path: Path) -> list[tarfile.TarInfo]:
    """The files of a tar file, for reading in place. Nothing is ever extracted; still, a file whose names point outside
    of it, or that holds links or devices, was not made for a data set.

    Raises `DataError` naming the tar file and the member, also for one that was cut off or is damaged within: tarfile
    takes the first header that it cannot read for the end, and all members behind it would vanish.
    """
    try:
        with tarfile.open(path, "r:") as tar:  # not compressed: members are read by their offsets
            members = [member for member in tar.getmembers() if not member.isdir()]
        with path.open("rb") as file:
            file.seek(tar.offset)
            closing = file.read(tarfile.BLOCKSIZE)
            rest = iter(partial(file.read, 1 << 20), b"")
            whole = len(closing) == tarfile.BLOCKSIZE and not any(map(any, (closing, *rest)))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a tar file: {error}") from error
    if not whole:
        raise DataError(
            f"{path} cannot be read as a tar file behind byte {tar.offset}: it was cut off, is damaged, or is several "
            f"files in one, which `tar --concatenate` joins and `cat` does not; pack it again"
        )
    for member in members:
        if not member.isreg() or member.issparse():
            raise DataError(f"{path}: member {member.name!r} is a link or a device; only plain files are read")
        parts = member.name.replace("\\", "/").split("/")
        if ".." in parts or member.name.startswith(("/", "\\")) or ":" in parts[0]:
            raise DataError(f"{path}: member {member.name!r} points outside of the archive; refused")
    return members


def clip_description(record: ClipRecord) -> dict[str, Any]:
    return {name: value for name, value in listed(record).items() if name not in ("shard", "offset", "size")}


def listed(record: ClipRecord) -> dict[str, Any]:
    """A clip as the manifest lists it; what is not padded does not speak of it."""
    fields = dataclasses.asdict(record)
    return fields if record.padded_s else {name: value for name, value in fields.items() if name != "padded_s"}


def action_counts(records: Sequence[ClipRecord]) -> dict[str, dict[str, int]]:
    """Clips of each action, by split: {"train": {"spin block": 12, ...}, "test": {...}}."""
    shown = sorted((record.action, record.split) for record in records)
    return {name: dict(Counter(str(action) for action, split in shown if split == name)) for name in SPLITS}
