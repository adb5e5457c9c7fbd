"""The commands for the paper's data sets (docs/reproduce.md): a build, any fold, a step of training, the evaluation."""

import json

import pytest
from paper_data import random_gtea, write_gtea

pytestmark = pytest.mark.slow

TOY = [
    "model=tabletop", "loader=tabletop", "model.init=random",
    "dataset.clip.frames=2", "dataset.clip.views=1", "training.max_steps=1", "training.batch_size=4",
]  # fmt: skip


def test_gtea_from_its_folder_to_results(tmp_path, launch):
    """Fold k tests subject k on shards that were built once; unseen actions and SRT are those of the paper."""
    root = write_gtea(tmp_path / "gtea", random_gtea(length=(10, 14)))
    shards = f"dataset.shards={tmp_path / 'shards'}"
    built = launch(
        "build_shards", "dataset=gtea", f"dataset.root={root}", shards, "dataset.encoding.short_side=64",
        "dataset.workers=1",
    )  # fmt: skip
    assert "30 training and 10 test clips" in built.stdout and "tested: S1" in built.stdout
    run = tmp_path / "runs" / "fold2"
    launch("train", "experiment=gtea_ace", shards, "dataset.fold=2", f"run={run}", *TOY)
    results = json.loads((run / "results.json").read_text())
    assert (results["dataset"], results["fold"]) == ("gtea", 2) and len(results["srt"]["runs"]) == 10
    predictions = json.loads((run / "predictions.json").read_text())
    assert (len(predictions["base"]["ids"]), len(predictions["novel"]["ids"])) == (6, 4)
    assert all(name.startswith("S2_") for part in ("base", "novel") for name in predictions[part]["ids"])
