"""Protects videos as devices, editors and cutting tools make them: the right pictures at the file's own times.

Every frame shows its number, so what a clip shows proves the clock by which it was cut.
"""

from __future__ import annotations

import itertools
import json
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from data_worlds import (
    build_shards,
    frame_number,
    numbered_frames,
    read_frames,
    small_encoding,
    turn_on_display,
    write_video,
)

from ace_dist.config import ClipConfig, load_config
from ace_dist.data.annotations.csv import COLUMNS, read_csv
from ace_dist.data.annotations.frames import video_clock
from ace_dist.data.build.single_video import cut_video
from ace_dist.data.build.verify import quality_warnings
from ace_dist.data.datasets import load_shards
from ace_dist.data.loader.pyav import decode_frames
from ace_dist.data.shards import MANIFEST, ShardFiles, ShardSet
from ace_dist.utils.errors import DataError

FPS, COUNT = 12, 60
OPEN = {"g": "12", "bf": "3", "sc_threshold": "0", "b_strategy": "0", "crf": "12", "x264-params": "open-gop=1"}
HEVC = {"crf": "12", "x265-params": "log-level=none:open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"}
INTRA = {"crf": "12", "g": "12", "x264-params": "intra-refresh=1"}


def numbers(raw):
    return [frame_number(frame) for frame in raw.frames]


def write_av(path, delay_s, frames=COUNT):
    """A video whose pictures begin `delay_s` after its sound (before, if negative)."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=FPS, options={"crf": "12", "g": "12", "bf": "2"})
        pictures.width, pictures.height, pictures.pix_fmt = 80, 48, "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 12000)
        audio = container.add_stream("aac", rate=48000)
        for index, pixels in enumerate(numbered_frames(frames, 48, 80)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round((index / FPS + max(delay_s, 0)) * 12000), Fraction(1, 12000)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        silence = np.zeros((1, 960), np.float32)
        for index in range(round((frames / FPS + max(delay_s, 0)) * 50)):
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
            frame.pts = index * 960 + round(max(-delay_s, 0) * 48000)
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("delay_s", [0.5, 4.25])
def test_times_count_from_the_start_of_the_container(tmp_path, name, delay_s):
    path = write_av(tmp_path / name, delay_s, frames=36)
    for start_s in (delay_s + 0.25, delay_s + 1.0, delay_s + 2.0):
        raw = read_frames(path, start_s, start_s + 0.5)
        first = round((start_s - delay_s) * FPS)
        assert numbers(raw) == list(range(first, first + 6)) and raw.start_s == pytest.approx(start_s, abs=0.03)
    whole = read_frames(path)
    assert numbers(whole) == list(range(36)) and whole.start_s == pytest.approx(delay_s, abs=0.03)
    with pytest.raises(DataError, match="shows nothing before"):
        read_frames(path, 0.0, delay_s - 0.1)


def test_sound_that_begins_later_shifts_nothing(tmp_path):
    assert numbers(read_frames(write_av(tmp_path / "later.mp4", -0.5), 1.0, 2.0)) == list(range(12, 24))


def write_csv(folder, *rows):
    lines = [",".join(COLUMNS), *(f"{video},{start},{end},spin,block,train," for video, start, end in rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def stored_numbers(shards, record):
    files = ShardFiles(shards.folder)
    frames = decode_frames(files.read(record), range(record.frames))
    files.close()
    return [frame_number(frame) for frame in frames]


def build(tmp_path, *rows, clip_s=0.5, **settings):
    reader = read_csv(write_csv(tmp_path, *rows))
    encoding = small_encoding(codec="h264", quality=10)
    shards = build_shards(reader, tmp_path / "shards", ClipConfig(4, clip_s, 1), encoding, **settings)
    return shards, {r.key.rsplit("-", 1)[0]: (r, stored_numbers(shards, r)) for r in shards.records}


def test_every_door_reads_the_same_clock(tmp_path):
    """A segment of a CSV, a labelled frame, and a part of a single video are the same frames."""
    path = write_av(tmp_path / "late.mp4", 0.5)
    shards, clips = build(tmp_path, ("late.mp4", 1.5, 2.5))
    (record, shown), *_ = clips.values()
    first = shown[0] + round(record.segment_start_s * FPS)
    assert first == 12 and record.segment_end_s - record.segment_start_s == pytest.approx(1.0)
    part, record, data = cut_video(path, ClipConfig(4, 0.5, 1), small_encoding(), False, 1.5, 2.5)
    shown = [frame_number(frame) for frame in decode_frames(data, range(record.frames))]
    assert shown[0] + round(record.segment_start_s * FPS) == 12 and (part.start_s, part.end_s) == (1.5, 2.5)
    part, *_ = cut_video(path, ClipConfig(4, 0.5, 1), small_encoding(), False, None, None)
    assert (part.start_s, part.end_s) == pytest.approx((0.5, 0.5 + COUNT / FPS), abs=0.01)
    rate, count, first_s = video_clock(path)
    assert first_s + 12 / rate == pytest.approx(1.5) and count == COUNT
    assert shards.manifest["clock"].startswith("seconds from the start of each container")


def test_a_segment_that_begins_before_the_pictures_begins_with_them(tmp_path):
    write_av(tmp_path / "late.mp4", 0.5)
    rows = [("late.mp4", 0.0, 2.0), ("late.mp4", 0.1, 0.6)]
    with pytest.raises(DataError, match=r"1 of 2 .*\n.*shows nothing before 0\.50 s"):
        build(tmp_path, *rows)
    shards, clips = build(tmp_path, *rows, allow_quarantine=True)
    ((record, shown),) = clips.values()
    assert shown[0] == 0 and (record.segment_start_s, record.segment_end_s) == pytest.approx((0.0, 1.5), abs=0.01)
    assert shards.manifest["shortened"] == [record.key]


def test_shards_of_an_older_build_are_told_apart_and_still_read(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(COUNT, 48, 80), FPS)
    shards, _ = build(tmp_path, ("a.mp4", 1.0, 2.0))
    assert not shards.older_build
    manifest = json.loads((tmp_path / "shards" / MANIFEST).read_text())
    assert manifest["build"] == 2
    for kind, told in (("csv", True), ("tabletop", False), ("gtea", False)):  # labels in frames have no clock
        manifest["configuration"]["source"]["kind"] = kind
        manifest.pop("build", None)
        (tmp_path / "shards" / MANIFEST).write_text(json.dumps(manifest))
        old = ShardSet.load(tmp_path / "shards")
        assert bool(old.older_build) == told == bool([w for w in quality_warnings(old) if "older version" in w])
    assert len(load_shards(load_config([f"dataset.shards={tmp_path / 'shards'}"]).dataset).records) == 1


def test_shards_of_an_unfinished_older_build_are_made_again(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", numbered_frames(COUNT, 48, 80), FPS)
    rows, settings = [("a.mp4", 1.0, 2.0), ("a.mp4", 1.0, 1.0001)], {"clips_per_shard": 1}
    monkeypatch.setattr("ace_dist.data.build.shards.BUILD", 1)
    (tmp_path / "gone.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match="1 of 2 segments"):
        build(tmp_path, rows[0], ("gone.mp4", 1.0, 2.0), **settings)
    notes = {path.name: path.read_text() for path in (tmp_path / "shards").glob("*.state.json")}
    monkeypatch.undo()
    with pytest.raises(DataError, match="1 of 2 segments"):
        build(tmp_path, rows[0], ("gone.mp4", 1.0, 2.0), **settings)
    fingerprints = {json.loads((tmp_path / "shards" / n).read_text())["fingerprint"] for n in notes}
    assert fingerprints.isdisjoint(json.loads(text)["fingerprint"] for text in notes.values())


def copied(source, path, key=0, skip=0):
    """A stream-copied cut of a video: from its `key`-th key frame on, less `skip` packets."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        keys = -1
        for packet in old.demux(video=0):
            if packet.dts is None:
                continue
            keys += packet.is_keyframe
            skip -= keys >= key
            if keys >= key and skip < 0:
                packet.stream = stream
                new.mux(packet)
    return path


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Videos in open groups of 12 frames, by codec and container."""
    folder, frames = tmp_path_factory.mktemp("groups"), numbered_frames(COUNT, 48, 80)
    kinds = {"h264": ("libx264", OPEN), "hevc": ("libx265", HEVC), "intra": ("libx264", INTRA)}
    return {
        (name, suffix): write_video(folder / f"{name}.{suffix}", frames, FPS, codec, options=options)
        for (name, (codec, options)), suffix in itertools.product(kinds.items(), ("mkv", "ts"))
    }


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("skip", [0, 5])
def test_a_stream_may_begin_anywhere(tmp_path, groups, codec, suffix, skip):
    """Cut at a key frame of an open group, and five packets behind a key frame. All that can be decoded is there."""
    path = copied(groups[codec, "ts" if suffix == "ts" else "mkv"], tmp_path / f"cut.{suffix}", 1, skip)
    whole = read_frames(path)
    assert numbers(whole) == list(range(numbers(whole)[0], COUNT)) and numbers(whole)[0] in (12, 24, 36)
    zero_s = whole.start_s - numbers(whole)[0] / FPS
    for start_s in (whole.start_s, whole.start_s + 0.5, whole.start_s + 1.0):
        first = round((start_s - zero_s) * FPS)
        assert numbers(read_frames(path, start_s, start_s + 0.49)) == list(range(first, first + 6))


def test_a_stream_without_key_frames_is_shown_once_it_has_recovered(tmp_path, groups):
    path = copied(groups["intra", "mkv"], tmp_path / "cut.mkv", 1)
    shown = numbers(read_frames(path))
    assert shown == list(range(shown[0], COUNT)) and shown[0] < 40


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_windows_of_open_groups_are_exact(groups, suffix):
    path = groups["h264", suffix]
    for first in range(COUNT - 3):
        assert numbers(read_frames(path, first / FPS, (first + 2.9) / FPS)) == [first, first + 1, first + 2]


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_damage_in_a_cut_open_group_is_still_refused(tmp_path, groups, place):
    path = copied(groups["h264", "mkv"], tmp_path / "cut.mkv", 1)
    data = bytearray(path.read_bytes())
    for at in range(int(len(data) * place), int(len(data) * place) + 300):
        data[at] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged|breaks off"):
        read_frames(path)


def with_cover(source, path, cover_first):
    """The video with a cover picture of 300x300; a player's stream 0 is what stands first in the header (`moov`)."""
    picture = np.full((300, 300, 3), 99, np.uint8)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        video = new.add_stream_from_template(old.streams.video[0])
        cover = new.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 300, 300, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
        new.mux([*cover.encode(frame), *cover.encode(None)])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                new.mux(packet)
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    moov = data[start : start + struct.unpack(">I", data[start : start + 4])[0]]
    boxes, place = [], 8
    while place < len(moov):
        size = struct.unpack(">I", moov[place : place + 4])[0]
        boxes.append(moov[place : place + size])
        place += size
    boxes.sort(key=lambda box: (box[4:8] == b"udta") != cover_first)
    path.write_bytes(data[:start] + moov[:8] + b"".join(boxes) + data[start + len(moov) :])
    return path


@pytest.mark.parametrize("cover_first", [True, False])
def test_a_cover_picture_is_never_the_video(tmp_path, cover_first):
    video = write_video(tmp_path / "v.mp4", numbered_frames(24, 48, 80), FPS, options={"crf": "12"})
    path = with_cover(video, tmp_path / "c.mp4", cover_first)
    with av.open(str(path)) as container:
        assert [s.width for s in container.streams.video] == ([300, 80] if cover_first else [80, 300])
    assert numbers(read_frames(path)) == list(range(24))


def two_streams(path, default):
    """Two videos in one file: numbers from 0 in 80x48 and from 100 in 160x96; `default` of them is marked so."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=FPS, options={"crf": "12"}) for _ in range(2)]
        for place, (stream, scale) in enumerate(zip(streams, (1, 2), strict=True)):
            stream.width, stream.height, stream.pix_fmt = 80 * scale, 48 * scale, "yuv420p"
            stream.disposition = Disposition.default if default in (place, None) else 0
        for index in range(24):
            for stream, scale in zip(streams, (1, 2), strict=True):
                pixels = numbered_frames(1, 48 * scale, 80 * scale, first=index + 100 * (scale - 1))[0]
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, FPS)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("default", "first"), [(None, 100), (0, 0), (1, 100)])
def test_of_several_videos_the_default_or_the_largest_is_read(tmp_path, capsys, default, first):
    path = two_streams(tmp_path / f"two-{default}.mkv", default)
    assert numbers(read_frames(path)) == list(range(first, first + 24))
    said = capsys.readouterr().err
    assert f"{path} has 2 video streams; stream {bool(first):d} (" in said and said.count("\n") == 1


QUADRANTS = np.array([[[200, 30, 30], [30, 180, 30]], [[30, 30, 200], [210, 210, 30]]], np.uint8)


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), (1, -1))))
@pytest.mark.parametrize("turned", [False, True])
def test_all_eight_display_matrices(tmp_path, signs, turned):
    """By hand: ISO/IEC 14496-12 shows the pixel at (x, y) at (ax + cy, bx + dy)."""
    a, b, c, d = (0, signs[0], signs[1], 0) if turned else (signs[0], 0, 0, signs[1])
    picture = np.repeat(np.repeat(QUADRANTS, 24, 0), 40, 1)
    path = write_video(
        tmp_path / "a.mp4", np.repeat(picture[None], 3, 0), FPS, options={"crf": "8"}, aspect=Fraction(2, 1)
    )
    turn_on_display(path, a, b, c, d)
    shown = {(a * x + c * y, b * x + d * y): QUADRANTS[y, x] for x in (0, 1) for y in (0, 1)}
    left, top = min(x for x, _ in shown), min(y for _, y in shown)
    for frame in read_frames(path).frames:
        assert frame.shape == ((160, 48, 3) if turned else (48, 160, 3))  # pixels are twice as wide as high
        rows, columns = frame.shape[0] // 2, frame.shape[1] // 2
        for (x, y), colour in shown.items():
            centre = frame[(y - top) * rows + rows // 2, (x - left) * columns + columns // 2]
            assert np.abs(centre.astype(int) - colour).max() < 30, (x, y)


def test_empty_times_are_the_beginning_and_the_end(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(30, 48, 80), FPS)
    write_av(tmp_path / "late.mp4", 0.5, frames=30)
    write_video(tmp_path / "unknown.mkv", numbered_frames(30, 48, 80), FPS)
    data = (tmp_path / "unknown.mkv").read_bytes()
    # Matroska's duration elements become void ones: the file no longer says how long it is.
    data = data.replace(b"\x44\x89\x88", b"\xec\x40\x08").replace(b"DURATION", b"DURATIOX")
    (tmp_path / "unknown.mkv").write_bytes(data)
    shards, _ = build(tmp_path, *((f"{n}", "", "") for n in ("a.mp4", "late.mp4", "unknown.mkv")), ("a.mp4", "1.5", ""))
    assert not shards.manifest["shortened"]
    for record in shards.records[:3]:
        assert stored_numbers(shards, record) == list(range(30)), record.key
        assert (record.segment_start_s, record.segment_end_s) == pytest.approx((0, 2.5), abs=0.01)
    last = shards.records[3]
    assert stored_numbers(shards, last) == list(range(15, 30)) and last.segment_start_s == pytest.approx(0.25, abs=1e-3)


def test_a_video_shorter_than_a_clip_is_refused_or_filled_when_asked(tmp_path):
    write_video(tmp_path / "short.mp4", numbered_frames(9, 48, 80), FPS)
    write_video(tmp_path / "long.mp4", numbered_frames(COUNT, 48, 80), FPS)
    rows = [("short.mp4", "", ""), ("long.mp4", 0.0, 0.2), ("long.mp4", 4.9, 5.0)]
    with pytest.raises(DataError, match=r"lasts 0\.75 s, less than one clip .*dataset\.pad=true"):
        build(tmp_path, *rows, clip_s=1.5)
    shards, _ = build(tmp_path, *rows, clip_s=1.5, pad=True)
    short, early, late = shards.records
    assert stored_numbers(shards, short) == [*range(9), *[8] * 9]
    assert (short.segment_start_s, short.segment_end_s, short.padded_s) == pytest.approx((0, 1.5, 0.75))
    assert early.padded_s == late.padded_s == 0.0 and stored_numbers(shards, late)[-1] == COUNT - 1
    assert shards.manifest["padded"] == [short.key] and shards.manifest["configuration"]["pad"] is True
    assert any("1 clips are filled up" in warning for warning in quality_warnings(ShardSet.load(shards.folder)))
