"""Live streams on this machine: their bytes, servers whose connections die, and a camera that speaks RTSP."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

SIZE, FPS = 64, 8


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Coloured blocks that move, other ones every three seconds, uint8 RGB [count, 64, 64, 3]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (count // 24 + 1, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    return np.stack([np.roll(blocks[k // 24], 2 * k, axis=1) for k in range(count)])


def encode(count: int, container: str = "mpegts", times: Sequence[int] | None = None, seed: int = 0) -> bytes:
    """Frames at `times` (in frames of 1/8 s), a key frame every second."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream("mpeg2video" if container == "mpegts" else "mjpeg", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p" if container == "mpegts" else "yuvj420p"
        stream.codec_context.gop_size = FPS
        stream.codec_context.max_b_frames = 0
        stream.codec_context.time_base = Fraction(1, FPS)
        for place, picture in zip(times or range(count), pictures(count, seed), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = place, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def sound() -> bytes:
    """One second of silence, and no video."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


@contextlib.contextmanager
def server(answer: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """Host and port of a server that calls `answer` with each connection and its number, and then closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for number in range(1000):
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    answer(connection, number)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(60)


def rtsp_camera(count: int) -> Callable[[socket.socket, int], None]:
    """Answers of a camera (RFC 2326) that sends `count` frames within the connection, and then hangs up."""
    sdp = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 32\r\na=control:video\r\n"
    answers = {
        "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}",
        "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n",
    }

    def answer(connection: socket.socket, number: int) -> None:
        with connection.makefile("rb") as lines:
            while request := lines.readline():
                headers = [request, *iter(lines.readline, b"\r\n")]
                method = request.split()[0].decode()
                sequence = next(line for line in headers if line.lower().startswith(b"cseq")).decode()
                connection.sendall(f"RTSP/1.0 200 OK\r\n{sequence}{answers.get(method, chr(13) + chr(10))}".encode())
                if method == "PLAY":
                    for packet in rtp_packets(count):
                        connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                    return

    return answer


def rtp_packets(count: int) -> list[bytes]:
    """What FFmpeg would send of such a video over UDP (RTP payload 32, RFC 2250)."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        port = receiver.getsockname()[1]
        with av.open(io.BytesIO(encode(count))) as source, av.open(f"rtp://127.0.0.1:{port}", "w", format="rtp") as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            found.append(receiver.recv(65536))
    return found
