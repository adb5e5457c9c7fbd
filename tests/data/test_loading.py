"""Protects the pixels that a model sees: DALI and PyAV decode the same frames, crops and colours, in order."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import sys
import time

import av
import numpy as np
import pytest
import torch
from data_worlds import NumberedReader, build_shards, frame_number, numbered_frames, small_encoding, small_loader

from ace_dist.config import ClipConfig, Config, DatasetConfig
from ace_dist.data.build.encode import encode, is_reference
from ace_dist.data.loader import (
    base,
    build_loader,
    build_test_loader,
    choose_backend,
    fastest,
    pixels_numba,
    pixels_numpy,
)
from ace_dist.data.loader.dali import DaliLoader
from ace_dist.data.loader.pixels import LIMITED_RANGE, crop_filters, picture_rgb, show
from ace_dist.data.loader.pyav import PyavLoader, decode_clip, decode_frames, needed_packets
from ace_dist.data.loader.sample_table import read_sample_table
from ace_dist.data.sampling import ClipRequest, TestPlan, TrainPlan, crop_box
from ace_dist.data.segments import RawClip
from ace_dist.data.shards import ClipRecord, ShardFiles, ShardSet
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import DataError

CLIP = ClipConfig(6, 1.5, 3)
CPU = torch.device("cpu")
UNEVEN = ((64, 64), (65, 87), (90, 66), (71, 123), (128, 72), (50, 50), (48, 200))
# Mean and largest difference in units of 1/255, by codec. VP9, measured 0.19 and 2: before the resize the bytes are
# equal; torch's resize rounds twice, DALI's once. MJPEG, measured 0.27 and 3: another library's inverse DCT may be off
# by one in each plane (IEEE 1180), and it rounds enlarged chroma: 1 + 1.772 * 1.5 in blue, and rounding as above.
TOLERANCES = {"vp9": (0.3, 3.0), "mjpeg": (0.5, 5.0)}
RECORD = ClipRecord("c", "none.tar", 0, 0, 24, 8.0, 64, 64, 0.0, 3.0, "v", "o", "train", "", "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A shard folder of uneven sizes for each codec."""
    made = {}
    for codec in ("vp9", "mjpeg", "h264"):
        folder = tmp_path_factory.mktemp(codec)
        reader = NumberedReader(len(UNEVEN), sizes=UNEVEN)
        made[codec] = build_shards(reader, folder, CLIP, small_encoding(codec=codec), clips_per_shard=3)
    return made


@pytest.fixture(params=[DaliLoader, PyavLoader], ids=["dali", "pyav"])
def loader_class(request):
    return request.param


@pytest.fixture
def opened():
    """Make loaders, close them at the end."""
    made = []

    def make(loader_class, folder, **settings):
        codec = [ShardSet.read(folder).codec] if loader_class is DaliLoader else []
        made.append(loader_class(folder, small_loader(**settings), CPU, *codec))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def all_requests(shards, seed=None, **settings):
    """Training and test batches of several sizes over all clips."""
    seed = int(np.random.default_rng().integers(1 << 30)) if seed is None else seed
    records, loader = shards.records, small_loader(**settings)
    labels = list(range(len(records)))
    train = TrainPlan(records, labels, CLIP, loader, 5, seed)
    return [train.requests(step) for step in range(6)] + TestPlan(records, labels, CLIP, loader, 4).batches()


def grey_levels(video, loader):
    """Undo the normalisation: values from 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loader.mean, loader.std))
    return (video * std + mean) * 255


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
def test_both_backends_return_the_same_clips(folders, opened, codec):
    shards = folders[codec]
    requests = all_requests(shards)
    batches = [list(opened(kind, shards.folder).stream(requests)) for kind in (DaliLoader, PyavLoader)]
    total, count = 0.0, 0
    for asked, one, other in zip(requests, *batches, strict=True):
        assert one.ids == other.ids == [request.record.key for request in asked]
        assert one.views == other.views == [request.view for request in asked]
        assert one.labels.tolist() == other.labels.tolist() == [request.label for request in asked]
        assert one.labels.dtype == torch.int64 and one.video.dtype == other.video.dtype == torch.float32
        assert one.video.shape == other.video.shape == (len(asked), CLIP.frames, 3, 48, 48)
        indices = torch.tensor([request.frames for request in asked])
        assert torch.equal(one.frame_indices, indices) and torch.equal(other.frame_indices, indices)
        difference = (grey_levels(one.video, small_loader()) - grey_levels(other.video, small_loader())).abs()
        assert difference.max() <= TOLERANCES[codec][1]
        total, count = total + float(difference.sum()), count + difference.numel()
    assert total / count <= TOLERANCES[codec][0]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["dali", "pyav"])
@pytest.mark.parametrize("codec", ["h264", "vp9", "mjpeg"])
def test_the_same_clips_on_a_gpu(codec, backend, tmp_path):
    """NVDEC and nvJPEG beside PyAV on the CPU. On an H100 crops of photographs differed by a mean of 0.81 and at most 2
    (H.264), and by 0.27 and 3 (MJPEG); with chroma enlarged otherwise by 1.37 and 38.
    """
    reader = NumberedReader(6, sizes=((144, 192), (180, 150), (256, 340)))
    shards = build_shards(reader, tmp_path, CLIP, small_encoding(codec=codec, short_side=0))
    requests = all_requests(shards)
    loader = build_loader(config_for(shards, backend=backend, dtype="uint8"), "cuda")
    right = build_loader(config_for(shards, dtype="uint8"), "cpu")
    for one, other in zip(loader.stream(requests), right.stream(requests), strict=True):
        assert one.video.is_cuda and one.ids == other.ids and torch.equal(one.labels.cpu(), other.labels)
        difference = (one.video.cpu().float() - other.video.float()).abs()
        assert difference.mean() <= 1.2 and difference.max() <= 5.0
    loader.close(), right.close()


@pytest.mark.parametrize(("kind", "codec"), [(DaliLoader, "vp9"), (DaliLoader, "mjpeg"), (PyavLoader, "vp9")])
def test_bytes_are_the_pixels_that_are_else_normalised(folders, opened, kind, codec):
    shards = folders[codec]
    requests = all_requests(shards)
    floats, stored = (
        [batch.video for batch in opened(kind, shards.folder, dtype=dtype).stream(requests)]
        for dtype in ("float32", "uint8")
    )
    for video, pixels in zip(floats, stored, strict=True):
        assert pixels.dtype == torch.uint8
        assert (grey_levels(video, small_loader()) - pixels).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("loader_class", "codec"),
    [(DaliLoader, "vp9"), (DaliLoader, "mjpeg"), (PyavLoader, "vp9"), (PyavLoader, "mjpeg"), (PyavLoader, "h264")],
)
def test_the_frames_shown_are_the_frames_asked_for(folders, opened, loader_class, codec):
    shards = folders[codec]
    loader, settings = opened(loader_class, shards.folder), small_loader()
    rng = np.random.default_rng()
    upright = [record for record in shards.records if record.width <= record.height]  # a square crop shows all bars
    batches = []
    for _ in range(8):
        chosen = [
            (record, tuple(rng.integers(0, record.frames, 6).tolist())) for record in upright
        ]  # any order, repeats
        batches.append([ClipRequest(record, frames, 48, 48, 0.5, 1.0, False, 0, 0) for record, frames in chosen])
    for asked, batch in zip(batches, loader.stream(batches), strict=True):
        pictures = grey_levels(batch.video, settings).permute(0, 1, 3, 4, 2).numpy()
        for request, clip in zip(asked, pictures, strict=True):
            first = round((0.4 - request.record.segment_start_s) * 8)  # number of the stored clip's first frame
            assert [frame_number(picture) for picture in clip] == [first + index for index in request.frames]


def reference_rgb(frame):
    """Float BT.601 conversion of a decoded 4:2:0 frame, chroma bilinear between sample centres (ITU-R BT.601-7)."""
    height, width = frame.height, frame.width
    planes = []
    for plane in frame.planes[:3]:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        planes.append(torch.from_numpy(rows.astype(np.float64)))
    luma, chroma = planes[0], torch.stack(planes[1:])[None] - 128
    chroma = torch.nn.functional.interpolate(chroma, size=(height, width), mode="bilinear", align_corners=False)[0]
    if frame.color_range != 2:  # limited range: luma 16 to 235, chroma 16 to 240
        luma, chroma = (luma - 16) * 255 / 219, chroma * 255 / 224
    red, blue = luma + 1.402 * chroma[1], luma + 1.772 * chroma[0]
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], -1).clamp(0, 255).numpy()


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264"])
def test_colours_against_the_standard(codec):
    frames = numbered_frames(6, 64, 90, seed=7)
    clip = encode(RawClip(frames, 10.0, 0.0), small_encoding(codec=codec))
    with av.open(io.BytesIO(clip.data)) as container:
        right = np.stack([reference_rgb(frame) for frame in container.decode(video=0)])
    decoded = decode_frames(clip.data, range(6)).astype(float)
    assert np.abs(decoded - right).max() <= 1.01 and np.abs(decoded - right).mean() < 0.5  # rounding to 8 bits
    assert np.abs(decoded - frames[:, :, :90]).mean() < 8  # and it is the picture that was stored
    # Colours of flat patches survive the way there and back: the encoder and the decoder agree on matrix and range.
    patches = np.zeros((5, 64, 64, 3), np.uint8)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]])
    patches[:] = colours[:, None, None]
    back = decode_frames(encode(RawClip(patches, 10.0, 0.0), small_encoding(codec=codec)).data, range(5))
    assert np.abs(back.mean((1, 2)) - colours).max() < 6


def grey_picture(luma):
    """A decoded picture in full range without colour, whose RGB values are its luma [H, W]."""
    height, width = luma.shape
    frame = av.VideoFrame(width, height, "yuvj420p")
    for plane, values in zip(frame.planes, (luma, *[np.full((height // 2, width // 2), 128)] * 2), strict=True):
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = values
        plane.update(rows)
    return frame


def shown(frame, request):
    out = np.empty((3, request.crop, request.crop), np.uint8)
    show(frame, crop_filters(request), out)
    return out


def test_crop_and_flip_by_hand():
    luma = np.random.default_rng().integers(0, 256, (80, 100)).astype(np.uint8)
    record = dataclasses.replace(RECORD, width=100, height=80)
    whole = shown(grey_picture(luma), ClipRequest(record, (0,), 80, 80, 0.0, 0.0, False, 0, 0))
    assert (whole == luma[:, :80]).all()  # no resize: exactly the pixels, in every channel
    flipped = shown(grey_picture(luma), ClipRequest(record, (0,), 80, 48, 1.0, 0.5, True, 0, 0))
    assert (flipped == luma[16:64, 52:][:, ::-1]).all()
    half = shown(grey_picture(luma), ClipRequest(record, (0,), 40, 38, 0.5, 0.5, False, 0, 0))
    # Halving with an antialiased triangle filter: weights 1/8, 3/8, 3/8, 1/8 over four pixels. The crop is that of a
    # 40 by 50 picture from row 1 and column 6 on, so its first pixel reaches from row 1 to 4 and column 11 to 14.
    weights = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    by_hand = [
        [(luma[2 * y - 1 : 2 * y + 3, 2 * x - 1 : 2 * x + 3] * weights).sum() for x in range(6, 44)]
        for y in range(1, 39)
    ]
    assert np.abs(half[0] - np.array(by_hand)).max() <= 0.51  # rounded once


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264"])
def test_crops_against_the_standard_and_torch(codec):
    """Any crop of any size, against float BT.601 of the whole picture and torch's resize of it in float64."""
    rng = np.random.default_rng()
    for height, width in ((64, 64), (64, 90), (50, 48), (128, 74)):
        frames = numbered_frames(3, height, width, seed=int(rng.integers(1 << 30)))
        clip = encode(RawClip(frames, 10.0, 0.0), small_encoding(codec=codec, short_side=0))
        with av.open(io.BytesIO(clip.data)) as container:
            right = np.stack([reference_rgb(frame) for frame in container.decode(video=0)]).round()
        record = dataclasses.replace(RECORD, width=width, height=height, frames=3)
        for _ in range(8):
            side = int(rng.integers(20, 160))
            crop = int(rng.integers(1, side + 1))
            x, y = rng.choice([0.0, 0.3, 0.5, 1.0], 2)
            request = ClipRequest(record, (2, 0, 1, 0), side, crop, x, y, bool(rng.integers(2)), 0, 0)
            new_height, new_width, top, left = crop_box(request)
            video = torch.from_numpy(right[list(request.frames)]).permute(0, 3, 1, 2)
            resized = torch.nn.functional.interpolate(video, (new_height, new_width), mode="bilinear", antialias=True)
            cropped = resized[..., top : top + crop, left : left + crop]
            cropped = cropped.flip(-1) if request.flip else cropped
            difference = np.abs(decode_clip(clip.data, request) - cropped.numpy())
            assert difference.max() <= 1.51 and difference.mean() < 0.5  # each picture rounds to 8 bits twice


def test_only_needed_groups_of_pictures_are_decoded():
    keys, every = [index % 5 == 0 for index in range(23)], [True] * 23
    assert needed_packets(keys, every, {3}) == [0, 1, 2, 3]
    assert needed_packets(keys, every, {7, 21}) == [5, 6, 7, 20, 21]
    assert needed_packets(keys, every, {4, 5, 22}) == [0, 1, 2, 3, 4, 5, 20, 21, 22]
    assert needed_packets(keys, [index % 5 in (0, 4) for index in range(23)], {7, 9, 22}) == [5, 7, 9, 20, 22]
    rng = np.random.default_rng()
    for codec in ("vp9", "mjpeg", "h264"):
        data = encode(RawClip(numbered_frames(23, 64, 64), 8.0, 0.0), small_encoding(codec=codec)).data
        everything = decode_frames(data, range(23))
        assert [frame_number(frame) for frame in everything] == list(range(23))
        for _ in range(10):
            frames = rng.integers(0, 23, rng.integers(1, 8)).tolist()
            assert np.array_equal(decode_frames(data, frames), everything[frames])
        with pytest.raises(DataError, match=r"frames \[23\] did not come out"):
            decode_frames(data, [2, 23])


def test_three_of_four_vp9_frames_can_be_left_out():
    """The encoder obeys, the first bytes of a frame tell, and no other frame changes a bit by what was left out.

    Moving noise, so that every frame is predicted from another one; decoded by FFmpeg's own reader for comparison.
    """
    rng = np.random.default_rng()
    canvas = rng.integers(0, 256, (96, 140, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    frames = np.stack([canvas[k : k + 64, 2 * k : 2 * k + 96] for k in range(37)])
    clip = encode(RawClip(frames, 8.0, 0.0), small_encoding(codec="vp9", gop=16))
    needed = read_sample_table(clip.data).needed
    assert needed == [index % 16 % 4 == 0 for index in range(37)] == [is_reference(k, 16, "vp9") for k in range(37)]
    with av.open(io.BytesIO(clip.data)) as container:
        whole = [picture_rgb(frame).transpose(1, 2, 0) for frame in container.decode(video=0)]
    for _ in range(20):
        frames = rng.integers(0, 37, rng.integers(1, 6)).tolist()
        assert np.array_equal(decode_frames(clip.data, frames), np.stack([whole[index] for index in frames]))


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264"])
def test_the_sample_table_is_what_ffmpeg_reads(codec):
    count = int(np.random.default_rng().integers(1, 40))
    data = encode(RawClip(numbered_frames(count, 64, 64), 8.0, 0.0), small_encoding(codec=codec)).data
    table = read_sample_table(data)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [(packet.pos, packet.size, packet.is_keyframe) for packet in container.demux(stream) if packet.size]
        assert table.decoder == stream.codec_context.name
        assert table.extradata == (stream.codec_context.extradata or b"" if codec == "h264" else b"")
    assert list(zip(table.offsets, table.sizes, table.keys, strict=True)) == packets


def test_bytes_that_are_no_stored_clip_are_an_error_whatever_they_are():
    data = encode(RawClip(numbered_frames(6, 64, 64), 8.0, 0.0), small_encoding()).data
    rng = np.random.default_rng()
    cuts = [data[: int(end)] for end in rng.integers(0, len(data) - 1, 20)]
    for broken in (b"", b"\0" * 100, rng.bytes(1000), *cuts):
        with pytest.raises(DataError, match="not those of a stored clip"):
            read_sample_table(broken)


@pytest.mark.parametrize(("loader_class", "codec"), [(DaliLoader, "vp9"), (DaliLoader, "mjpeg"), (PyavLoader, "vp9")])
def test_batches_of_any_size_streams_that_are_left_and_streams_after_them(folders, opened, loader_class, codec):
    shards = folders[codec]
    loader = opened(loader_class, shards.folder)
    pool = [request for batch in all_requests(shards) for request in batch]
    sizes = [1, 3, 2, 7, 1, 12, 4, 12, 1]
    batches = [pool[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    expected = {
        request: video for asked in batches for request, video in zip(asked, one_by_one(loader, asked), strict=True)
    }
    for batch, asked in zip(loader.stream(iter(batches)), batches, strict=True):
        assert all(torch.equal(video, expected[request]) for video, request in zip(batch.video, asked, strict=True))
    stream = loader.stream(batches)
    next(stream), next(stream)
    stream.close()  # a validation pass may begin in the middle of an epoch
    assert list(loader.stream([])) == []
    again = [batch.ids for batch in loader.stream(batches)]
    assert again == [[request.record.key for request in asked] for asked in batches]


def one_by_one(loader, requests):
    return [batch.video[0] for batch in loader.stream([[request] for request in requests])]


def test_requests_are_drawn_only_a_little_ahead(folders, opened, loader_class):
    drawn = []
    requests = all_requests(folders["vp9"]) * 5

    def source():
        for batch in requests:
            drawn.append(batch)
            yield batch

    loader = opened(loader_class, folders["vp9"].folder, prefetch=2)
    stream = loader.stream(source())
    for consumed in range(1, 6):
        next(stream)
        assert len(drawn) <= consumed + 6  # memory is bounded by prefetch, not by the epoch
    stream.close()


def test_waiting_is_counted_and_prefetching_shortens_it(folders, opened, loader_class):
    loader = opened(loader_class, folders["vp9"].folder)
    started = time.perf_counter()
    for _ in loader.stream(all_requests(folders["vp9"])):
        pass
    assert 0 < loader.wait_s <= time.perf_counter() - started


def broken_copy(shards, folder, key):
    """The shard folder with the bytes of one clip overwritten."""
    for path in shards.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (record,) = (record for record in shards.records if record.key == key)
    with (folder / record.shard).open("r+b") as file:
        file.seek(record.offset)
        file.write(b"\xa5" * record.size)
    return record


@pytest.mark.parametrize(("loader_class", "codec"), [(DaliLoader, "vp9"), (DaliLoader, "mjpeg"), (PyavLoader, "vp9")])
def test_a_clip_that_cannot_be_decoded_is_named_with_its_shard(folders, opened, loader_class, codec, tmp_path):
    shards = folders[codec]
    record = broken_copy(shards, tmp_path, shards.records[4].key)
    loader = opened(loader_class, tmp_path)
    plan = TestPlan(shards.records, [0] * len(shards.records), CLIP, small_loader(), 4)
    with pytest.raises(DataError, match=rf"bytes of clip {record.key} in .*{record.shard} are not those"):
        list(loader.stream(plan.batches()))
    stored = hashlib.sha256(ShardFiles(tmp_path).read_raw(record)).hexdigest()  # as if it had been stored so
    records = [dataclasses.replace(r, sha256=stored) if r.key == record.key else r for r in shards.records]
    with pytest.raises(DataError, match=rf"clip {record.key} in .*{record.shard} cannot be decoded"):
        list(loader.stream(TestPlan(records, [0] * len(records), CLIP, small_loader(), 4).batches()))
    whole = [[request] for batch in plan.batches() for request in batch if request.record.key != record.key]
    assert len(list(loader.stream(whole))) == len(whole)  # the loader survives


def config_for(shards, **loader):
    dataset = DatasetConfig(name="t", kind="tabletop", shards=str(shards.folder), clip=CLIP, encoding=small_encoding())
    return Config(name="t", dataset=dataset, loader=small_loader(**loader))


def test_a_shard_that_ends_too_early_is_named(folders, opened, loader_class, tmp_path):
    shards = folders["vp9"]
    for path in shards.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = shards.records[-1]
    with (tmp_path / record.shard).open("r+b") as file:
        file.truncate(record.offset + record.size // 2)
    loader = opened(loader_class, tmp_path)
    requests = TestPlan(shards.records, [0] * len(shards.records), CLIP, small_loader(), 4).batches()
    with pytest.raises(DataError, match=rf"{record.shard} ends inside clip {record.key}"):
        list(loader.stream(requests))
    assert next(iter(loader.stream([requests[0]]))).ids == [request.record.key for request in requests[0]]


def test_what_dali_says_of_a_clip_that_pyav_decodes(folders):
    """The message that a decoder of the card gives, and not the page of a pipeline's definition around it."""
    loader = DaliLoader(folders["h264"].folder, small_loader(), CPU, "h264")
    requests = all_requests(folders["h264"])[0]
    with pytest.raises(
        DataError, match=r"DALI cannot decode \S+ in \S+, \S+ in \S+ and 3 more, although PyAV can: Assert"
    ):
        list(loader.stream([requests]))
    loader.close()


def test_h264_on_dali_without_a_gpu_is_refused_when_the_loader_is_made(folders):
    shards = folders["h264"]
    with pytest.raises(DataError, match=r"dataset\.encoding\.codec=h264.*loader\.backend=pyav"):
        build_loader(config_for(shards, backend="dali"), "cpu")
    for loader in (
        build_loader(config_for(shards), "cpu"),
        build_test_loader(config_for(shards, backend="dali"), "cpu"),  # of a run that trained on a GPU
    ):
        requests = all_requests(shards)
        assert [batch.ids for batch in loader.stream(requests)] == [[r.record.key for r in asked] for asked in requests]
        loader.close()


def test_shards_cut_for_shorter_clips_are_refused(folders):
    config = config_for(folders["vp9"])
    config.dataset.clip = ClipConfig(6, 2.5, 3)
    with pytest.raises(DataError, match=r"dataset\.clip\.seconds=2\.5 exceeds the 1\.5 s"):
        build_loader(config, "cpu")


def test_a_clip_of_a_higher_rate_than_the_stored_one_is_refused(tmp_path):
    """The nearest stored frame would be shown again and again, and nobody would know."""
    encoding = small_encoding(codec="mjpeg", fps=4.0)
    shards = build_shards(NumberedReader(3), tmp_path, CLIP, encoding)
    config = config_for(shards)
    config.dataset.clip = ClipConfig(frames=7, seconds=1.0)
    with pytest.raises(DataError, match=r"dataset\.clip\.frames=7 of 1 s.*stored at dataset\.encoding\.fps=4.*again"):
        build_loader(config, "cpu")
    config.dataset.clip = ClipConfig(frames=4, seconds=1.0)
    build_loader(config, "cpu").close()


def test_the_choice_is_made_once_and_printed_once(folders, capsys, monkeypatch):
    say_once.cache_clear()
    for _ in range(3):
        loader = build_loader(config_for(folders["vp9"]), "cpu")
        assert loader.backend == "pyav"
        loader.close()
    assert capsys.readouterr().out.count("loader: pyav (no GPU") == 1
    monkeypatch.setenv("RANK", "1")
    say_once.cache_clear()
    build_loader(config_for(folders["vp9"], backend="dali"), "cpu").close()
    assert capsys.readouterr().out == ""


def test_what_is_chosen_without_measuring():
    gpu = torch.device("cuda", 0)
    assert choose_backend("auto", "vp9", gpu)[0] == "auto"
    assert choose_backend("auto", "vp9", CPU)[0] == "pyav"
    assert choose_backend("dali", "h264", gpu)[0] == choose_backend("dali", "mjpeg", CPU)[0] == "dali"


def test_dali_that_is_not_installed_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "ace_dist.data.loader.dali", raising=False)
    with pytest.raises(DataError, match=r"loader\.backend=dali cannot be used .*nvidia\.dali.*loader\.backend=pyav"):
        build_loader(config_for(folders["vp9"], backend="dali"), "cpu")


class Paced(base.Loader):
    """Takes `pause_s` seconds of `clock` for a batch of nothing; or fails for a reason."""

    def __init__(self, clock, pause_s, reason):
        self.clock, self.pause_s, self.reason, self.closed = clock, pause_s, reason, False

    def decode(self, batches):
        for requests in batches:
            if self.reason:
                raise DataError(self.reason)
            self.clock[0] += self.pause_s
            yield base.build_batch(torch.zeros(len(requests)), requests)

    def close(self):
        self.closed = True


@pytest.fixture
def deciding(folders, tmp_path, monkeypatch, capsys):
    """`decide` for a run in `tmp_path` with batches of 3: (backend, reason, backends opened, printed). A decoder is the
    seconds that it takes for a batch, or its reason to fail.
    """
    clock = [0.0]
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: clock[0])
    config = config_for(folders["vp9"])
    config.run, config.training.batch_size = str(tmp_path), 3

    def decided(deterministic=False, **decoders):
        say_once.cache_clear()
        config.training.deterministic = deterministic
        opened = {}

        def open_loader(backend):
            how = decoders[backend]
            opened[backend] = Paced(clock, *(1.0, how) if isinstance(how, str) else (how, None))
            return opened[backend]

        backend, reason = fastest.decide(config, folders["vp9"], open_loader)
        assert all(loader.closed for loader in opened.values())
        return backend, reason, list(opened), capsys.readouterr().out

    return decided


def test_the_fastest_decoder_is_taken_and_remembered_by_the_run(deciding, tmp_path):
    assert deciding(dali=0.1, pyav=0.2)[0] == "dali"
    assert not (tmp_path / "loader.json").exists()  # not a run's folder: a rehearsal writes nothing
    (tmp_path / "config.yaml").touch()
    backend, reason, opened, _ = deciding(dali=0.25, pyav=0.125)
    assert backend == "pyav" and opened == ["dali", "pyav"]
    assert reason == "the fastest here: dali 12, pyav 24 clips/s"
    assert json.loads((tmp_path / "loader.json").read_text()) == {
        "backend": "pyav",
        "clips_per_s": {"dali": 12.0, "pyav": 24.0},
    }
    backend, reason, opened, _ = deciding(dali=0.01, pyav=0.2)  # faster now, but the run goes on as it began
    assert backend == "pyav" and opened == ["pyav"]
    assert reason == "as this run began, with dali 12, pyav 24 clips/s"


def test_a_decoder_that_cannot_be_used_is_named_and_the_next_one_taken(deciding, tmp_path):
    (tmp_path / "config.yaml").touch()
    backend, _, _, said = deciding(dali="driver too old", pyav=0.1)
    assert backend == "pyav" and said == "loader: dali cannot be used here (driver too old)\n"
    (tmp_path / "loader.json").write_text('{"backend": "dali", "clips_per_s": {"dali": 9.0}}')
    backend, _, _, said = deciding(dali="driver too old", pyav=0.1)
    assert backend == "pyav" and "dali cannot be used here, with which this run began" in said
    assert json.loads((tmp_path / "loader.json").read_text())["backend"] == "dali"  # it may be back tomorrow
    with pytest.raises(DataError, match="no file"):
        deciding(dali="driver too old", pyav="no file")


def test_deterministic_runs_do_not_depend_on_how_busy_a_host_is(deciding):
    assert deciding(deterministic=True, dali=0.5, pyav=0.1)[0] == "dali"
    assert deciding(deterministic=True, dali="no driver", pyav=0.1)[0] == "pyav"


def test_decoding_takes_the_cores_of_this_rank_beside_a_gpu(monkeypatch):
    for name in ("SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    gpu, alike = torch.device("cuda", 0), small_loader(threads=0)
    assert base.decoding_threads(alike, gpu) == 16
    assert base.decoding_threads(alike, CPU) == 2
    assert base.decoding_threads(small_loader(threads=5), gpu) == 5
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_SIZE", "8")  # what DeepSpeed's launcher sets
    assert base.decoding_threads(alike, gpu) == 2


def test_the_loader_leaves_the_callers_threads_alone(folders, opened):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        loader = opened(PyavLoader, folders["vp9"].folder, threads=3)
        list(loader.stream(all_requests(folders["vp9"])))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("taps", [1, 2, 3])
def test_without_numba_the_pictures_are_the_same(rng, taps):
    """Both forms of the two passes, on crops at and off the borders: equal but for the rounding of a sum."""
    luma, blue, red = (rng.integers(0, 256, size, np.uint8) for size in ((38, 54), (19, 27), (19, 27)))
    for top, left, height, width in ((0, 0, 38, 54), (5, 7, 20, 31)):
        ours, theirs = np.zeros((2, 3, height, width), np.uint8)
        for module, out in ((pixels_numpy, ours), (pixels_numba, theirs)):
            module.convert(luma, blue, red, top, left, LIMITED_RANGE, out)
        assert np.abs(ours.astype(int) - theirs).max() <= 1 and ours.std() > 10
        rows, columns = (np.sort(rng.integers(0, size - taps + 1, 16)) for size in (height, width))
        weights = rng.dirichlet(np.ones(taps), (2, 16)).astype(np.float32)
        small = np.zeros((2, 3, 16, 16), np.uint8)
        for module, out in zip((pixels_numpy, pixels_numba), small, strict=True):
            module.resample(ours, rows, weights[0], columns, np.ascontiguousarray(weights[1].T), out)
        assert np.abs(small[0].astype(int) - small[1]).max() <= 1
