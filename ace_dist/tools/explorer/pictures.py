"""What a browser gets of a video: JPEG and WebM of our own making. Runs in a worker process (`run_alone`)."""

import io
from fractions import Fraction

import av
import numpy as np

from ace_dist.data.build.container import ClipInMemory
from ace_dist.data.build.decode import read_window
from ace_dist.utils.pictures import jpeg

STILL_SIDE = 96  # pixels
FILM_SIDE = 360
FILM_S = 60.0  # as long as an action may last


def still(stored: bytes) -> bytes:
    """The middle frame of a clip in memory."""
    frames = list(read_window(ClipInMemory(stored), 0, FILM_S, short_side=STILL_SIDE).frames)
    return jpeg(frames[len(frames) // 2])


def playable(stored: bytes) -> bytes:
    """The clip as WebM (VP8), which every browser plays, whatever codec it is stored in."""
    raw = read_window(ClipInMemory(stored), 0, FILM_S, short_side=FILM_SIDE)
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=Fraction(raw.fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "12", "b": "2M"}
        for number, picture in enumerate(raw.frames):
            height, width = (side - side % 2 for side in picture.shape[:2])
            if number == 0:
                stream.width, stream.height = width, height
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
