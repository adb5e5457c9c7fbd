"""All ranks decode with what rank 0 found to be the fastest, whatever they would have found, and see what it raises."""

import os

import pytest
import torch
import torch.distributed as dist
from data_worlds import NumberedReader, build_shards, small_encoding, small_loader
from ports import free_port
from torch import multiprocessing

from ace_dist.config import ClipConfig, Config, DatasetConfig
from ace_dist.data.loader import fastest, open_backend
from ace_dist.data.shards import ShardSet
from ace_dist.utils.errors import DataError

CLIP, CPU = ClipConfig(6, 1.5, 3), torch.device("cpu")


def one_rank(rank, world, port, folder):
    """Rank 0 finds PyAV, the other would find DALI; then rank 0 finds nothing."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    shards = ShardSet.load(folder)
    dataset = DatasetConfig(name="t", kind="tabletop", shards=str(folder), clip=CLIP)
    config = Config(name="t", run=str(folder / "run"), dataset=dataset, loader=small_loader())

    def open_loader(backend):
        if rank == 0 and backend == "dali":
            raise DataError("no driver")
        return open_backend(backend, shards, config.loader, CPU)

    def nothing(backend):
        raise DataError("nothing works")

    found = fastest.fastest_backend(config, shards, CPU, open_loader)[0]
    try:
        fastest.fastest_backend(config, shards, CPU, nothing)
    except DataError as error:
        found += f", {error}"
    (folder / f"found_{rank}").write_text(found)
    dist.destroy_process_group()


@pytest.mark.slow
def test_rank_0_chooses_for_all(tmp_path):
    build_shards(NumberedReader(4), tmp_path, CLIP, small_encoding())
    multiprocessing.spawn(one_rank, (2, free_port(), tmp_path), nprocs=2)
    assert [(tmp_path / f"found_{rank}").read_text() for rank in (0, 1)] == ["pyav, nothing works"] * 2
