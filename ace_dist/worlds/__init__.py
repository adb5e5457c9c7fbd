"""Rendered worlds: data sets whose clips need no video."""

from ace_dist.config import DatasetConfig
from ace_dist.data.datasets import Readers
from ace_dist.worlds.tabletop.reader import TabletopReader
from ace_dist.worlds.tabletop.world import build_world

READERS: Readers = {"tabletop": lambda dataset: TabletopReader(build_world(dataset.world))}  # by `dataset.kind`


def check_world(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` for a setting of `dataset.world` that its world does not know or cannot have."""
    if dataset.kind in READERS:
        READERS[dataset.kind](dataset)
