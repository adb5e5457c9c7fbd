"""The recipes of docs/architecture.md work as they stand: applied to a copy of the package, they build and train."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_worlds import write_video

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
NEW_FILE = re.compile(r"^New file `([^`]+)`:\n```python\n(.*?)```", re.M | re.S)
CHANGE = re.compile(r"^In `([^`]+)`, `([^`]+)` becomes `([^`]+)`\.", re.M | re.S)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with all four recipes applied, in a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    for part in ("ace_dist", "kernels", "configs", "launchers"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    page = PAGE.read_text(encoding="utf-8")
    files, changes = NEW_FILE.findall(page), CHANGE.findall(page)
    assert len(files) == 4 and len(changes) == page.count("` becomes `") == 11
    for name, text in files:
        assert not (folder / name).exists()
        (folder / name).write_text(text, encoding="utf-8")
    for name, old, new in changes:
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} holds {old!r} {text.count(old)} times"
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def launch(copy, name, *settings):
    path = os.pathsep.join([str(copy), str(copy / "kernels")])
    done = subprocess.run(
        [sys.executable, str(copy / "launchers" / f"{name}.py"), *settings], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, cwd=copy, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_data_set_encoder_objective_and_decoder_train(copy, tmp_path):
    """The recipes' own names are what runs, in one training step on videos of the new data set."""
    for label in ("lift lid", "stir cup"):
        (tmp_path / label).mkdir()
        for number in range(2):
            frames = np.random.default_rng().integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
            write_video(tmp_path / label / f"{label.split()[0]}-{number}.mp4", frames, 10)
    data = ["dataset=csv", "dataset.kind=folders", f"dataset.root={tmp_path}", f"dataset.shards={tmp_path / 'shards'}"]
    assert "4 training and 0 test clips" in launch(copy, "build_shards", *data, "dataset.workers=1")
    printed = launch(
        copy, "train", *data, f"run={tmp_path / 'run'}", "model=tabletop", "loader=tabletop", "model.init=random",
        "model.video.tower=last_frame", "model.video.drop_path=0", "method.objective=squared",
        "method.random_labels=false", "method.shadow_negatives=false", "loader.backend=grey",
        "training.batch_size=4", "training.device=cpu", "training.max_steps=1",
    )  # fmt: skip
    assert "loader: grey (loader.backend=grey)" in printed
    assert "loss_squared" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`", PAGE.read_text()))))
def test_files_of_the_page_exist(path):
    """Those of the recipes are new; all others are in the repository, named from its root or from the package."""
    new = {name for name, _ in NEW_FILE.findall(PAGE.read_text())}
    assert path in new or any((base / path).exists() for base in (ROOT, ROOT / "ace_dist"))
