"""`loader.backend=auto` on a GPU: the decoder that is fastest there on a run's first clips, remembered in its folder.

Which one that is depends on the codec, the cores, and the engines of the GPU: no table would be right for all. Decoders
differ in the rounding of pixels, so a run that is continued goes on with the one that it began with.
"""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from typing_extensions import TypedDict

from ace_dist.config import Config
from ace_dist.data.loader.base import Loader
from ace_dist.data.sampling import ClipRequest, TrainPlan
from ace_dist.data.shards import ShardFiles, ShardSet
from ace_dist.utils.console import say_once
from ace_dist.utils.distributed import Ranks, on_first
from ace_dist.utils.errors import DataError
from ace_dist.utils.files import write_json
from ace_dist.utils.reading import Number, Text, check_shape, read_object

CANDIDATES = ("dali", "pyav")
MEASURED_S = 0.5  # for each candidate, besides its start
BATCHES = 4  # that are decoded in turns
REMEMBERED = "loader.json"


class Remembered(TypedDict):
    """`loader.json`: what was chosen when the run began, and the clips a second of each."""

    backend: Text
    clips_per_s: dict[str, Number]


def fastest_backend(
    config: Config, shards: ShardSet, device: torch.device, open_loader: Callable[[str], Loader]
) -> tuple[str, str]:
    """The backend that the run's folder names, else the fastest of those that can be used, and the reason in words.

    Rank 0 decides for all (collective), and writes `loader.json` when the folder is a run's. A candidate that cannot be
    used is named with the reason. When it is the one that the run began with, the run goes on with another: the
    difference is the rounding of pixels, and a job that is requeued on a host with an older driver should not end.
    """
    if not dist.is_initialized():
        return decide(config, shards, open_loader)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
    decided = ranks.gather(on_first(ranks, decide, config, shards, open_loader))[0]
    assert decided is not None
    return decided


def remembered(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    advice = "; delete it, and loaders are timed anew"
    return check_shape(read_object(path, DataError, advice), Remembered, str(path), DataError, advice)


def decide(config: Config, shards: ShardSet, open_loader: Callable[[str], Loader]) -> tuple[str, str]:
    path, batches = Path(config.run) / REMEMBERED, first_batches(config, shards)
    began = remembered(path)
    first = began.get("backend")
    rates: dict[str, float] = {}
    failure: DataError | None = None
    for backend in sorted(CANDIDATES, key=lambda name: name != first):
        try:
            with closing(open_loader(backend)) as loader:
                if backend == first:
                    next(loader.stream([batches[0][:1]]))
                    return backend, f"as this run began, with {in_words(began['clips_per_s'])}"
                rates[backend] = clips_per_s(loader, shards, batches)
        except DataError as error:
            failure = error
            note = ", with which this run began; pixels change by rounding" if backend == first else ""
            say_once(f"loader: {backend} cannot be used here{note} ({error})")
        if rates and config.training.deterministic:  # two equal runs must not differ by how busy a host was
            break
    if not rates:
        assert failure is not None
        raise failure
    backend = max(rates, key=rates.__getitem__)
    if not began and (path.parent / "config.yaml").is_file():
        write_json(path, {"backend": backend, "clips_per_s": rates})
    return backend, f"the fastest here: {in_words(rates)}"


def first_batches(config: Config, shards: ShardSet) -> list[list[ClipRequest]]:
    """Batches of a rank, as the first steps of a run have them."""
    records, training = shards.split("train") or shards.records, config.training
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    size = max(1, training.batch_size // (ranks * training.accumulation))
    plan = TrainPlan(records, [0] * len(records), config.dataset.clip, config.loader, size, config.seed)
    return [plan.requests(step) for step in range(BATCHES)]


def clips_per_s(loader: Loader, shards: ShardSet, batches: Sequence[list[ClipRequest]]) -> float:
    """Of a consumer that always waits, with the bytes in memory already, whoever is measured first."""
    with closing(ShardFiles(shards.folder)) as files:
        for request in itertools.chain.from_iterable(batches):
            files.read_raw(request.record)
    with closing(loader.stream(itertools.cycle(batches))) as stream:
        for _ in batches:  # the first ones build pipelines
            next(stream)
        started, clips = time.perf_counter(), 0
        while not clips or time.perf_counter() - started < MEASURED_S:
            clips += len(next(stream).ids)
        return clips / (time.perf_counter() - started)


def in_words(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{backend} {rate:.0f}" for backend, rate in rates.items()) + " clips/s"
