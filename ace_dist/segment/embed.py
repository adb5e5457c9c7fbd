"""Embeds the windows of a long video once, and keeps the embeddings: other labels then need no video.

What is kept lies in a folder of its own for each combination of weights, video and windows, in parts of `PART` windows,
so that a run that is killed goes on at the last whole part. Memory does not grow with the video but by its embeddings
(2 kB a window at 512 numbers: 14 MB an hour at two windows a second).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_dist.config import Config
from ace_dist.data.build.decode import promised_span
from ace_dist.data.build.isolation import run_alone
from ace_dist.data.loader.base import normalise
from ace_dist.data.loader.long_video import STALL_S, stream_crops
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.temporal import FrameByFrameTower
from ace_dist.segment.windows import WindowGrid
from ace_dist.utils.errors import DataError
from ace_dist.utils.files import write_bytes, write_json
from ace_dist.utils.reading import read_object, why_no_file

PART = 256  # windows
BEGIN = "begin.json"  # of a video's folder: what a run that goes on needs beside the parts
END_BYTES = 1 << 20  # at each end of a video, which tell it from another one of the same size and date
Progress = Callable[[float, float], None]  # seconds of video done, and in all
OnPicture = Callable[[npt.NDArray[np.uint8]], None]  # a picture [3, S, S]


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class EmbeddedVideo:
    """`embeddings` [N, D] float32 of windows `stride_s` apart, the first one's stretch beginning at `start_s`.

    With `model.video.pooling=frames` those of T frames, [N, T, D].
    """

    video: str
    embeddings: npt.NDArray[np.float32]
    start_s: float
    end_s: float
    stride_s: float


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ace-dist" / "embeddings"


@torch.no_grad()
def embed_video(
    model: DualEncoder,
    config: Config,
    path: str | Path,
    stride_s: float | None = None,
    cache: str | Path | None = None,
    progress: Progress = lambda done_s, all_s: None,
    on_picture: OnPicture = lambda picture: None,
) -> EmbeddedVideo:
    """The windows of a whole video. `cache`: where embeddings are kept; None: nowhere. `on_picture` sees each picture
    that is read, as the model does.

    Raises `DataError` when the video cannot be read to its end: what is there of it is never taken for all of it.
    """
    path, grid = Path(path), WindowGrid.build(config.dataset.clip, stride_s)
    folder = None if cache is None else Path(cache) / store_key(model, config, path, grid)
    shape = row_shape(model, config)
    if folder is not None and (kept := read_whole(folder, path, grid, shape)):
        return kept
    begin = None if folder is None else read_begin(make_cache(folder))
    parts = [] if folder is None or begin is None else read_parts(folder, shape)
    begin, first = begin if parts else None, sum(map(len, parts))
    span_s = run_alone(STALL_S, promised_span, path)
    asked_s = begin.picture_s if begin else max(span_s[0], 0.0) + grid.first_s
    start = PictureClock(on_picture)
    pictures = start.watch(
        stream_crops(
            path,
            asked_s + grid.first_picture(first) * grid.interval_s,
            grid.interval_s,
            config.dataset.encoding,
            config.loader,
            begin is not None,  # the times of the run before, also between two frames
        )
    )
    windows = grid.windows(pictures, first)
    while batch := list(islice(windows, PART)):
        if begin is None:
            late_s = start.first_s - asked_s  # of the nearest frame, which may come before its time or after
            start_s = asked_s - grid.first_s + (late_s if late_s > 0.5 * grid.interval_s else 0.0)
            begin = Begin(start_s, start.first_s)
            if folder is not None:
                write_json(folder / BEGIN, begin._asdict())
        parts.append(WindowEncoder(model, config).encode(batch))  # anew: a part is the same wherever a run went on
        if folder is not None:
            write_array(folder / f"part-{len(parts) - 1:05d}.f32", parts[-1])
        progress(sum(map(len, parts)) * grid.stride_s, span_s[1] - span_s[0])
    if begin is None:
        raise DataError(f"{path} shows no picture")
    embeddings = np.concatenate(parts)
    end_s = begin.start_s + (grid.first_picture(first) + start.count) * grid.interval_s
    if folder is not None:
        write_json(folder / "whole.json", {"windows": len(embeddings), "start_s": begin.start_s, "end_s": end_s})
    return EmbeddedVideo(str(path), embeddings, begin.start_s, end_s, grid.stride_s)


class Begin(NamedTuple):
    """When window 0 begins, and when the first picture is shown, from which all others are whole intervals away."""

    start_s: float
    picture_s: float


class PictureClock:
    """Counts the pictures that come by, and keeps the time of the first one."""

    def __init__(self, on_picture: OnPicture) -> None:
        self.first_s, self.count, self.on_picture = 0.0, 0, on_picture

    def watch(self, blocks: Iterator[tuple[float, npt.NDArray[np.uint8]]]) -> Iterator[npt.NDArray[np.uint8]]:
        for first_s, block in blocks:
            self.first_s = first_s
            self.count += len(block)
            for picture in block:
                self.on_picture(picture)
                yield picture


class WindowEncoder:
    """Embeddings of windows of pictures [3, S, S]; where the video tower sees each frame alone, windows that share
    pictures share their embeddings, also with the last window of the call before.
    """

    def __init__(self, model: DualEncoder, config: Config) -> None:
        self.model, self.config = model, config
        self.kept: dict[int, tuple[npt.NDArray[np.uint8], Tensor]] = {}  # by `id`, which the picture kept holds taken

    @torch.no_grad()
    def encode(self, windows: list[list[npt.NDArray[np.uint8]]]) -> npt.NDArray[np.float32]:
        """[n, D], in batches of `evaluation.batch_size`."""
        size, tower = self.config.evaluation.batch_size, self.model.video
        if isinstance(tower, FrameByFrameTower) and tower.sees_frames_alone:
            frames = self.embed_pictures(windows, tower)
            clips = torch.stack([torch.stack([frames[id(picture)] for picture in window]) for window in windows])
            found = [tower.embed_clips(batch) for batch in clips.split(size)]
        else:
            batches = (windows[i : i + size] for i in range(0, len(windows), size))
            found = [
                self.model.encode_video(self.normalised(np.stack([np.stack(window) for window in batch])))
                for batch in batches
            ]
        return torch.cat([part.float().cpu() for part in found]).numpy()

    def embed_pictures(self, windows: list[list[npt.NDArray[np.uint8]]], tower: FrameByFrameTower) -> dict[int, Tensor]:
        """The embedding [E] of each picture, by its `id`; a batch has as many pictures as one of windows has."""
        pictures = {id(picture): picture for window in windows for picture in window}
        new = [picture for key, picture in pictures.items() if key not in self.kept]
        size = self.config.evaluation.batch_size * len(windows[0])
        found = {key: frame for key, (_, frame) in self.kept.items()}
        for i in range(0, len(new), size):
            frames = tower.embed_frames(self.normalised(np.stack(new[i : i + size])))
            found |= {id(picture): frame for picture, frame in zip(new[i : i + size], frames, strict=True)}
        self.kept = {id(picture): (picture, found[id(picture)]) for picture in windows[-1]}
        return found

    def normalised(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        parameter = next(self.model.video.parameters())
        return normalise(torch.from_numpy(pictures).to(parameter.device), self.config.loader).to(parameter)


# ------------------------------------------------------------------------------------------------------ what is kept
def store_key(model: DualEncoder, config: Config, path: Path, grid: WindowGrid) -> str:
    """The name of a video's folder: a digest of all that its embeddings depend on."""
    loader, encoding = config.loader, config.dataset.encoding
    what: dict[str, Any] = {
        "weights": digest_weights(model),
        "precision": str(next(model.video.parameters()).dtype),
        "video": digest_video(path),
        "grid": asdict(grid),
        "layout": 2,  # the one before did not keep when its first picture is shown
        "pixels": [loader.test_short_side, loader.crop, list(loader.mean), list(loader.std), encoding.short_side],
    }
    if model.video.config.pooling == "frames":  # the same weights with the mean give other shapes
        what["pooling"] = "frames"
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


digests: WeakKeyDictionary[torch.nn.Module, tuple[list[tuple[int, int]], str]] = WeakKeyDictionary()


def digest_weights(model: DualEncoder) -> str:
    """Computed once a model, at 2 ms a MiB, and again when one of its tensors was replaced or changed."""
    weights = model.video.state_dict()
    state = [(tensor.data_ptr(), tensor._version) for tensor in weights.values()]
    before, found = digests.get(model.video, ([], ""))
    if before != state:
        digest = hashlib.sha256()
        for name, tensor in sorted(weights.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        found = digest.hexdigest()
        digests[model.video] = state, found
    return found


def digest_video(path: Path) -> str:
    """Of its size, date and both ends: a whole film is not read twice."""
    if not path.is_file():
        raise DataError(f"video {path} {why_no_file(path)}")
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            head = file.read(END_BYTES)
            file.seek(max(0, status.st_size - END_BYTES))
            ends = head + file.read(END_BYTES)
    except OSError as error:
        raise DataError(f"video {path} cannot be read: {error.strerror}") from error
    return hashlib.sha256(ends + f"{status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


def make_cache(folder: Path) -> Path:
    """Raises `DataError`, which names `cache`, where no folder can be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cache={folder.parent} cannot be written ({error.strerror}); name another folder, or cache=null to keep "
            f"no embeddings"
        ) from error
    return folder


def row_shape(model: DualEncoder, config: Config) -> tuple[int, ...]:
    """The shape of a window's embedding: [D], or [T, D]."""
    video = model.video.config
    return (config.dataset.clip.frames, video.embed_dim) if video.pooling == "frames" else (video.embed_dim,)


def read_begin(folder: Path) -> Begin | None:
    try:
        about = read_object(folder / BEGIN, DataError)
        return Begin(float(about["start_s"]), float(about["picture_s"]))
    except (DataError, ValueError, KeyError, TypeError):
        return None


def read_parts(folder: Path, shape: tuple[int, ...]) -> list[npt.NDArray[np.float32]]:
    """The whole parts of an unfinished video, up to the first that is missing, damaged or short."""
    parts: list[npt.NDArray[np.float32]] = []
    while (array := read_array(folder / f"part-{len(parts):05d}.f32", shape)) is not None and len(array) == PART:
        parts.append(array)
    return parts


def read_whole(folder: Path, path: Path, grid: WindowGrid, shape: tuple[int, ...]) -> EmbeddedVideo | None:
    """The kept embeddings of a video, or None when they are not all there."""
    try:
        about = read_object(folder / "whole.json", DataError)
        windows, start_s, end_s = int(about["windows"]), float(about["start_s"]), float(about["end_s"])
    except (DataError, ValueError, KeyError, TypeError):
        return None
    arrays = [read_array(folder / f"part-{i:05d}.f32", shape) for i in range(-(-windows // PART))]
    found = [array for array in arrays if array is not None]
    if sum(map(len, found)) != windows:
        return None
    return EmbeddedVideo(str(path), np.concatenate(found), max(start_s, 0.0), end_s, grid.stride_s)


def write_array(path: Path, array: npt.NDArray[np.float32]) -> None:
    """The numbers, behind a digest of them and their width."""
    data = np.ascontiguousarray(array, np.float32).tobytes()
    write_bytes(path, hashlib.sha256(data).digest() + array.shape[1].to_bytes(4, "little") + data)


def read_array(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """What `write_array` wrote, rows of this shape, or None when it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) < 36 or hashlib.sha256(content[36:]).digest() != content[:32]:
        return None
    return np.frombuffer(content[36:], np.float32).reshape(-1, *shape)
