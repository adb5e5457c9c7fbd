"""Builds the loader of a run: who decodes its clips on this device, and why, and the feature cache before it."""

import importlib.util
from collections.abc import Sequence

import torch

from ace_dist.config import Config, resolve_path
from ace_dist.data.loader.base import Loader, say_once
from ace_dist.data.loader.feature_cache import FeatureCache, FrozenPart
from ace_dist.data.shards import ClipRecord, ShardSet
from ace_dist.utils.errors import DataError

DALI_CPU_CODECS = ("vp9", "mjpeg")  # measured with DALI 2.4.0: its CPU backend refuses h264
NVDEC_VP9_LEAST = 128  # pixels a side; below it NVDEC has no VP9 (NVDEC programming guide)


def build_loader(config: Config, device: torch.device | str, frozen: FrozenPart | None = None) -> Loader:
    """The loader of `dataset.shards` for `device`; which backend and why is printed once, by rank 0.

    With `frozen`, the part of the model that no training changes, its batches come out of the feature cache.
    Raises `DataError` when `loader.backend` cannot decode these shards on this device, or when the shards were cut for
    shorter clips than `dataset.clip.seconds`, or stored at a lower rate than the clip shows.
    """
    device, folder = torch.device(device), resolve_path(config.dataset.shards)
    shards = ShardSet.load(folder)
    check_stored_clips(config, shards)
    backend, reason = choose_backend(config.loader.backend, shards.codec, shards.records, device)
    say_once(f"loader: {backend} ({reason})")
    # A backend's library is imported here: no other backend needs it.
    loader: Loader
    if backend == "dali":
        from ace_dist.data.loader.dali import DaliLoader

        loader = DaliLoader(folder, config.loader, device, shards.codec)
    elif backend == "torchcodec":
        from ace_dist.data.loader.torchcodec import TorchcodecLoader

        loader = TorchcodecLoader(folder, config.loader, device)
    else:
        from ace_dist.data.loader.pyav import PyavLoader

        loader = PyavLoader(folder, config.loader, device)
    return loader if frozen is None else FeatureCache(loader, config.loader, frozen, device)


def check_stored_clips(config: Config, shards: ShardSet) -> None:
    """Raise `DataError` when the stored clips are shorter, or have fewer frames a second, than a run shows."""
    clip, folder = config.dataset.clip, config.dataset.shards
    if clip.seconds > shards.seconds:
        raise DataError(
            f"dataset.clip.seconds={clip.seconds:g} exceeds the {shards.seconds:g} s that the clips in "
            f"dataset.shards={folder} were cut for; build the shards again with this setting"
        )
    stored_fps, rate = shards.manifest["configuration"]["encoding"]["fps"], clip.frames / clip.seconds
    if stored_fps and rate > 1.001 * stored_fps:
        raise DataError(
            f"dataset.clip.frames={clip.frames} of {clip.seconds:g} s are {rate:g} a second, and "
            f"dataset.shards={folder} was stored at dataset.encoding.fps={stored_fps:g}, so that frames would be "
            "shown twice; build the shards again with a higher rate (null: the videos' own)"
        )


def choose_backend(setting: str, codec: str, records: Sequence[ClipRecord], device: torch.device) -> tuple[str, str]:
    """Who decodes, and the reason. Raises `DataError` when the setting and the codec exclude each other."""
    installed = importlib.util.find_spec("nvidia.dali") is not None
    on_gpu = device.type == "cuda"
    if setting not in ("auto", "dali"):
        return setting, f"loader.backend={setting}"
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
