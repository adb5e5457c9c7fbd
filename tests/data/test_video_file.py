"""Protects reading of whatever file a user has: times, rates, rotation, odd formats, and files that are no videos."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from data_worlds import frame_number, numbered_frames, read_frames, rotate_on_display, write_sound, write_video

from ace_dist.config import load_config
from ace_dist.data.build.decode import promised_span
from ace_dist.data.build.single_video import cut_video
from ace_dist.data.loader.long_video import thumbnails
from ace_dist.utils.errors import DataError

SMOOTH = {"crf": "12", "g": "7"}


def numbers(raw):
    return [frame_number(frame) for frame in raw.frames]


def close(frames, original):
    """Mean absolute difference in grey levels: small for the same pictures through a codec, large for others."""
    return np.abs(frames.astype(float) - original.astype(float)).mean()


def test_a_file_of_constant_rate_is_copied_frame_by_frame(tmp_path):
    frames = numbered_frames(40, 48, 80, seed=1)
    path = write_video(tmp_path / "a.mp4", frames, rate=12, options=SMOOTH)
    whole = read_frames(path)
    assert (numbers(whole), whole.fps, whole.start_s) == (list(range(40)), 12.0, 0.0)
    assert whole.end_s == pytest.approx(40 / 12)
    assert close(whole.frames, frames) < 6
    part = read_frames(path, 1.0, 2.0)
    assert (numbers(part), part.start_s) == (list(range(12, 24)), 1.0)
    clamped = read_frames(path, -5.0, 99.0)
    assert (numbers(clamped), clamped.start_s) == (list(range(40)), 0.0)


def test_any_window_holds_the_nearest_frames(tmp_path):
    rng = np.random.default_rng()
    path = write_video(tmp_path / "a.mp4", numbered_frames(90, 32, 64), rate=30, options=SMOOTH)
    for _ in range(15):
        start = rng.uniform(0, 2.8)
        end = start + rng.uniform(0.1, 3)
        part = read_frames(path, start, end)
        first = numbers(part)[0]
        assert abs(first / 30 - start) <= 0.5 / 30 + 1e-6 and part.start_s == pytest.approx(first / 30)
        assert numbers(part) == list(range(first, first + len(part.frames)))
        assert part.end_s == pytest.approx(min(end, 3.0), abs=1 / 30 + 1e-6)


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(561, 20), 25, 7.5])
def test_odd_rates(tmp_path, rate):
    path = write_video(tmp_path / "a.mp4", numbered_frames(30, 32, 64), rate=rate, options=SMOOTH)
    whole = read_frames(path)
    assert numbers(whole) == list(range(30)) and whole.fps == pytest.approx(float(rate), rel=1e-3)


def test_a_first_time_that_is_not_zero_does_not_shift_anything(tmp_path):
    frames = numbered_frames(36, 32, 64)
    for name in ("a.mkv", "a.mp4", "a.ts"):
        path = write_video(tmp_path / name, frames, rate=12, times=[5.0 + i / 12 for i in range(36)], options=SMOOTH)
        part = read_frames(path, 1.0, 2.0)
        assert numbers(part) == list(range(12, 24)), name
        assert part.start_s == pytest.approx(1.0, abs=1e-3)


def test_b_frames_and_long_gops_do_not_shift_anything(tmp_path):
    path = write_video(
        tmp_path / "a.mp4", numbered_frames(60, 32, 64), rate=20, options={"crf": "12", "g": "250", "bf": "3"}
    )
    assert numbers(read_frames(path, 1.0, 2.0)) == list(range(20, 40))
    assert numbers(read_frames(path)) == list(range(60))


def test_a_variable_rate_becomes_constant_by_the_nearest_time(tmp_path):
    rng = np.random.default_rng()
    times = np.round(np.cumsum(rng.choice([0.02, 0.05, 0.11, 0.3], 50)), 3)
    times -= times[0]
    path = write_video(tmp_path / "a.mkv", numbered_frames(50, 32, 64), times=times.tolist(), options=SMOOTH)
    for fps in (None, 10.0, 24.0):
        for start, end in ((0.0, float(times[-1])), (1.3, 3.1)):
            raw = read_frames(path, start, end, fps=fps)
            grid = raw.start_s + np.arange(len(raw.frames)) / raw.fps
            distance = np.abs(times[None] - grid[:, None])
            shown = np.array(numbers(raw))
            assert (distance[np.arange(len(shown)), shown] <= distance.min(1) + 2e-3).all()  # mkv counts milliseconds
            assert abs(raw.start_s - start) <= 0.5 / raw.fps + 2e-3  # a pause at the beginning is part of the window
            assert grid[-1] < end + 1e-6 and raw.fps == (fps or pytest.approx(raw.fps))


def write_pause(path, codec, pix_fmt):
    """Two seconds of pictures, the last of which is shown for four, as a recorder of screens writes them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, pix_fmt
        frames = numbered_frames(20, 32, 64)
        packets = [packet for pixels in frames for packet in stream.encode(av.VideoFrame.from_ndarray(pixels))]
        packets += stream.encode(None)
        packets[-1].duration = round(4 / packets[-1].time_base)
        container.mux(packets)
    return path


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [("a.mkv", "mjpeg", "yuvj420p"), ("a.mov", "mpeg4", "yuv420p")])
def test_a_file_whose_last_picture_stands_still_is_whole(tmp_path, name, codec, pix_fmt):
    path = write_pause(tmp_path / name, codec, pix_fmt)
    assert promised_span(path)[1] == pytest.approx(5.9) and numbers(read_frames(path, fps=10.0)) == list(range(20))
    with pytest.raises(DataError, match=r"shows no frame at 3 s: its last one begins at 1\.90 s"):
        read_frames(path, 3.0, fps=10.0)
    shown = thumbnails(path, [1.0, 1.9, 4.0, 5.9])
    assert [frame_number(picture) for picture in shown] == [10, 19, 19, 19]


def test_another_rate_repeats_or_leaves_out_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", numbered_frames(24, 32, 64), rate=12, options=SMOOTH)
    assert numbers(read_frames(path, fps=6.0)) == list(range(0, 24, 2))
    doubled = numbers(read_frames(path, fps=24.0))
    assert sorted(set(doubled)) == list(range(24)) and len(doubled) in (47, 48)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path, degrees):
    frames = numbered_frames(4, 48, 80, seed=4)
    path = write_video(tmp_path / "a.mp4", frames, options=SMOOTH)
    rotate_on_display(path, degrees)
    raw = read_frames(path)
    turned = np.rot90(frames, -degrees // 90, axes=(1, 2))  # numpy turns counterclockwise
    assert raw.frames.shape == turned.shape
    assert close(raw.frames, turned) < 6
    small = read_frames(path, short_side=24)
    assert min(small.frames.shape[1:3]) == 24 and (small.frames.shape[1] > small.frames.shape[2]) == (degrees != 180)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name", "options"),
    [
        ("libx264", "yuv420p10le", "a.mp4", SMOOTH),
        ("libx264", "yuv444p", "a.mp4", SMOOTH),
        ("libx265", "yuv422p10le", "a.mkv", {"crf": "12", "x265-params": "log-level=none"}),
        ("mpeg4", "yuv420p", "a.avi", {"qmin": "2", "qmax": "3"}),
        ("mjpeg", "yuvj422p", "a.mov", {"qmin": "2", "qmax": "3"}),
        ("libvpx-vp9", "yuv444p", "a.webm", {"crf": "12", "b": "0", "cpu-used": "8", "deadline": "realtime"}),
        ("ffv1", "gray", "a.mkv", {}),
    ],
)
def test_other_codecs_bit_depths_and_chroma_formats(tmp_path, codec, pix_fmt, name, options):
    frames = numbered_frames(10, 48, 80, seed=2)
    raw = read_frames(write_video(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, options=options))
    assert raw.frames.dtype == np.uint8 and numbers(raw) == list(range(10))
    if pix_fmt != "gray":
        assert close(raw.frames, frames) < 7


def test_odd_sizes_and_pixels_that_are_not_square(tmp_path):
    frames = numbered_frames(5, 51, 83)
    path = write_video(tmp_path / "odd.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    assert close(read_frames(path).frames, frames) == 0
    wide = write_video(tmp_path / "wide.mkv", numbered_frames(5, 48, 60), aspect=Fraction(4, 3), options=SMOOTH)
    assert read_frames(wide).frames.shape[1:3] == (48, 80)
    assert read_frames(wide, short_side=24).frames.shape[1:3] == (24, 40)


def test_scaling_while_reading_keeps_the_picture(tmp_path):
    frames = numbered_frames(5, 240, 320, seed=3)
    small = read_frames(write_video(tmp_path / "a.mp4", frames, options=SMOOTH), short_side=60).frames
    by_blocks = frames.reshape(5, 60, 4, 80, 4, 3).mean((2, 4))  # area averaging by an exact factor, done by hand
    assert small.shape == (5, 60, 80, 3) and close(small, by_blocks) < 4
    assert read_frames(tmp_path / "a.mp4", short_side=999).frames.shape[1:3] == (240, 320)  # never enlarged


def test_files_that_are_no_videos_say_so(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    write_sound(tmp_path / "sound.mp4")
    whole = write_video(tmp_path / "whole.mp4", numbered_frames(30, 48, 80), options=SMOOTH).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index at the end is gone
    expected = {
        "absent.mp4": "does not exist",
        "empty.mp4": r"empty \(0 bytes\)",
        "text.mp4": "cannot be read as a video",
        "sound.mp4": "no video stream, only audio",
        "cut.mp4": "cannot be read as a video",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=rf"{name}.*{message}"):
            read_frames(tmp_path / name)
    with pytest.raises(DataError, match=r"whole\.mp4 shows no frame at 9 s: it ends at 2\.50 s"):
        read_frames(tmp_path / "whole.mp4", 9.0, 10.0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((-3.0, None), "start_s=-3 is negative"),
        ((9.0, None), "the segment begins at 9 s, but the video ends at 2.00 s"),
    ],
)
def test_a_part_outside_a_video_is_refused(tmp_path, part, message):
    path = write_video(tmp_path / "a.mp4", numbered_frames(24, 32, 48), rate=12)
    dataset = load_config(["experiment=demo"]).dataset
    with pytest.raises(DataError, match=message):
        cut_video(path, dataset.clip, dataset.encoding, False, *part)
