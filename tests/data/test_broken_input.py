"""Protects the promise that every annotated segment becomes a correct clip or a line in the ledger, whatever its file.

All files of this page are made here and built in one go; what is stored is read back frame by frame.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from data_worlds import (
    build_shards,
    frame_number,
    numbered_frames,
    remux,
    rotate_on_display,
    small_encoding,
    write_hdr,
    write_sound,
    write_video,
)

from ace_dist.config import ClipConfig
from ace_dist.data.annotations.csv import COLUMNS, read_csv
from ace_dist.data.shards import ShardFiles
from ace_dist.utils.errors import DataError

CLIP = ClipConfig(4, 0.5, 1)
H264 = {"crf": "10", "g": "12", "bf": "2", "sc_threshold": "0", "b_strategy": "0"}
FPS, COUNT = 12, 36  # every readable video: three seconds of numbered frames
SEGMENT = (1.0, 2.0)  # stored with a margin of 0.25 s: from 0.75 to 2.25 s
STORED = range(9, 27)  # the frames in that window
MPEG4 = {"qmin": "2", "qmax": "3", "g": "12"}
VP9 = {"crf": "10", "b": "0", "cpu-used": "8", "deadline": "realtime", "g": "12"}
# name of the file -> codec, pixel format, options, and what differs
SOUND = {
    "plain.mp4": ("libx264", "yuv420p", H264, {}),
    "b frames.avi": ("mpeg4", "yuv420p", MPEG4 | {"bf": "2"}, {}),
    "b frames h264.avi": ("libx264", "yuv420p", H264, {}),
    "motion jpeg.avi": ("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "3"}, {}),
    "matroska.mkv": ("libx265", "yuv420p", {"crf": "10", "x265-params": "log-level=none"}, {}),
    "web.webm": ("libvpx-vp9", "yuv420p", VP9, {}),
    "open groups.mp4": ("libx264", "yuv420p", H264 | {"x264-params": "open-gop=1"}, {}),
    "Käsereibe – größte 日本 (1) 50%.mp4": ("libx264", "yuv420p", H264, {}),
    "ten bit.mp4": ("libx264", "yuv420p10le", H264, {}),
    "full chroma.mp4": ("libx264", "yuv444p", H264, {}),
    "late first time.mkv": ("libx264", "yuv420p", H264, {"times": [7.5 + i / FPS for i in range(COUNT)]}),
    "late first time.mp4": ("libx264", "yuv420p", H264, {"times": [7.5 + i / FPS for i in range(COUNT)]}),
    "late first time.ts": ("libx264", "yuv420p", H264, {"times": [7.5 + i / FPS for i in range(COUNT)]}),
    "odd size.mkv": ("ffv1", "bgr0", {}, {"size": (51, 83)}),
}
PAUSES = [0.0, 0.1, 0.2, 0.95, 1.0, 1.1, 1.4, 1.5, 2.1, 2.2, 2.9, 3.0]  # seconds of the frames of variable rate
QUADRANTS = np.array([[[200, 30, 30], [30, 180, 30]], [[30, 30, 200], [210, 210, 30]]], np.uint8)


def truncated(path, share):
    """Cut the end of a file off."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def damaged(path):
    """Flip bits of a whole stretch in the middle of a file."""
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 300):
        data[place] ^= 0x5A
    path.write_bytes(data)
    return path


def joined(path, *parts):
    """One stream of the packets of several videos in motion JPEG, whose pictures may have any size each."""
    with av.open(str(path), "w") as new:
        stream, shift = None, 0
        for part in parts:
            with av.open(str(part)) as old:
                stream = stream or new.add_stream_from_template(old.streams.video[0])
                for packet in old.demux(video=0):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream, last = stream, packet.pts + packet.duration
                        new.mux(packet)
            shift = last


def make_sound(folder, seed):
    for name, (codec, pix_fmt, options, other) in SOUND.items():
        height, width = other.get("size", (48, 80))
        frames = numbered_frames(COUNT, height, width, seed=seed)
        write_video(folder / name, frames, FPS, codec, pix_fmt, other.get("times"), options)
    write_video(folder / "variable.mkv", numbered_frames(len(PAUSES), 48, 80), FPS, times=PAUSES, options=H264)
    picture = np.repeat(np.repeat(QUADRANTS, 32, 0), 48, 1)
    for degrees in (90, 180, 270):
        path = write_video(folder / f"turned {degrees}.mp4", np.repeat(picture[None], COUNT, 0), FPS, options=H264)
        rotate_on_display(path, degrees)
    in_order = write_video(folder / "in order.mp4", numbered_frames(COUNT, 48, 80), FPS, options=H264 | {"bf": "0"})
    remux(in_order, folder / "no first key.mkv", skip=5)
    remux(folder / "plain.mp4", folder / "cut behind.mp4", movflags="faststart")


def make_broken(folder):
    """Files that give no clip, with the reason that the ledger must say."""
    frames, path = numbered_frames(COUNT, 48, 80), folder / "plain.mp4"
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    write_sound(folder / "sound.mp4")
    write_video(folder / "one frame.mp4", frames[:1], FPS)
    write_hdr(folder / "pq.mp4", 16)
    write_hdr(folder / "hlg.mp4", 18)
    truncated(remux(path, folder / "index lost.mp4"), 0.6)
    truncated(remux(path, folder / "truncated.mkv"), 0.6)
    truncated(remux(path, folder / "truncated fast.mp4", movflags="faststart"), 0.6)
    damaged(remux(path, folder / "damaged.mp4", movflags="faststart"))
    for name, height, width in (("small.mkv", 48, 80), ("large.mkv", 64, 96)):
        write_video(folder / name, numbered_frames(20, height, width), FPS, "mjpeg", "yuvj420p")
    joined(folder / "grows.mkv", folder / "small.mkv", folder / "large.mkv")
    remux(path, folder / "bare.h264")
    return {
        "empty.mp4": r"empty \(0 bytes\)",
        "text.mp4": "cannot be read as a video",
        "sound.mp4": "no video stream, only audio",
        "one frame.mp4": r"lasts 0\.08 s, less than one clip \(dataset\.clip\.seconds=0\.5\)|shows no frame at",
        "pq.mp4": r"HDR \(PQ\).*tone-map it to BT\.709 first.*out_transfer=bt709",
        "hlg.mp4": r"HDR \(HLG\).*tone-map it to BT\.709 first.*out_transfer=bt709",
        "index lost.mp4": "cannot be read as a video",
        "truncated.mkv": r"breaks off .*promises 3\.00 s",
        "truncated fast.mp4": r"is damaged after|breaks off",
        "damaged.mp4": "is damaged after",
        "grows.mkv": r"changes from 80x48 to 96x64 pixels at 1\.\d\d s",
        "bare.h264": "bare stream without times",
    }


BROKEN = (
    "empty.mp4", "text.mp4", "sound.mp4", "one frame.mp4", "pq.mp4", "hlg.mp4", "index lost.mp4", "truncated.mkv",
    "truncated fast.mp4", "damaged.mp4", "grows.mkv", "bare.h264",
)  # fmt: skip
# rows with faults of their own: name of the case -> file, start, end, and what the ledger must say
FAULTS = {
    "start after end": ("plain.mp4", "2", "1", r"start_s=2 is not before end_s=1"),
    "past the end": ("plain.mp4", "7", "8", r"shows no frame at 6\.75 s: it ends at 3\.00 s"),
    "mostly past the end": ("plain.mp4", "2", "5", r"the video ends at 3\.00 s, before its middle"),
    "before the first key frame": ("no first key.mkv", "0", "1", r"shows nothing before 0\.58 s"),
    "behind the cut": ("cut behind.mp4", "2.4", "2.9", r"is damaged after|breaks off"),
    "repeated": ("plain.mp4", "1.0", "2.0", r"repeats line 2: same video, times and action"),
    "absent": ("nowhere.mp4", "1", "2", r"nowhere\.mp4 does not exist"),
}


class World:
    """The built folder: stored clips by the case that they belong to, ledger lines by line of the CSV."""

    def __init__(self, folder):
        self.folder, seed = folder, np.random.default_rng().integers(1 << 30)
        make_sound(folder, seed)
        self.reasons = make_broken(folder)
        truncated(folder / "cut behind.mp4", 0.8)
        names = [*SOUND, "variable.mkv", *(f"turned {d}.mp4" for d in (90, 180, 270)), "no first key.mkv", *BROKEN]
        cases = [(name, name, *SEGMENT) for name in names]
        cases += [("before the cut", "cut behind.mp4", 0.0, 0.5), ("a little past the end", "plain.mp4", 2.2, 3.2)]
        cases += [(case, *row[:3]) for case, row in FAULTS.items()]
        self.line = {case: number for number, (case, *_) in enumerate(cases, start=2)}
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for case, video, start, end in cases:
                writer.writerow([video, start, end, "spin", "block", "train", case])
        self.rows = len(cases)
        reader = read_csv(folder / "labels.csv", keep_faults=True)
        encoding = small_encoding(codec="h264", quality=10)
        self.shards = build_shards(reader, folder / "shards", CLIP, encoding, allow_quarantine=True)
        self.records = {record.group: record for record in self.shards.records}
        lines = (folder / "shards" / "quarantine.jsonl").read_text().splitlines()
        self.ledger = {int(entry["origin"].split(" line ")[1]): entry for entry in map(json.loads, lines)}
        self.frames = {}
        files = ShardFiles(folder / "shards")
        for case, record in self.records.items():
            with av.open(io.BytesIO(files.read(record))) as container:
                self.frames[case] = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        files.close()
        self.original = numbered_frames(COUNT, 48, 80, seed=seed)

    def numbers(self, case):
        assert case in self.records, self.ledger.get(self.line[case])
        return [frame_number(frame) for frame in self.frames[case]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("broken"))


def test_every_row_is_a_clip_or_a_line_in_the_ledger(world):
    assert len(world.records) + len(world.ledger) == world.rows
    assert world.shards.manifest["configuration"]["segments"] == world.rows
    assert world.shards.manifest["quarantined"] == len(world.ledger) == len(BROKEN) + len(FAULTS)
    assert all(entry["reason"] and entry["id"] for entry in world.ledger.values())


@pytest.mark.parametrize("name", SOUND)
def test_the_frames_of_the_annotated_seconds_are_stored(world, name):
    assert world.numbers(name) == list(STORED)
    record = world.records[name]
    assert (record.segment_start_s, record.segment_end_s) == pytest.approx((0.25, 1.25), abs=2e-3)
    assert record.fps == pytest.approx(FPS, rel=1e-3)
    assert (record.height, record.width) == ((50, 82) if name.startswith("odd") else (48, 80))
    if not name.startswith("odd"):
        difference = np.abs(np.array(world.frames[name], float) - world.original[STORED.start : STORED.stop])
        assert difference.mean() < 8  # two lossy codecs; another picture is some 60 grey levels away


def test_a_variable_rate_is_stored_at_its_times(world):
    """Times and a constant rate that is not the file's: each stored frame is the one nearest to its time."""
    record = world.records["variable.mkv"]
    first_s = SEGMENT[0] - record.segment_start_s
    times = first_s + np.arange(record.frames) / record.fps
    distance = np.abs(np.array(PAUSES)[None] - times[:, None])
    shown = np.array(world.numbers("variable.mkv"))
    assert (distance[np.arange(len(shown)), shown] <= distance.min(1) + 2e-3).all()  # Matroska counts milliseconds
    assert times[0] == pytest.approx(0.75, abs=0.5 / record.fps) and times[-1] + 1 / record.fps >= 2.25 - 1e-3


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied_to_the_pixels(world, degrees):
    """The quadrants' colours stand where a player shows them."""
    case = f"turned {degrees}.mp4"
    upright = np.rot90(QUADRANTS, -degrees // 90)  # numpy turns counterclockwise
    height, width = upright.shape[:2]
    for frame in world.frames[case]:
        rows, columns = frame.shape[0] // height, frame.shape[1] // width
        centres = frame[rows // 2 :: rows, columns // 2 :: columns].astype(int)
        assert np.abs(centres - upright).max() < 30
    assert (world.records[case].height > world.records[case].width) == (degrees != 180)


def test_what_a_file_still_holds_is_stored(world):
    assert world.numbers("no first key.mkv") == list(range(14, 32))  # its time 0 is frame 5's, 0.75 s is 14
    assert world.numbers("before the cut") == list(range(9))
    assert world.numbers("a little past the end") == list(range(23, 36))
    assert world.shards.manifest["shortened"] == [world.records["a little past the end"].key]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_in_the_ledger_with_its_reason(world, name):
    entry = world.ledger[world.line[name]]
    assert Path(entry["video"]).name == name
    assert re.search(world.reasons[name], entry["reason"]), entry["reason"]


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_row_is_in_the_ledger_with_its_reason(world, case):
    entry = world.ledger[world.line[case]]
    assert entry["origin"].endswith(f"labels.csv line {world.line[case]}")
    assert re.search(FAULTS[case][3], entry["reason"]), entry["reason"]


def test_without_leave_nothing_is_left_out(world):
    with pytest.raises(DataError, match=rf"{len(world.reasons)} of \d+ segments could not be stored"):
        rows = (world.folder / "labels.csv").read_text(encoding="utf-8").splitlines()
        good = [row for number, row in enumerate(rows, start=1) if number not in world.line.values()]
        broken = [row for row in rows if row.split(",")[0] in BROKEN]
        (world.folder / "broken.csv").write_text("\n".join([good[0], *broken]) + "\n", encoding="utf-8")
        reader = read_csv(world.folder / "broken.csv")
        build_shards(reader, world.folder / "refused", CLIP, small_encoding())
    listed = (world.folder / "refused" / "quarantine.jsonl").read_text().splitlines()
    assert len(listed) == len(BROKEN) and not (world.folder / "refused" / "manifest.json").exists()
