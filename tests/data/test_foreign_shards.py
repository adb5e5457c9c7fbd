"""Protects reading of tar files that others made: their samples become clips, and nothing can point elsewhere."""

from __future__ import annotations

import io
import json
import tarfile

import av
import pytest
from data_worlds import frame_number, numbered_frames, write_video

from ace_dist.config import load_config
from ace_dist.data.datasets import build_dataset, build_reader
from ace_dist.data.shards import ShardFiles, safe_members
from ace_dist.utils.errors import DataError

CLASSES = {"actions": {"spin block": ["spin", "block"], "pick it up": ["pick up", "cup"]}, "not_actions": []}


@pytest.fixture
def world(tmp_path):
    """A video of 2 s at 12 frames a second, and the folders that a build needs."""
    (tmp_path / "tars").mkdir()
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")):
        write_video(
            tmp_path / name, numbered_frames(24, 48, 64), 12, codec, options={"bf": "2"} if "avi" in name else {}
        )
    return tmp_path


def write_tar(path, *members):
    """Members are (name, bytes), or ready `TarInfo`s."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def build(world, *more, reader=False):
    settings = [
        "dataset=webdataset", f"dataset.root={world}/tars", f"dataset.shards={world}/shards",
        f"dataset.classes={world}/classes.json", "dataset.workers=1", "dataset.encoding.codec=mjpeg",
        "dataset.encoding.quality=3", "dataset.clip.seconds=0.5", *more,
    ]  # fmt: skip
    return (build_reader if reader else build_dataset)(load_config(settings).dataset)


def shown(world, record):
    files = ShardFiles(world / "shards")
    with av.open(io.BytesIO(files.read(record))) as container:
        numbers = [frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    files.close()
    return numbers


def about(**content):
    return json.dumps(content).encode()


def test_json_and_cls_samples_of_any_container_become_clips(world):
    mp4, webm, avi = ((world / f"a.{suffix}").read_bytes() for suffix in ("mp4", "webm", "avi"))
    write_tar(
        world / "tars" / "train-000.tar",
        ("./deep/er/0001.mp4", mp4),
        ("./deep/er/0001.json", about(verb="spin", object="block", group="p1", start_s=0.5, end_s=1.5)),
        ("0002.webm", webm),
        ("0002.cls", b"1\n"),
        ("0003.avi", avi),
        ("0003.json", about(label="pick it up", split="test")),
    )
    write_tar(world / "tars" / "test_0.tar", ("0001.MP4", mp4), ("0001.cls", b"0"))
    shards = build(world)
    by_label = {(r.verb, r.object, r.split, r.group): r for r in shards.records}
    assert set(by_label) == {
        ("spin", "block", "train", "p1"), ("pick up", "cup", "train", ""),
        ("pick up", "cup", "test", ""), ("spin", "block", "test", ""),
    }  # fmt: skip
    part = by_label["spin", "block", "train", "p1"]
    assert shown(world, part) == list(range(3, 21))  # 0.5 to 1.5 s with 0.25 s of margin
    assert part.segment_start_s == pytest.approx(0.25, abs=1e-3)
    for record in shards.records:
        if record is not part:
            assert shown(world, record) == list(range(24)) and record.segment_start_s == 0


def link(name, kind, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../../evil.mp4", b"x"), "points outside of the archive"),
        (("fine/../../evil.mp4", b"x"), "points outside of the archive"),
        (("/etc/evil.mp4", b"x"), "points outside of the archive"),
        (("..\\evil.mp4", b"x"), "points outside of the archive"),
        (("C:\\evil.mp4", b"x"), "points outside of the archive"),
        (link("0001.mp4", tarfile.SYMTYPE), "is a link or a device"),
        (link("0001.mp4", tarfile.LNKTYPE, "a.mp4"), "is a link or a device"),
        (link("0001.mp4", tarfile.FIFOTYPE), "is a link or a device"),
        (link("0001.mp4", tarfile.CHRTYPE), "is a link or a device"),
    ],
)
def test_members_that_point_elsewhere_are_refused_by_name(world, member, reason):
    """Also with `allow_quarantine`: such a file was not made for a data set."""
    good = (world / "a.mp4").read_bytes()
    path = write_tar(world / "tars" / "train-7.tar", ("a.mp4", good), ("a.cls", b"0"), member)
    name = member.name if isinstance(member, tarfile.TarInfo) else member[0]
    for call in (lambda: safe_members(path), lambda: build(world, "dataset.allow_quarantine=true")):
        with pytest.raises(DataError) as caught:
            call()
        assert str(path) in str(caught.value) and repr(name) in str(caught.value) and reason in str(caught.value)
    assert not (world / "shards").exists()


def test_faulty_samples_are_named_or_in_the_ledger(world):
    good = (world / "a.mp4").read_bytes()
    faults = {
        "sound": ([("sound.json", about(verb="spin", object="block"))], "has 0 videos"),
        "two": ([("two.mp4", good), ("two.webm", good), ("two.cls", b"0")], "has 2 videos"),
        "mute": ([("mute.mp4", good)], "says neither verb and object, nor label"),
        "high": ([("high.mp4", good), ("high.cls", b"2")], "class 2 is not one of the 2"),
        "word": ([("word.mp4", good), ("word.cls", b"spin")], "its description cannot be read"),
        "odd": ([("odd.mp4", good), ("odd.json", about(label="fly"))], "label 'fly' is not in dataset.classes="),
        "what": ([("what.mp4", good), ("what.json", about(label=["up"]))], "label ['up'] is not in dataset.classes="),
        "rank": ([("rank.mp4", good), ("rank.json", about(cls="0"))], "class '0' is not one of the 2"),
        "list": ([("list.mp4", good), ("list.json", b"[1]")], "its json is not an object"),
        "dev": ([("dev.mp4", good), ("dev.json", about(verb="v", object="o", split="dev"))], "split='dev' is not one"),
        "back": ([("back.mp4", good), ("back.json", about(verb="v", object="o", start_s=2, end_s=1))], "is not before"),
        "soon": ([("soon.mp4", good), ("soon.json", about(verb="v", object="o", end_s="1"))], "end_s='1' is not a"),
        "verb": ([("verb.mp4", good), ("verb.json", about(verb=["put"], object="o"))], "verb=['put'] is not text"),
        "none": ([("none.mp4", good), ("none.json", about(verb="-", object="o"))], "has no verb"),
        "deep": ([("deep.mp4", good), ("deep.json", b"[" * 9999)], "its json is not valid JSON"),
        "long": ([("long.mp4", good), ("long.json", b" " * (1 << 20) + b"{}")], "its json has 1,048,578 bytes"),
    }  # fmt: skip
    members = [member for fault, _ in faults.values() for member in fault]
    members += [("text.mp4", b"no video" * 50), ("text.cls", b"0")]
    write_tar(world / "tars" / "train-0.tar", ("a.mp4", good), ("a.cls", b"0"), *members)
    with pytest.raises(DataError, match=rf"{len(faults) + 1} samples of dataset\.root=.*cannot be used") as caught:
        build(world)
    shards = build(world, "dataset.allow_quarantine=true")
    lines = (world / "shards" / "quarantine.jsonl").read_text().splitlines()
    ledger = {entry["id"]: entry for entry in map(json.loads, lines)}
    faults |= {"two.mp4": faults["two"], "two.webm": faults.pop("two")}  # a line for each video
    assert set(faults) < set(ledger) and len(lines) == len(faults) + 1 and len(shards.records) == 1
    assert any("text.mp4 cannot be read as a video" in entry["reason"] for entry in ledger.values())
    for key, (_, reason) in faults.items():
        assert reason in ledger[key]["reason"] and reason in str(caught.value)
        assert "train-0.tar" in ledger[key]["origin"]
    assert shards.manifest["configuration"]["segments"] == len(faults) + 2


def test_folders_and_files_that_are_no_shards(world):
    with pytest.raises(DataError, match=r"dataset\.root=.*tars holds no \*\.tar file"):
        build(world)
    (world / "tars" / "train.tar").write_bytes(b"this is not a tar file" * 99)
    with pytest.raises(DataError, match=r"train\.tar cannot be read as a tar file"):
        build(world)
    (world / "tars" / "train.tar").unlink()
    with tarfile.open(world / "tars" / "train.tar", "w:gz") as tar:  # whose members do not lie where they say
        tar.add(world / "a.mp4", "a.mp4")
    with pytest.raises(DataError, match=r"train\.tar cannot be read as a tar file"):
        build(world)
    write_tar(world / "tars" / "train.tar", ("a.mp4", (world / "a.mp4").read_bytes()), ("a.cls", b"0"))
    with pytest.raises(DataError, match=r"set dataset\.classes=FILE"):
        build(world, "dataset.classes=null")


def test_no_video_vanishes(world):
    """Repeated names, dots inside names, many videos of one name: videos in = clips + lines of the ledger."""
    good = (world / "a.mp4").read_bytes()
    label = about(verb="spin", object="block")
    write_tar(  # ten videos, three of which repeat a name; the descriptions stand behind them
        world / "tars" / "train-0.tar",
        *[(f"{number % 7}.mp4", good) for number in range(10)],
        *[(f"{number % 7}.json", label) for number in range(10)],
    )
    dotted = [f"P01.take{k}.front" for k in range(3)]  # up to the first dot, all are called P01
    members = [(name + end, content) for name in dotted for end, content in ((".mp4", good), (".json", label))]
    write_tar(world / "tars" / "train-1.tar", *members, ("._P01.take0.front.mp4", b"x"), ("d/.DS_Store", b"x"))
    # One sample by mistake, and videos whose description has another name.
    write_tar(world / "tars" / "test-2.tar", *[(f"a.{end}", good) for end in ("mp4", "mov", "avi")], ("a.json", label))
    write_tar(
        world / "tars" / "test-3.tar", ("1/clip.mp4", good), ("1/label.json", label), ("b.mp4", good), ("b.json", label)
    )
    with pytest.raises(DataError, match=r"repeats the name of 0\.mp4, 0\.json; names must differ"):
        build(world)
    shards = build(world, "dataset.allow_quarantine=true")
    assert len(shards.records) == 7 + 3 + 0 + 1
    (note,) = build(world, "dataset.allow_quarantine=true", reader=True).notes
    assert "train-1.tar: its names hold dots" in note
    ledger = [json.loads(line) for line in (world / "shards" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(entry["id"] for entry in ledger) == sorted(
        ["0", "1", "2", "a.avi", "a.mov", "a.mp4", "1/clip", "1/label"]
    )
    assert shards.manifest["configuration"]["segments"] == len(shards.records) + len(ledger)


def test_folders_and_spellings(world):
    """Tar files in folders of their splits, one of them on another disk, labels in any spelling."""
    good = (world / "a.mp4").read_bytes()
    for place in ("Train/0.tar", "test/0.tar"):
        (world / "tars" / place).parent.mkdir()
        write_tar(world / "tars" / place, ("a.mp4", good), ("a.json", about(label="Pick_It-up")))
    (world / "tars" / "Train").rename(world / "disk")
    (world / "tars" / "Train").symlink_to(world / "disk")
    shards = build(world)
    assert sorted((r.verb, r.object, r.split) for r in shards.records) == [
        ("pick up", "cup", s) for s in ("test", "train")
    ]
    write_tar(world / "tars" / "val-0.tar", ("a.mp4", good), ("a.cls", b"0"))
    with pytest.raises(DataError, match=r"split='val' is not one of train, test; write train"):
        build(world)


def test_a_tar_file_that_tarfile_reads_in_part_is_refused(world):
    """Cut off, damaged within, or joined by `cat`: tarfile stops there without a word."""
    good = (world / "a.mp4").read_bytes()
    path = write_tar(world / "tars" / "train.tar", ("a.mp4", good), ("a.cls", b"0"), ("b.mp4", good), ("b.cls", b"0"))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        second, end = tar.getmember("b.mp4").offset, tar.getmembers()[-1].offset_data + 512
    damaged = data[:second] + b"\xff" + data[second + 1 :]
    for content in (data[:second], data[:end], damaged, data + data, data[: second + 700]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train\.tar cannot be read as a tar file"):
            build(world, "dataset.allow_quarantine=true")
    path.write_bytes(data[: end + 512])  # one empty block is enough
    assert len(build(world).records) == 2
    (world / "tars" / "more.tar.gz").touch()
    with pytest.raises(DataError, match=r"more\.tar\.gz is compressed.*unpack it"):
        build(world)
