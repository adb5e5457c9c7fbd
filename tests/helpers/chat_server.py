"""A real HTTP server on this machine that speaks the chat-completions protocol, well or badly, as a test asks it to."""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = (
    "turn roll crank pivot rotate swivel twirl whirl reel wind loop circle orbit gyrate revolve wheel twist swing sway "
    "rock tilt tip lean bend curl coil wrap fold crease press squeeze pinch grip grasp clutch seize grab snatch pluck "
    "pull drag haul tow tug yank jerk heave hoist raise elevate boost prop stack pile heap load pack stuff cram jam"
)
VERBS = WORDS.split()


def synonyms(prompt):
    """The lines of an obedient model: as many verbs as asked for, with the object, none of those already known."""
    count = int(re.search(r"ive (\d+)", prompt)[1])
    verb, _, rest = re.search(r'action "([^"]+)"', prompt)[1].partition(" ")
    known = prompt.partition("known already")[2]
    start = sum(map(ord, verb)) % len(VERBS)
    others = [v for v in VERBS[start:] + VERBS[:start] if v != verb and f"{v} {rest}" not in known]
    return [f"{v} {rest}" for v in others[:count]]


def completion(text, tokens_in=200, tokens_out=50, **fields):
    """A well-formed response body."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "served-model",
        "choices": [choice],
        "usage": usage,
    } | fields


def obey(prompt, turn):
    """The behaviour of a good server."""
    return 200, completion("\n".join(synonyms(prompt)))


class ChatServer:
    """`behaviour(prompt, turn)` gives (status, body[, headers]) for the `turn`-th request with this prompt, from 0.

    A body may be a dict (sent as JSON), bytes (sent as they are), `None` (the connection is dropped), or an iterator of
    bytes (sent piece by piece until the client leaves).
    `requests` holds (prompt, body, headers) of every request in order of arrival.
    """

    def __init__(self, behaviour=obey):
        self.behaviour = behaviour
        self.requests = []
        self.lock = threading.Lock()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.httpd.shutdown()
        self.httpd.server_close()

    def asked(self):
        """How often each prompt arrived."""
        counts = {}
        for prompt, _, _ in self.requests:
            counts[prompt] = counts.get(prompt, 0) + 1
        return counts

    def handler(server):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                with server.lock:
                    turn = server.asked().get(prompt, 0)
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    server.requests.append((prompt, body, headers))
                status, payload, *headers = server.behaviour(prompt, turn)
                if payload is None:
                    self.close_connection = True
                    return
                try:
                    if isinstance(payload, Iterator):
                        self.send_response(status)
                        self.end_headers()
                        self.close_connection = True
                        for piece in payload:
                            self.wfile.write(piece)
                        return
                    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
                    self.send_response(status)
                    for name, value in (headers[0] if headers else {}).items():
                        self.send_header(name, value)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up, as some tests want

            def log_message(self, *_):
                pass

        return Handler


def main():
    """Run a good server until killed: `python tests/helpers/chat_server.py`, for trying the launcher by hand."""
    with ChatServer() as server:
        print(f"base_url={server.url}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
