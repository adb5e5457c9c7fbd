"""Stands between a browser and Gradio: who may ask, for what and how much, and what the page may do.

The page is this machine's alone, but every site that its user has open can send requests to it. Refused are: another
name than the loopback's (a foreign name can be made to point here), requests of other sites' pages, addresses that this
page does not use, bodies above their limit, and where there is a token, everything without it. The content security
policy names no other host and no script but Gradio's own.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What the page asks for. Gradio has more, which reads files, fetches other addresses, or describes the interface.
USED = re.compile(
    r"/|/(?:assets|static|svelte)/.*|/theme\.css|/favicon\.ico"
    r"|/gradio_api/(?:queue/(?:join|data)|upload|upload_progress|heartbeat/\w+|startup-events|cancel|reset)/?"
)
UPLOAD = "/gradio_api/upload"
LARGEST_QUESTION = 1 << 20  # bytes of a request that is no upload
UPLOADS_AT_ONCE = 3  # of the largest size, on the disk and on their way together
INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Refused(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """`app` behind these checks. `folder` holds the uploads; a `token` of "" asks for none."""

    def __init__(self, app: Application, folder: Path, largest_upload_mb: int, token: str) -> None:
        self.app, self.folder, self.token = app, folder, token
        self.largest_upload = largest_upload_mb << 20
        self.arriving = 0  # bytes of the uploads on their way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":  # Gradio uses no websocket
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            check_sender(headers, scope["method"])
            if self.token and not self.has_cookie(headers):
                await self.sign_in(scope, send)
                return
            if not USED.fullmatch(scope["path"]) or ".." in scope["path"]:
                raise Refused(404, "the page does not use this address")
            size = self.admitted_bytes(scope, headers)
        except Refused as refused:
            await respond(send, refused.status, str(refused))
            return
        # Gradio takes addresses from these headers, and values of components from its page's query.
        scope["headers"] = [pair for pair in scope["headers"] if not pair[0].lower().startswith(b"x-forwarded")]
        if scope["path"] == "/":
            scope["query_string"] = b""
        self.arriving += size
        try:
            await self.app(scope, receive, page_sender(send) if scope["path"] == "/" else header_sender(send))
        finally:
            self.arriving -= size

    def cookie_name(self, headers: Mapping[str, str]) -> str:
        """Browsers send a host's cookies to all of its ports: each port has a name of its own."""
        return f"ace-explorer-{urlsplit('//' + headers['host']).port or 80}"

    def has_cookie(self, headers: Mapping[str, str]) -> bool:
        pairs = [pair.strip().partition("=") for pair in headers.get("cookie", "").split(";")]
        return any(
            name == self.cookie_name(headers) and hmac.compare_digest(value.encode(), self.token.encode())
            for name, _, value in pairs
        )

    async def sign_in(self, scope: Scope, send: Send) -> None:
        """Exchange the token of the address for a cookie, which the page's own requests carry."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] != "/" or not hmac.compare_digest(given.encode(), self.token.encode()):
            raise Refused(403, "open the address with its token, as the terminal shows it")
        cookie = f"{self.cookie_name(headers)}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        # A page that goes on by itself: a redirect that another site began would not carry the cookie.
        await respond(send, 200, '<meta http-equiv="refresh" content="0;url=/">', "text/html", {"Set-Cookie": cookie})

    def admitted_bytes(self, scope: Scope, headers: Mapping[str, str]) -> int:
        """The bytes that an upload takes of the common limit. Raises `Refused` for a body that is too large."""
        if scope["method"] != "POST":
            return 0
        length = headers.get("content-length", "")
        if not re.fullmatch(r"\d{1,15}", length):
            raise Refused(411, "a request must say how long it is")
        upload = scope["path"].rstrip("/") == UPLOAD
        largest = (
            self.largest_upload + LARGEST_QUESTION if upload else LARGEST_QUESTION
        )  # a form has a little around it
        if int(length) > largest:
            raise Refused(413, f"too large: at most {largest >> 20} MB (largest_upload_mb of the explorer)")
        if not upload:
            return 0
        stored = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if stored + self.arriving + int(length) > UPLOADS_AT_ONCE * largest:
            raise Refused(503, "other uploads are on their way: try again in a moment")
        return int(length)


def check_sender(headers: Mapping[str, str], method: str) -> None:
    """Raises `Refused` for a name that is not the loopback's, and for requests that another site's page makes."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if name not in LOOPBACK:
        raise Refused(421, f"open the page as one of {', '.join(LOOPBACK)}")
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Refused(403, "another site's page asks")
    followed_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed_link:
        raise Refused(403, "another site's page asks")


def content_security_policy(scripts: Iterable[bytes]) -> str:
    """All from this address; of what stands in the page itself only `scripts`, by their digests, and styles.

    Gradio's component for HTML compiles its own template, so scripts that run may compile others.
    """
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts)
    return "; ".join([
        "default-src 'none'",
        " ".join(["script-src 'self' 'unsafe-eval'", *(f"'sha256-{digest}'" for digest in digests)]),
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src data:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'self'",
        "frame-ancestors 'none'",
    ])  # fmt: skip


def protected(message: Message, policy: str) -> Message:
    """The beginning of a response with the headers that bind a browser."""
    added = HEADERS | {"Content-Security-Policy": policy}
    kept = [pair for pair in message["headers"] if pair[0].decode("latin-1").title() not in added]
    return {**message, "headers": kept + [(name.encode(), value.encode()) for name, value in added.items()]}


def header_sender(send: Send) -> Send:
    """`send` with these headers."""

    async def sender(message: Message) -> None:
        await send(protected(message, content_security_policy(())) if "headers" in message else message)

    return sender


def page_sender(send: Send) -> Send:
    """`send` for the page itself, whose inline scripts are Gradio's: they run, and none that comes later."""
    start: Message = {}
    body = bytearray()

    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        body.extend(message.get("body", b""))
        if not message.get("more_body"):
            await send(protected(start, content_security_policy(INLINE_SCRIPT.findall(body))))
            await send({"type": "http.response.body", "body": bytes(body)})

    return sender


async def respond(
    send: Send, status: int, text: str, kind: str = "text/plain", headers: Mapping[str, str] | None = None
) -> None:
    pairs = {"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "no-store", **(headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in pairs.items()]
    await header_sender(send)({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": text.encode()})
