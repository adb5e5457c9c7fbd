"""The DALI loader: decode, resize and crop in one step, normalise; the same graph on CPUs and GPUs.

Clips of video codecs go to DALI's video decoder, NVDEC on a GPU. Clips of JPEG pictures are cut into their pictures,
which nvJPEG and a GPU's JPEG engine decode many at once, whatever clip they are of. DALI is fed the compressed bytes of
requested clips and decides nothing by itself, so it holds no state worth saving.
"""

import itertools
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from nvidia.dali import __version__ as dali_version
from nvidia.dali.plugin.pytorch import feed_ndarray

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.base import ThreadedLoader, decoding_threads, normalisation
from ace_dist.data.loader.pyav import decode_frames
from ace_dist.data.loader.sample_table import read_sample_table
from ace_dist.data.sampling import ClipRequest, crop_box
from ace_dist.utils.errors import DataError

Columns = dict[str, Any]
KINDS = {  # of the columns: type and dimensions
    "encoded": (types.UINT8, 1),
    "frames": (types.INT32, 1),
    "roi_start": (types.FLOAT, 1),
    "roi_end": (types.FLOAT, 1),
    "size": (types.FLOAT, 1),
    "flip": (types.INT32, 0),
}
# Pipelines side by side, and clips that each is given at a time: what was measured on an H100 (loading_cuda.csv).
SHARES = {"cpu": (1, 16), "nvdec": (8, 2), "nvjpeg": (3, 8)}


def build_pipeline(
    loader: LoaderConfig, device: torch.device, samples: int, threads: int, columns: Sequence[str]
) -> Any:
    """Takes `columns` for at most `samples` clips, or pictures when `frames` is not among them.

    Gives normalised float32 FCHW or CHW, or bytes with `loader.dtype=uint8`. The crop is resized directly out of its
    region of interest: equal to resizing the whole frame and then cropping (the filter reads pixels beyond the region),
    at half the work.
    """
    on_gpu = device.type == "cuda"
    pipeline = Pipeline(
        batch_size=samples,
        num_threads=threads,
        device_id=device.index if on_gpu else None,
        prefetch_queue_depth=1,  # batches ahead are those of other pipelines
    )
    mean, std = normalisation(loader)
    with pipeline:
        given = {name: fn.external_source(name=name, dtype=KINDS[name][0], ndim=KINDS[name][1]) for name in columns}
        where = "mixed" if on_gpu else "cpu"
        if "frames" in given:
            video = fn.decoders.video(given["encoded"], frames=given["frames"], device=where)
        else:
            # Chroma is enlarged as PyAV's loader does: pixels differ by at most 3 of 255 instead of 38, at no cost.
            video = fn.decoders.image(given["encoded"], output_type=types.RGB, device=where, jpeg_fancy_upsampling=True)
        region = {name: given[name] for name in ("size", "roi_start", "roi_end")}
        video = fn.resize(video, antialias=True, interp_type=types.INTERP_LINEAR, **region)
        as_bytes = {"mean": 0.0, "std": 1.0, "dtype": types.UINT8}
        scale = as_bytes if loader.dtype == "uint8" else {"mean": mean, "std": std}
        layout = "FCHW" if "frames" in given else "CHW"
        pipeline.set_outputs(fn.crop_mirror_normalize(video, mirror=given["flip"], output_layout=layout, **scale))
    pipeline.build()
    return pipeline


def clip_columns(requests: Sequence[ClipRequest], data: Sequence[bytes]) -> Columns:
    """What a pipeline of clips takes, one entry a clip."""
    return {
        "encoded": [np.frombuffer(clip, np.uint8) for clip in data],
        "frames": [np.array(request.frames, np.int32) for request in requests],
        **region_columns(requests),
    }


def region_columns(requests: Sequence[ClipRequest]) -> dict[str, NDArray[Any]]:
    """The crop of each clip: its corners (down, across) in stored pixels, its size, and whether it is flipped."""
    starts, ends = [], []
    for request in requests:
        height, width, top, left = crop_box(request)
        down, across = request.record.height / height, request.record.width / width
        starts.append((top * down, left * across))
        ends.append(((top + request.crop) * down, (left + request.crop) * across))
    return {
        "roi_start": np.array(starts, np.float32),
        "roi_end": np.array(ends, np.float32),
        "size": np.array([(request.crop, request.crop) for request in requests], np.float32),
        "flip": np.array([request.flip for request in requests], np.int32),
    }


def picture_columns(requests: Sequence[ClipRequest], data: Sequence[bytes]) -> Columns:
    """What a pipeline of pictures takes, one entry a picture: the frames of the first clip, of the second, ..."""
    regions, counts = region_columns(requests), [len(request.frames) for request in requests]
    pictures = (cut_pictures(clip, request.frames) for clip, request in zip(data, requests, strict=True))
    return {
        "encoded": list(itertools.chain.from_iterable(pictures)),
        **{name: np.repeat(column, counts, axis=0) for name, column in regions.items()},
    }


def cut_pictures(clip: bytes, frames: Sequence[int]) -> list[NDArray[np.uint8]]:
    """The JPEG files that `frames` of a stored clip are."""
    table, data = read_sample_table(clip), np.frombuffer(clip, np.uint8)
    return [data[table.offsets[index] : table.offsets[index] + table.sizes[index]] for index in frames]


class DaliLoader(ThreadedLoader):
    """Several pipelines side by side, a thread each: one reads while another decodes, and none spreads over engines."""

    backend = "dali"
    decoder = f"dali {dali_version}"

    def __init__(self, folder: Path, loader: LoaderConfig, device: torch.device, codec: str) -> None:
        on_gpu = device.type == "cuda"
        self.codec = codec
        self.columns = picture_columns if codec == "mjpeg" else clip_columns
        self.pictures = codec == "mjpeg"
        kind = ("nvjpeg" if self.pictures else "nvdec") if on_gpu else "cpu"
        pipelines, self.clips_per_task = SHARES[kind]
        super().__init__(folder, loader, device, pipelines)
        self.threads = max(1, decoding_threads(loader, device) // pipelines)  # of each
        self.copies = torch.cuda.Stream(self.device) if on_gpu else None
        self.own = threading.local()  # `pipeline` of this thread, built for at most `samples`

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        return type(self), (self.files.folder, self.loader, self.device, self.codec)

    def allocate(self, shape: tuple[int, ...]) -> torch.Tensor:
        with self.on_copies():
            return torch.empty(shape, dtype=getattr(torch, self.loader.dtype), device=self.device)

    def fill(self, video: torch.Tensor, requests: Sequence[ClipRequest]) -> None:
        data = [self.files.read(request.record) for request in requests]
        try:
            self.decode_into(video, self.columns(requests, data))
        except Exception as error:  # DALI raises many types, and cannot go on after any of them
            self.own.__dict__.clear()
            raise DataError(self.explain(requests, error)) from error

    def decode_into(self, video: torch.Tensor, columns: Columns) -> None:
        """Decode clips into [n, T, 3, crop, crop], on a stream beside the step before."""
        samples = len(columns["encoded"])
        if samples > getattr(self.own, "samples", 0):
            self.own.samples = max(samples, self.clips_per_task * (video.shape[1] if self.pictures else 1))
            self.own.pipeline = build_pipeline(self.loader, self.device, self.own.samples, self.threads, list(columns))
        for name, column in columns.items():
            self.own.pipeline.feed_input(name, column)
        (output,) = self.own.pipeline.run()
        feed_ndarray(output.as_tensor(), video.flatten(0, 1) if self.pictures else video, cuda_stream=self.copies)
        if self.copies is not None:
            self.copies.synchronize()  # the output goes back to DALI next

    def finish(self, video: torch.Tensor) -> torch.Tensor:
        if self.copies is not None:
            video.record_stream(torch.cuda.current_stream(self.device))
        return video

    def on_copies(self) -> Any:
        return nullcontext() if self.copies is None else torch.cuda.stream(self.copies)

    def explain(self, requests: Sequence[ClipRequest], error: Exception) -> str:
        """Which clip of a failed batch is at fault: DALI does not say, so each is decoded again with PyAV."""
        for request in requests:
            try:
                decode_frames(self.files.read(request.record), range(request.record.frames))
            except (av.error.FFmpegError, DataError) as failure:
                return self.failure(request, failure)
        clips = ", ".join(f"{request.record.key} in {request.record.shard}" for request in requests[:2])
        more = f" and {len(requests) - 2} more" if len(requests) > 2 else ""
        return f"DALI cannot decode {clips}{more}, although PyAV can: {reason(error)}; loader.backend=pyav avoids DALI"


def reason(error: Exception) -> str:
    """What DALI's message says behind the operator and the traceback of its definition."""
    lines = str(error).rpartition("encountered:")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__
