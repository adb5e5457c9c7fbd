"""Rendered worlds: data sets whose clips need no video."""

from ace_dist.config import DatasetConfig
from ace_dist.data.datasets import Readers
from ace_dist.worlds.tabletop.reader import build_reader

READERS: Readers = {"tabletop": build_reader}  # by `dataset.kind`


def check_world(dataset: DatasetConfig) -> None:
    """Raise `ConfigError` for a setting of `dataset.world` that its world does not know or cannot have."""
    if dataset.kind in READERS:
        READERS[dataset.kind](dataset)
