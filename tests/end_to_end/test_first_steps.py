"""What a newcomer asks first: which command, which settings, and would this run work?"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ace_dist.config import load_config, to_yaml
from ace_dist.data.loader import build_loader
from ace_dist.data.loader.base import Batch
from ace_dist.data.sampling import TrainPlan
from ace_dist.data.task import load_task
from ace_dist.train.dry_run import check_batch
from ace_dist.train.run_folder import write_start
from ace_dist.utils.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def settings(launch, tmp_path_factory):
    """A small world with its shards; the run folder is not there yet."""
    folder = tmp_path_factory.mktemp("größer als")
    given = ["dataset.world.train_clips=24", "dataset.world.test_clips=36", f"dataset.shards={folder}/shards"]
    launch("build_shards", *given)
    return [*given, f"run={folder}/run", "training.batch_size=8", "training.device=cpu"]


def test_every_way_to_start_a_command():
    """`python -m ace_dist` lists commands and runs one, as a launcher does; the exit status is the command's."""
    for start in (["-m", "ace_dist"], ["-m", "ace_dist", "train"], ["launchers/train.py"]):
        words = [sys.executable, *start, *(["seeed=1"] if "train" in start[-1] else [])]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
        if len(start) == 2:
            assert done.returncode == 0 and "ace NAME key=value" in done.stdout
        else:
            assert done.returncode == 2 and "error: unknown setting 'seeed'" in done.stderr


def test_the_printed_configuration_is_the_one_that_a_run_holds(launch, settings):
    """`--cfg` prints what `config.yaml` would hold, with what the method changes, and writes nothing."""
    printed = launch("train", *settings, "method=procvlr", "--cfg").stdout
    assert printed == to_yaml(load_config([*settings, "method=procvlr"]))
    assert "random_labels: false" in printed
    assert not Path(load_config(settings).run).exists()


def test_a_dry_run_goes_forward_and_leaves_nothing(launch, settings):
    """Two ranks, ZeRO 2 and accumulation: classes, shapes, memory are said; no folder or file is made."""
    config = load_config(settings)
    before = sorted(Path(config.run).parent.rglob("*"))
    more = ["dry_run=true", "deepspeed=zero2", "training.accumulation=2"]
    said = launch("train", *settings, *more, ranks=2).stdout
    assert "video [2, 8, 3, 48, 48]" in said  # 8 clips, by two ranks, in two pieces
    assert "run folder:" in said and "GiB of the host" in said and "novel, " in said
    assert "fixed " in said and "random " in said and "step was taken" in said
    assert sorted(Path(config.run).parent.rglob("*")) == before


def test_a_dry_run_refuses_what_the_run_would(launch, settings, tmp_path):
    """The folder of another configuration, by the same message."""
    other = replace(load_config(settings), run=str(tmp_path), seed=5)
    write_start(tmp_path, other)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    done = launch("train", *settings, f"run={tmp_path}", "dry_run=true", check=False)
    assert done.returncode == 2 and "seed was 5, is 0" in done.stderr


@pytest.mark.parametrize("wrong", ["shape", "labels"])
def test_a_batch_that_was_not_asked_for_is_named(settings, wrong):
    """A loader that mixed up sizes or clips does not pass the rehearsal."""
    config = load_config(settings)
    records, labels = load_task(config).training_clips()
    plan = TrainPlan(records, labels, config.dataset.clip, config.loader, 4, config.seed, 0, 1)
    requests = plan.requests(0)
    loader = build_loader(config, torch.device("cpu"))
    batch = next(loader.stream(iter([requests])))
    loader.close()
    check_batch(batch, requests, config)
    video, found = (batch.video[:, 1:], batch.labels) if wrong == "shape" else (batch.video, batch.labels + 1)
    with pytest.raises(UserError, match="loader.backend=auto gave"):
        check_batch(Batch(video, found, batch.ids, batch.views, batch.frame_indices), requests, config)
