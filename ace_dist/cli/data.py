"""From annotations to shards: `ace annotations`, `ace shards`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from ace_dist.cli.settings import load_run
from ace_dist.config import load_config, parse_settings, resolve_path, split_settings


@dataclass
class AnnotationsSettings:
    output: str = MISSING  # the CSV file to write


def split_annotations(argv: list[str]) -> None:
    """Check and split annotations: `ace annotations dataset=csv dataset.annotations=FILE output=FILE.csv`.

    Without a split a quarter of the clips is tested, in whole groups (column group, else the video), the same ones each
    time; `dataset.test_groups='[NAME, ...]'` names others.
    """
    own, rest = split_settings(argv, AnnotationsSettings)
    dataset = load_config(rest).dataset
    from ace_dist.tools.annotations import write_annotations

    print(*write_annotations(dataset, Path(own.output)), sep="\n", flush=True)


def build_shards(argv: list[str]) -> None:
    """Make shards: `ace shards dataset=csv dataset.annotations=FILE dataset.shards=DIR`.

    As a SLURM array, each task makes its part and the last one finishes: `sbatch --array=0-7 --wrap "python ..."`.
    """
    dataset = load_config(argv).dataset
    from ace_dist.data.build.shards import array_task
    from ace_dist.data.datasets import build_dataset
    from ace_dist.data.sampling import coinciding_views
    from ace_dist.data.segments import shared_groups
    from ace_dist.worlds import READERS

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
    train, test, manifest = shards.split("train"), shards.split("test"), shards.manifest
    print(f"{dataset.shards}: {len(train)} training and {len(test)} test clips, {len(manifest['shards'])} shards")
    if missing := manifest["quarantined"]:
        print(f"{missing} segments left out, listed in {dataset.shards}/quarantine.jsonl")
    if cut := manifest.get("shortened"):
        print(f"{len(cut)} segments reach past what their video shows and are cut there: {', '.join(cut[:5])}")
    if padded := manifest.get("padded"):
        print(f"{len(padded)} clips are filled up with the last frame of their video: {', '.join(padded[:5])}")
    for note in shared_groups(shards.records):
        print(f"note: {note}")
    if shards.older_build:
        print(shards.older_build)
    if same := coinciding_views(test, dataset.clip):
        print(
            f"{same} of {len(test)} test clips are too short for {dataset.clip.views} different views "
            f"(dataset.clip.seconds={dataset.clip.seconds:g})"
        )


def verify_shards(argv: list[str]) -> int:
    """Check shards: `ace shards verify dataset=csv dataset.shards=DIR`. Exits with 1 for faulty ones.

    Give the settings of the training that will read them (`dataset.synonyms`, `loader.backend`, `training.device`).
    """
    config = load_run(argv)
    from ace_dist.data.shards import ShardSet

    ShardSet.read(resolve_path(config.dataset.shards))  # says that there are none, before torch is imported
    import torch

    from ace_dist.data.build.verify import verify_shards
    from ace_dist.models.tokenizer import bpe_ids

    on_gpu = config.training.device == "cuda" or (config.training.device == "auto" and torch.cuda.is_available())
    text = config.model.text
    tokenise = bpe_ids if text.tower == "clip" and text.tokenizer is None else list
    report = verify_shards(config, torch.device("cuda" if on_gpu else "cpu"), tokenise)
    print(report.text)
    return int(bool(report.errors))


def convert_ata(argv: list[str]) -> None:
    """Make ATA's manifest: `ace shards ata root=DIR output=manifest.csv [person=REGEX ...]`.

    Reads label files of the forms in use, finds the video of each, and says in one message what does not fit.
    """
    from ace_dist.data.annotations.ata_release import ConvertConfig, convert

    print(*convert(parse_settings(argv, ConvertConfig)), sep="\n")
