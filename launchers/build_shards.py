"""Make shards: `python launchers/build_shards.py dataset=csv dataset.annotations=FILE dataset.shards=DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from ace_dist.config import load_config, run_launcher
from ace_dist.data.clips import coinciding_views
from ace_dist.data.readers import build_dataset


def main(argv: Sequence[str]) -> None:
    """Cut, encode, check and pack every segment; say what came out."""
    dataset = load_config(argv).dataset
    shards = build_dataset(dataset)
    train, test = shards.split("train"), shards.split("test")
    print(
        f"{dataset.shards}: {len(train)} training and {len(test)} test clips, {len(shards.manifest['shards'])} shards"
    )
    if missing := shards.manifest["quarantined"]:
        print(f"{missing} segments left out, listed in {dataset.shards}/quarantine.jsonl")
    if same := coinciding_views(test, dataset.clip):
        print(
            f"{same} of {len(test)} test clips are too short for {dataset.clip.views} different views "
            f"(dataset.clip.seconds={dataset.clip.seconds:g})"
        )


if __name__ == "__main__":
    run_launcher(main)
