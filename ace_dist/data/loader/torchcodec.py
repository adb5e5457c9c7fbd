"""The torchcodec loader: the plain alternative to our own pixel code, for those who trust a library more than speed.

It decodes with FFmpeg through torchcodec's `VideoDecoder`, resizes whole pictures with torch and crops them. Frames and
crops are those of the PyAV loader; pixels differ by the rounding of FFmpeg's colours and of a second resize.
"""

from pathlib import Path

import torch
from torch.nn.functional import interpolate

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.pyav import PyavLoader
from ace_dist.data.sampling import ClipRequest, crop_box
from ace_dist.utils.errors import DataError


def unusable(error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[0]
    return DataError(
        f"loader.backend=torchcodec cannot be used ({reason}): pip install 'torchcodec>=0.8' and FFmpeg's shared "
        "libraries, or use loader.backend=pyav, which brings its own"
    )


class TorchcodecLoader(PyavLoader):
    """As the PyAV loader, with torchcodec's decoder in its threads."""

    backend = "torchcodec"

    def __init__(self, folder: Path, loader: LoaderConfig, device: torch.device) -> None:
        try:
            import torchcodec
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:
            raise unusable(error) from error
        try:
            VideoDecoder(b"no video", seek_mode="approximate", num_ffmpeg_threads=1)  # the first use loads FFmpeg
        except (RuntimeError, ValueError) as error:
            if "libtorchcodec" in str(error):
                raise unusable(error) from error
        super().__init__(folder, loader, device)
        self.decoder = f"torchcodec {torchcodec.__version__}"

    def decode_into(self, data: bytes, request: ClipRequest, video: torch.Tensor) -> None:
        from torchcodec.decoders import VideoDecoder

        height, width, top, left = crop_box(request)
        try:
            # Stored clips have one rate and times from 0, so a frame's place follows from its index ("approximate").
            decoder = VideoDecoder(data, seek_mode="approximate", num_ffmpeg_threads=1)
            frames = decoder.get_frames_at(list(request.frames)).data  # [T, 3, H, W]
            resized = interpolate(frames, (height, width), mode="bilinear", antialias=True)
            part = resized[..., top : top + request.crop, left : left + request.crop]
            video.copy_(part.flip(-1) if request.flip else part)
        except (RuntimeError, IndexError, ValueError) as error:  # what torchcodec raises for bytes it cannot decode
            raise DataError(" ".join(str(error).split())) from error
