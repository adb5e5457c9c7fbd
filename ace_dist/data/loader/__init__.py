"""Builds the loader of a run: who decodes its clips on this device, and why, and the feature cache before it."""

from dataclasses import replace
from functools import partial

import torch

from ace_dist.config import Config, LoaderConfig, resolve_path
from ace_dist.data.loader.base import Loader
from ace_dist.data.loader.fastest import fastest_backend
from ace_dist.data.loader.feature_cache import FeatureCache, FrozenPart
from ace_dist.data.shards import ShardSet
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import DataError

DALI_CPU_CODECS = ("vp9", "mjpeg")  # measured with DALI 2.4.0: its CPU backend refuses h264


def build_loader(config: Config, device: torch.device | str, frozen: FrozenPart | None = None) -> Loader:
    """The loader of `dataset.shards` for `device`; which backend and why is printed once, by rank 0.

    With `frozen`, the part of the model that no training changes, its batches come out of the feature cache.
    Raises `DataError` when `loader.backend` cannot decode these shards on this device, or when the shards were cut for
    shorter clips than `dataset.clip.seconds`, or stored at a lower rate than the clip shows.
    """
    device, folder = torch.device(device), resolve_path(config.dataset.shards)
    shards = ShardSet.load(folder)
    check_stored_clips(config, shards)
    open_loader = partial(open_backend, shards=shards, loader=config.loader, device=device)
    backend, reason = choose_backend(config.loader.backend, shards.codec, device)
    if backend == "auto":
        backend, reason = fastest_backend(config, shards, device, open_loader)
    say_once(f"loader: {backend} ({reason})")
    loader = open_loader(backend)
    return loader if frozen is None else FeatureCache(loader, config.loader, frozen, device)


def build_test_loader(config: Config, device: torch.device | str, frozen: FrozenPart | None = None) -> Loader:
    """`build_loader` of a finished run: where its backend cannot be used that of `auto`, which a line says."""
    try:
        return build_loader(config, device, frozen)
    except DataError as error:
        if (backend := config.loader.backend) == "auto":
            raise
        loader = build_loader(replace(config, loader=replace(config.loader, backend="auto")), device, frozen)
        say_once(
            f"loader.backend={backend} trained this run and cannot be used here, so pixels change by rounding: {error}"
        )
        return loader


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


def open_backend(backend: str, shards: ShardSet, loader: LoaderConfig, device: torch.device) -> Loader:
    """A backend's library is imported here: no other backend needs it. Raises `DataError` when it is not installed."""
    if backend == "dali":
        try:
            from ace_dist.data.loader.dali import DaliLoader
        except ImportError as error:
            raise DataError(f"loader.backend=dali cannot be used ({error}); use loader.backend=pyav") from error
        return DaliLoader(shards.folder, loader, device, shards.codec)
    if backend == "torchcodec":
        from ace_dist.data.loader.torchcodec import TorchcodecLoader

        return TorchcodecLoader(shards.folder, loader, device)
    from ace_dist.data.loader.pyav import PyavLoader

    return PyavLoader(shards.folder, loader, device)


def choose_backend(setting: str, codec: str, device: torch.device) -> tuple[str, str]:
    """Who decodes, and the reason; still `auto` on a GPU. Raises `DataError` when the setting excludes the codec."""
    if setting == "auto" and device.type == "cuda":
        return "auto", "a GPU: a run times DALI and PyAV when it starts"
    if setting == "auto":
        # benchmarks/results/loading_cpu.csv, 30-frame clips/s of a core: PyAV 36 (vp9) and 50 (mjpeg), DALI 13 and 14.
        return "pyav", "no GPU: PyAV decodes canonical clips faster than DALI's CPU backend"
    if setting == "dali" and device.type == "cpu" and codec not in DALI_CPU_CODECS:
        raise DataError(
            f"dataset.encoding.codec={codec} cannot be decoded by DALI on a CPU, which knows "
            f"{' and '.join(DALI_CPU_CODECS)} only: use loader.backend=pyav, or build the shards with "
            "dataset.encoding.codec=vp9"
        )
    return setting, f"loader.backend={setting}"
