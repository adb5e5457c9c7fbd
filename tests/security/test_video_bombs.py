"""Attacks by size: small files that fill the memory or take for ever cost one sentence, and no more."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest
from data_worlds import NumberedReader, build_shards, small_encoding, small_loader

from ace_dist.config import ClipConfig, Config, DatasetConfig
from ace_dist.data.annotations.csv import read_csv
from ace_dist.data.build.isolation import LostError, Workers, run_alone, stream_alone
from ace_dist.data.loader.single_video import read_clip
from ace_dist.utils.errors import DataError

CLIP = ClipConfig(4, 1.0, 1)
CONFIG = Config(
    name="t", dataset=DatasetConfig("t", "csv", shards="", clip=CLIP, encoding=small_encoding()), loader=small_loader()
)


def write_black(path, width, height, frames, rate=30, codec="libx264", times=None):
    """A black video, written fast. `times`: seconds of each frame instead of the constant rate."""
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "g": "1000"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        frame = av.VideoFrame.from_ndarray(np.zeros((height * 3 // 2, width), np.uint8), format="yuv420p")
        stream.codec_context.time_base = frame.time_base = Fraction(1, 1000)
        for index in range(frames):
            frame.pts = round(1000 * (times[index] if times else index / rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_aspect(path, across, down):
    """Write another pixel aspect into an mp4 file (ISO/IEC 14496-12, 12.1.4)."""
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, data.index(b"pasp") + 4, across, down)
    path.write_bytes(data)


def ledger_of(folder, bomb):
    """What a build says of a bomb that is annotated from its beginning to `until_s`."""
    until_s, path = bomb
    write_black(folder / "good.mp4", 64, 48, 45)
    (folder / "labels.csv").write_text(
        "video,start_s,end_s,verb,object,split,group\n"
        f"good.mp4,0,1,spin,block,train,a\n{path.name},0,{until_s},spin,block,train,a\n"
    )
    encoding = small_encoding(fps=30.0)
    reader = read_csv(folder / "labels.csv", fps=30.0)
    shards = build_shards(reader, folder / "shards", CLIP, encoding, allow_quarantine=True, timeout_s=60)
    assert len(shards.records) == 1
    (line,) = (folder / "shards" / "quarantine.jsonl").read_text().splitlines()
    return json.loads(line)["reason"]


def test_pictures_that_no_camera_makes_are_refused_before_they_are_decoded(tmp_path):
    """46 KB of H.264 (16384x64, 800 frames) took 4.9 GB, and a pixel aspect of 500:1 as much."""
    wide = write_black(tmp_path / "wide.mp4", 16384, 64, 60)
    with pytest.raises(DataError, match=r"wide\.mp4 has pictures of 16384x64 pixels"):
        read_clip(wide, CONFIG, None, None)
    for across, down in ((500, 1), (1, 500)):
        path = write_black(tmp_path / "aspect.mp4", 64, 64, 60)
        set_aspect(path, across, down)
        with pytest.raises(DataError, match=r"aspect\.mp4 has pictures of 64x64 pixels, shown as"):
            read_clip(path, CONFIG, None, None)
    assert "has pictures of 16384x64 pixels" in ledger_of(tmp_path, (2, wide))


def test_pictures_of_the_largest_cameras_are_read(tmp_path):
    """8K, and two pictures of a 12K camera; a strip of several cameras."""
    for width, height in ((7680, 4320), (12288, 6480), (2048, 128)):
        path = write_black(tmp_path / "a.mp4", width, height, 2, rate=1)
        assert read_clip(path, CONFIG, None, None).video.shape[1] == 4


def test_a_video_that_claims_to_last_for_weeks(tmp_path):
    path = write_black(tmp_path / "long.mkv", 64, 48, 3, codec="libvpx-vp9", times=[0, 1, 3e6])
    with pytest.raises(DataError, match=r"too long for one action"):
        read_clip(path, CONFIG, None, None)
    assert "shows one picture from 0 to 1500000 s" in ledger_of(tmp_path, (2.9e6, path))


def test_a_video_that_takes_too_long_is_ended(tmp_path):
    path = write_black(tmp_path / "a.mp4", 64, 48, 60)
    with pytest.raises(DataError, match=r"a\.mp4 cannot be read: it was not read within 0\.01 s"):
        read_clip(path, CONFIG, None, None, timeout_s=0.01)
    assert len(read_clip(path, CONFIG, None, None).video)


def allocate(gib):
    return len(bytearray(gib << 30))


def test_memory_that_runs_out_is_said_in_a_sentence():
    assert run_alone(60, allocate, 1) == 1 << 30
    with pytest.raises(DataError, match=r"needs more than 8 GiB of memory"):
        run_alone(60, allocate, 9)
    assert run_alone(60, allocate, 1) == 1 << 30


@dataclass
class GreedyReader(NumberedReader):
    """Needs more memory for its last segment than a worker may have."""

    opens_files = True

    def read(self, segment, start_s, end_s):
        if segment.id == "clip_003":
            allocate(9)
        return super().read(segment, start_s, end_s)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_segment_that_needs_too_much_memory_costs_itself_only(tmp_path, workers):
    shards = build_shards(GreedyReader(4), tmp_path, CLIP, small_encoding(), workers=workers, allow_quarantine=True)
    assert {record.key for record in shards.records} == {"clip_000", "clip_001", "clip_002"}
    (line,) = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert "memory" in json.loads(line)["reason"]


def count_to(number, fail_at):
    for index in range(number):
        if index == fail_at:
            raise DataError("no further")
        yield index


def sleep_before(seconds):
    for pause in seconds:
        time.sleep(pause)
        yield pause


def test_a_stream_from_a_worker():
    """Items come one by one, errors where they happen, and the time limit is for an item, not for all."""
    assert list(stream_alone(60, count_to, 5, None)) == [0, 1, 2, 3, 4]
    items = stream_alone(60, count_to, 5, 2)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(DataError, match="no further"):
        next(items)
    assert list(stream_alone(0.5, sleep_before, [0.3, 0.3, 0.3])) == [0.3, 0.3, 0.3]
    with pytest.raises(LostError, match=r"not read within 0\.5 s"):
        list(stream_alone(0.5, sleep_before, [0.1, 60]))
    with Workers(1, count_to) as workers:
        items = workers.stream(60, 10**9, None)
        assert next(items) == 0
        items.close()  # ends the worker that was still counting
        assert not workers.idle
        assert workers.run(60, 1, None) == 0
