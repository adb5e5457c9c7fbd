"""What users pass around in Python: results, classifiers, trees and errors go through pickles, copies and pools."""

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ace_dist import Classifier
from ace_dist.config import load_config
from ace_dist.data.build.decode import read_window
from ace_dist.data.loader import build_loader
from ace_dist.data.sampling import TestPlan
from ace_dist.data.shards import ShardFiles, ShardSet
from ace_dist.data.task import load_task
from ace_dist.models.dual_encoder import build_video_tower
from ace_dist.segment.rejection import Rejection, unit
from ace_dist.segment.segmenter import Calibration
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


def test_a_classifier_says_what_it_is(classifier):
    assert repr(classifier) == "Classifier(ace on tabletop, timesformer and clip, cpu, not calibrated)"


def test_a_result_is_copied_and_pickled_and_stays_as_it_is(result):
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
        assert again == result and list(again.items()) == list(result.items()) and again.table() == result.table()
        with pytest.raises(TypeError):
            again.probabilities["lift block"] = 1.0


@pytest.fixture(scope="module")
def pixels(video):
    """The pictures of that file, uint8 RGB [T, H, W, 3], and their rate."""
    raw = read_window(video)
    return np.stack(list(raw.frames)), raw.fps


class InTheNet:
    """Reads as some libraries of object stores do: a bytearray, and no seeking."""

    def __init__(self, data):
        self.data = data

    def read(self):
        return bytearray(self.data)


def test_a_video_is_a_file_or_pictures(classifier, video, result, pixels):
    """An open file is the path itself, and so are its pictures in each form."""
    assert classifier.classify(video.open("rb"), LABELS) == result
    file = io.BytesIO(video.read_bytes())
    assert classifier.classify(file, LABELS) == result
    assert classifier.classify(file, LABELS) == result, "asked twice"
    assert classifier.classify(InTheNet(video.read_bytes()), LABELS) == result
    frames, fps = pixels
    array = classifier.classify(frames, LABELS, fps=fps)
    assert array == result
    forms = (
        torch.from_numpy(frames),
        list(frames),
        [torch.from_numpy(f) for f in frames],
        list(map(Image.fromarray, frames)),
    )
    assert all(classifier.classify(form, LABELS, fps=fps) == array for form in forms)
    assert 0 < classifier.classify(frames, LABELS)[LABELS[0]] < 1, "without a rate they last one clip"


def test_a_list_of_videos_is_one_batch(classifier, video, result, pixels):
    """Of all kinds, in their order; each is what it is alone."""
    frames, fps = pixels
    alone = [
        result,
        classifier.classify(frames, LABELS, fps=fps),
        classifier.classify(list(frames[::-1]), LABELS, fps=fps),
    ]
    together = [
        classifier.classify([video] * 3, LABELS),
        classifier.classify([frames, list(frames[::-1])], LABELS, fps=fps),
    ]
    for one, other in zip([*[result] * 3, *alone[1:]], [*together[0], *together[1]], strict=True):
        assert list(one) == list(other)
        assert list(one.values()) == pytest.approx(list(other.values()), abs=1e-5)


def test_the_product_of_embeddings_is_the_cosine(classifier, video, result):
    one, videos = classifier.encode_video(video), classifier.encode_video([video, video])
    text = classifier.encode_text(LABELS)
    assert one.ndim == 1 and videos.shape == (2, *one.shape) and text.shape == (3, *one.shape)
    torch.testing.assert_close(videos, one.expand(2, -1))
    cosines = [result.cosines[label] for label in LABELS]
    assert (one @ text.T).tolist() == pytest.approx(cosines, abs=1e-5) and max(cosines) == result.cosine


def test_a_result_shows_itself(result):
    """The best first; in a notebook frames as the model saw them, and no label is HTML."""
    assert result.top(2) == list(result.items())[:2] and result.label == result.top(1)[0][0]
    assert repr(result).startswith(f"Classification({result.label!r} ") and len(repr(result)) < 100
    assert result.frames.dtype == np.uint8 and result.frames.shape[0] <= 8 and result.frames.std() > 5
    page = result._repr_html_()
    assert page.count("<img") == len(result.frames) and result.label in page


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda frames: frames / 255, r"not float64 .*scale to 0 \.\.\. 255"),
        (lambda frames: frames.transpose(0, 3, 1, 2), "bring the channels to the end"),
        (lambda frames: frames[0], r"uint8 RGB \[T, H, W, 3\], not uint8 \[\d+, \d+, 3\]"),
        (lambda frames: [frames[0], frames[0][1:]], "one shape"),
        (lambda frames: [], "not none"),
        (lambda frames: io.StringIO("text"), "open it in binary mode"),
        (lambda frames: io.BytesIO(), "is empty, or was read to its end"),
        (lambda frames: "https://example.org/clip.mp4", "does not exist"),
    ],
)  # fmt: skip
def test_what_is_no_video_is_refused(classifier, pixels, made, message):
    with pytest.raises(errors.UserError, match=message):
        classifier.classify(made(pixels[0]), LABELS)


def test_settings_of_one_video_are_not_of_a_list_or_a_file(classifier, video):
    with pytest.raises(errors.UserError, match="of one video"):
        classifier.classify([video], LABELS, start_s=0.5)
    with pytest.raises(errors.UserError, match="fps=25 is of pictures in memory"):
        classifier.classify(video, LABELS, fps=25)


def test_none_of_these_is_said_of_each_video_below_the_threshold(classifier, pixels):
    """By the best cosine alone, and by how near a video is to a prototype: here the first video itself."""
    frames, fps = pixels
    videos = [frames, 255 - frames]
    known = classifier.classify(videos, LABELS, fps=fps)
    assert [(each.fits, "none of these" in each.table()) for each in known] == [(None, False)] * 2
    units = unit(classifier.encode_video(videos, fps=fps).double().numpy())
    best = [max(each.cosines.values()) for each in known]
    for scores, weights, prototypes in (
        (best, [1.0, 0.0], []),
        (units @ units[0], [0.0, 0.0, 0.0, 1.0, 0.0], [(-units[0]).tolist(), units[0].tolist()]),
    ):
        threshold = float(np.mean(scores))
        rejection = Rejection(threshold, error_rate=0.1, weights=weights, prototypes=prototypes)
        calibrated = Classifier(classifier.config, classifier.model, classifier.trees, Calibration(rejection=rejection))
        for each, plain, score in zip(calibrated.classify(videos, LABELS, fps=fps), known, scores, strict=True):
            assert each.fits == (score > threshold) and each.probabilities == plain.probabilities
            assert each.label == (plain.label if each.fits else None)
            assert ("none of these" in each.table()) != each.fits


def test_a_rate_is_any_number_above_0(classifier, pixels):
    frames, _ = pixels
    known = classifier.classify(frames, LABELS, fps=10)
    assert all(classifier.classify(frames, LABELS, fps=kind(10)) == known for kind in (np.float32, Fraction, int))
    for wrong in (0, -1, float("nan"), float("inf"), "fast"):
        with pytest.raises(errors.DataError, match=rf"fps={wrong} must be a number .* above 0"):
            classifier.classify(frames, LABELS, fps=wrong)


def test_labels_are_texts_in_any_collection(classifier, video, result, tmp_path):
    kinds = (iter, np.array, tuple, dict.fromkeys)
    assert all(classifier.classify(video, kind(LABELS)) == result for kind in kinds)
    assert all(len(classifier.encode_text(kind(LABELS))) == 3 for kind in kinds)
    timeline = classifier.segment(video, LABELS, cache=str(tmp_path))
    assert all(classifier.segment(video, kind(LABELS), cache=tmp_path) == timeline for kind in kinds)
    assert classifier.segment(video, LABELS[::-1]) != timeline
    for wrong in ([1, 2], None, 3, [b"lift", b"push"]):
        with pytest.raises(errors.LabelError, match="is no text; labels and verbs are texts"):
            classifier.classify(video, wrong)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_named_before_the_model_is_read(device, tmp_path):
    for load in (Classifier.from_run, Classifier.from_pretrained):
        with pytest.raises(
            errors.ConfigError, match=rf"device={device} cannot compute here .*; give auto, cpu or cuda"
        ):
            load(tmp_path / "no_run", device)


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


def test_what_a_device_was_given_beside_the_weights_does_not_travel():
    """Fused blocks hold tensors of a GPU that are no parameters: a pickle of them opens on no other machine."""
    tower = build_video_tower(load_config(["experiment=demo"]).model.video)
    tower.trunk = tower.graphs = object()
    tower.forget_device()
    assert tower.trunk is None and tower.graphs is None
    rotary = build_video_tower(load_config(["experiment=demo", "model=tabletop_rotary"]).model.video)
    angles = rotary.angles
    rotary.forget_device()
    assert torch.equal(rotary.angles, angles) and rotary.angles.device.type == "cpu"


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
