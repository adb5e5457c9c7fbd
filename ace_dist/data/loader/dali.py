"""The DALI loader: decode, resize and crop in one step, normalise; the same graph on CPU and on NVDEC.

DALI is fed the compressed bytes of requested clips and decides nothing by itself, so it holds no state worth saving.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali import __version__ as dali_version
from nvidia.dali.plugin.pytorch import feed_ndarray

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.base import Batch, Loader, build_batch, normalisation
from ace_dist.data.loader.pyav import decode_frames
from ace_dist.data.sampling import ClipRequest, crop_box
from ace_dist.data.shards import ShardFiles
from ace_dist.utils.errors import DataError


def build_pipeline(
    loader: LoaderConfig, device: torch.device, batch_size: int, source: Callable[[], tuple[list[Any], ...]]
) -> Any:
    """Encoded bytes and a place in; normalised float32 FCHW out, or bytes with `loader.dtype=uint8`.

    `source` supplies the columns of `inputs` for a batch of at most `batch_size`, and raises StopIteration at the end.
    The crop is resized directly out of its region of interest: equal to resizing the whole frame and then cropping
    (the filter reads pixels beyond the region), at half the work.
    """
    on_gpu = device.type == "cuda"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=max(1, loader.threads),
        device_id=device.index if on_gpu else None,
        prefetch_queue_depth=max(1, loader.prefetch),
    )
    mean, std = normalisation(loader)
    kinds = [types.UINT8, types.INT32, types.FLOAT, types.FLOAT, types.FLOAT, types.INT32]
    with pipeline:
        encoded, frames, roi_start, roi_end, size, flip = fn.external_source(
            source=source, num_outputs=len(kinds), dtype=kinds, ndim=[1, 1, 1, 1, 1, 0]
        )
        video = fn.decoders.video(encoded, frames=frames, device="mixed" if on_gpu else "cpu")
        video = fn.resize(
            video, size=size, roi_start=roi_start, roi_end=roi_end, antialias=True, interp_type=types.INTERP_LINEAR
        )
        as_bytes = {"mean": 0.0, "std": 1.0, "dtype": types.UINT8}
        how = as_bytes if loader.dtype == "uint8" else {"mean": mean, "std": std}
        video = fn.crop_mirror_normalize(video, mirror=flip, output_layout="FCHW", **how)
        pipeline.set_outputs(video)
    pipeline.build()
    return pipeline


def inputs(requests: Sequence[ClipRequest], data: Sequence[bytes]) -> tuple[list[Any], ...]:
    """The columns that the pipeline takes: encoded, frames, roi_start, roi_end, size, flip; one entry a clip."""
    regions = []  # (top, left) and (bottom, right) of the crop, in pixels of the stored frame
    for request in requests:
        height, width, top, left = crop_box(request)
        down, across = request.record.height / height, request.record.width / width
        end = (top + request.crop) * down, (left + request.crop) * across
        regions.append(((top * down, left * across), end))
    return (
        [np.frombuffer(encoded, np.uint8) for encoded in data],
        [np.array(request.frames, np.int32) for request in requests],
        [np.array(start, np.float32) for start, _ in regions],
        [np.array(end, np.float32) for _, end in regions],
        [np.full(2, request.crop, np.float32) for request in requests],
        [np.array(request.flip, np.int32) for request in requests],
    )


class DaliLoader(Loader):
    backend = "dali"
    decoder = f"dali {dali_version}"

    def __init__(self, folder: Path, loader: LoaderConfig, device: torch.device) -> None:
        self.files, self.loader, self.device = ShardFiles(folder), loader, device
        if device.type == "cuda" and device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.pool = ThreadPoolExecutor(max(1, loader.threads), "read")
        self.pipeline: Any = None
        self.copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.largest = 0  # batch that the pipeline was built for
        self.reading: deque[tuple[Sequence[ClipRequest], list[Future[bytes]]]] = deque()
        self.running: deque[Sequence[ClipRequest]] = deque()
        self.batches: Iterator[Sequence[ClipRequest]] = iter(())

    def decode(self, batches: Iterator[Sequence[ClipRequest]]) -> Generator[Batch, None, None]:
        """A batch larger than all before it gets a larger pipeline."""
        self.batches = batches
        try:
            while (upcoming := self.read_ahead()) is not None:
                if self.pipeline is None or len(upcoming) > self.largest:
                    self.largest = max(self.largest, len(upcoming))
                    self.pipeline = build_pipeline(self.loader, self.device, self.largest, self.next_inputs)
                yield from self.epoch()
        except BaseException:  # also a consumer who leaves: the pipeline still works on what nobody will collect
            self.pipeline = None
            raise
        finally:
            for _, futures in self.reading:  # prefetched and not collected
                for future in futures:
                    future.cancel()
            self.reading.clear()
            self.running.clear()
            self.batches = iter(())

    def read_ahead(self) -> Sequence[ClipRequest] | None:
        """The next batch to decode, or None at the end. Reads bytes in threads: file systems may be slow."""
        while len(self.reading) <= self.loader.prefetch and (requests := next(self.batches, None)) is not None:
            self.reading.append((requests, [self.pool.submit(self.files.read, r.record) for r in requests]))
        return self.reading[0][0] if self.reading else None

    def next_inputs(self) -> tuple[list[Any], ...]:
        """Called by DALI when it wants a batch; StopIteration ends its epoch."""
        upcoming = self.read_ahead()
        if upcoming is None or len(upcoming) > self.largest:
            raise StopIteration
        requests, futures = self.reading.popleft()
        columns = inputs(requests, [future.result() for future in futures])
        self.running.append(requests)
        return columns

    def epoch(self) -> Generator[Batch, None, None]:
        self.pipeline.schedule_run()  # starts as many batches as are prefetched
        while self.running:
            batch = build_batch(self.collect(), self.running.popleft())
            self.pipeline.schedule_run()
            yield batch
        self.pipeline.reset()

    def collect(self) -> torch.Tensor:
        """The oldest running batch, copied out of DALI's buffers: `loader.dtype` [B, T, 3, crop, crop]."""
        try:
            (output,) = self.pipeline.share_outputs()
        except Exception as error:  # DALI raises many types, and cannot go on after any of them
            raise DataError(self.explain(self.running[0], error)) from error
        tensor = output.as_tensor()
        with nullcontext() if self.copies is None else torch.cuda.stream(self.copies):
            video = torch.empty(tuple(tensor.shape()), dtype=getattr(torch, self.loader.dtype), device=self.device)
            feed_ndarray(tensor, video, cuda_stream=self.copies)
        if self.copies is not None:
            # The buffer goes back to DALI next. On torch's own stream this would wait for the step before, too.
            self.copies.synchronize()
            video.record_stream(torch.cuda.current_stream(self.device))
        self.pipeline.release_outputs()
        return video

    def explain(self, requests: Sequence[ClipRequest], error: Exception) -> str:
        """Which clip of a failed batch is at fault: DALI does not say, so each is decoded again with PyAV."""
        for record in (request.record for request in requests):
            try:
                decode_frames(self.files.read(record), range(record.frames))
            except (av.error.FFmpegError, DataError) as reason:
                path = self.files.folder / record.shard
                return f"clip {record.key} in {path} cannot be decoded: {reason}; build the shards again"
        clips = ", ".join(f"{request.record.key} in {request.record.shard}" for request in requests)
        first = next(iter(str(error).strip().splitlines()), "no reason given")
        return f"DALI cannot decode one of {clips}, although PyAV can: {first}; loader.backend=pyav avoids DALI"

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.pipeline = None
        self.files.close()
