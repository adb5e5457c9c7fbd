"""A model and a long video that several files look at."""

import pytest

from ace_dist.classifier import Classifier
from ace_dist.config import load_config
from ace_dist.data.task import load_test_trees
from ace_dist.models.build import build_model
from ace_dist.worlds.tabletop.procedures import write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig


@pytest.fixture(scope="package")
def classifier():
    """With the weights that pretraining gave."""
    config = load_config(["experiment=demo"])
    return Classifier(config, build_model(config.model, config.seed), load_test_trees(config))


@pytest.fixture(scope="package")
def video(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    write_videos(folder, TabletopConfig(), train=0, test=1)
    return folder / "videos" / "job-test-000.mp4"
