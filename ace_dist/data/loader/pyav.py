"""The PyAV loader: decoding in threads, the fast way without a GPU, and the reference for DALI.

It decodes only the frames that a clip shows and those they are predicted from, and converts only the crop.
"""

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.base import Batch, Loader, build_batch, normalise
from ace_dist.data.loader.pixels import crop_filters, picture_rgb, show
from ace_dist.data.loader.sample_table import SampleTable, read_sample_table
from ace_dist.data.sampling import ClipRequest
from ace_dist.data.shards import ShardFiles
from ace_dist.utils.errors import DataError
from ace_dist.utils.memory import Upload


def decode_clip(data: bytes, request: ClipRequest) -> NDArray[np.uint8]:
    """The crop that a request asks for: uint8 RGB [T, 3, crop, crop]. Raises `DataError` when a frame is missing."""
    out = np.empty((len(request.frames), 3, request.crop, request.crop), np.uint8)
    decode_into(data, request, out)
    return out


def decode_into(data: bytes, request: ClipRequest, out: NDArray[np.uint8]) -> None:
    """As `decode_clip`, into memory of the caller."""
    cut = crop_filters(request)
    first_place = {index: place for place, index in reversed(list(enumerate(request.frames)))}
    for index, picture in pictures(data, set(request.frames)):
        show(picture, cut, out[first_place[index]])
    for place, index in enumerate(request.frames):
        if place != first_place[index]:  # a window beyond the clip's end repeats its last frame
            out[place] = out[first_place[index]]


def decode_frames(data: bytes, frames: Sequence[int]) -> NDArray[np.uint8]:
    """Whole frames (any order, repeats allowed) of a stored clip: uint8 RGB [len(frames), H, W, 3]."""
    decoded = {index: picture_rgb(picture) for index, picture in pictures(data, set(frames))}
    return np.stack([decoded[index].transpose(1, 2, 0) for index in frames])


def pictures(data: bytes, frames: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """`frames` of a stored clip with their indices, as they come out of the decoder.

    Decodes only groups of pictures that hold one of them. Raises `DataError` at the end when one is missing.
    """
    table, view = read_sample_table(data), memoryview(data)
    context = av.CodecContext.create(table.decoder, "r")
    context.extradata = table.extradata or None
    context.thread_count = 1  # clips are decoded side by side instead
    missing = set(frames)
    packets = (stored_packet(view, table, index) for index in needed_packets(table.keys, table.needed, frames))
    for picture in itertools.chain.from_iterable(map(context.decode, itertools.chain(packets, [None]))):
        if picture.pts in missing:
            missing.remove(picture.pts)
            yield picture.pts, picture
    if missing:
        raise DataError(f"frames {sorted(missing)} did not come out of the {len(table.sizes)} frames of the clip")


def stored_packet(data: memoryview, table: SampleTable, index: int) -> av.Packet:
    packet = av.Packet(data[table.offsets[index] : table.offsets[index] + table.sizes[index]])
    packet.pts = packet.dts = index
    return packet


def needed_packets(is_key: Sequence[bool], is_needed: Sequence[bool], frames: set[int]) -> list[int]:
    """The indices to decode: from each key frame to the last of `frames` before the next one.

    Those that are neither in `frames` nor needed by others are left out. Each stretch begins with a key frame, so that
    no flush is necessary between them.
    """
    keys = [index for index, key in enumerate(is_key) if key]
    packets: list[int] = []
    for start, stop in zip(keys, [*keys[1:], len(is_key)], strict=True):
        last = max((index for index in frames if start <= index < stop), default=start - 1)
        packets += [index for index in range(start, last + 1) if is_needed[index] or index in frames]
    return packets


class PyavLoader(Loader):
    """Decodes on `loader.threads` CPU threads, `loader.prefetch` batches ahead, which wait as bytes."""

    backend = "pyav"
    decoder = f"pyav {av.__version__}"

    def __init__(self, folder: Path, loader: LoaderConfig, device: torch.device) -> None:
        self.files, self.loader, self.device = ShardFiles(folder), loader, device
        self.prefetch = max(1, loader.prefetch)
        self.pool = ThreadPoolExecutor(max(1, loader.threads), "decode")
        self.upload = Upload(device)

    def decode(self, batches: Iterator[Sequence[ClipRequest]]) -> Generator[Batch, None, None]:
        ahead = deque(map(self.submit, itertools.islice(batches, self.prefetch + 1)))
        try:
            while ahead:
                requests, video, futures = ahead.popleft()
                for future in futures:
                    future.result()
                ahead.extend(map(self.submit, itertools.islice(batches, 1)))
                video = self.upload(video)
                yield build_batch(video if self.loader.dtype == "uint8" else normalise(video, self.loader), requests)
        finally:
            for _, _, futures in ahead:
                for future in futures:
                    future.cancel()

    def submit(self, requests: Sequence[ClipRequest]) -> tuple[Sequence[ClipRequest], torch.Tensor, list[Future[None]]]:
        """Start decoding a batch into a new uint8 tensor [B, T, 3, crop, crop], pinned for a GPU."""
        for request in requests:
            self.files.announce(request.record)  # file systems may be slow, and decoding threads few
        first = requests[0]
        shape = (len(requests), len(first.frames), 3, first.crop, first.crop)
        video = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return requests, video, [self.pool.submit(self.fill, *pair) for pair in zip(video, requests, strict=True)]

    def fill(self, video: torch.Tensor, request: ClipRequest) -> None:
        record, data = request.record, self.files.read(request.record)
        try:
            self.decode_into(data, request, video)
        except (av.error.FFmpegError, DataError) as error:
            path = self.files.folder / record.shard
            raise DataError(
                f"clip {record.key} in {path} cannot be decoded: {error}; build the shards again"
            ) from error

    def decode_into(self, data: bytes, request: ClipRequest, video: torch.Tensor) -> None:
        """Decode a stored clip into uint8 [T, 3, crop, crop]. Another decoder replaces this method alone."""
        decode_into(data, request, video.numpy())

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.files.close()
