"""Small videos of the codecs and containers that people have, and the ways in which their bytes go wrong."""

from __future__ import annotations

from data_worlds import numbered_frames, write_video
from hypothesis import strategies as st

FPS, COUNT = 12, 24  # two seconds of numbered frames
VIDEOS = {  # name -> codec, pixel format, options
    "h264.mp4": ("libx264", "yuv420p", {"crf": "12", "g": "12", "bf": "2"}),
    "h264.ts": ("libx264", "yuv420p", {"crf": "12", "g": "12", "bf": "2"}),
    "hevc.mkv": ("libx265", "yuv420p", {"crf": "12", "g": "12", "x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"crf": "12", "b": "0", "cpu-used": "8", "deadline": "realtime", "g": "12"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "3"}),
    "mpeg4.mp4": ("mpeg4", "yuv420p", {"qmin": "2", "qmax": "3", "g": "12", "bf": "2"}),
}


class Videos(dict):
    """Name -> bytes of each video, whole. A failure does not print them."""

    def __repr__(self):
        return "sound videos"


def sound_videos(folder):
    frames, videos = numbered_frames(COUNT, 48, 64), Videos()
    for name, (codec, pix_fmt, options) in VIDEOS.items():
        videos[name] = write_video(folder / name, frames, FPS, codec, pix_fmt, options=options).read_bytes()
    return videos


places = st.floats(0, 1, exclude_max=True)  # as a share of the file
damages = st.one_of(
    st.tuples(st.just("flip"), st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=40)),
    st.tuples(st.just("overwrite"), st.tuples(places, st.binary(min_size=1, max_size=200))),
    st.tuples(st.just("insert"), st.tuples(places, st.binary(min_size=1, max_size=200))),
    st.tuples(st.just("remove"), st.tuples(places, places)),
    st.tuples(st.just("repeat"), st.tuples(places, places)),
    st.tuples(st.just("cut"), places),
)  # a kind of damage, and where and what
damaged_videos = st.tuples(st.sampled_from(sorted(VIDEOS)), damages)


def damage(data, kind, detail):
    """The bytes of a video after one kind of damage."""
    if kind == "flip":
        new = bytearray(data)
        for place, mask in detail:
            new[int(place * len(data))] ^= mask
        return bytes(new)
    if kind == "cut":
        return data[: int(detail * len(data))]
    if kind in ("overwrite", "insert"):
        at, extra = int(detail[0] * len(data)), detail[1]
        return data[:at] + extra + data[at + (len(extra) if kind == "overwrite" else 0) :]
    first, last = sorted(int(place * len(data)) for place in detail)
    return data[:first] + data[last:] if kind == "remove" else data[:last] + data[first:]
