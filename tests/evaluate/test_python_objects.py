"""What users pass around in Python: results, classifiers, trees and errors go through pickles, copies and pools."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ace_dist import Classifier
from ace_dist.config import load_config
from ace_dist.data.loader import build_loader
from ace_dist.data.sampling import TestPlan
from ace_dist.data.shards import ShardFiles, ShardSet
from ace_dist.data.task import load_task
from ace_dist.train.trainer import train
from ace_dist.utils import errors

LABELS = ["lift block", "push pin", "spin cone"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, small_world):
    run = tmp_path_factory.mktemp("runs") / "run"
    return load_config(
        [*small_world(), f"run={run}", "training.batch_size=4", "training.max_steps=1", "training.device=cpu"]
    )


@pytest.fixture(scope="module")
def classifier(config, ranks):
    train(config, ranks)
    return Classifier.from_run(config.run)


@pytest.fixture(scope="module")
def video(config, tmp_path_factory):
    """A clip of the test split as a file."""
    shards = ShardSet.load(config.dataset.shards)
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    path.write_bytes(ShardFiles(shards.folder).read(shards.split("test")[0]))
    return path


@pytest.fixture(scope="module")
def result(classifier, video):
    return classifier.classify(video, LABELS)


def test_a_result_is_copied_and_pickled_and_stays_as_it_is(result):
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        assert again == result and list(again.items()) == list(result.items()) and again.table() == result.table()
        with pytest.raises(TypeError):
            again.probabilities["lift block"] = 1.0


def test_a_classifier_is_pickled_with_its_weights(classifier, video, result, config, tmp_path):
    """So it works where the run folder is not: the folder is away while the copy is made and used."""
    Path(config.run).rename(tmp_path / "away")
    try:
        for again in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
            assert again.classify(video, LABELS) == result
            with torch.no_grad():
                next(again.model.parameters()).add_(1)
        assert classifier.classify(video, LABELS) == result
    finally:
        (tmp_path / "away").rename(config.run)


def test_a_classifier_of_a_device_that_is_not_here_comes_back_on_the_cpu(classifier, capsys):
    state = classifier.__getstate__() | {"device": "cuda:7"}
    again = Classifier.__new__(Classifier)
    again.__setstate__(state)
    assert next(again.model.parameters()).device.type == "cpu" and "no device cuda:7 here" in capsys.readouterr().out


def test_threads_share_a_classifier(classifier, video, result):
    with ThreadPoolExecutor(4) as pool:
        assert all(again == result for again in pool.map(classifier.classify, [video] * 8, [LABELS] * 8))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_pool_classify(classifier, video, result, method):
    """With fork after torch has computed with several threads in the parent, which would wait for ever in the child."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(400, 400, 8).sum(0)  # starts OpenMP's threads
        with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
            again = pool.submit(classifier.classify, video, LABELS).result(timeout=120)
    finally:
        torch.set_num_threads(threads)
    assert list(again) == list(result)
    assert [again[label] for label in LABELS] == pytest.approx([result[label] for label in LABELS], abs=1e-5)


def test_a_loader_and_open_shards_are_opened_anew(config):
    """Both are used first, so files are open and locks exist; the originals go on whatever becomes of a copy."""
    shards = ShardSet.load(config.dataset.shards)
    record = shards.split("test")[0]
    files = ShardFiles(shards.folder)
    stored = files.read(record)
    twin = pickle.loads(pickle.dumps(files))
    assert twin.read(record) == stored
    twin.close()
    assert files.read(record) == stored
    loader = build_loader(config, "cpu")
    batches = list(TestPlan([record], [0], config.dataset.clip, config.loader, 16).batches())
    (first,) = loader.stream(batches)
    twin = copy.deepcopy(loader)
    loader.close()
    (second,) = twin.stream(batches)
    twin.close()
    assert torch.equal(first.video, second.video)


def test_settings_tasks_and_trees_are_pickled(config):
    """All of a run's plain objects."""
    task = load_task(config)
    again = pickle.loads(pickle.dumps((config, task)))
    assert again[0] == config and again[1].classes == task.classes and again[1].shards == task.shards
    action = task.classes.base[0]
    assert again[1].trees.vocabulary(action.verb) == task.trees.vocabulary(action.verb)


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_errors_come_back_from_a_process_as_they_were(kind):
    """A pool raises what its process raised; an exception that cannot be pickled would break the pool."""
    if issubclass(kind, Exception):
        again = pickle.loads(pickle.dumps(kind("clip.mp4 cannot be read")))
        assert type(again) is kind and str(again) == "clip.mp4 cannot be read"
