"""Attacks by a video file: it may neither open another file nor reach the network, whatever its name says.

Each file names `secret`, a white video beside it; a reader that follows the name shows white pictures.
"""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from data_worlds import build_shards, small_encoding, write_video

import ace_dist
from ace_dist.config import ClipConfig
from ace_dist.data.annotations.csv import read_csv
from ace_dist.data.build.container import CONTAINERS, StoredVideo
from ace_dist.data.build.decode import read_window
from ace_dist.data.build.encode import check_decodes
from ace_dist.data.build.isolation import Workers
from ace_dist.data.loader.pyav import decode_frames
from ace_dist.data.shards import ClipRecord, ShardFiles
from ace_dist.utils.errors import DataError

MPD = """<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>
<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>file://{secret}</BaseURL>
</Representation></AdaptationSet></Period></MPD>"""
SVG = (
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><image href="{secret}"/></svg>'
)
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "hls to the network": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {secret}\n",
    "dash": MPD,
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "svg": SVG,
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
    "vobsub": "# VobSub index file, v7 (do not modify this line!)\n",
}


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("secret.ts", "secret.mp4"):
        write_video(folder / name, np.full((36, 48, 64, 3), 255, np.uint8))
    return folder / "secret.ts"


@pytest.fixture(scope="module", params=[*PLAYLISTS, "reference", "alias"])
def hostile(request, secret):
    """The bytes of a hostile file."""
    if request.param in PLAYLISTS:
        return PLAYLISTS[request.param].format(secret=secret).encode() + b" " * 200
    return with_reference(secret.with_suffix(".mp4"), request.param)


def with_reference(target, kind):
    """A QuickTime file that has no pictures of its own: its data reference says that they lie in the file `target`."""
    if kind == "reference":
        entry = box(b"url ", b"\0\0\0\0" + f"file://{target}\0".encode())
    else:  # QuickTime File Format, "Data Reference Atoms": an alias record, of which FFmpeg reads volume and paths
        path, name = str(target).encode(), target.name.encode()
        alias = b"\0" * 10 + bytes([3]) + b"vol".ljust(27, b"\0") + b"\0" * 12
        alias += bytes([len(name)]) + name.ljust(63, b"\0") + b"\0" * 16 + struct.pack(">hh", 0, 99) + b"\0" * 16
        alias += struct.pack(">hh", 2, len(path)) + path + b"\0" * (len(path) % 2)
        entry = box(b"alis", b"\0\0\0\0" + alias + struct.pack(">hh", -1, 0))
    return b"".join(replaced(target.read_bytes(), entry))


def box(kind, content):
    return struct.pack(">I4s", 8 + len(content), kind) + content


def replaced(data, entry):
    """The boxes of a QuickTime file with `entry` as their only data reference."""
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + size]
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            content = b"".join(replaced(content, entry))
        elif kind == b"mdat":
            content = bytes(len(content))
        elif kind == b"dref":
            content = content[:4] + struct.pack(">I", 1) + entry
        yield box(kind, content)
        at += size


def is_white(frames):
    return frames.mean() > 200


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.mpd", "a.ffconcat", "a.sdp", "frame%03d.jpg", "-", "a.svg"])
def test_a_file_shows_its_own_pictures_or_is_refused(hostile, tmp_path, name):
    (tmp_path / name).write_bytes(hostile)
    (tmp_path / "some.tar").write_bytes(b"#" * 512 + hostile + b"#" * 512)
    for source in (tmp_path / name, StoredVideo(name, tmp_path / "some.tar", 512, len(hostile))):
        try:
            frames = list(read_window(source).frames)
        except DataError as error:
            assert name in str(error)
        else:
            assert not is_white(frames)


def test_the_attacks_are_attacks(secret, tmp_path):
    """Opened by its name, with all protocols on, each shows the secret."""
    (tmp_path / "a.m3u8").write_text(PLAYLISTS["hls"].format(secret=secret))
    with av.open(str(tmp_path / "a.m3u8")) as container:
        assert is_white(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    (tmp_path / "a.mov").write_bytes(with_reference(secret.with_suffix(".mp4"), "alias"))
    with av.open(str(tmp_path / "a.mov"), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        assert is_white(next(container.decode(video=0)).to_ndarray(format="rgb24"))


def test_pictures_named_by_a_pattern_are_not_read(tmp_path):
    for number in range(3):
        write_video(
            tmp_path / f"p{number:03d}.mjpeg", np.full((1, 48, 64, 3), 255, np.uint8), codec="mjpeg", pix_fmt="yuvj420p"
        )
        (tmp_path / f"p{number:03d}.mjpeg").rename(tmp_path / f"p{number:03d}.jpg")
    with pytest.raises(DataError, match="does not exist"):
        read_window(tmp_path / "p%03d.jpg")
    for address in ("http://127.0.0.1:1/a.mp4", "concat:a.mp4|b.mp4", "subfile,,start,0,end,0,,:a.mp4", "pipe:0"):
        with pytest.raises(DataError, match="does not exist"):
            read_window(address)


def test_every_container_of_the_list_is_one_of_ffmpeg_and_opens_no_other_file():
    for name in CONTAINERS:
        assert av.ContainerFormat(name, "r").is_input
        assert not av.ContainerFormat(name, "r").no_file


def test_a_build_and_a_loose_clip_take_no_pictures_of_others(hostile, tmp_path):
    """What cannot be read is a line of the ledger, also where FFmpeg has no decoder; the build goes on."""
    (tmp_path / "bad.mp4").write_bytes(hostile)
    write_video(tmp_path / "good.mp4", np.full((36, 48, 64, 3), 90, np.uint8))
    (tmp_path / "labels.csv").write_text(
        "video,start_s,end_s,verb,object,split,group\ngood.mp4,0,2,spin,block,train,a\nbad.mp4,0,2,spin,block,train,a\n"
    )
    reader, clip, encoding = read_csv(tmp_path / "labels.csv"), ClipConfig(4, 1.0, 1), small_encoding()
    shards = build_shards(reader, tmp_path / "shards", clip, encoding, allow_quarantine=True)
    ledger = tmp_path / "shards" / "quarantine.jsonl"
    assert len(shards.records) + (len(ledger.read_text().splitlines()) if ledger.exists() else 0) == 2
    for record in shards.records:
        assert not is_white(decode_frames(ShardFiles(shards.folder).read(record), [0]))


def test_a_clip_of_a_foreign_shard_is_an_mp4_file_or_refused(secret, tmp_path):
    """Decoders of shards (PyAV, DALI, torchcodec) get its bytes; a check of the shard decodes it."""
    for text in PLAYLISTS.values():
        data = text.format(secret=secret).encode()
        (tmp_path / "train-00000.tar").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        record = ClipRecord(
            "a", "train-00000.tar", 0, len(data), 36, 12, 64, 48, 0, 3, "spin", "block", "train", "", digest
        )
        with pytest.raises(DataError, match="it is no mp4 file"):
            ShardFiles(tmp_path).read(record)
        with pytest.raises(DataError, match="cannot be decoded"):
            check_decodes(data, 36, 48, 64, 4, 12, "vp9")


def test_there_is_one_door():
    """Nothing but `open_container` opens a video to read it."""
    root = Path(ace_dist.__file__).parent
    opened = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bav\.open\(|VideoReader\(str|cv2\.|Image\.open", line) and '"w"' not in line
    ]
    assert [line.split(":")[0] for line in opened] == ["data/build/container.py"], opened


def test_a_worker_imports_nothing_from_the_present_folder(tmp_path, monkeypatch):
    """Videos may lie beside a file that is called as a module which a worker imports."""
    for name in ("queue", "signal", "resource", "cloudpickle"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('imported').touch()")
    monkeypatch.chdir(tmp_path)
    with Workers(1, abs) as workers:
        assert workers.run(60, -1) == 1
    assert not (tmp_path / "imported").exists()
