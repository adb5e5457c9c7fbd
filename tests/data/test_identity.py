"""Protects a continued run from other clips: what a step shows is a function of the step and of the list of clips."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_worlds import NumberedReader, build_shards, small_encoding, small_loader

from ace_dist.config import ClipConfig
from ace_dist.data.loader.pyav import PyavLoader
from ace_dist.data.sampling import TrainPlan, claim_clips
from ace_dist.data.shards import ShardSet
from ace_dist.utils.errors import DataError

PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
CLIP, BATCH, STEPS = ClipConfig(6, 1.5), 4, 14


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eleven clips in four shards."""
    reader = NumberedReader(11, sizes=((64, 64), (48, 80)), test_every=100)
    folder = tmp_path_factory.mktemp("shards")
    return build_shards(reader, folder, CLIP, small_encoding(), clips_per_shard=3)


def test_a_run_is_continued_on_the_same_clips_wherever_they_lie(shards, tmp_path):
    labels = [0] * len(shards.records)
    claim_clips(tmp_path, "a", shards.records, labels)
    elsewhere = [dataclasses.replace(record, offset=record.offset + 512) for record in shards.records]
    claim_clips(tmp_path, "elsewhere", elsewhere, labels)


@pytest.mark.parametrize("change", ["content", "window", "label", "added", "removed", "order"])
def test_other_clips_are_refused_by_shard_and_setting(shards, tmp_path, change):
    records, labels = list(shards.records), [0] * len(shards.records)
    claim_clips(tmp_path, "old", records, labels)
    before = (tmp_path / "clips.json").read_text()
    expected = f"{records[4].shard} has other clips or labels"
    if change == "content":
        records[4] = dataclasses.replace(records[4], sha256="0" * 64)
    elif change == "window":
        records[4] = dataclasses.replace(records[4], segment_end_s=records[4].segment_end_s + 0.1)
    elif change == "label":
        labels[4] = 1
    elif change == "added":
        records.append(dataclasses.replace(records[4], key="new", shard="train-00009.tar"))
        labels.append(0)
        expected = r"train-00009\.tar is new \(1 clips\)"
    elif change == "removed":
        del records[4], labels[4]
        expected = f"{shards.records[4].shard} had 3 clips, has 2"
    else:
        records = records[3:] + records[:3]
        expected = "in another order"
    with pytest.raises(DataError, match=rf"dataset\.shards=new .*{expected}.*run="):
        claim_clips(tmp_path, "new", records, labels)
    assert (tmp_path / "clips.json").read_text() == before  # a refusal changes nothing


def read(folder, log, first, last, rank=0, world=1):
    """Decode steps `first` to `last` and log a line a clip: step, key, frames, digest of the pixels as decoded."""
    shards = ShardSet.load(folder)
    loader = PyavLoader(shards.folder, small_loader(), torch.device("cpu"))
    plan = TrainPlan(shards.records, [0] * len(shards.records), CLIP, small_loader(), BATCH, 7, rank, world)
    with open(log, "a", encoding="utf-8") as file:
        for step, batch in zip(
            range(first, last), loader.stream(map(plan.requests, range(first, last + 9))), strict=False
        ):
            for video, key, frames in zip(batch.video, batch.ids, batch.frame_indices.tolist(), strict=True):
                pixels = hashlib.sha256(np.ascontiguousarray(video.numpy()).tobytes()).hexdigest()
                file.write(json.dumps([step, key, frames, pixels]) + "\n")
            file.flush()


def read_and_die(folder, log, first, last):
    """As `read`, in a process that is killed while it decodes ahead, as the kernel or a cluster kills a training."""
    script = (
        f"import os, signal, sys; sys.path[:0] = {PATHS!r}; import test_identity as t;"
        f"t.read({str(folder)!r}, {str(log)!r}, {first}, {last}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL


def test_killed_and_resumed_twice_reads_the_same_clips_and_crops(shards, tmp_path):
    """Also with another number of ranks, and across the end of an epoch (11 clips, 4 a step)."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    read(shards.folder, straight, 0, STEPS)
    read_and_die(shards.folder, killed, 0, 4)
    read_and_die(shards.folder, killed, 4, 9)
    read(shards.folder, killed, 9, STEPS)
    assert straight.read_text() == killed.read_text()
    lines = straight.read_text().splitlines()
    assert len(lines) == STEPS * BATCH and len(set(lines)) == len(lines)  # every epoch crops anew
    for rank in range(2):
        read(shards.folder, tmp_path / f"rank{rank}", 0, STEPS, rank, world=2)
    halves = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in range(2)]
    share = BATCH // 2
    together = [line for step in range(STEPS) for half in halves for line in half[step * share : (step + 1) * share]]
    assert together == lines
