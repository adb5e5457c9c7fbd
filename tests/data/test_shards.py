"""Protects the stored data: nothing disappears, equal input gives equal bytes, a killed build continues."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import webdataset
from data_worlds import (
    DyingReader,
    HangingReader,
    NumberedReader,
    build_shards,
    frame_number,
    numbered_frames,
    small_encoding,
    wait_for_ever,
    write_video,
)
from nvidia.dali import Pipeline, fn

from ace_dist.config import ClipConfig
from ace_dist.data.annotations.csv import read_csv
from ace_dist.data.build import encode as encoding_module
from ace_dist.data.build.cut import Cutter
from ace_dist.data.build.decode import read_window
from ace_dist.data.build.encode import check_decodes, encode, resampled
from ace_dist.data.build.isolation import LostError, Workers, run_alone
from ace_dist.data.build.shards import sole_writer
from ace_dist.data.build.single_video import OneVideo
from ace_dist.data.loader.pyav import decode_frames
from ace_dist.data.sampling import train_frames
from ace_dist.data.segments import RawClip, Segment
from ace_dist.data.shards import ShardFiles, ShardSet
from ace_dist.utils.errors import DataError

CLIP = ClipConfig(4, 1.5, 3)


def build(reader, folder, **settings):
    encoding = settings.pop("encoding", small_encoding())
    defaults = {"clips_per_shard": 4, "workers": 1}
    return build_shards(reader, folder, settings.pop("clip", CLIP), encoding, **(defaults | settings))


def tree(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.startswith(".")}


def decoded(data):
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_every_segment_is_stored_with_its_own_frames(tmp_path):
    reader = NumberedReader(11, sizes=((64, 64), (90, 65), (51, 83)))
    shards = build(reader, tmp_path)
    assert Counter(record.key for record in shards.records) == Counter(s.id for s in reader.segments())
    assert len(shards.split("train")) == 7 and len(shards.split("test")) == 4
    files = ShardFiles(tmp_path)
    for segment in reader.segments():
        (record,) = (record for record in shards.records if record.key == segment.id)
        data = files.read(record)
        assert hashlib.sha256(data).hexdigest() == record.sha256
        numbers = [frame_number(frame) for frame in decoded(data)]
        # 0.25 s of margin before 0.4 s is 0.15 s: frame 1 of 8 a second; 2.85 s after the start: frame 22, the last.
        assert numbers == list(range(1, 23)) and record.frames == 22 and record.fps == 8.0
        assert record.segment_start_s == pytest.approx(0.4 - 1 / 8) and record.segment_end_s == pytest.approx(
            2.6 - 1 / 8
        )
        assert (record.verb, record.object, record.split, record.group) == (
            segment.verb, segment.object, segment.split, segment.group,
        )  # fmt: skip
    sizes = {record.key: (record.height, record.width) for record in shards.records}
    # Short side 64, the long one rounded to the nearest even number; a smaller clip only loses its odd column and row.
    assert (sizes["clip_000"], sizes["clip_001"], sizes["clip_002"]) == ((64, 64), (88, 64), (50, 82))
    files.close()


def test_the_manifest_counts_and_checksums(tmp_path):
    reader = NumberedReader(11)
    shards = build(reader, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    expected = {split: Counter() for split in ("train", "test")}
    for segment in reader.segments():
        expected[segment.split][f"{segment.verb} {segment.object}"] += 1
    assert manifest["counts"] == {split: dict(counts) for split, counts in expected.items()}
    assert [shard["clips"] for shard in manifest["shards"]] == [4, 3, 4]
    for shard in manifest["shards"]:
        assert hashlib.sha256((tmp_path / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
    assert manifest["tools"]["av"] == av.__version__ and manifest["encoder"]["g"] == "5"
    assert shards.codec == "vp9" and shards.seconds == 1.5
    path = tmp_path / "train-00000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-00000\.tar has \d+ bytes instead of \d+; build dataset\.shards="):
        ShardSet.load(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"train-00000\.tar is missing"):
        ShardSet.load(tmp_path)


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264"])
def test_equal_input_gives_equal_bytes_whatever_the_number_of_workers(tmp_path, codec):
    reader, settings = NumberedReader(9), {"encoding": small_encoding(codec=codec)}
    for name, workers in (("one", 1), ("again", 1), ("three", 3)):
        build(reader, tmp_path / name, workers=workers, **settings)
    assert tree(tmp_path / "one") == tree(tmp_path / "again") == tree(tmp_path / "three")


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264"])
def test_stored_clips_are_canonical(tmp_path, codec):
    frames = numbered_frames(23, 97, 131)
    clip = encode(RawClip(frames, 29.97, 0.0), small_encoding(codec=codec, fps=None))
    with av.open(io.BytesIO(clip.data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert all(packet.is_keyframe for packet in packets[::5]) and len(packets) == 23
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]  # no B-frames
        steps = {later.pts - earlier.pts for earlier, later in zip(packets, packets[1:], strict=False)}
        assert len(steps) == 1 and packets[0].pts == 0  # constant rate from zero
        assert float(stream.average_rate) == pytest.approx(29.97, rel=1e-4)
    # Every GOP is closed: it decodes without the ones before it.
    for first in range(5, 23, 5):
        with av.open(io.BytesIO(clip.data)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size][first : first + 5]
            pictures = [picture for packet in [*packets, None] for picture in stream.codec_context.decode(packet)]
        assert [frame_number(p.to_ndarray(format="rgb24")) for p in pictures] == list(range(first, min(first + 5, 23)))
    assert pictures[0].format.name in ("yuv420p", "yuvj420p")
    assert (clip.height, clip.width) == (64, 86)  # 131 * 64 / 97 = 86.4


def test_another_rate_takes_the_nearest_frames():
    raw = RawClip(numbered_frames(31, 16, 32), 30.0, 0.0)
    for fps in (10.0, 12.5, 29.97, 30.0, 45.0):
        times = np.arange(1000) / fps
        new = [frame_number(frame) for frame in resampled(raw, fps)]
        distance = np.abs(np.arange(31)[None] / 30 - times[: len(new), None])
        assert (distance[np.arange(len(new)), new] <= distance.min(1) + 1e-9).all()
        assert abs(len(new) / fps - 31 / 30) <= 1 / fps


def test_storing_at_the_rate_of_the_clip_does_not_change_what_training_sees(tmp_path):
    """Frames of the training window by their numbers, stored at 10 a second against all 30: one source frame apart at
    most (each is the nearest to its time on the way in, or on the way out), evenly spaced, and never beside the grid.
    """
    video = write_video(tmp_path / "v.mp4", numbered_frames(200, 64, 64), rate=30, options={"bf": "0"})
    rng, clip = np.random.default_rng(), ClipConfig(frames=int(np.random.default_rng().integers(5, 12)), seconds=1.0)
    for _ in range(6):
        start_s = rng.uniform(1.2, 3)
        segment = Segment("s", str(video), start_s, start_s + rng.uniform(0.3, 2), "spin", "block", "train")
        shown = []
        for fps in (None, float(clip.frames)):
            record, data = Cutter(OneVideo(fps, 64), 1.0, small_encoding(fps=fps)).cut(segment)
            frames = train_frames(record, clip)
            shown.append([frame_number(frame) for frame in decode_frames(data, frames)])
        assert np.diff(frames).tolist() == [1] * (clip.frames - 1)
        assert np.abs(np.subtract(*shown)).max() <= 1, (segment, shown)


def test_an_encoded_clip_that_lost_frames_is_refused():
    clip = encode(RawClip(numbered_frames(20, 64, 64), 8.0, 0.0), small_encoding())
    check_decodes(clip.data, 20, 64, 64, 5, 8.0, "vp9")
    with pytest.raises(DataError, match="promises 21 frames, but 20 come out"):
        check_decodes(clip.data, 21, 64, 64, 5, 8.0, "vp9")
    with pytest.raises(DataError, match="promises 66x64 in 8-bit 4:2:0, but 64x64"):
        check_decodes(clip.data, 20, 64, 66, 5, 8.0, "vp9")
    with pytest.raises(DataError, match="no key frame at every 4th frame"):
        check_decodes(clip.data, 20, 64, 64, 4, 8.0, "vp9")
    with pytest.raises(DataError, match="cannot be decoded|come out"):
        check_decodes(clip.data[: len(clip.data) // 2], 20, 64, 64, 5, 8.0, "vp9")


def test_no_clip_enters_a_shard_undecoded(tmp_path, monkeypatch):
    def forgetful(frames, *arguments):
        data, count = original(list(frames)[:-1], *arguments)
        return data, count + 1

    original = encoding_module.write_file
    monkeypatch.setattr(encoding_module, "write_file", forgetful)
    with pytest.raises(DataError, match="3 of 3 segments.*\n.*promises 22 frames, but 21 come out"):
        build(NumberedReader(3), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_collected_and_end_the_build(tmp_path, workers):
    reader = NumberedReader(9, broken=frozenset({"clip_002", "clip_007"}))
    with pytest.raises(DataError) as caught:
        build(reader, tmp_path, workers=workers)
    text = str(caught.value)
    assert text.startswith("2 of 9 segments") and "clip_002 (rendered):" in text and "clip_007 (rendered):" in text
    assert "dataset.allow_quarantine=true" in text and not (tmp_path / "manifest.json").exists()
    with pytest.raises(DataError, match="holds no finished build"):
        ShardSet.load(tmp_path)


def test_quarantine_lists_what_is_left_out(tmp_path):
    reader = NumberedReader(9, broken=frozenset({"clip_002", "clip_007"}))
    shards = build(reader, tmp_path, allow_quarantine=True)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == reader.broken and all("on purpose" in line["reason"] for line in lines)
    assert len(shards.records) + len(lines) == len(reader.segments()) and shards.manifest["quarantined"] == 2
    assert build(reader, tmp_path, allow_quarantine=True).records == shards.records
    with pytest.raises(DataError, match=r"built without 2 segments.*dataset\.allow_quarantine"):
        build(reader, tmp_path)
    everything = frozenset(segment.id for segment in reader.segments())
    with pytest.raises(DataError, match="9 of 9"):
        build(dataclasses.replace(reader, broken=everything), tmp_path / "none", allow_quarantine=True)


def test_a_repaired_input_rebuilds_only_the_shards_that_failed(tmp_path):
    with pytest.raises(DataError):
        build(NumberedReader(12, broken=frozenset({"clip_010"})), tmp_path / "repaired")
    reader = CountingReader(12)
    build(reader, tmp_path / "repaired")
    assert reader.read_ids == ["clip_007", "clip_008", "clip_010", "clip_011"]  # the second training shard
    build(NumberedReader(12), tmp_path / "fresh")
    assert tree(tmp_path / "repaired") == tree(tmp_path / "fresh")


def test_a_damaged_shard_alone_is_made_again_and_by_other_versions_none(tmp_path):
    build(NumberedReader(12), tmp_path)
    whole, shard = tree(tmp_path), sorted(tmp_path.glob("*.tar"))[0]
    shard.unlink()
    reader = CountingReader(12)
    build(reader, tmp_path)
    assert len(reader.read_ids) == 4 and tree(tmp_path) == whole
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["tools"]["ace-dist"] = "0.0.1"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    shard.unlink()
    before = tree(tmp_path)
    with pytest.raises(DataError, match=rf"gone: {shard.name}\. Other versions made the build"):
        build(NumberedReader(12), tmp_path)
    assert tree(tmp_path) == before


class CountingReader(NumberedReader):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read_ids = []

    def read(self, segment, start_s, end_s):
        self.read_ids.append(segment.id)
        return super().read(segment, start_s, end_s)


KILLED = """
import sys
sys.path[:0] = {path!r}
from data_worlds import DyingReader, build_shards, small_encoding
from ace_dist.config import ClipConfig

build_shards(DyingReader(12), {folder!r}, ClipConfig(4, 1.5, 3), small_encoding(), clips_per_shard=4, workers=1)
"""


def test_a_killed_build_continues_behind_its_last_finished_shard(tmp_path):
    script = KILLED.format(
        path=[str(Path(__file__).parents[1] / "helpers"), *sys.path], folder=str(tmp_path / "killed")
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    left = {path.name for path in (tmp_path / "killed").glob("*.tar")}
    assert left == {"train-00000.tar"} and not (tmp_path / "killed" / "manifest.json").exists()
    (tmp_path / "killed" / ".train-00001.tar.partial").write_bytes(b"half a shard")
    reader = CountingReader(12)
    build(reader, tmp_path / "killed")
    assert "clip_001" not in reader.read_ids and "clip_011" in reader.read_ids and len(reader.read_ids) == 8
    build(NumberedReader(12), tmp_path / "fresh")
    assert tree(tmp_path / "killed") == tree(tmp_path / "fresh")
    assert not list((tmp_path / "killed").glob(".*.partial"))
    reader.read_ids.clear()
    build(reader, tmp_path / "killed")  # finished: nothing is read again
    assert reader.read_ids == []


def test_a_video_that_kills_its_worker_costs_itself_only(tmp_path):
    with pytest.raises(DataError, match=r"(?s)1 of 12 segments.*clip_011.*the process that cuts it dies, also alone"):
        build(DyingReader(12), tmp_path, workers=2)
    shards = build(DyingReader(12), tmp_path, workers=2, allow_quarantine=True)
    assert {s.id for s in DyingReader(12).segments()} - {r.key for r in shards.records} == {"clip_011"}


def test_a_video_on_which_ffmpeg_hangs_costs_itself_only(tmp_path):
    """Its worker is ended after `timeout_s`, its neighbours are cut, and the ledger says why it is not there."""
    os.mkfifo(tmp_path / "pipe.mp4")
    reader = HangingReader(12, pipe=str(tmp_path / "pipe.mp4"))
    shards = build(reader, tmp_path / "s", workers=2, allow_quarantine=True, timeout_s=3)
    assert {s.id for s in reader.segments()} - {r.key for r in shards.records} == {"clip_011"}
    (line,) = (tmp_path / "s" / "quarantine.jsonl").read_text().splitlines()
    assert "clip_011" in line and "not read within 3 s: FFmpeg hangs on it" in line and "dataset.timeout_s=3" in line


def test_work_apart_returns_raises_and_may_die(tmp_path):
    """What `run_alone` promises; a pipe without a writer stands for a video on which FFmpeg hangs."""
    os.mkfifo(tmp_path / "pipe.mp4")
    assert run_alone(30, sorted, [3, 1, 2]) == [1, 2, 3]
    with pytest.raises(DataError, match=r"does not exist"):
        run_alone(30, read_window, tmp_path / "no.mp4")
    with pytest.raises(LostError, match=r"not read within 2 s"):
        run_alone(2, wait_for_ever, str(tmp_path / "pipe.mp4"))
    with pytest.raises(LostError, match=r"signal 11"):
        run_alone(30, signal.raise_signal, signal.SIGSEGV)


def test_work_apart_in_a_folder_that_was_deleted(tmp_path, monkeypatch):
    """As a service has whose folder a new release replaced: paths from the root go on working, others lead nowhere."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "a.txt").touch()
    (tmp_path / "gone").rmdir()
    assert run_alone(30, os.path.exists, str(tmp_path / "a.txt")) and not run_alone(30, os.path.exists, "a.txt")


def test_a_program_that_is_no_python_starts_no_process(monkeypatch):
    """Python inside another program has that one's name as `sys.executable`; `multiprocessing` can be told another."""
    python = multiprocessing.spawn.get_executable()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Workers(1, abs) as workers:
        assert workers.run(30, -1) == 1
    multiprocessing.set_executable("/bin/false")
    try:
        with Workers(1, abs) as workers, pytest.raises(LostError, match=r"/bin/false ended with status 1; .*set_exec"):
            workers.run(30, -1)
    finally:
        multiprocessing.set_executable(os.fsdecode(python))


def test_an_unfinished_build_of_other_settings_is_not_continued(tmp_path):
    with pytest.raises(DataError):
        build(NumberedReader(12, broken=frozenset({"clip_011"})), tmp_path / "a", encoding=small_encoding(gop=4))
    build(NumberedReader(6), tmp_path / "a")
    build(NumberedReader(6), tmp_path / "fresh")
    assert tree(tmp_path / "a") == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoding": small_encoding(gop=4)}, "encoding"),
        ({"clip": ClipConfig(4, 2.0, 3)}, "clip_seconds"),
        ({"kind": "webdataset"}, "source"),
        ({"clips_per_shard": 5}, "clips_per_shard"),
    ],
)
def test_a_finished_build_of_another_configuration_is_refused(tmp_path, change, named):
    build(NumberedReader(6), tmp_path)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=rf"dataset\.shards=.*another configuration \(different: {named}\)"):
        build(NumberedReader(6), tmp_path, **change)
    with pytest.raises(DataError, match=r"different: the annotated segments\)"):
        build(NumberedReader(7), tmp_path)
    assert tree(tmp_path) == before
    build(NumberedReader(6), tmp_path, clip=ClipConfig(16, 1.5, 1))  # frames and views do not change what is stored


def test_two_builds_do_not_write_into_one_folder(tmp_path):
    with sole_writer(tmp_path), pytest.raises(DataError, match="another process is building dataset.shards="):
        build(NumberedReader(3), tmp_path)
    build(NumberedReader(3), tmp_path)


def test_shards_are_read_by_webdataset_and_the_index_by_dali(tmp_path):
    shards = build(NumberedReader(9), tmp_path)
    by_key = {record.key: record for record in shards.records}
    tars = sorted(str(path) for path in tmp_path.glob("*.tar"))
    read_keys = set()
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        record = by_key[sample["__key__"]]
        assert hashlib.sha256(sample["mp4"]).hexdigest() == record.sha256
        assert json.loads(sample["json"])["verb"] == record.verb
        read_keys.add(record.key)
    assert read_keys == set(by_key)

    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        indices = [str(Path(tar).with_suffix(".idx")) for tar in tars]
        videos, texts = fn.readers.webdataset(paths=tars, index_paths=indices, ext=["mp4", "json"])
        pipeline.set_outputs(videos, texts)
    for _ in by_key:
        video, text = (np.array(output[0]).tobytes() for output in pipeline.run())
        record = by_key[json.loads(text)["key"]]
        assert hashlib.sha256(video).hexdigest() == record.sha256
        read_keys.remove(record.key)
    assert not read_keys
    with tarfile.open(tars[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar.getmembers()} == {(0, 0, 0, "", 0o644)}


def csv_build(folder, rows, **settings):
    lines = ["video,start_s,end_s,verb,object,split,group", *rows]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return build(read_csv(folder / "labels.csv"), folder / "shards", **settings)


def test_faults_of_real_videos_name_segment_file_and_line(tmp_path):
    write_video(tmp_path / "long.mp4", numbered_frames(48, 32, 64), rate=12)
    write_video(tmp_path / "short.mp4", numbered_frames(12, 32, 64), rate=12)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video " * 100)
    rows = [
        "long.mp4,1,3,spin,block,train,a",
        "short.mp4,0,1,spin,block,train,a",
        "long.mp4,7,8,spin,block,train,a",
        "empty.mp4,0,1,spin,block,train,a",
        "text.mp4,0,1,spin,block,train,a",
        "long.mp4,3,5,spin,block,test,a",
        "long.mp4,3,5.2,spin,block,test,a",
    ]
    with pytest.raises(DataError) as caught:
        csv_build(tmp_path, rows)
    lines = {
        int(line.split(" line ")[1].split(")")[0]): line for line in str(caught.value).splitlines() if " line " in line
    }
    assert set(lines) == {3, 4, 5, 6, 8}
    assert "short.mp4" in lines[3] and "lasts 1.00 s, less than one clip (dataset.clip.seconds=1.5)" in lines[3]
    assert "long.mp4" in lines[4] and "it ends at 4.00 s" in lines[4]
    assert "empty.mp4 is empty (0 bytes)" in lines[5]
    assert "text.mp4 cannot be read as a video" in lines[6]
    assert "lasts from 3 to 5.2 s, but the video ends at 4.00 s, before its middle" in lines[8]
    shards = csv_build(tmp_path, rows, allow_quarantine=True)
    (cut,) = shards.split("test")  # annotated to 5 s in a video of 4 s: ends with the video, centred on what is left
    assert (cut.segment_end_s - cut.segment_start_s, cut.frames / cut.fps) == pytest.approx((1.0, 1.5), abs=1 / 12)
    assert shards.manifest["shortened"] == [cut.key]


def test_a_manifest_that_points_elsewhere_or_repeats_a_clip_is_refused(tmp_path):
    """Shards may come from others: nothing outside of their folder is read, and each result has one clip."""
    build(NumberedReader(6), tmp_path)
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    secret = tmp_path.parent / "secret.tar"
    secret.write_bytes((tmp_path / good["shards"][0]["name"]).read_bytes())
    for name in ("../secret.tar", str(secret), "..", "a/../../secret.tar"):
        for place, field in (("shards", "name"), ("clips", "shard")):
            bad = json.loads(path.read_text())
            bad[place][0][field] = name
            path.write_text(json.dumps(bad))
            with pytest.raises(DataError, match=r"names shard '.*', which is not a file of dataset\.shards="):
                ShardSet.read(tmp_path)
            path.write_text(json.dumps(good))
    path.write_text(json.dumps(good | {"clips": [*good["clips"], good["clips"][0]]}))
    with pytest.raises(DataError, match=rf"lists clip {good['clips'][0]['key']} twice"):
        ShardSet.load(tmp_path)


def test_shards_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"dataset\.shards=.*file cannot be a folder: File exists"):
        build(NumberedReader(2), tmp_path / "file")
    with pytest.raises(DataError, match=r"cannot be a folder: Not a directory"):
        build(NumberedReader(2), tmp_path / "file" / "below")


def test_settings_and_segments_that_make_no_sense(tmp_path):
    for settings, message in (
        ({"codec": "av1"}, r"dataset\.encoding\.codec=av1 is not one of vp9, mjpeg, h264"),
        ({"quality": 99}, r"dataset\.encoding\.quality=99 is outside 0\.\.63"),
        ({"gop": 0}, r"dataset\.encoding\.gop=0"),
        ({"fps": 0.0}, r"dataset\.encoding\.fps=0\.0"),
        ({"margin_s": -1.0}, r"dataset\.encoding\.margin_s=-1\.0"),
    ):
        with pytest.raises(DataError, match=message):
            build(NumberedReader(1), tmp_path, encoding=small_encoding(**settings))
    with pytest.raises(DataError, match=r"dataset\.clips_per_shard=0"):
        build(NumberedReader(1), tmp_path, clips_per_shard=0)
    with pytest.raises(DataError, match="no segment"):
        build(NumberedReader(0), tmp_path)
    for wrong in ({"id": "a b"}, {"split": "dev"}, {"end_s": 0.0}):
        with pytest.raises(DataError):
            Segment(
                **(
                    {"id": "a", "video": "", "start_s": 0.0, "end_s": 1.0, "verb": "v", "object": "o", "split": "test"}
                    | wrong
                )
            )
    with pytest.raises(DataError, match=r"manifest\.json does not exist: dataset\.shards=.*ace shards"):
        ShardSet.load(tmp_path / "nothing")
