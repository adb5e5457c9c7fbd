"""Protects from damaged videos: each door answers with what it read or with one sentence, and in time."""

from __future__ import annotations

import faulthandler
import math

import numpy as np
import pytest
from damage import COUNT, FPS, damage, damaged_videos, sound_videos
from fuzzing import cases
from hypothesis import example, given

from ace_dist.data.build.decode import BREAK_S, read_window
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
        assert len(read_window(path).frames) == COUNT
    else:
        with pytest.raises(UserError, match="of a video codec that FFmpeg does not know"):
            read_window(path)


@cases(150)
@given(damaged_videos)
@example(("mjpeg.avi", ("cut", 0.2)))  # FFmpeg shortens the promise of its header to what is there
@example(("h264.ts", ("repeat", (0.22, 0.0625))))  # a frame without a time
def test_a_damaged_video_gives_frames_or_one_sentence(tmp_path, videos, case):
    in_time()
    name, (kind, detail) = case
    path = tmp_path / name
    path.write_bytes(damage(videos[name], kind, detail))
    try:
        raw = read_window(path, short_side=64)
    except UserError as error:
        one_sentence(error, path)
        return
    assert raw.frames.dtype == np.uint8 and raw.frames.ndim == 4 and len(raw.frames) and raw.frames.shape[3] == 3
    assert 0 < raw.fps < math.inf and math.isfinite(raw.start_s)
    if kind == "cut" and name in PROMISES:
        assert len(raw.frames) >= COUNT - BREAK_S * FPS - 1, "a file cut off counts as whole"
