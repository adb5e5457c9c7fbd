"""Pictures of a long video at any time, also between two frames of a slow one."""

import av
import numpy as np
import pytest

from ace_dist.data.loader.long_video import thumbnails


@pytest.mark.parametrize(("rate", "name"), [(3, "slow.mp4"), (8, "slow.mp4"), (25, "slow.mp4"), (25, "pipe.mkv")])
def test_a_thumbnail_of_any_moment(tmp_path, rate, name):
    """The frame nearest to it, as a page of a timeline asks for the middle of a segment; of a pipe's file too."""
    path = tmp_path / name
    live = {"live": "1"} if name == "pipe.mkv" else {}  # it does not say how long it is
    with av.open(str(path), "w", options=live) as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(4 * rate):
            shade = np.full((32, 32, 3), 255 * number // (4 * rate), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    times = [*np.linspace(0, 4 - 1 / rate, 57), 4.0, 4.2]  # windows reach past the end, where the last one is shown
    for time, picture in zip(times, thumbnails(path, times), strict=True):
        time = min(time, 4 - 1 / rate)
        assert abs(float(picture.mean()) - 255 * time / 4) <= 255 * 0.5 / (4 * rate) + 8  # half a frame; video levels
