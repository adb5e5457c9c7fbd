"""Protects the check of shards: every kind of damage is found and named, sound shards pass, the exit code tells."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
from collections import Counter

import pytest
import torch
from data_worlds import NumberedReader, build_shards, numbered_frames, small_encoding, write_video

from ace_dist.config import ClipConfig, load_config
from ace_dist.data.build.encode import encode
from ace_dist.data.build.verify import run_checks, verify_shards
from ace_dist.data.segments import RawClip
from ace_dist.data.shards import ClipRecord, ShardFiles, ShardSet, write_shard
from ace_dist.models.tokenizer import bpe_ids
from ace_dist.utils.errors import DataError

TREES = {verb: {verb: [verb, f"{verb} up"], f"{verb} up": [f"{verb} up", verb]} for verb in ("spin", "lift")}


def make(folder, codec="mjpeg", reader=None, **settings):
    encoding = small_encoding(codec=codec)
    reader = reader or NumberedReader(24, frames=20, segment=(0.5, 2.0))
    return build_shards(reader, folder, ClipConfig(4, 1.0, 1), encoding, clips_per_shard=6, **settings)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "shards"
    make(folder)
    (folder.parent / "trees.json").write_text(json.dumps(TREES))
    return folder


@pytest.fixture
def shards(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "shards")
    return tmp_path / "shards"


def settings(folder, sound, *more):
    return ["dataset=csv", f"dataset.shards={folder}", f"dataset.synonyms={sound.parent}/trees.json", *more]


def verify(folder, sound, *more, device="cpu"):
    config = load_config(settings(folder, sound, "dataset.workers=1", *more))
    return verify_shards(config, torch.device(device), bpe_ids)


def one_error(report, *words):
    (error,) = report.errors
    assert all(word in error for word in words), error


def replace_clip(folder, make_data, **changes):
    """Put another video into the first shard as its writer would: checksums, index and manifest fit it."""
    shards, files = ShardSet.load(folder), ShardFiles(folder)
    name = shards.records[0].shard
    mine = [record for record in shards.records if record.shard == name]
    clips = [(record, files.read_raw(record)) for record in mine]
    files.close()
    record, data = clips[0]
    data = make_data(record, data)
    clips[0] = (dataclasses.replace(record, sha256=hashlib.sha256(data).hexdigest(), **changes), data)
    placed = write_shard(folder, name, clips)
    manifest = shards.manifest
    tar = (folder / name).read_bytes()
    manifest["shards"][0] |= {"sha256": hashlib.sha256(tar).hexdigest(), "size": len(tar)}
    records = [*placed, *(record for record in shards.records if record.shard != name)]
    manifest["clips"] = [dataclasses.asdict(record) for record in records]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return placed[0]


def test_sound_shards_pass_and_are_summed_up(sound):
    report = verify(sound, sound)
    assert report.errors == [] and report.decoded == 24 and report.damaged == []
    assert report.frames == sum(record.frames for record in report.shards.records)
    text = report.text
    assert "5 with 24 clips (16 train, 8 test)" in text
    assert "segments   24 = 24 clips + 0 in quarantine" in text and "24 of 24 clips whole" in text
    assert "mjpeg, short side 64 px, 8 frames/s, a key frame every 5" in text
    counts = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in text.splitlines() if "block" in line}
    assert counts["spin block"] == ["0", "4"]  # clips 0, 6, 12, 18: every third clip is tested
    assert text.splitlines()[-1].startswith("passed, warnings:")


def test_the_split_is_that_of_the_training(sound):
    """A build stores one split; a training may choose others by group."""
    records = ShardSet.load(sound).records
    count = Counter(record.group for record in records)
    tested, left_out = sorted(count)[:2]
    report = verify(sound, sound, f"dataset.test_groups=[{tested}]", f"dataset.left_out_groups=[{left_out}]")
    train = 24 - count[tested] - count[left_out]
    assert f"24 clips ({train} train, {count[tested]} test, {count[left_out]} left out)" in report.text
    assert "24 of 24 clips whole" in report.text and not any("groups in both splits" in w for w in report.warnings)
    assert not any("counts in manifest" in error for error in report.errors)
    assert any("groups in both splits" in warning for warning in verify(sound, sound).warnings)
    one_error(verify(sound, sound, "dataset.test_groups=[nobody]"), "split:", "dataset.test_groups lists 'nobody'")
    one_error(verify(sound, sound, "dataset=mstcn", "dataset.fold=2"), "split:", "stores the split of fold 1")


def test_a_flipped_byte_is_found_and_its_clip_named(shards, sound):
    record = ShardSet.load(shards).records[3]
    path = shards / record.shard
    data = bytearray(path.read_bytes())
    data[record.offset + record.size // 2] ^= 1
    path.write_bytes(data)
    report = verify(shards, sound)
    assert report.errors == [
        f"{record.shard} differs from its checksum",
        f"clip {record.key} in {record.shard}: its bytes differ from its checksum",
    ]
    assert report.decoded == 23 and report.damaged == [record.shard]
    assert f"delete {record.shard} and build again" in report.text and "FAILED, errors: 2" in report.text


def test_missing_cut_and_foreign_files(shards, sound):
    names = [shard["name"] for shard in ShardSet.load(shards).manifest["shards"]]
    (shards / names[0]).unlink()
    (shards / names[1]).write_bytes((shards / names[1]).read_bytes()[:-2048])
    (shards / names[2]).with_suffix(".idx").unlink()
    shutil.copy(shards / names[3], shards / "train-00099.tar")
    report = verify(shards, sound)
    errors = "\n".join(report.errors)
    assert f"{names[0]} is missing; it should hold 6 clips" in errors
    assert f"{names[1]} differs from its checksum (" in errors and "bytes instead of" in errors
    assert f"{names[2].replace('.tar', '.idx')} is missing or does not fit {names[2]}" in errors
    assert any("train-00099.tar is not in manifest.json" in warning for warning in report.warnings)
    assert report.damaged == names[:3]


class CrashingRecords:
    """Six clips whose check ends the process that does it."""

    def __len__(self):
        return 6

    def __iter__(self):
        signal.raise_signal(signal.SIGKILL)


def test_a_shard_that_crashes_its_check_is_named_and_the_others_are_checked(shards):
    stored = ShardSet.load(shards)
    first, second = stored.manifest["shards"][:2]
    records = [r for r in stored.records if r.shard == second["name"]]
    jobs = [(shards, first, CrashingRecords(), stored.codec, 5), (shards, second, records, stored.codec, 5)]
    (_, errors), sound = run_checks(jobs, workers=2, timeout_s=60)
    assert len(errors) == 1 and first["name"] in errors[0] and "signal 9" in errors[0]
    assert sound == (records, [])


def test_a_clip_with_fewer_frames_than_promised(shards, sound):
    def shorter(record, data):
        return encode(RawClip(numbered_frames(record.frames - 3, 64, 64), 8.0, 0.0), small_encoding(codec="mjpeg")).data

    record = replace_clip(shards, shorter)
    one_error(verify(shards, sound), record.key, f"promises {record.frames} frames, but {record.frames - 3} come out")


def test_a_clip_of_variable_rate_another_size_or_codec(shards, sound, tmp_path):
    def clip(codec, pix_fmt, size, times=None):
        def write(record, data):
            frames = numbered_frames(record.frames, *size)
            options = {"g": "5"} if codec == "libx264" else {}
            when = [times(k) for k in range(record.frames)] if times else None
            path = write_video(tmp_path / "clip.mp4", frames, 8, codec, pix_fmt, when, options)
            return path.read_bytes()

        return write

    uneven = replace_clip(shards, clip("mjpeg", "yuvj420p", (64, 64), lambda k: k / 8 + (0.1 if k > 7 else 0)))
    one_error(verify(shards, sound), uneven.key, "has a variable rate: frames are 0.125 to 0.225 s apart")
    replace_clip(shards, clip("mjpeg", "yuvj420p", (64, 64), lambda k: k / 4))
    one_error(verify(shards, sound), "promises 8 frames/s, but has 4")
    replace_clip(shards, clip("mjpeg", "yuvj420p", (64, 96)))
    one_error(verify(shards, sound), "promises 64x64 in 8-bit 4:2:0, but 96x64 in yuvj420p come out")
    replace_clip(shards, clip("libx264", "yuv420p", (64, 64)))
    one_error(verify(shards, sound), "is h264, not mjpeg")
    replace_clip(shards, lambda record, data: b"no video" * 99)
    one_error(verify(shards, sound), "cannot be decoded")
    replace_clip(shards, clip("mjpeg", "yuvj420p", (64, 64)), segment_end_s=99.0)
    one_error(verify(shards, sound), "does not lie in its")


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_numbers_that_do_not_add_up(shards, sound):
    edit_manifest(shards, lambda manifest: manifest["configuration"].update(segments=25))
    one_error(verify(shards, sound), "25 segments are not 24 clips and 0 in quarantine")
    edit_manifest(shards, lambda manifest: manifest.update(quarantined=1))
    one_error(verify(shards, sound), "quarantine.jsonl has 0 lines for 1 segments in quarantine")
    (shards / "quarantine.jsonl").write_text("{}\n")
    assert verify(shards, sound).errors == []
    edit_manifest(shards, lambda manifest: manifest["counts"]["train"].update({"spin pin": 99}))
    one_error(verify(shards, sound), "the counts in manifest.json are not those of its clips")
    edit_manifest(shards, lambda manifest: manifest["clips"][0].update(verb="weld"))
    assert any("says something else than manifest.json" in error for error in verify(shards, sound).errors)


def test_unknown_labels(sound, tmp_path):
    (tmp_path / "trees.json").write_text(json.dumps({"spin": TREES["spin"]}))
    one_error(
        verify(sound, sound, f"dataset.synonyms={tmp_path}/trees.json"), "no synonym tree", "'lift'", "trees.json"
    )
    one_error(verify(sound, sound, "dataset.novel=[weld pipe]"), "dataset.novel lists 'weld pipe'")
    (tmp_path / "classes.json").write_text(json.dumps({"actions": {"s": ["spin", "block"]}, "not_actions": []}))
    one_error(verify(sound, sound, f"dataset.classes={tmp_path}/classes.json"), "'lift block'", "does not list")
    one_error(verify(sound, sound, "dataset.test_groups=[nobody]"), "dataset.test_groups lists 'nobody'")


class LongLabelReader(NumberedReader):
    def segments(self):
        return [dataclasses.replace(s, object="very long red lever " * 20) for s in super().segments()]


def test_a_label_too_long_for_the_text_encoder(tmp_path, sound):
    make(tmp_path / "shards", reader=LongLabelReader(8, frames=20, segment=(0.5, 2.0)))
    one_error(verify(tmp_path / "shards", sound), "CLIP tokens, more than 77", "shorten the label")


class EarlierReader(NumberedReader):
    """Segments with labels as they were typed, which earlier versions stored."""

    def segments(self):
        listed = super().segments()
        for segment in listed[::2]:
            object.__setattr__(segment, "verb", segment.verb.title())
            object.__setattr__(segment, "object", f"{segment.object}_")
        return listed


def test_shards_of_before_with_labels_as_typed(tmp_path, sound):
    """They train, so they pass; a label in two spellings is one class."""
    make(tmp_path / "shards", reader=EarlierReader(24, frames=20, segment=(0.5, 2.0)))
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert any(clip["verb"] != clip["verb"].lower() for clip in manifest["clips"])
    manifest["counts"] = {  # as they were counted
        split: Counter(f"{c['verb']} {c['object']}" for c in manifest["clips"] if c["split"] == split)
        for split in ("train", "test")
    }
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(manifest))
    report = verify(tmp_path / "shards", sound)
    assert report.errors == []
    table = report.text.split("class")[1]
    assert "Lift" not in table and "_" not in table.split("warnings")[0]


def test_a_codec_that_the_backend_cannot_decode(tmp_path, sound):
    make(tmp_path / "h264", codec="h264")
    assert verify(tmp_path / "h264", sound).errors == []
    report = verify(tmp_path / "h264", sound, "loader.backend=dali")
    one_error(report, "dataset.encoding.codec=h264 cannot be decoded by DALI on a CPU", "loader.backend=pyav")
    assert "none for h264 on cpu" in report.text
    assert verify(tmp_path / "h264", sound, "loader.backend=dali", device="cuda").errors == []


class UnequalReader(NumberedReader):
    def segments(self):
        mostly = [dataclasses.replace(s, verb="spin", object="pin", split="train") for s in super().segments()]
        return [dataclasses.replace(mostly[0], object="cup"), dataclasses.replace(mostly[1], split="test"), *mostly[2:]]


def test_imbalance_is_a_warning(tmp_path, sound):
    make(tmp_path / "shards", reader=UnequalReader(16, frames=20, segment=(0.5, 2.0)))
    report = verify(tmp_path / "shards", sound)
    assert report.errors == []
    assert "balance: train has 14 clips of spin pin and 1 of spin cup" in report.warnings
    assert any("train has fewer than 5 clips of spin cup (1)" in warning for warning in report.warnings)
    assert any("groups in both splits" in warning and "person1" in warning for warning in report.warnings)


def test_the_launcher_exits_with_what_it_found(shards, sound, launch):
    done = launch("verify_shards", *settings(shards, sound, "dataset.workers=1"), check=False)
    assert done.returncode == 0 and "24 of 24 clips whole" in done.stdout, done.stderr
    (path, *_) = sorted(shards.glob("*.tar"))
    path.unlink()
    done = launch("verify_shards", *settings(shards, sound, "dataset.workers=1"), check=False)
    assert done.returncode == 1 and f"{path.name} is missing" in done.stdout and not done.stderr


def test_a_manifest_of_another_kind_is_refused(shards, sound):
    (shards / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json has format None, this version reads"):
        verify(shards, sound)
    (shards / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"manifest\.json is not UTF-8 text \(byte 0\)"):
        verify(shards, sound)


def test_every_field_of_a_record_is_in_its_description():
    """What `verify` compares with the tar file's own description leaves out only where the bytes lie."""
    from ace_dist.data.shards import clip_description

    names = {field.name for field in dataclasses.fields(ClipRecord)} - {"shard", "offset", "size"}
    record = ClipRecord("k", "s", 0, 1, 2, 8.0, 4, 4, 0.0, 0.2, "v", "o", "train", "g", "0")
    assert set(clip_description(dataclasses.replace(record, padded_s=0.1))) == names
    assert set(clip_description(record)) == names - {"padded_s"}
