"""The one interface through which decoded clips reach a model: `Batch` and `Loader`.

All loaders decode exactly what a `ClipRequest` says, read by byte offset from the shards. They do not use the
sequential `fn.readers.webdataset`, although the shards suit it: the order of the clips would then live in the reader.

- its order depends on the number of ranks (each reads its own shards), while a plan's global order does not;
- its shuffle is a buffer over neighbouring clips, while a plan draws a true permutation and drops nothing;
- its position is a state to save per rank, and DALI accepts the state of another number of ranks without a word, while
  here the position in the data *is* the step: resuming is asking the plan for the next one;
- DALI's `fn.decoders.video` refuses checkpointing, so a pipeline that holds both reader and decoder cannot be resumed.
"""

import abc
import itertools
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import torch

from ace_dist.config import LoaderConfig
from ace_dist.data.sampling import ClipRequest
from ace_dist.data.shards import ShardFiles
from ace_dist.utils.cores import cores
from ace_dist.utils.memory import send


@dataclass
class Batch:
    """Decoded clips on the device: normalised float32 RGB [B, T, 3, H, W], or bytes with `loader.dtype=uint8`; int64
    labels [B]; frame indices [B, T].
    """

    video: torch.Tensor
    labels: torch.Tensor
    ids: list[str]
    views: list[int]
    frame_indices: torch.Tensor


def build_batch(video: torch.Tensor, requests: Sequence[ClipRequest]) -> Batch:
    labels = torch.tensor([request.label for request in requests])
    return Batch(
        video=video,
        labels=send(labels, video.device),
        ids=[request.record.key for request in requests],
        views=[request.view for request in requests],
        frame_indices=torch.tensor([request.frames for request in requests]),
    )


class Loader(abc.ABC):
    """Decodes requested clips ahead of their consumer. `wait_s` sums the seconds that consumers waited for batches.

    `decoder` is the backend and the version of its library: another one may show other pixels.
    """

    backend: str
    decoder: str
    wait_s: float = 0.0

    def stream(self, batches: Iterable[Sequence[ClipRequest]]) -> Generator[Batch, None, None]:
        """One `Batch` for each list of requests, in order, of any sizes. One stream at a time.

        All requests of a list have the same number of frames and the same crop. Raises `DataError` naming the clip and
        the shard when one cannot be decoded.
        """
        decoded = self.decode(iter(batches))
        try:
            while True:
                started = time.perf_counter()
                batch = next(decoded, None)
                self.wait_s += time.perf_counter() - started
                if batch is None:
                    return
                yield batch
        finally:
            decoded.close()

    @abc.abstractmethod
    def decode(self, batches: Iterator[Sequence[ClipRequest]]) -> Generator[Batch, None, None]:
        """The batches, prefetched. Closing the generator drops what was prefetched and leaves the loader usable."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release threads, files and device memory."""


class ThreadedLoader(Loader):
    """Decodes `loader.prefetch` batches ahead in `threads` threads, of which each takes `clips_per_task` at a time."""

    clips_per_task = 1

    def __init__(self, folder: Path, loader: LoaderConfig, device: torch.device, threads: int) -> None:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.files, self.loader, self.device = ShardFiles(folder), loader, device
        self.prefetch = max(1, loader.prefetch)
        on_device = partial(torch.cuda.set_device, device) if device.type == "cuda" else None  # each thread has its own
        self.pool = ThreadPoolExecutor(threads, "decode", on_device)

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """A copy, also in another process, has threads and open files of its own."""
        return type(self), (self.files.folder, self.loader, self.device)

    def decode(self, batches: Iterator[Sequence[ClipRequest]]) -> Generator[Batch, None, None]:
        ahead = deque(map(self.submit, itertools.islice(batches, self.prefetch + 1)))
        try:
            while ahead:
                requests, video, futures = ahead.popleft()
                for future in futures:
                    future.result()
                ahead.extend(map(self.submit, itertools.islice(batches, 1)))
                yield build_batch(self.finish(video), requests)
        finally:
            for _, _, futures in ahead:
                for future in futures:
                    future.cancel()

    def submit(self, requests: Sequence[ClipRequest]) -> tuple[Sequence[ClipRequest], torch.Tensor, list[Future[None]]]:
        """Start decoding a batch into new memory [B, T, 3, crop, crop]."""
        for request in requests:
            self.files.announce(request.record)  # file systems may be slow, and decoding threads few
        first, n = requests[0], self.clips_per_task
        video = self.allocate((len(requests), len(first.frames), 3, first.crop, first.crop))
        starts = range(0, len(requests), n)
        return requests, video, [self.pool.submit(self.fill, video[i : i + n], requests[i : i + n]) for i in starts]

    @abc.abstractmethod
    def allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Memory for a batch, which threads will write to."""

    @abc.abstractmethod
    def fill(self, video: torch.Tensor, requests: Sequence[ClipRequest]) -> None:
        """Read and decode some clips of a batch into their part of its memory. Runs in a thread."""

    @abc.abstractmethod
    def finish(self, video: torch.Tensor) -> torch.Tensor:
        """A filled batch, as `Batch.video`."""

    def failure(self, request: ClipRequest, reason: Exception) -> str:
        record = request.record
        path = self.files.folder / record.shard
        return f"clip {record.key} in {path} cannot be decoded: {reason}; build the shards again"

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.files.close()


def decoding_threads(loader: LoaderConfig, device: torch.device) -> int:
    """`loader.threads`; for 0 every core of this rank beside a GPU, and two on a CPU, whose cores compute too."""
    return loader.threads or (cores(os.environ) if device.type == "cuda" else 2)


def normalisation(loader: LoaderConfig) -> tuple[list[float], list[float]]:
    """`loader.mean` and `loader.std`, which are of RGB in [0, 1], for RGB in [0, 255]."""
    return [255 * value for value in loader.mean], [255 * value for value in loader.std]


def normalise(video: torch.Tensor, loader: LoaderConfig) -> torch.Tensor:
    """uint8 RGB [..., 3, H, W] as float32 with `loader.mean` and `loader.std` applied, on the video's device."""
    scale, shift = scale_and_shift(*map(tuple, normalisation(loader)), video.device)
    return video.float().mul_(scale).add_(shift)  # in place: on a CPU the pages of another copy cost the most


@lru_cache
def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand of `normalise`, [3,1,1] each, on a device that gets them once."""
    mean_C11, std_C11 = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
    return 1 / std_C11, -mean_C11 / std_C11
