"""Windows of a long video are embedded as clips are, once, and what is kept is whole or is made again."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from data_worlds import write_video
from image_text_models import SMALL, close, small_model

import ace_dist.segment.embed as embed
from ace_dist.config import load_config
from ace_dist.data.build.decode import read_window
from ace_dist.data.loader.base import normalise
from ace_dist.models.build import build_model
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.segment.embed import WindowEncoder, embed_video
from ace_dist.segment.windows import WindowGrid
from ace_dist.utils.errors import DataError


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(embed, "PART", 8)


def naive(classifier, video, windows: int) -> np.ndarray:
    """Each window read by itself and encoded by itself."""
    clip, loader = classifier.config.dataset.clip, classifier.config.loader
    found = []
    for window in range(windows):
        middle = (window + 0.5) * clip.seconds / 4
        times = [middle + (k - (clip.frames - 1) / 2) * clip.seconds / clip.frames for k in range(clip.frames)]
        pictures = []
        for time in times:
            raw = read_window(video, min(max(time, 0.0), windows), time + 1, fps=8.0)
            picture = torch.from_numpy(np.ascontiguousarray(next(iter(raw.frames)))).permute(2, 0, 1)[None].float()
            side = (loader.test_short_side,) * 2
            picture = torch.nn.functional.interpolate(picture, side, mode="bilinear", antialias=True)
            edge = (loader.test_short_side - loader.crop) // 2
            pictures.append(picture[0, :, edge : edge + loader.crop, edge : edge + loader.crop].round())
        views = normalise(torch.stack(pictures).clamp(0, 255).byte()[None], loader)
        found.append(classifier.encode(views)[0].numpy())
    return np.stack(found)


def test_windows_are_those_of_clips_read_one_by_one(classifier, video):
    found = embed_video(classifier.model, classifier.config, video)
    assert found.start_s == 0 and found.stride_s == 0.5 and len(found.embeddings) == np.ceil(found.end_s / 0.5)
    some = slice(3, 9)  # away from the ends, where a test of its own says what is repeated
    wanted = naive(classifier, video, 9)[some]
    cosines = (found.embeddings[some] * wanted).sum(1)
    cosines /= np.linalg.norm(found.embeddings[some], axis=1) * np.linalg.norm(wanted, axis=1)
    assert cosines.min() > 0.999  # rounding of resized pixels differs


def test_other_labels_need_no_video(classifier, video, tmp_path, monkeypatch):
    first = embed_video(classifier.model, classifier.config, video, cache=tmp_path)
    monkeypatch.setattr(embed, "stream_crops", None)  # would be called to read the video
    again = embed_video(classifier.model, classifier.config, video, cache=tmp_path)
    assert (first.embeddings == again.embeddings).all()
    assert (first.start_s, first.end_s, first.stride_s) == (again.start_s, again.end_s, again.stride_s)
    with pytest.raises(TypeError):  # other windows are another matter
        embed_video(classifier.model, classifier.config, video, stride_s=1.0, cache=tmp_path)


def test_embeddings_of_frames_are_kept_too(video, tmp_path, monkeypatch, small_parts):
    """Those of BIKE have three axes, and are no others' of the same weights."""
    config = load_config(["experiment=demo", "method=bike"])
    model = build_model(config.model, config.seed)
    first = embed_video(model, config, video, cache=tmp_path)
    assert first.embeddings.shape[1:] == (config.dataset.clip.frames, config.model.video.embed_dim)
    monkeypatch.setattr(embed, "stream_crops", None)
    assert (embed_video(model, config, video, cache=tmp_path).embeddings == first.embeddings).all()
    model.video.config = replace(model.video.config, pooling="mean")
    with pytest.raises(TypeError):  # it would read the video
        embed_video(model, config, video, cache=tmp_path)


def test_a_cache_that_cannot_be_is_named_with_its_setting(classifier, video, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cache=.*/file/ace-dist/embeddings cannot be written .*cache=null"):
        embed_video(classifier.model, classifier.config, video, cache=embed.default_cache())


def test_a_killed_run_goes_on_and_damage_is_made_again(classifier, video, tmp_path, small_parts, monkeypatch):
    whole = embed_video(classifier.model, classifier.config, video, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    parts = sorted(folder.glob("part-*"))
    assert len(parts) > 4
    begun: list[float] = []
    read = embed.stream_crops
    monkeypatch.setattr(embed, "stream_crops", lambda *args: begun.append(args[1]) or read(*args))
    (folder / "whole.json").unlink()
    for part in parts[3:]:
        part.unlink()
    assert np.allclose(
        embed_video(classifier.model, classifier.config, video, cache=tmp_path).embeddings, whole.embeddings
    )
    assert begun[0] > 10  # 24 windows of half a second were there, less what the first new one reaches back
    content = bytearray(parts[1].read_bytes())
    content[100] ^= 1
    parts[1].write_bytes(content)
    again = embed_video(classifier.model, classifier.config, video, cache=tmp_path)
    assert np.allclose(again.embeddings, whole.embeddings) and again.end_s == pytest.approx(whole.end_s)


@pytest.mark.parametrize("first_packet", [0, 1])
def test_a_run_that_goes_on_is_as_one_that_was_not_killed(classifier, tmp_path, small_parts, first_packet):
    """Also between the frames of an odd rate, and where the first pictures lack their key frame."""
    path, cache = tmp_path / "a.mkv", tmp_path / "kept"
    shades = np.random.default_rng().integers(0, 256, (84, 6, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=7, options={"g": "12", "bf": "0", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        packets = [packet for shade in shades for packet in stream.encode(av.VideoFrame.from_ndarray(shade))]
        container.mux((packets + stream.encode(None))[first_packet:])
    whole = embed_video(classifier.model, classifier.config, path, cache=cache)
    (folder,) = cache.iterdir()
    (folder / "whole.json").unlink()
    (folder / "part-00001.f32").unlink()
    again = embed_video(classifier.model, classifier.config, path, cache=cache)
    assert (again.start_s, again.end_s) == (whole.start_s, pytest.approx(whole.end_s))
    assert np.allclose(again.embeddings, whole.embeddings, atol=1e-5)
    (folder / "whole.json").unlink()
    (folder / "begin.json").unlink()  # then nothing says what the parts are of
    assert embed_video(classifier.model, classifier.config, path, cache=cache).start_s == whole.start_s


def test_what_is_there_of_a_video_is_not_taken_for_all_of_it(classifier, video, tmp_path):
    cut = tmp_path / "cut.mp4"
    content = video.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.mp4"):
        classifier.segment(cut, ["spin block", "lift box"], cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("whole.json"))
    sound = tmp_path / "note.mp4"
    sound.write_text("no video")
    with pytest.raises(DataError, match=r"note\.mp4 cannot be read as a video"):
        classifier.segment(sound, ["spin block", "lift box"])
    with pytest.raises(DataError, match=r"gone\.mp4"):
        classifier.segment(tmp_path / "gone.mp4", ["spin block", "lift box"])


def test_who_looks_on_sees_each_picture_once_as_the_model_does(classifier, video):
    """The explorer keeps pictures of an upload that way, which it reads once."""
    seen = []
    found = embed_video(classifier.model, classifier.config, video, on_picture=seen.append)
    interval_s = classifier.config.dataset.clip.seconds / classifier.config.dataset.clip.frames
    side = classifier.config.loader.crop
    assert len(seen) == round((found.end_s - found.start_s) / interval_s)
    assert {(picture.shape, picture.dtype.name) for picture in seen} == {((3, side, side), "uint8")}


@pytest.mark.parametrize("temporal", ["mean", "transformer", "adapter"])
def test_a_picture_of_several_windows_is_embedded_once_by_towers_that_can(classifier, temporal):
    """By a tower of which each frame looks at others too, as often as before; the embeddings are the same."""
    config = small_model("clip_b16", temporal=temporal, temporal_layers=1, trained_blocks=1)
    model = DualEncoder(config.video, config.text).eval()
    given: list[int] = []
    model.video.patch_embed.register_forward_hook(lambda module, images, _: given.append(len(images[0])))
    draw = np.random.default_rng().integers
    pictures = [draw(256, size=(3, SMALL["image_size"], SMALL["image_size"]), dtype=np.uint8) for _ in range(21)]
    windows = list(WindowGrid(frames=8, interval_s=0.25, step=2).windows(pictures))
    encoder = WindowEncoder(model, classifier.config)
    found = np.concatenate([encoder.encode(windows[:3]), *(encoder.encode([window]) for window in windows[3:])])
    assert sum(given) == (8 * len(windows) if temporal == "adapter" else len(pictures))
    clips = normalise(torch.from_numpy(np.stack([np.stack(window) for window in windows])), classifier.config.loader)
    with torch.no_grad():
        close(torch.from_numpy(found), model.encode_video(clips))


@pytest.mark.parametrize("rate", [20, 25, 50])
def test_a_timeline_begins_with_its_video(classifier, tmp_path, rate):
    """The picture nearest to the first one asked for is shown a little before it or after: that moves no time."""
    path = tmp_path / "a.mp4"
    write_video(path, np.zeros((3 * rate, 48, 48, 3), np.uint8), rate=rate)
    for _ in range(2):  # made, and kept
        found = embed_video(classifier.model, classifier.config, path, cache=tmp_path / "kept")
        assert found.start_s == 0
    kept = next((tmp_path / "kept").rglob("whole.json"))
    kept.write_text(kept.read_text().replace('"start_s": 0.0', '"start_s": -0.005'))  # as it was kept before
    assert embed_video(classifier.model, classifier.config, path, cache=tmp_path / "kept").start_s == 0
