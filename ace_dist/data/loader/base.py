"""Owns the one interface through which decoded clips reach a model, and the choice of who decodes them.

Both loaders decode exactly what a `ClipRequest` says, read by byte offset from the shards. They do not use the
sequential `fn.readers.webdataset`, although the shards suit it: the order of the clips would then live in the reader.

- its order depends on the number of ranks (each reads its own shards), while a plan's global order does not;
- its shuffle is a buffer over neighbouring clips, while a plan draws a true permutation and drops nothing;
- its position is a state to save per rank, and DALI accepts the state of another number of ranks without a word, while
  here the position in the data *is* the step: resuming is asking the plan for the next one;
- DALI's `fn.decoders.video` refuses checkpointing, so a pipeline that holds both reader and decoder cannot be resumed.
"""

from __future__ import annotations

import abc
import importlib.util
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ace_dist.data.sampling import ClipRequest
from ace_dist.data.shards import ClipRecord, ShardSet
from ace_dist.utils.errors import DataError
from ace_dist.utils.memory import send

if TYPE_CHECKING:
    from ace_dist.config import Config, LoaderConfig


DALI_CPU_CODECS = ("vp9", "mjpeg")  # measured with DALI 2.4.0: its CPU backend refuses h264
NVDEC_VP9_LEAST = 128  # pixels a side; below it NVDEC has no VP9 (NVDEC programming guide)


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


def assemble(video: torch.Tensor, requests: Sequence[ClipRequest]) -> Batch:
    """A batch of decoded video and what its requests know."""
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

    def stream(self, batches: Iterable[Sequence[ClipRequest]]) -> Iterator[Batch]:
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


def make_loader(shards_dir: str | Path, config: Config, device: torch.device | str) -> Loader:
    """The loader of a shard folder for `device`; which backend and why is printed once, by rank 0.

    Raises `DataError` when `loader.backend` cannot decode these shards on this device, or when the shards were cut for
    shorter clips than `dataset.clip.seconds`, or stored at a lower rate than the clip shows.
    """
    shards, device, clip = ShardSet.load(shards_dir), torch.device(device), config.dataset.clip
    if clip.seconds > shards.seconds:
        raise DataError(
            f"dataset.clip.seconds={clip.seconds:g} exceeds the {shards.seconds:g} s that the clips in "
            f"dataset.shards={shards_dir} were cut for; build the shards again with this setting"
        )
    stored_fps, rate = shards.manifest["configuration"]["encoding"]["fps"], clip.frames / clip.seconds
    if stored_fps and rate > 1.001 * stored_fps:
        raise DataError(
            f"dataset.clip.frames={clip.frames} of {clip.seconds:g} s are {rate:g} a second, and "
            f"dataset.shards={shards_dir} was stored at dataset.encoding.fps={stored_fps:g}, so that frames would be "
            "shown twice; build the shards again with a higher rate (null: the videos' own)"
        )
    backend, reason = choose_backend(config.loader.backend, shards.codec, shards.records, device)
    say_once(f"loader: {backend} ({reason})")
    if backend == "pyav":
        from ace_dist.data.loader.pyav import PyavLoader

        return PyavLoader(shards.folder, config.loader, device)
    from ace_dist.data.loader.dali import DaliLoader

    return DaliLoader(shards.folder, config.loader, device)


def choose_backend(setting: str, codec: str, records: Sequence[ClipRecord], device: torch.device) -> tuple[str, str]:
    """ "dali" or "pyav", and the reason. Raises `DataError` when the setting and the codec exclude each other."""
    installed = importlib.util.find_spec("nvidia.dali") is not None
    on_gpu = device.type == "cuda"
    if setting == "pyav":
        return "pyav", "loader.backend=pyav"
    if setting == "dali":
        if not installed:
            raise DataError("loader.backend=dali, but nvidia-dali is not installed; use loader.backend=pyav")
        if not on_gpu and codec not in DALI_CPU_CODECS:
            raise DataError(
                f"dataset.encoding.codec={codec} cannot be decoded by DALI on a CPU, which knows "
                f"{' and '.join(DALI_CPU_CODECS)} only: use loader.backend=pyav, or build the shards with "
                "dataset.encoding.codec=vp9"
            )
        return "dali", f"loader.backend=dali, decoding on the {'GPU' if on_gpu else 'CPU'}"
    if not on_gpu:
        # benchmarks/results/loading_cpu.csv, 30-frame clips/s of a core: PyAV 36 (vp9) and 50 (mjpeg), DALI 13 and 14.
        return "pyav", "no GPU: PyAV decodes canonical clips faster than DALI's CPU backend"
    if not installed:
        return "pyav", "a GPU, but nvidia-dali is not installed"
    if codec == "vp9" and min(min(record.width, record.height) for record in records) < NVDEC_VP9_LEAST:
        return "pyav", f"NVDEC decodes no VP9 smaller than {NVDEC_VP9_LEAST} pixels"
    return "dali", "a GPU: NVDEC decodes, nothing crosses the bus but compressed bytes"


said: set[str] = set()


def say_once(line: str) -> None:
    """Print a line on rank 0, and only the first time."""
    if os.environ.get("RANK", "0") == "0" and line not in said:
        said.add(line)
        print(line, flush=True)


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
