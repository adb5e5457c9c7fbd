"""Owns decoding with PyAV and resizing with torch in threads: the fast loader without a GPU, and DALI's reference.

Pixels agree with DALI because the steps that differ by habit are pinned: BT.601 colours in the range of the file,
chroma interpolated bilinearly between sample centres (FFmpeg's default repeats samples, 8/255 away on coloured edges),
rounding to 8 bits after the colour conversion and after the resize, antialiased triangle filter.
"""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch.nn import functional

from ace_dist.data.clips import ClipRequest, crop_box
from ace_dist.data.encoding import CONTAINER
from ace_dist.data.loading import Batch, Loader, assemble, normalisation
from ace_dist.data.segments import DataError
from ace_dist.data.shard_format import ShardFiles

if TYPE_CHECKING:
    from ace_dist.config import LoaderConfig

__all__ = ["PyavLoader", "decode_frames", "resize_and_crop"]

# Bit-equal to the colour conversion of DALI's CPU decoder.
COLOUR = (
    Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)


def decode_frames(data: bytes, wanted: Sequence[int]) -> NDArray[np.uint8]:
    """The frames `wanted` (any order, repeats allowed) of a stored clip: uint8 RGB [len(wanted), H, W, 3].

    Only groups of pictures that hold a wanted frame are decoded. Raises `DataError` when one does not come out.
    """
    needed = set(wanted)
    pictures: dict[int, NDArray[np.uint8]] = {}
    reformatter = VideoReformatter()
    with av.open(io.BytesIO(data), format=CONTAINER) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_count = 1  # clips are decoded side by side instead
        packets = [packet for packet in container.demux(stream) if packet.size]
        index_of = {packet.pts: index for index, packet in enumerate(packets)}
        for run in needed_runs([packet.is_keyframe for packet in packets], needed):
            decoded = itertools.chain.from_iterable(map(context.decode, [*packets[run.start : run.stop], None]))
            for frame in decoded:
                if (index := index_of[frame.pts]) in needed:
                    picture = reformatter.reformat(frame, format="rgb24", interpolation=COLOUR, threads=1)
                    pictures[index] = picture.to_ndarray().astype(np.uint8, copy=False)
            context.flush_buffers()
    if missing := sorted(needed - pictures.keys()):
        raise DataError(f"frames {missing} did not come out of the {len(packets)} frames of the clip")
    return np.stack([pictures[index] for index in wanted])


def needed_runs(is_key: Sequence[bool], wanted: set[int]) -> list[range]:
    """Stretches of packets to decode: each from a key frame to the last wanted frame, adjoining ones as one stretch."""
    keys = [index for index, key in enumerate(is_key) if key]
    runs: list[range] = []
    for start, stop in zip(keys, [*keys[1:], len(is_key)], strict=True):
        inside = [index for index in wanted if start <= index < stop]
        if not inside:
            continue
        if runs and runs[-1].stop == start:
            runs[-1] = range(runs[-1].start, max(inside) + 1)
        else:
            runs.append(range(start, max(inside) + 1))
    return runs


def resize_and_crop(frames: NDArray[np.uint8], request: ClipRequest) -> torch.Tensor:
    """Resize uint8 RGB [T, H, W, 3] to the request's short side, crop, flip; uint8 [T, 3, crop, crop]."""
    height, width, top, left = crop_box(request)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)  # a view: channels last is torch's fast path for bytes
    resized = functional.interpolate(video, size=(height, width), mode="bilinear", antialias=True)
    cropped = resized[..., top : top + request.crop, left : left + request.crop]
    return cropped.flip(-1) if request.flip else cropped


class PyavLoader(Loader):
    """Decodes on `loader.threads` CPU threads, `loader.prefetch` batches ahead."""

    backend = "pyav"

    def __init__(self, folder: Path, loader: LoaderConfig, device: torch.device) -> None:
        self.files = ShardFiles(folder)
        self.device, self.prefetch = device, max(1, loader.prefetch)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(loader))
        self.scale, self.shift = 1 / std, -mean / std
        self.pool = single_threaded_pool(max(1, loader.threads))

    def decode(self, batches: Iterator[Sequence[ClipRequest]]) -> Generator[Batch, None, None]:
        """See `Loader.decode`."""
        ahead = deque(map(self.submit, itertools.islice(batches, self.prefetch + 1)))
        try:
            while ahead:
                requests, video, futures = ahead.popleft()
                for future in futures:
                    future.result()
                ahead.extend(map(self.submit, itertools.islice(batches, 1)))
                yield assemble(video.to(self.device, non_blocking=True), requests)
        finally:
            for _, _, futures in ahead:
                for future in futures:
                    future.cancel()

    def submit(self, requests: Sequence[ClipRequest]) -> tuple[Sequence[ClipRequest], torch.Tensor, list[Future[None]]]:
        """Start decoding a batch into a new float32 tensor [B, T, 3, crop, crop], pinned for a GPU."""
        first = requests[0]
        shape = (len(requests), len(first.frames), 3, first.crop, first.crop)
        video = torch.empty(shape, pin_memory=self.device.type == "cuda")
        return requests, video, [self.pool.submit(self.fill, *pair) for pair in zip(video, requests, strict=True)]

    def fill(self, video: torch.Tensor, request: ClipRequest) -> None:
        """Decode one clip into its place in the batch."""
        record = request.record
        try:
            frames = decode_frames(self.files.read(record), request.frames)
        except (av.error.FFmpegError, DataError) as error:
            path = self.files.folder / record.shard
            raise DataError(
                f"clip {record.key} in {path} cannot be decoded: {error}; build the shards again"
            ) from error
        video.copy_(resize_and_crop(frames, request)).mul_(self.scale).add_(self.shift)

    def close(self) -> None:
        """See `Loader.close`."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.files.close()


def single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose torch operators do not start threads of their own; the caller's setting stays what it was.

    `torch.set_num_threads` binds the calling thread (OpenMP keeps the number per thread) and the default of threads
    that have not used torch yet, so every worker sets its own and the caller then restores the default.
    """
    before, everyone = torch.get_num_threads(), Barrier(threads + 1)

    def initialize() -> None:
        torch.set_num_threads(1)
        everyone.wait()

    pool = ThreadPoolExecutor(threads, "decode", initialize)
    for _ in range(threads):
        pool.submit(int)  # any task: each starts one more thread while the others wait at the barrier
    everyone.wait()
    torch.set_num_threads(before)
    return pool
