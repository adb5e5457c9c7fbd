"""The tutorial, docs/own_videos.md, run as written, from a CSV to a classification; and bad input."""

import csv
import json
import math
from pathlib import Path

import av
import numpy as np
import pytest

from ace_dist import Classifier
from ace_dist.data.annotations.csv import read_csv

pytestmark = pytest.mark.slow  # the tests of this file build on each other: --dist loadfile

SHARED = Path(__file__).resolve().parents[3] / "shared" / "videos"
HEADER = ["video", "start_s", "end_s", "verb", "object", "split", "group"]
ACTIONS = [("push", "arm"), ("lift", "lid"), ("spin", "wheel")]  # verbs with trees; the last is tested only


def render_video(path, seconds=6.0, size=(340, 256), rate=28):
    """An h264 file with moving content, for machines without the recordings."""
    rng = np.random.default_rng()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        texture = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        for k in range(int(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, 5 * k, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def length_s(path):
    """Duration by counting frames."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return sum(1 for _ in container.decode(video=0)) / rate


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The real recordings when they are there (h264, odd rates, full HD, egocentric), else rendered ones."""
    found = sorted(SHARED.glob("*.mp4"))
    if found:
        return found
    folder = tmp_path_factory.mktemp("videos")
    for k, (size, rate) in enumerate([((340, 256), 28), ((1920, 1080), 30), ((426, 240), 29.97), ((384, 288), 30)]):
        render_video(folder / f"video {k}.mp4", seconds=3.0, size=size, rate=round(rate))
    return sorted(folder.glob("*.mp4"))


def write_csv(path, rows):
    """An annotation file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory, videos):
    """A folder with annotations over the videos: two base actions, one novel, windows of about a second."""
    folder = tmp_path_factory.mktemp("project")
    rows = []
    for number, video in enumerate(videos):
        count = max(2, math.floor(length_s(video) / 1.1))
        for k in range(count):
            verb, thing = ACTIONS[2] if number == len(videos) - 1 else ACTIONS[number % 2]
            split = "train" if verb != "spin" and k % 3 else "test"
            start = k * (length_s(video) - 1.0) / count
            rows.append([video, round(start, 2), round(start + 1.0, 2), verb, thing, split, video.stem])
    write_csv(folder / "annotations.csv", rows)
    return folder


def test_from_videos_to_a_classification(project, videos, launch):
    """Every command of the tutorial; the numbers that come out fit together."""
    built = launch(
        "build_shards", "dataset=csv", "dataset.annotations=annotations.csv", "dataset.shards=shards", cwd=project
    )
    rows = len((project / "annotations.csv").read_text().splitlines()) - 1
    clips = json.loads((project / "shards" / "manifest.json").read_text())["clips"]
    assert len(clips) == rows and "shards" in built.stdout
    launch(
        "train", "experiment=own", "dataset.shards=shards", "run=run", "training.max_steps=3",
        "training.batch_size=4", ranks=2, cwd=project,
    )  # fmt: skip
    results = json.loads((project / "run" / "results.json").read_text())
    assert results["method"] == "ace" and len(results["srt"]["runs"]) == 10
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "report.html", "concept_space.npz"):
        assert (project / "run" / name).is_file()
    for asked, meaning in (("push arm, lift lid", "mean over"), ("push arm, lift lid, juggle balls", "stands alone")):
        settings = [f"video={videos[0]}", f"actions=[{asked}]", "start_s=0", "end_s=1.5"]
        done = launch("classify", "run=run", *settings, cwd=project)
        lines = [line for line in done.stdout.splitlines() if "%" in line]
        assert sum(float(line.split("%")[0]) for line in lines) == pytest.approx(100, abs=0.2)
        assert all(meaning in line for line in lines), "all labels of a set are scored in the same way"
        assert ("has no node for 'juggle balls'; every label" in done.stdout) == ("juggle" in asked)


def test_classifier_repeats_the_evaluation(project, launch):
    """A test segment classified from its source video gets the probabilities that the evaluation wrote for its clip."""
    assert (project / "run" / "predictions.json").is_file(), "runs after the test above, in the same worker"
    predictions = json.loads((project / "run" / "predictions.json").read_text())["base"]
    segments = {segment.id: segment for segment in read_csv(project / "annotations.csv").segments()}
    segment = segments[predictions["ids"][0]]
    classifier = Classifier.from_run(project / "run")
    result = classifier.classify(segment.video, predictions["classes"], start_s=segment.start_s, end_s=segment.end_s)
    for label, probability in zip(predictions["classes"], predictions["probabilities"][0], strict=True):
        assert result[label] == pytest.approx(probability, abs=1e-4)


def bad_rows(folder, videos):
    """Annotation mistakes: the rows, and what the message must say."""
    short = folder / "short.mp4"
    render_video(short, seconds=0.4)
    (folder / "not-a-video.mp4").write_bytes(b"this is text" * 100)
    good = [str(videos[0]), "0.0", "1.0", "push", "arm", "train", "g"]
    changed = {
        "missing video": ({0: "nowhere.mp4"}, ["nowhere.mp4", "does not exist", "dataset.annotations"]),
        "video shorter than the clip": ({0: "short.mp4", 2: "0.4"}, ["short.mp4", "less than one clip", "seconds"]),
        "unreadable video": ({0: "not-a-video.mp4"}, ["not-a-video.mp4", "cannot be read as a video"]),
        "object missing": ({4: ""}, ["object is empty", "placeholder", "line 2"]),
        "end before start": ({2: "0.0"}, ["start_s=0.0 is not before end_s=0.0"]),
        "past the end": ({1: "900", 2: "901"}, [videos[0].name, "900"]),
    }  # fmt: skip
    return {
        name: ([change.get(i, value) for i, value in enumerate(good)], words)
        for name, (change, words) in changed.items()
    }


CASES = (
    "missing video",
    "video shorter than the clip",
    "unreadable video",
    "object missing",
    "end before start",
    "past the end",
)


@pytest.mark.parametrize("case", CASES)
def test_bad_annotations_are_named(case, tmp_path, videos, launch):
    """Each mistake has its own message, a non-zero exit, and no manifest that a training could start from."""
    row, words = bad_rows(tmp_path, videos)[case]
    write_csv(tmp_path / "annotations.csv", [row])
    done = launch(
        "build_shards", "dataset=csv", "dataset.annotations=annotations.csv", "dataset.shards=shards",
        cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "shards" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["dataset.shards=nowhere"], ["nowhere", "dataset.shards"]),
        (["training.epoch=3"], ["training.epoch", "did you mean 'training.epochs'"]),
        (["model.text.embed_dim=32"], ["model.video.embed_dim=64", "model.text.embed_dim=32"]),
        (["model.video.weights=nowhere.safetensors"], ["nowhere.safetensors", "model.video.weights"]),
        (["dataset.synonyms=trees.json"], ["no synonym tree for the verbs 'lift', 'push', 'spin'", "trees.json"]),
        (["dataset.novel=[weld pipe]"], ["dataset.novel", "'weld pipe'"]),
        (["training.precision=fp8"], ["training.precision=fp8", "fp32"]),
    ],
)
def test_bad_settings_of_training_are_named(settings, words, project, tmp_path, launch):
    """Each mistake ends training before it starts, in one sentence that names the setting."""
    (tmp_path / "trees.json").write_text(json.dumps({"weld": {"weld": ["weld", "solder"], "solder": ["solder"]}}))
    done = launch(
        "train",
        "experiment=own",
        f"dataset.shards={project}/shards",
        "run=bad",
        *settings,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    for word in words:
        assert word in done.stderr
