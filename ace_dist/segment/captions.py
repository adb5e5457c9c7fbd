"""Writes a video again with the label of each moment on it, for people who only have a player."""

import secrets
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ace_dist.data.loader.long_video import stream_frames
from ace_dist.segment.timeline import Timeline

FPS = 25.0
SHORT_SIDE = 480
FONT_SHARE = 16  # the text is as high as this part of the picture


def write_captioned(timeline: Timeline, path: Path) -> None:
    """An MP4 (H.264) at 25 frames a second, its shorter side at most 480 pixels, without sound."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(FPS).limit_denominator(1001))
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "23", "preset": "veryfast"}
            for number, picture in enumerate(stream_frames(Path(timeline.video), FPS, SHORT_SIDE)):
                height, width = (side - side % 2 for side in picture.shape[:2])
                if number == 0:
                    stream.width, stream.height = width, height
                shown = captioned(picture[:height, :width], timeline.label_at(timeline.start_s + number / FPS) or "")
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:  # type: ignore[type-arg]
    """The picture with white text on a dark band along its lower edge."""
    if not text:
        return np.ascontiguousarray(picture)
    image = Image.fromarray(np.ascontiguousarray(picture))
    draw = ImageDraw.Draw(image, "RGBA")
    size = max(8, image.height // FONT_SHARE)
    draw.rectangle((0, image.height - 2 * size, image.width, image.height), fill=(0, 0, 0, 170))
    draw.text((size // 2, image.height - 1.6 * size), text, fill=(255, 255, 255), font=ImageFont.load_default(size))
    return np.asarray(image)
