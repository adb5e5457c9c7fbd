"""Pictures as files in memory, and files as addresses that a page needs nothing else for."""

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def jpeg(picture_HWC: npt.NDArray[np.uint8], quality: int = 75) -> bytes:
    return encoded(picture_HWC, "JPEG", quality=quality)


def png(picture_HWC: npt.NDArray[np.uint8]) -> bytes:
    return encoded(picture_HWC, "PNG")


def encoded(picture_HWC: npt.NDArray[np.uint8], kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture_HWC).save(file, kind, **options)
    return file.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """`kind`: a media type, such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
