"""An address that the user names is asked, and nothing that it answers is: no other host, no file."""

import threading

import pytest
from live_streams import encode, server

from ace_dist.data.build.container import open_video
from ace_dist.data.build.live_source import LiveSource
from ace_dist.utils.errors import DataError


@pytest.fixture
def other():
    """An address that nobody named, and how often it was asked."""
    asked = []
    with server(lambda connection, number: asked.append(number)) as address:
        yield address, asked


def answers(texts):
    """A server that gives the next text to each request with a blank line behind it."""

    def answer(connection, number):
        with connection.makefile("rb") as lines:
            for text in texts:
                request = [line.decode() for line in iter(lines.readline, b"\r\n") if line]
                sequence = next((line for line in request if line.lower().startswith("cseq")), "")
                connection.sendall(text.replace("CSEQ\r\n", sequence).encode())

    return answer


def refusal(scheme, answer):
    with server(answer) as address, pytest.raises(DataError) as refused:  # noqa: SIM117
        with open_video(LiveSource.parse(f"{scheme}://me:hunter2@{address}/a")):
            pass
    assert "hunter2" not in str(refused.value) and address in str(refused.value)
    return str(refused.value)


def test_redirects_are_not_followed(other):
    address, asked = other
    assert "answers 302" in refusal("http", answers([f"HTTP/1.1 302 Found\r\nLocation: http://{address}/\r\n\r\n"]))
    moved = f"RTSP/1.0 302 Moved\r\nCSEQ\r\nLocation: rtsp://{address}/a\r\n\r\n"
    refusal("rtsp", answers([moved]))
    refusal("rtsp", answers(["RTSP/1.0 200 OK\r\nCSEQ\r\nPublic: DESCRIBE, SETUP, PLAY\r\n\r\n", moved]))
    assert not asked


def test_an_rtsp_answer_names_no_other_host(other):
    address, asked = other
    host, port = address.split(":")
    sdp = f"v=0\r\no=- 0 0 IN IP4 {host}\r\ns=x\r\nc=IN IP4 {host}\r\nt=0 0\r\nm=video {port} RTP/AVP 32\r\n"
    sdp += f"a=control:rtsp://{address}/track\r\n"
    refusal("rtsp", answers([
        "RTSP/1.0 200 OK\r\nCSEQ\r\nPublic: DESCRIBE, SETUP, PLAY\r\n\r\n",
        f"RTSP/1.0 200 OK\r\nCSEQ\r\nContent-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}",
        f"RTSP/1.0 200 OK\r\nCSEQ\r\nTransport: RTP/AVP;unicast;destination={host};source={host};"
        f"server_port={port}-{port}\r\nSession: 1\r\n\r\n",
    ]))  # fmt: skip
    assert not asked


def test_a_playlist_opens_nothing(other, tmp_path):
    address, asked = other
    video = tmp_path / "secret.ts"
    video.write_bytes(encode(8))
    lists = [
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://{address}/a.ts\n#EXTINF:1,\nfile://{video}\n",
        f"ffconcat version 1.0\nfile '{video}'\n",
        f"v=0\no=- 0 0 IN IP4 {address}\ns=x\nc=IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 32\n",
    ]
    for text in lists:
        said = refusal("http", answers([f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}"]))
        assert "cannot be read as a video" in said
        said = refusal("tcp", lambda connection, number, text=text: connection.sendall(text.encode()))
        assert "cannot be read as a video" in said
    assert not asked


def test_a_password_goes_to_the_named_host_alone():
    seen = threading.Event()

    def answer(connection, number):
        request = connection.makefile("rb")
        headers = b"".join(iter(request.readline, b"\r\n"))
        if b"Authorization: Basic bWU6aHVudGVyMg==" in headers and b"hunter2" not in headers:
            seen.set()
        body = encode(8)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with server(answer) as address, open_video(LiveSource.parse(f"http://me:hunter2@{address}/a?b=c")) as (_, stream):
        assert stream.width == 64
    assert seen.is_set()
