"""The PyAV loader: decoding in threads, the fast way without a GPU, and the reference for DALI.

It decodes only the frames that a clip shows and those they are predicted from, and converts only the crop.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from ace_dist.config import LoaderConfig
from ace_dist.data.build.container import PICTURE_LIMIT
from ace_dist.data.loader.base import ThreadedLoader, decoding_threads, normalise
from ace_dist.data.loader.pixels import crop_filters, picture_rgb, show
from ace_dist.data.loader.sample_table import SampleTable, read_sample_table
from ace_dist.data.sampling import ClipRequest
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
    context.options = PICTURE_LIMIT
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


class PyavLoader(ThreadedLoader):
    """Decodes on CPU threads; what waits are bytes, which a GPU gets from pinned memory beside the step before."""

    backend = "pyav"
    decoder = f"pyav {av.__version__}"

    def __init__(self, folder: Path, loader: LoaderConfig, device: torch.device) -> None:
        super().__init__(folder, loader, device, decoding_threads(loader, device))
        self.upload = Upload(device)

    def allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")

    def fill(self, video: torch.Tensor, requests: Sequence[ClipRequest]) -> None:
        for clip, request in zip(video, requests, strict=True):
            data = self.files.read(request.record)
            try:
                self.decode_into(data, request, clip)
            except (av.error.FFmpegError, DataError) as error:
                raise DataError(self.failure(request, error)) from error

    def decode_into(self, data: bytes, request: ClipRequest, clip: torch.Tensor) -> None:
        """Decode a stored clip into uint8 [T, 3, crop, crop]. Another decoder replaces this method alone."""
        decode_into(data, request, clip.numpy())

    def finish(self, video: torch.Tensor) -> torch.Tensor:
        video = self.upload(video)
        return video if self.loader.dtype == "uint8" else normalise(video, self.loader)
