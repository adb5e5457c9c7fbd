"""Make shards: `python launchers/build_shards.py dataset=csv dataset.annotations=FILE dataset.shards=DIR`.

As a SLURM array, each task makes its part and the last one finishes: `sbatch --array=0-7 --wrap "python ..."`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ace_dist.config import load_config, run_launcher
from ace_dist.data.build.shards import array_task
from ace_dist.data.datasets import build_dataset
from ace_dist.data.sampling import coinciding_views
from ace_dist.worlds import READERS


def main(argv: Sequence[str]) -> None:
    """Cut, encode, check and pack every segment, or this task's part of them; say what came out."""
    dataset = load_config(argv).dataset
    task, tasks, reason = array_task(dataset.task, dataset.tasks, os.environ)
    if tasks > 1:
        print(f"part {task} of {tasks} ({reason})", flush=True)
    shards = build_dataset(dataset, READERS, task=task, tasks=tasks)
    if shards is None:
        print(
            f"{dataset.shards}: this part is finished, others are not; the last one writes the manifest "
            "(or, when none is left, this command with dataset.tasks=1)"
        )
        return
    train, test = shards.split("train"), shards.split("test")
    print(
        f"{dataset.shards}: {len(train)} training and {len(test)} test clips, {len(shards.manifest['shards'])} shards"
    )
    if missing := shards.manifest["quarantined"]:
        print(f"{missing} segments left out, listed in {dataset.shards}/quarantine.jsonl")
    if shortened := shards.manifest.get("shortened"):
        print(
            f"{len(shortened)} segments reach past the end of their video and end with it: {', '.join(shortened[:5])}"
        )
    if same := coinciding_views(test, dataset.clip):
        print(
            f"{same} of {len(test)} test clips are too short for {dataset.clip.views} different views "
            f"(dataset.clip.seconds={dataset.clip.seconds:g})"
        )


if __name__ == "__main__":
    run_launcher(main)
