"""What a live stream comes from: a file, a pipe, a camera, or an address that the user names.

Only RTSP and cameras are opened by FFmpeg, which then knows that protocol alone. Of the others it gets the bytes.
"""

import base64
import http.client
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote, urlsplit, urlunsplit

from ace_dist.data.build.isolation import without_deadline
from ace_dist.utils.errors import ConfigError, DataError

SILENCE_S = 10.0  # without a byte, after which a connection counts as dead
OPENED_BY_FFMPEG = ("camera", "rtsp", "rtsps")
SCHEMES = ("rtsp", "rtsps", "http", "https", "tcp")
# RTSP within its one TCP connection: over UDP its answers could name other hosts and ports to send to.
RTSP = {"rtsp_transport": "tcp", "allowed_media_types": "video", "timeout": str(round(SILENCE_S * 1e6))}


@dataclass(frozen=True)
class LiveSource:
    """`kind`: file, pipe, camera, or an address's scheme; `place`: what is opened, of a pipe its number here."""

    kind: str
    place: str

    @classmethod
    def parse(cls, source: str | Path | int) -> Self:
        """Of camera, a camera's number or device, an address, a file, or - for the standard input."""
        text = str(source)
        if text == "-":
            return cls("pipe", "0")
        if camera := re.fullmatch(r"(?:/dev/video)?(\d+)|camera", text):
            return cls("camera", f"/dev/video{camera[1] or 0}")
        scheme, is_address, _ = text.partition("://")
        if not is_address:
            if Path(text).is_fifo():
                raise ConfigError(f"source={text} is a pipe; it is read as the standard input: source=- < {text}")
            return cls("file", text)
        if scheme not in SCHEMES:
            raise ConfigError(
                f"source={scheme}://... is none of {', '.join(f'{each}://' for each in SCHEMES)}; other streams come "
                "through a pipe: ffmpeg -i ADDRESS -c copy -f matroska - | ace watch source=- ..."
            )
        host, port = host_and_port(text)
        if not host or (scheme == "tcp" and not port):
            raise ConfigError(f"source={cls(scheme, text)} names no {'host' if not host else 'port'}")
        return cls(scheme, text)

    @property
    def is_live(self) -> bool:
        """Whether it sends by its own clock; a file is played."""
        return self.kind != "file"

    @property
    def may_return(self) -> bool:
        """Whether it can be opened again when it has ended."""
        return self.kind not in ("file", "pipe")

    def __str__(self) -> str:
        """Without the user and the password of an address."""
        if self.kind == "pipe":
            return "the standard input"
        return re.sub(r"(?<=://)[^/]*@", "", self.place) if self.kind in SCHEMES else self.place


def host_and_port(address: str) -> tuple[str, int]:
    """0 where no port is named. Raises `ConfigError` for an address that is none."""
    try:
        parts = urlsplit(address)
        return parts.hostname or "", parts.port or 0
    except ValueError as error:
        raise ConfigError(f"source={LiveSource(address.partition(':')[0], address)} is no address: {error}") from error


def ffmpeg_input(source: LiveSource) -> tuple[str, dict[str, str]]:
    """FFmpeg's name of the demuxer of a camera or an RTSP address, and its options."""
    if source.kind == "camera":
        return "v4l2", {"format_whitelist": "video4linux2,v4l2", "protocol_whitelist": "none"}
    protocols = "tcp,tls" if source.kind == "rtsps" else "tcp"
    return "rtsp", RTSP | {"format_whitelist": "rtsp", "protocol_whitelist": protocols}


class Incoming:
    """Bytes that come as they come: no seeking, no name. Raises `DataError` when the connection dies."""

    def __init__(self, source: LiveSource, read: Callable[[int], bytes], close: Callable[[], object]) -> None:
        self.source, self.take, self.close = source, read, close

    def read(self, count: int) -> bytes:
        try:
            return self.take(count)
        except TimeoutError as error:
            raise DataError(f"{self.source} sent nothing for {SILENCE_S:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{self.source} broke off: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_incoming(source: LiveSource) -> Incoming:
    """The bytes of a pipe or of an HTTP or TCP address. Raises `DataError` when it cannot be reached."""
    if source.kind == "pipe":
        file = os.fdopen(int(source.place), "rb", buffering=0, closefd=False)
        return Incoming(source, lambda count: patient_read(file, count), file.close)
    try:
        if source.kind == "tcp":
            connection = socket.create_connection(host_and_port(source.place), SILENCE_S)
            return Incoming(source, connection.recv, connection.close)
        return open_http(source)
    except TimeoutError as error:
        raise DataError(f"{source} did not answer within {SILENCE_S:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{source} cannot be reached: {error}") from error


def patient_read(file: BinaryIO, count: int) -> bytes:
    """What a pipe has, as soon as it has any; a wait for who fills it is no hang of FFmpeg."""
    with without_deadline():
        return file.read(count)


def open_http(source: LiveSource) -> Incoming:
    """One request, which follows no answer that leads elsewhere."""
    parts = urlsplit(source.place)
    kind = http.client.HTTPSConnection if source.kind == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=SILENCE_S)
    headers = {}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    connection.request("GET", urlunsplit(("", "", parts.path or "/", parts.query, "")), headers=headers)
    answer = connection.getresponse()
    if answer.status != http.client.OK:
        connection.close()
        raise DataError(f"{source} answers {answer.status} {answer.reason} and no video; give the stream's own address")
    return Incoming(source, answer.read1, connection.close)
