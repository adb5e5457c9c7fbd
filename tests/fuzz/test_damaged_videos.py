"""Protects from damaged videos: each door answers with what it read or with one sentence, and in time."""

from __future__ import annotations

import faulthandler
import io
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import av
import numpy as np
import pytest
from damage import COUNT, FPS, damage, damaged_videos, sound_videos
from data_worlds import read_frames
from fuzzing import cases
from hypothesis import example, given
from hypothesis import strategies as st

from ace_dist import Classifier
from ace_dist.config import load_config
from ace_dist.data.annotations.csv import COLUMNS
from ace_dist.data.build.decode import BREAK_S
from ace_dist.data.datasets import build_dataset
from ace_dist.data.shards import ShardFiles
from ace_dist.data.task import load_test_trees
from ace_dist.models.build import build_model
from ace_dist.utils.errors import UserError

HANGS_AFTER_S = 120
PROMISES = {"h264.mp4", "hevc.mkv", "vp9.webm", "mjpeg.avi", "mpeg4.mp4"}  # their headers say how long they are


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return sound_videos(tmp_path_factory.mktemp("sound"))


@pytest.fixture(autouse=True)
def no_hang():
    """A library that stands still cannot be interrupted: the process ends and says where it stood."""
    yield
    faulthandler.cancel_dump_traceback_later()


def in_time():
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)


def one_sentence(error, path):
    text = str(error)
    assert path.name in text and "\n" not in text and "Traceback" not in text, text


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("vp9.webm", b"V_VP9", b"V_VPX"),  # a codec that there is not
        ("h264.mp4", b"Lavf", b"\xe4\xf6\xfc\xdf"),  # a tag in Latin-1
    ],
)
def test_names_inside_a_file_may_be_anything(tmp_path, videos, name, old, new):
    path = tmp_path / name
    path.write_bytes(videos[name].replace(old, new))
    if name == "h264.mp4":
        assert len(read_frames(path).frames) == COUNT
    else:
        with pytest.raises(UserError, match="of a video codec that FFmpeg does not know"):
            read_frames(path)


@cases(250)
@given(damaged_videos)
@example(("mjpeg.avi", ("cut", 0.2)))  # FFmpeg shortens the promise of its header to what is there
@example(("h264.ts", ("repeat", (0.22, 0.0625))))  # a frame without a time
def test_a_damaged_video_gives_frames_or_one_sentence(tmp_path, videos, case):
    in_time()
    name, (kind, detail) = case
    path = tmp_path / name
    path.write_bytes(damage(videos[name], kind, detail))
    try:
        raw = read_frames(path, short_side=64)
    except UserError as error:
        one_sentence(error, path)
        return
    assert raw.frames.dtype == np.uint8 and raw.frames.ndim == 4 and len(raw.frames) and raw.frames.shape[3] == 3
    assert 0 < raw.fps < math.inf and math.isfinite(raw.start_s)
    if kind == "cut" and name in PROMISES:
        assert len(raw.frames) >= COUNT - BREAK_S * FPS - 1, "a file cut off counts as whole"


@cases(5)
@given(st.lists(damaged_videos, min_size=12, max_size=12))
def test_every_row_of_a_build_is_a_clip_or_a_line_in_the_ledger(videos, batch):
    """Two segments a file; what is stored decodes to the frames that the manifest counts."""
    in_time()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        names = [f"{number} {name}" for number, (name, _) in enumerate(batch)]
        for name, (sound, damaged) in zip(names, batch, strict=True):
            (root / name).write_bytes(damage(videos[sound], *damaged))
        (root / "sound.mp4").write_bytes(videos["h264.mp4"])
        rows = [f"{n},{a},{b},spin,block,train,p" for n in [*names, "sound.mp4"] for a, b in ((0.25, 1), (0.75, 1.75))]
        (root / "labels.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
        dataset = load_config(
            ["dataset=csv", f"dataset.annotations={root / 'labels.csv'}", f"dataset.shards={root / 'shards'}",
             "dataset.allow_quarantine=true", "dataset.clip.seconds=0.5", "dataset.encoding.short_side=48",
             "dataset.workers=1"]
        ).dataset  # fmt: skip
        shards = build_dataset(dataset, {})
        ledger = [json.loads(line) for line in (root / "shards" / "quarantine.jsonl").read_text().splitlines()]
        assert len(shards.records) + len(ledger) == len(rows) == shards.manifest["configuration"]["segments"]
        assert shards.manifest["quarantined"] == len(ledger) and all(entry["reason"] for entry in ledger)
        assert not {entry["id"] for entry in ledger} & {record.key for record in shards.records}
        files = ShardFiles(root / "shards")
        for record in shards.records:
            with av.open(io.BytesIO(files.read(record))) as container:
                assert sum(1 for _ in container.decode(video=0)) == record.frames
        files.close()
    return len(batch)


@pytest.fixture(scope="module")
def classifier():
    config = load_config(["experiment=demo"])
    return Classifier(config, build_model(config.model, config.seed), load_test_trees(config))


@cases(30)
@given(damaged_videos)
def test_a_damaged_video_is_classified_or_refused(tmp_path, videos, classifier, case):
    in_time()
    name, damaged = case
    path = tmp_path / name
    path.write_bytes(damage(videos[name], *damaged))
    try:
        result = classifier.classify(path, ["spin block", "lift mug"])
    except UserError as error:
        one_sentence(error, path)
        return
    assert sum(result.values()) == pytest.approx(1, abs=1e-3)


@cases(2)
@given(damaged_videos)
def test_an_upload_is_shown_or_refused_in_words_and_is_gone(tmp_path, videos, classifier, case):
    """Each is read in a process of its own, hence few."""
    pages = pytest.importorskip("ace_dist.tools.explorer.clip_page", reason="pip install 'ace-dist[explore]'")
    explorer = pages.Explorer.__new__(pages.Explorer)  # without a run folder and its test clips
    explorer.config, explorer.classifier, explorer.run = classifier.config, classifier, tmp_path
    explorer.tests, explorer.floor, explorer.most_phrases = [], None, 100
    explorer.task = SimpleNamespace(classes=SimpleNamespace(base=(), novel=()), trees=classifier.trees)
    page = pages.ClipPage([explorer], pages.Desk([tmp_path]))
    in_time()
    name, damaged = case
    path = tmp_path / name
    path.write_bytes(damage(videos[name], *damaged))
    words = {label: [(label, True)] for label in ("spin block", "lift mug")}
    try:
        view = page.upload(pages.View(words), str(path))
        assert "ace-verdict" in page.answer(view) and view.upload == name
    except UserError as error:
        said = page.desk.refusal(error)
        assert said and "Traceback" not in said and str(tmp_path) not in said
    assert not path.exists()
