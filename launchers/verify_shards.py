"""Check shards: `python launchers/verify_shards.py dataset=csv dataset.shards=DIR`. Exits with 1 when they are faulty.

Give the settings of the training that will read them (`dataset.synonyms`, `loader.backend`, `training.device`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ace_dist.config import load_config, run_launcher
from ace_dist.data.build.verify import verify_shards


def main(argv: Sequence[str]) -> None:
    """Print what the shards hold and what is wrong with them."""
    import torch  # not above: the processes that check shards import this file and need no torch

    config = load_config(argv)
    on_gpu = config.training.device == "cuda" or (config.training.device == "auto" and torch.cuda.is_available())
    report = verify_shards(config, torch.device("cuda" if on_gpu else "cpu"))
    print(report.text)
    if report.errors:
        raise SystemExit(1)


if __name__ == "__main__":
    run_launcher(main)
