"""The explorer's long videos: what a visitor may open, how long it stays, and that pictures of an upload stay few."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ace_dist.config import load_config
from ace_dist.evaluate.protocols import mean_cosines
from ace_dist.models.build import build_model
from ace_dist.segment.embed import EmbeddedVideo
from ace_dist.tools.explorer import long_videos
from ace_dist.tools.explorer.long_videos import KEPT_VIDEOS, LONGEST_VIDEO_S, STRIP, LongVideos, OpenVideo, Strip
from ace_dist.tools.explorer.session import Explorer
from ace_dist.utils.errors import ConfigError, UserError

CLIP = SimpleNamespace(frames=8, seconds=2.0)


@pytest.fixture
def videos(monkeypatch, tmp_path):
    """Long videos of a folder with one file, whose reading is not done; what would be read is noted in `read`."""
    (tmp_path / "shift.mp4").write_bytes(b"video")
    (tmp_path / "notes.txt").write_text("no video")
    config = SimpleNamespace(dataset=SimpleNamespace(clip=CLIP))
    explorer = SimpleNamespace(config=config, classifier=SimpleNamespace(model=None))
    opened = LongVideos(explorer, long_videos.offered_videos(str(tmp_path)))
    opened.read = []

    def embed(model, config, path, stride_s, cache, progress, on_picture):
        opened.read.append((path, cache))
        for picture in range(4):
            on_picture(np.full((3, 8, 8), 60 * picture, np.uint8))
        progress(1.0, opened.lasts_s)
        return EmbeddedVideo(str(path), np.ones((2, 4), np.float32), 0.0, 1.0, 0.5)

    opened.lasts_s = 1.0
    monkeypatch.setattr(long_videos, "embed_video", embed)
    return opened


def test_only_videos_of_the_folder_are_offered(videos, tmp_path):
    """A visitor names one of the list: no path, and no file that is not offered."""
    assert list(videos.offered) == ["shift.mp4"]
    videos.open_offered("shift.mp4", lambda done_s, all_s: None)
    for name in ("notes.txt", "../shift.mp4", str(tmp_path / "shift.mp4"), "/etc/passwd", ""):
        with pytest.raises(UserError, match="there is no video"):
            videos.open_offered(name, lambda done_s, all_s: None)
    assert [path for path, _ in videos.read] == [tmp_path / "shift.mp4"]


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_videos_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"videos=.*{folder}"):
        long_videos.offered_videos(str(tmp_path / folder))


def test_an_upload_is_gone_once_it_was_read(videos, tmp_path):
    """Also when it is refused; nothing of it is kept on disk, and its name alone is shown."""
    path = tmp_path / "uploads" / "mine.mp4"
    path.parent.mkdir()
    path.write_bytes(b"video")
    key = videos.open_upload(str(path), lambda done_s, all_s: None)
    assert not path.exists() and videos.read == [(path, None)]
    video = videos.video(key)
    assert video.embedded.video == "mine.mp4" and len(video.stills([0.0, 0.3, 9.0])) == 3
    path.write_bytes(b"video")
    videos.lasts_s = LONGEST_VIDEO_S + 1
    with pytest.raises(UserError, match=r"^mine\.mp4 lasts more than 2 hours"):
        videos.open_upload(str(path), lambda done_s, all_s: None)
    assert not path.exists()


def test_few_videos_stay_open(videos):
    """The oldest goes first, and is asked for again in a sentence; keys cannot be guessed."""
    empty = EmbeddedVideo("x", np.ones((1, 4), np.float32), 0.0, 1.0, 0.5)
    keys = [videos.keep(OpenVideo(empty, lambda times_s: [])) for _ in range(KEPT_VIDEOS + 1)]
    assert len(videos.opened) == KEPT_VIDEOS and videos.video(keys[-1])
    for key in (keys[0], "", "0"):
        with pytest.raises(UserError, match="open it again"):
            videos.video(key)


def test_a_strip_keeps_few_pictures_evenly_spread():
    """However long the video is: the picture of a time is the nearest kept one before it."""
    strip, count = Strip(0.25), 3 * STRIP + 7
    for number in range(count):
        strip(np.full((3, 4, 4), number * 255 // count, np.uint8))
    assert STRIP / 2 <= len(strip.pictures) <= STRIP
    first, middle, last = strip.at(10.0, [10.0, 10.0 + count * 0.125, 1e9])
    assert first == strip.pictures[0] and last == strip.pictures[-1]
    assert abs(strip.pictures.index(middle) - len(strip.pictures) / 2) <= 1


@torch.no_grad()
def test_a_label_of_bike_is_the_mean_of_its_votes():
    """Its embeddings are of frames, which each phrase weighs anew."""
    config = load_config(["experiment=demo", "method=bike"])
    model = build_model(config.model, config.seed)
    embeddings, words = torch.randn(2, 4, config.model.video.embed_dim), ("spin block", "rotate block")
    votes = Explorer.votes(SimpleNamespace(classifier=SimpleNamespace(model=model)), embeddings, words)
    (cosines,) = mean_cosines(model, embeddings, [(words,)])
    assert list(votes) == list(words) and np.mean(list(votes.values())) == pytest.approx(float(cosines.mean()))
