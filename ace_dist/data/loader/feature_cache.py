"""The feature cache: what the frozen part of the video tower makes of a clip, kept on disk.

A clip in it is neither decoded nor passed through the frozen part again. It stands between loader and model: a stream's
batches hold, instead of pixels, the features [B,1+P*T,D] that the trained part of the model goes on from. A file is of
one clip as one request shows it, under a folder for the frozen part that made it: its weights and shape, the precision,
the device's kind, the decoder. A clip always passes the frozen part alone, so its file does not depend on the batch,
the rank or the run that it was made in.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ace_dist.config import LoaderConfig, resolve_path
from ace_dist.data.loader.base import Batch, Loader, build_batch, decoding_threads
from ace_dist.data.sampling import ClipRequest
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import DataError
from ace_dist.utils.files import write_bytes, write_json
from ace_dist.utils.memory import Upload

FORMAT = 1  # raise it when the same request shows other pixels, or the frozen part computes otherwise
UNFINISHED_S = 3600.0
RECOUNT_SHARE = 0.01  # of the limit: after so many bytes of its own a process looks what others wrote


@dataclass(frozen=True)
class PlannedBatch:
    """A batch: its requests, and for each either the read of its file or None (to be decoded)."""

    requests: Sequence[ClipRequest]
    reads: list[Future[Tensor] | None]

    @property
    def missing(self) -> list[ClipRequest]:
        return [request for request, read in zip(self.requests, self.reads, strict=True) if read is None]


class FrozenPart(Protocol):
    """The part of a video tower that no training changes; `TimeSformer` is one."""

    def frozen_features(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W] -> features [B,1+P*T,D]."""

    def frozen_features_state(self) -> dict[str, Tensor]:
        """The weights that `frozen_features` depends on, by name."""

    def frozen_features_settings(self, device: torch.device) -> tuple[list[Any], str]:
        """Settings that its arithmetic depends on, and which attention computes it on `device`."""


class FeatureCache(Loader):
    """A loader whose batches come out of the cache; what is missing is decoded, passes the frozen part and is written.

    When the whole folder of `loader.feature_cache` holds `loader.feature_cache_gib`, nothing is added any more and
    nothing removed: a training run asks for every clip equally often. Processes that share it keep to it within 1 %.
    """

    def __init__(self, loader: Loader, settings: LoaderConfig, frozen: FrozenPart, device: torch.device) -> None:
        assert settings.feature_cache is not None
        self.inner, self.frozen, self.device = loader, frozen, device
        self.backend, self.decoder = loader.backend, loader.decoder
        self.root, self.limit = resolve_path(settings.feature_cache), settings.feature_cache_gib * 2**30
        # Weights with their names and types, and the settings that their arithmetic depends on.
        arithmetic, attention = frozen.frozen_features_settings(device)
        digest = hashlib.sha256(json.dumps(arithmetic).encode())
        for name, tensor in frozen.frozen_features_state().items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(memoryview(as_bytes(tensor)))  # type: ignore[arg-type]
        about = {
            "format": FORMAT,
            "trunk": digest.hexdigest(),
            "attention": attention,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "decoder": loader.decoder,
            "clips": settings.dtype,
            "mean": list(settings.mean),
            "std": list(settings.std),
            "torch": torch.__version__,
        }
        self.folder = self.root / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "about.json", about)
        self.prefetch = max(1, settings.prefetch)
        self.pool = ThreadPoolExecutor(decoding_threads(settings, device), "feature_cache")
        self.upload = Upload(device)
        self.recalled = self.computed = 0  # clips
        self.recount()

    def recount(self) -> None:
        """Add up the bytes of all files below the root, and delete those that killed writers left an hour ago.

        One that is an hour ahead is of before the clock was set back. What vanishes meanwhile does not count.
        """
        self.held = self.added = 0
        for path in (Path(place, name) for place, _, names in os.walk(self.root) for name in names):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                if path.match(".*.partial") and abs(time.time() - facts.st_mtime) > UNFINISHED_S:
                    path.unlink()
                else:
                    self.held += facts.st_size

    def decode(self, batches: Iterator[Sequence[ClipRequest]]) -> Generator[Batch, None, None]:
        """See `Loader.decode`. Batches with a missing clip, one after the other, are one stream of the inner loader."""
        plans = self.planned(batches)
        for first in plans:
            waiting = deque([first])
            if first.missing:
                for decoded in self.inner.stream(missing_requests(first, plans, waiting)):
                    yield self.complete(waiting.popleft(), decoded)
            while waiting:
                yield self.complete(waiting.popleft(), None)

    def planned(self, batches: Iterator[Sequence[ClipRequest]]) -> Iterator[PlannedBatch]:
        """The batches, files of `prefetch` of them being read ahead."""
        ahead: deque[PlannedBatch] = deque()
        for requests in batches:
            paths = [self.path(request) for request in requests]
            reads = [self.pool.submit(self.read, path) if path.is_file() else None for path in paths]
            ahead.append(PlannedBatch(requests, reads))
            if len(ahead) > self.prefetch:
                yield ahead.popleft()
        yield from ahead

    def read(self, path: Path) -> Tensor:
        """`read_features`, for a GPU into pinned memory: the copy to it then overlaps with its work."""
        features = read_features(path)
        return features.pin_memory() if self.device.type == "cuda" else features

    def complete(self, plan: PlannedBatch, decoded: Batch | None) -> Batch:
        """A plan's batch: what was read, and the features of what was decoded, which are written."""
        fresh = iter(decoded.video if decoded is not None else ())
        rows = []
        for request, read in zip(plan.requests, plan.reads, strict=True):
            if read is None:
                features = self.frozen.frozen_features(next(fresh)[None])[0]
                self.keep(request, features)
                self.computed += 1
            else:
                features = self.upload(read.result())
                self.recalled += 1
            rows.append(features)
        return build_batch(torch.stack(rows), plan.requests)

    def keep(self, request: ClipRequest, features: Tensor) -> None:
        path, size = self.path(request), features.numel() * features.element_size()
        if self.added > RECOUNT_SHARE * self.limit:
            self.recount()
        if self.held + self.added + size > self.limit:
            say_once(
                f"feature cache: {self.root} is full ({(self.held + self.added) / 2**30:.2f} of "
                f"loader.feature_cache_gib={self.limit / 2**30:g}); clips that are not in it are computed each time"
            )
        elif not path.is_file():
            try:
                write_features(path, features)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                say_once(f"feature cache: no space left below {self.root} ({error}); nothing is added any more")
                self.limit = 0.0
                return
            self.added += path.stat().st_size

    def path(self, request: ClipRequest) -> Path:
        shown = {**asdict(request), "record": request.record.sha256}
        for other in ("label", "view"):  # names for the same pixels
            del shown[other]
        digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest}.safetensors"

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.inner.close()


def missing_requests(
    first: PlannedBatch, plans: Iterator[PlannedBatch], waiting: deque[PlannedBatch]
) -> Iterator[list[ClipRequest]]:
    """Requests of consecutive batches that are not in the cache; ends with a batch that is complete.

    Batches after `first` are put in `waiting`, to be completed in turn.
    """
    yield first.missing
    for plan in plans:
        waiting.append(plan)
        if not plan.missing:
            return
        yield plan.missing


def as_bytes(tensor: Tensor) -> Any:
    """A tensor's bytes as a NumPy array (which knows no bfloat16)."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def write_features(path: Path, features: Tensor) -> None:
    tensor = features.contiguous().cpu()
    write_bytes(path, save({"features": tensor}, metadata={"crc32": str(zlib.crc32(as_bytes(tensor)))}))


def read_features(path: Path) -> Tensor:
    """Features [1+P*T,D] of a file. Raises `DataError` naming it when it is damaged or gone."""
    try:
        with safe_open(path, "pt") as file:
            tensor, facts = file.get_tensor("features"), file.metadata() or {}
            expected = int(facts.get("crc32", -1))
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{path} of loader.feature_cache cannot be read: {error}; delete it") from error
    if zlib.crc32(as_bytes(tensor)) != expected:
        raise DataError(f"{path} of loader.feature_cache is damaged (CRC-32 differs); delete it")
    return cast("Tensor", tensor)
