"""Asks any OpenAI-compatible server through the `openai` client: answers cached on disk, a hard budget, an even pace.

The `openai` client retries (429, 5xx, time-outs, broken connections) and waits as long as a server's headers ask it to.
The HTTP client below it sees every request, the repeated ones too: it reserves the budget and bounds the response.

The key comes from one environment variable and goes to the server alone. Every text that a server sends is scrubbed of
it before anything else happens, because error messages, and hostile answers, repeat what they were sent.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from ace_dist.tools.synonyms.budget import Budget, BuildStopped, ClientConfig, NoAnswer, estimated_tokens, most_tokens
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.files import write_json
from ace_dist.utils.reading import read_object
from ace_dist.utils.text import printable

MAX_BODY_BYTES = 4 << 20  # of one response; a thousand lines have about 20 KB
MAX_ERROR_BYTES = 64 << 10  # of an error's response that are read
MAX_TOKENS_REPORTED = 10_000_000  # a count beyond every context window is a lie and not used
GATEWAY_GAVE_UP = (408, 502, 504, 524)  # the model behind it may have gone on, and may be billed
SHOWN_CHARACTERS = 300  # of a server's error message
DEAD_SERVER = 3  # questions in a row without an answer after which the build ends


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a server. Texts are untrusted and hold no key."""

    text: str
    finish: str  # finish_reason as the server says: stop, length, content_filter, ...
    served_model: str  # the model as the server names it
    tokens_in: int
    tokens_out: int
    counted: bool  # False: the server reported no usable count, the numbers are estimates
    date: str  # UTC, ISO 8601


class ChatClient:
    """Answers to prompts: from the cache, else from the server. Threads may share it.

    The cache is a folder with a file for each (model, prompt, settings), which builds may share.
    `replies` holds every answer that was used, `answered` counts those that the server gave in this process.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or None
        check_base_url(self.base_url)
        self.key = read_key(config.api_key_env, required=self.base_url is None)
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ace-dist" / "synonyms"
        self.cache = Path(config.cache).expanduser() if config.cache else default
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache={self.cache} cannot be made: {error.strerror}") from error
        self.budget = Budget(config)
        self.http = BudgetedHttp(config, self.budget)
        self.replies: dict[tuple[str, int], Reply] = {}
        self.answered = self._failures_in_a_row = 0
        self._client = openai.OpenAI(
            api_key=self.key or "none",  # local servers need no key, the client insists on one
            base_url=self.base_url or "https://api.openai.com/v1",
            timeout=config.timeout_s,
            max_retries=config.attempts - 1,
            http_client=self.http,
        )
        self._lock = threading.Lock()
        self._asking: dict[tuple[str, int], threading.Lock] = {}

    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the prompt."""
        names = ("model", "temperature", "seed", "max_output_tokens")
        return {name: getattr(self.config, name) for name in names} | {"base_url": self.base_url}

    def ask(self, prompt: str, turn: int = 0) -> Reply:
        """One answer; another `turn` asks the same question anew instead of repeating the first answer.

        Raises `BuildStopped` when no further question makes sense, `NoAnswer` when this one has none.
        """
        identity = self.identity() | {"turn": turn}
        digest = hashlib.sha256(json.dumps([identity, prompt], sort_keys=True).encode()).hexdigest()
        path = self.cache / digest[:2] / f"{digest}.json"
        with self._lock:
            asking = self._asking.setdefault((prompt, turn), threading.Lock())
        with asking:  # the same question from two trees is sent once
            if path.is_file():
                try:
                    reply = Reply(**read_object(path, RunError)["reply"])
                except (ValueError, KeyError, TypeError) as error:  # asking again would cost again
                    raise RunError(f"the cached answer {path} is damaged ({error}); delete it to ask again") from error
            else:
                reply = self._request(prompt)
                path.parent.mkdir(exist_ok=True)
                write_json(path, {"settings": identity, "prompt": prompt, "reply": asdict(reply)})
        with self._lock:
            self._failures_in_a_row = 0
            self.replies[prompt, turn] = reply
        return reply

    def _request(self, prompt: str) -> Reply:
        """An answer of the server after as many attempts as it takes; texts of errors are scrubbed."""
        config = self.config
        optional = {"temperature": config.temperature, "seed": config.seed}
        sent: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
        sent[config.output_limit_name] = config.max_output_tokens
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=config.model or "", messages=[{"role": "user", "content": prompt}], extra_body=sent
            )
        except BuildStopped as error:
            self.stop(str(error))
            raise
        except openai.APIStatusError as error:
            message = f"status {error.status_code}: {self._scrub(str(error.message))[:SHOWN_CHARACTERS]}"
            passing = error.status_code in (408, 409, 429) or error.status_code >= 500  # `openai` tries these again
            if passing and error.code != "insufficient_quota":
                raise self._no_answer(message) from None
            key = f"the key in {config.api_key_env}"
            settings = {
                400: "model, output_limit_name, temperature", 401: key, 403: key, 404: "model and base_url",
                429: "the account's quota",
            }  # fmt: skip
            check = settings.get(error.status_code, "the settings" if error.status_code >= 400 else "base_url")
            raise self.stop(f"the server refuses model={config.model} with {message} (check {check})") from None
        except openai.APITimeoutError:
            raise self._no_answer(f"no response within timeout_s={config.timeout_s:g}") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise self._no_answer(f"{type(cause).__name__}: {self._scrub(str(cause))[:SHOWN_CHARACTERS]}") from None
        with self._lock:
            self.answered += 1
        reply = read_completion(prompt, response.content)
        return replace(
            reply,
            text=self._scrub(reply.text),
            finish=self._scrub(reply.finish)[:40],
            served_model=printable(self._scrub(reply.served_model))[:80],
        )

    def stop(self, reason: str, passing: bool = False) -> BuildStopped:
        """No request after this one, whichever thread asks; the first reason counts."""
        self.http.stop_reason = self.http.stop_reason or reason
        self.http.stopped.set()
        return BuildStopped(reason, passing)

    def _no_answer(self, reason: str) -> RunError:
        """The error of one question without an answer; after `DEAD_SERVER` in a row, of the whole build."""
        with self._lock:
            self._failures_in_a_row += 1
            dead = self._failures_in_a_row >= DEAD_SERVER
        message = f"no answer in at most {self.config.attempts} attempts: {reason}"
        if dead:
            return self.stop(f"{DEAD_SERVER} questions in a row had no answer; the last: {message}", passing=True)
        return NoAnswer(message)

    def _scrub(self, text: str) -> str:
        """A server's text without the key, and without halves of surrogate pairs, which no file can hold."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(self.key, "[key]") if self.key else text


class BudgetedHttp(openai.DefaultHttpxClient):
    """The HTTP client below the `openai` client: pace, budget, and bounds on what a server may send.

    `requests` counts those sent. A response that is no chat completion becomes a protocol error, which is tried again
    like a broken connection.
    """

    def __init__(self, config: ClientConfig, budget: Budget) -> None:
        # A connection for each question, so that its deadline ends no other one; a redirect is an error of base_url.
        super().__init__(
            limits=httpx2.Limits(max_keepalive_connections=0),
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},
        )
        self.budget, self.timeout_s, self.max_output_tokens = budget, config.timeout_s, config.max_output_tokens
        self.pace = Pace(config.requests_per_minute)
        self.stopped, self.stop_reason, self.requests = threading.Event(), "", 0

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """One attempt. Its worst case is reserved before, and what it cost, or may have cost, settled after."""
        prompt = json.loads(request.read())["messages"][0]["content"]
        reservation = self.budget.reserve(most_tokens(prompt), self.max_output_tokens)
        used = (0, 0)
        try:
            if self.stopped.wait(self.pace.slot_s()):
                raise BuildStopped(self.stop_reason)
            self.requests += 1
            used = reservation  # a request that ends without an answer may have been billed
            response = self._send_bounded(request, options)
            if response.is_success:
                reply = read_completion(prompt, response.content)
                used = (reply.tokens_in, reply.tokens_out) if reply.counted else reservation
            elif response.status_code not in GATEWAY_GAVE_UP:
                used = (0, 0)
            return response
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            used = (0, 0)  # nothing was sent
            raise
        finally:
            self.budget.settle(reservation, *used)

    def _send_bounded(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        """The whole response, or the beginning of an error's. Neither length nor duration is up to the server."""
        with Deadline(self.timeout_s) as deadline:
            request.extensions["trace"] = deadline.watch
            try:
                response = super().send(request, **options | {"stream": True})
                try:
                    body = read_body(response)
                finally:
                    response.close()
            except httpx2.TransportError as error:
                if deadline.passed:
                    raise httpx2.ReadTimeout(f"the response took longer than timeout_s={self.timeout_s:g}") from error
                raise
        names = ("retry-after", "retry-after-ms", "x-should-retry", "content-type")
        headers = {name: response.headers[name] for name in names if name in response.headers}
        if b"insufficient_quota" in body:
            headers["x-should-retry"] = "false"  # a status 429 that no waiting mends
        return httpx2.Response(response.status_code, headers=headers, content=body, request=request)


class Deadline:
    """Ends a connection some seconds after it was asked for, whatever is going on in it.

    The client's own time-outs count from byte to byte: a server that drips its headers never meets one.
    """

    def __init__(self, seconds: float) -> None:
        self.passed, self._lock = False, threading.Lock()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket:
                self._socket.close()
            self._socket = None

    def watch(self, event: str, info: dict[str, Any]) -> None:
        """Called by the HTTP client at each of its steps. The duplicate stays valid while TLS takes the socket over."""
        if event == "connection.connect_tcp.complete":
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket").dup()
            if self.passed:
                self._end()

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            if self._socket:
                with suppress(OSError):  # the server was faster
                    self._socket.shutdown(socket.SHUT_RDWR)


def read_body(response: httpx2.Response) -> bytes:
    """The body, of an error its first 64 KiB. Raises a protocol error for one that is too long or compressed."""
    if response.headers.get("content-encoding", "identity") != "identity":  # a few KB may unpack to any size
        raise httpx2.RemoteProtocolError("the response is compressed, which was not asked for")
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if not response.is_success and len(body) > MAX_ERROR_BYTES:
            return bytes(body[:MAX_ERROR_BYTES])
        if len(body) > MAX_BODY_BYTES:
            raise httpx2.RemoteProtocolError(f"the response is longer than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def read_completion(prompt: str, body: bytes) -> Reply:
    """Check a response of status 200 field by field; raises a protocol error when it is not a chat completion."""
    try:
        payload = json.loads(body)
        choice = payload["choices"][0]
        text = choice["message"].get("content") or choice["message"].get("refusal") or ""
        if isinstance(text, list):  # parts: {"type": "thinking", ...}, {"type": "text", "text": ...}
            text = "\n".join(part["text"] for part in text if part["type"] == "text")
        finish = choice.get("finish_reason") or ""
    except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise httpx2.RemoteProtocolError(f"the response is not a chat completion ({type(error).__name__})") from None
    if not isinstance(text, str):
        raise httpx2.RemoteProtocolError("the response is not a chat completion (its content is no text)")
    usage = payload.get("usage")
    counts: Any = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (None,)
    counted = all(type(count) is int and 0 <= count <= MAX_TOKENS_REPORTED for count in counts)
    tokens_in, tokens_out = counts if counted else (estimated_tokens(prompt), estimated_tokens(text))
    return Reply(
        text=text,
        finish=str(finish),
        served_model=str(payload.get("model") or ""),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        counted=counted,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def read_key(name: str, required: bool) -> str:
    """The key from the environment. Raises `ConfigError`, never with a value, when it is missing or unusable."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ConfigError("api_key_env must be the name of an environment variable, not a key (value not shown)")
    key = os.environ.get(name, "").strip()
    if not key and required:
        raise ConfigError(f"the environment variable {name} (api_key_env) is not set; it must hold the server's key")
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"the environment variable {name} holds characters that no key has (value not shown)")
    return key


def check_base_url(url: str | None) -> None:
    """Refuse addresses that would carry a secret into files: user names, passwords, query strings."""
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("base_url must look like http://host:port/v1")
    if parts.username or parts.password or parts.query:
        raise ConfigError("base_url must not hold a user name, password or query; put the key into the environment")


class Pace:
    """Spaces requests evenly, whichever thread sends them."""

    def __init__(self, requests_per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self.clock, self._next, self._lock = clock, clock(), threading.Lock()

    def slot_s(self) -> float:
        """Take the next free moment; returns the seconds until then."""
        with self._lock:
            moment = max(self._next, self.clock())
            self._next = moment + self.interval_s
            return moment - self.clock()
