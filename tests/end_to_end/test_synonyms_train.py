"""Ten actions that no shipped tree knows, from a CSV file to trained labels, with one command for the trees."""

import csv
import json

import av
import numpy as np
import pytest

from ace_dist.concepts import SynonymTrees

pytestmark = pytest.mark.slow

LABELS = (
    "rinse cup,peel carrot,grind pepper,slice bread,sprinkle salt,"
    "knead dough,wrap sandwich,mash potato,grate cheese,crack egg"
)


def write_video(path, seconds, shift):
    """Moving noise; what it shows does not matter here."""
    texture = np.random.default_rng().integers(0, 255, (64, 80, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuvj420p"
        for k in range(int(seconds * 12)):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, shift * k, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_ten_actions_from_csv_to_training(tmp_path, launch):
    """Trees without a key, shards, two steps of ACE, an evaluation: M of the trees is what the labels average over."""
    rows = []
    for number, label in enumerate(LABELS.split(",")):
        write_video(tmp_path / f"{number}.avi", 3.5, number + 1)
        splits = ["train", "train", "test"] if number < 7 else ["test"] * 3  # three novel actions
        rows += [[f"{number}.avi", k, k + 1, *label.split(), split, "x"] for k, split in enumerate(splits)]
    with (tmp_path / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "start_s", "end_s", "verb", "object", "split", "group"], *rows])
    built = launch(
        "build_synonyms", "actions=annotations.csv", "output=trees.json", "source=wordnet", "children=4", cwd=tmp_path
    )
    trees = SynonymTrees.load(tmp_path / "trees.json")
    assert trees.roots == tuple(label.split()[0] for label in LABELS.split(",")) and "10 trees" in built.stdout
    settings = ["dataset.shards=shards", "dataset.encoding.codec=mjpeg", "dataset.encoding.short_side=64"]
    launch("build_shards", "dataset=csv", "dataset.annotations=annotations.csv", *settings, cwd=tmp_path)
    launch(
        "train", "experiment=own", *settings, "dataset.synonyms=trees.json", "run=run", "training.max_steps=2",
        "training.log_every_steps=1", cwd=tmp_path,
    )  # fmt: skip
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses and all(np.isfinite(line["loss"]) for line in losses if "loss" in line)
    with np.load(tmp_path / "run" / "concept_space.npz") as space:
        known = set(space["phrases"])
    for label in LABELS.split(","):
        verb, thing = label.split()
        assert {f"{child} {thing}" for child in trees.children(verb)} <= known, "a class is its tree's children"
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["srt"]["runs"]) == 10
