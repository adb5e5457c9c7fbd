"""Asks any OpenAI-compatible server through the `openai` client, with cache, pace, budget and retries.

The key comes from one environment variable and goes to the server alone. Every text that a server sends is scrubbed of
it before anything else happens, because error messages, and hostile answers, repeat what they were sent.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

from ace_dist.tools.synonyms.budget import Budget, estimated_tokens, most_tokens
from ace_dist.tools.synonyms.cache import AnswerCache, Reply
from ace_dist.utils.errors import UserError

try:
    from httpx2 import HTTPError as TransportError  # openai 3 and later
except ImportError:  # openai 2
    from httpx import HTTPError as TransportError  # type: ignore[import-not-found, no-redef, assignment]


MAX_BODY_BYTES = 4 << 20  # of one response; a thousand lines have about 20 KB
MAX_WAIT_S = 60.0  # between two attempts, whatever a Retry-After header says
MAX_TOKENS_REPORTED = 10_000_000  # a count beyond every context window is a lie and not used
GATEWAY_GAVE_UP = (408, 502, 504, 524)  # the model behind it may have gone on, and may be billed
SHOWN_CHARACTERS = 300  # of a server's error message


class ServerRefused(UserError):
    """The server will not answer any question as the settings stand: key, model, quota, parameters."""


class ServerFailed(UserError):
    """No answer to one question after all attempts."""


@dataclass(frozen=True)
class ServerSettings:
    """Which server and model are asked, and how."""

    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float | None = None  # None: not sent, the server's default
    seed: int | None = None
    max_output_tokens: int = 1000
    output_limit_name: str = "max_tokens"
    timeout_s: float = 60.0
    attempts: int = 5
    backoff_s: float = 1.0  # before the second attempt, doubled for each further one

    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the prompt."""
        return {
            "model": self.model,
            "base_url": self.base_url,
            "temperature": self.temperature,
            "seed": self.seed,
            "max_output_tokens": self.max_output_tokens,
        }


def read_key(settings: ServerSettings) -> str:
    """The key from the environment. Raises `ServerRefused`, never with a value, when it is missing or unusable."""
    name = settings.api_key_env
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ServerRefused("api_key_env must be the name of an environment variable, not a key (value not shown)")
    key = os.environ.get(name, "").strip()
    if not key and settings.base_url is None:
        raise ServerRefused(f"the environment variable {name} (api_key_env) is not set; it must hold the server's key")
    if not key.isascii() or not key.isprintable():
        raise ServerRefused(f"the environment variable {name} holds characters that no key has (value not shown)")
    return key


def check_base_url(url: str | None) -> None:
    """Refuse addresses that would carry a secret into files: user names, passwords, query strings."""
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServerRefused("base_url must look like http://host:port/v1")
    if parts.username or parts.password or parts.query:
        raise ServerRefused("base_url must not hold a user name, password or query; put the key into the environment")


class Pace:
    """Spaces requests evenly, and holds all of them while the server asks for a pause."""

    def __init__(
        self,
        requests_per_minute: float | None,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self.stop, self.clock = stop, clock
        self._next = clock()
        self._lock = threading.Lock()

    def slot(self) -> float:
        """Take the next free moment; returns the seconds until then."""
        with self._lock:
            moment = max(self._next, self.clock())
            self._next = moment + self.interval_s
            return moment - self.clock()

    def pause(self, seconds: float) -> None:
        """No request of any thread before `seconds` have passed."""
        with self._lock:
            self._next = max(self._next, self.clock() + seconds)

    def wait(self, seconds: float) -> None:
        """Sleep, or raise `ServerFailed` as soon as the build is stopped."""
        if self.stop.wait(max(seconds, 0.0)):
            raise ServerFailed("the build was stopped")


@dataclass
class Failure(Exception):
    """One attempt without an answer: why, how long the server asks to wait, and whether it may be billed."""

    reason: str
    wait_s: float | None
    maybe_billed: bool


class ChatClient:
    """Answers to prompts: from the cache, else from the server. Threads may share it.

    `asked` counts answers that came from the server, `from_cache` the others, `attempts` the requests sent.
    """

    def __init__(
        self,
        settings: ServerSettings,
        cache: AnswerCache,
        budget: Budget,
        requests_per_minute: float | None = None,
    ) -> None:
        check_base_url(settings.base_url)
        self.settings, self.cache, self.budget = settings, cache, budget
        self.stop = threading.Event()
        self.pace = Pace(requests_per_minute, self.stop)
        self.asked = self.from_cache = self.attempts = 0
        self._key = read_key(settings)
        self._client = openai.OpenAI(
            api_key=self._key or "none",  # local servers need no key, the client insists on one
            base_url=settings.base_url or "https://api.openai.com/v1",
            timeout=settings.timeout_s,
            max_retries=0,  # attempts are counted, paced and budgeted here
        )
        self._lock = threading.Lock()
        self._asking: dict[tuple[str, int], threading.Lock] = {}

    def ask(self, prompt: str, turn: int = 0) -> Reply:
        """One answer; another `turn` asks the same question anew instead of repeating the first answer.

        Raises `BudgetReached`, `ServerRefused` when no further question makes sense, `ServerFailed` when this one has
        no answer after all attempts.
        """
        identity = self.settings.identity() | {"turn": turn}
        with self._lock:
            asking = self._asking.setdefault((prompt, turn), threading.Lock())
        with asking:  # the same question from two trees is sent once
            reply = self.cache.get(prompt, identity)
            if reply is None:
                reply = self._attempt(prompt)
                self.cache.put(prompt, identity, reply)
                self._count("asked")
            else:
                self._count("from_cache")
        return reply

    def _count(self, name: str) -> None:
        """Add one to a counter that threads share."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def _attempt(self, prompt: str) -> Reply:
        """Ask until an answer comes, with growing random waits between attempts."""
        for attempt in range(1, self.settings.attempts + 1):
            reservation = self.budget.reserve(most_tokens(prompt), self.settings.max_output_tokens)
            used = (0, 0)  # refused requests are not billed
            try:
                self.pace.wait(self.pace.slot())
                self._count("attempts")
                reply = self._request(prompt)
                used = (reply.tokens_in, reply.tokens_out) if reply.counted else reservation
                return reply
            except Failure as failure:
                used = reservation if failure.maybe_billed else used
                if attempt == self.settings.attempts:
                    raise ServerFailed(f"no answer after {attempt} attempts: {failure.reason}") from None
                wait_s = failure.wait_s or self.settings.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                if failure.wait_s:
                    self.pace.pause(min(wait_s, MAX_WAIT_S))
            finally:
                self.budget.settle(reservation, *used)
            self.pace.wait(min(wait_s, MAX_WAIT_S))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _request(self, prompt: str) -> Reply:
        """One request through the client. Raises `Failure` or `ServerRefused`; texts of both are scrubbed."""
        optional = {"temperature": self.settings.temperature, "seed": self.settings.seed}
        sent = {name: value for name, value in optional.items() if value is not None}
        sent[self.settings.output_limit_name] = self.settings.max_output_tokens
        deadline = time.monotonic() + self.settings.timeout_s
        body = bytearray()
        try:
            with self._client.chat.completions.with_streaming_response.create(
                model=self.settings.model, messages=[{"role": "user", "content": prompt}], extra_body=sent
            ) as response:
                for chunk in response.iter_bytes():  # as they come, so that the clock is read between them
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise Failure(f"the response is longer than {MAX_BODY_BYTES} bytes", None, True)
                    if time.monotonic() > deadline:
                        raise Failure(
                            f"the response took longer than timeout_s={self.settings.timeout_s:g}", None, True
                        )
        except openai.APIStatusError as error:
            raise self._status_failure(error) from None
        except openai.APITimeoutError:
            raise Failure(f"no response within timeout_s={self.settings.timeout_s:g}", None, True) from None
        except (openai.APIConnectionError, TransportError) as error:
            cause = type(error.__cause__ or error).__name__
            reached = cause not in ("ConnectError", "ConnectTimeout")  # else no question was sent that could be billed
            raise Failure(f"the connection failed ({cause})", None, reached) from None
        return self._reply(prompt, bytes(body))

    def _status_failure(self, error: openai.APIStatusError) -> Exception:
        """What an HTTP error status means: try again, or give up altogether."""
        message = self._scrub(str(error.message))[:SHOWN_CHARACTERS]
        status = error.status_code
        if (status == 429 and error.code != "insufficient_quota") or status in (408, 409) or status >= 500:
            return Failure(
                f"status {status}: {message}", retry_after_s(error.response.headers), status in GATEWAY_GAVE_UP
            )
        setting = {401: "the key in " + self.settings.api_key_env, 403: "the key in " + self.settings.api_key_env}
        setting |= {404: "model and base_url", 429: "the account's quota", 400: "model, output_limit_name, temperature"}
        return ServerRefused(
            f"the server refuses model={self.settings.model} with status {status}: {message} "
            f"(check {setting.get(status, 'the settings')})"
        )

    def _reply(self, prompt: str, body: bytes) -> Reply:
        """Check a response of status 200 field by field; raises `Failure` when it is not a chat completion."""
        try:
            payload = json.loads(body)
            choice = payload["choices"][0]
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
            finish = choice.get("finish_reason") or ""
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise Failure(f"the response is not a chat completion ({type(error).__name__})", None, True) from None
        if not isinstance(text, str):
            raise Failure("the response is not a chat completion (its content is no text)", None, True)
        text = self._scrub(text)
        counts = reported_tokens(payload.get("usage"))
        tokens_in, tokens_out = counts or (estimated_tokens(prompt), estimated_tokens(text))
        return Reply(
            text=text,
            finish=self._scrub(str(finish))[:40],
            served_model=self._scrub(str(payload.get("model") or ""))[:80],
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            counted=counts is not None,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _scrub(self, text: str) -> str:
        """A server's text without the key, and without halves of surrogate pairs, which no file can hold."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text.replace(self._key, "[key]") if self._key else text


def reported_tokens(usage: Any) -> tuple[int, int] | None:
    """Input and output tokens as the server counts them, or `None` when it does not or they are absurd."""
    if not isinstance(usage, dict):
        return None
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if any(type(count) is not int or not 0 <= count <= MAX_TOKENS_REPORTED for count in counts):
        return None
    return counts  # type: ignore[return-value]


def retry_after_s(headers: Any) -> float | None:
    """Seconds of a `Retry-After` header (or `retry-after-ms`), `None` without a usable one."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0 < seconds < float("inf"):
            return seconds
    return None
