"""The tabletop world's long videos show what their labels say, and their deviations are those that are written."""

import json
from collections import Counter

import numpy as np
import pytest

from ace_dist.segment.metrics import runs
from ace_dist.segment.procedure import Procedure
from ace_dist.worlds.tabletop.procedures import draw_procedure_video, frame_labels, frames, write_videos
from ace_dist.worlds.tabletop.world import TabletopConfig

WORLD = TabletopConfig(size=16, fps=4.0)


@pytest.fixture(scope="module")
def videos():
    return [draw_procedure_video(WORLD, split, i) for split in ("train", "test") for i in range(60)]


def test_a_video_is_a_function_of_its_place_and_people_do_not_meet(videos):
    assert draw_procedure_video(WORLD, "test", 7) == next(video for video in videos if video.name == "job-test-007")
    people = {split: {video.person for video in videos if video.split == split} for split in ("train", "test")}
    assert not people["train"] & people["test"]
    assert {kind for video in videos for kind, _ in video.deviations} == {"missing", "repeated", "swapped", "extra"}


def test_written_deviations_are_what_the_spans_did_otherwise(videos):
    for video in videos:
        job = Procedure.parse([" ".join(step) for step in video.steps])
        found = job.deviations([(start, end, " ".join(action)) for start, end, action in video.spans])
        assert Counter((each.kind, each.label) for each in found) == Counter(video.deviations), video.name


def test_pauses_are_background_and_frames_move_when_something_is_done(videos):
    video = videos[0]
    labels, shown = frame_labels(video, WORLD.fps), np.stack(list(frames(video, WORLD))).astype(float)
    assert len(labels) == len(shown) == round(video.duration_s * WORLD.fps)
    assert [label for label, *_ in runs(labels)] == [" ".join(action) for *_, action in video.spans]
    empty = [i for i, label in enumerate(labels) if label == "background"]
    apart = {label: np.abs(shown[labels.index(label)] - shown[empty[0]]).mean() for label in set(labels)}
    assert min(value for label, value in apart.items() if label != "background") > 2


def test_a_folder_is_whole_and_is_not_rendered_twice(tmp_path):
    write_videos(tmp_path, WORLD, train=1, test=1)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()}
    write_videos(tmp_path, WORLD, train=1, test=1)
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()} and len(made) == 2
    job = json.loads((tmp_path / "procedures" / "job-test-000.json").read_text())
    lines = (tmp_path / "groundTruth" / "job-test-000.txt").read_text().split("\n")
    assert set(lines) <= {line.split(" ", 1)[1] for line in (tmp_path / "mapping.txt").read_text().splitlines()} | {""}
    assert (tmp_path / "splits" / "test.split1.bundle").read_text() == "job-test-000.txt\n" and job["steps"]
