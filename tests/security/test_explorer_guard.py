"""The explorer's door: other names, other sites' pages, other addresses, large bodies and strangers stay outside."""

import asyncio
import re

import httpx2
import pytest

from ace_dist.tools.explorer.guard import LARGEST_QUESTION, UPLOADS_AT_ONCE, Guard

PAGE = b"<html><script src='./assets/a.js'></script><script>window.gradio_config = {};</script></html>"
OWN = "http://127.0.0.1:7860"


class Gradio:
    """Stands for the page: notes what reaches it."""

    def __init__(self):
        self.reached = []
        self.holds = asyncio.Event()
        self.holds.set()

    async def __call__(self, scope, receive, send):
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        self.reached.append(scope)
        await self.holds.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": PAGE})


@pytest.fixture
def door(tmp_path):
    """`door(method, path, headers, token=...)`: the response to one request, through the guard."""

    def ask(method, path, token="", largest_mb=1, **request):
        gradio = Gradio()
        transport = httpx2.ASGITransport(app=Guard(gradio, tmp_path, largest_mb, token))

        async def once():
            async with httpx2.AsyncClient(transport=transport, base_url=OWN) as client:
                return await client.request(method, path, **request)

        response = asyncio.run(once())
        response.reached = gradio.reached
        return response

    return ask


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "localhost:8888", "[::1]:7860"])
def test_the_loopback_has_these_names(door, host):
    """Also through a tunnel, whose port is another one."""
    assert door("GET", "/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "[", ""],
)
def test_a_foreign_name_that_points_here_is_refused(door, host):
    """DNS rebinding: the browser asks this machine in the name of a site that its user visits."""
    response = door("GET", "/", headers={"Host": host})
    assert response.status_code == 421 and not response.reached


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:7860"},  # the same machine by its other name is another site
        {"Origin": "http://127.0.0.1:8080"},  # another program of this machine
        {"Origin": "http://127.0.0.1:7860.evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},  # a form that is sent here
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
def test_what_another_sites_page_sends_is_refused(door, headers, path):
    response = door("POST", path, headers=headers, content=b"x" * 100)
    assert response.status_code == 403 and not response.reached


def test_its_own_page_and_a_link_to_it_are_answered(door):
    own = {"Origin": OWN, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert door("POST", "/gradio_api/queue/join", headers=own, content=b"{}").status_code == 200
    assert door("GET", "/", headers=link).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/openapi.json", "/docs", "/redoc",
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=http://127.0.0.1:1/", "/file=/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/", "/proxy=http://127.0.0.1:1/", "/gradio_api/deep_link", "/monitoring",
        "/gradio_api/run/predict", "/gradio_api/call/choose", "/gradio_api/api/choose", "/custom_component/x",
        "/gradio_api/stream/1", "/gradio_api/dev/reload", "/gradio_api/vibe-edit/", "/gradio_api/runs", "/login",
        "/gradio_api/queue/join/../../config", "/assets/%2e%2e/config",
    ],
)  # fmt: skip
def test_addresses_that_the_page_does_not_use_are_closed(door, path):
    """Files, other servers, the interface's description: Gradio would answer them."""
    for method in ("GET", "POST"):
        response = door(method, path, content=b"{}")
        assert response.status_code == 404 and not response.reached, path


def test_bodies_have_limits(door, tmp_path):
    """One upload, all uploads together, and every other request; a body says how long it is."""
    megabyte = bytes(2**20)
    assert door("POST", "/gradio_api/upload", content=megabyte).status_code == 200
    assert door("POST", "/gradio_api/upload", content=3 * megabyte).status_code == 413
    assert door("POST", "/gradio_api/queue/join", content=megabyte + b"x").status_code == 413
    for length in ("", "-1", "x", "1e3", "9" * 40):
        assert door("POST", "/gradio_api/upload", headers={"Content-Length": length}).status_code == 411
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "earlier.mp4").write_bytes(bytes(UPLOADS_AT_ONCE * (2**20 + LARGEST_QUESTION) - 2**19))
    assert door("POST", "/gradio_api/upload", content=megabyte).status_code == 503
    assert door("POST", "/gradio_api/queue/join", content=b"{}").status_code == 200


def test_uploads_on_their_way_count(tmp_path):
    """Many at once do not pass the limit of all together, and leave it when they are done."""
    gradio = Gradio()
    guard = Guard(gradio, tmp_path, 1, "")

    async def flood():
        gradio.holds.clear()
        transport = httpx2.ASGITransport(app=guard)
        async with httpx2.AsyncClient(transport=transport, base_url=OWN) as client:
            asked = [
                asyncio.create_task(client.post("/gradio_api/upload", content=bytes(2**20 + 2**19))) for _ in range(10)
            ]
            await asyncio.sleep(0.2)
            gradio.holds.set()
            return [response.status_code for response in await asyncio.gather(*asked)]

    answers = asyncio.run(flood())
    assert answers.count(200) == UPLOADS_AT_ONCE + 1 and answers.count(503) == 10 - UPLOADS_AT_ONCE - 1
    assert guard.arriving == 0


def test_without_its_token_nothing_is_answered(door):
    """The address that the terminal shows gives a cookie; a wrong token, or none, gives nothing."""
    for path in ("/", "/?token=", "/?token=wrong", "/gradio_api/queue/data", "/assets/a.js?token=secret", "/?token=é"):
        response = door("GET", path, token="secret", headers={"Cookie": "ace-explorer-7860=wrong"})
        assert response.status_code == 403 and not response.reached, path
    first = door("GET", "/?token=secret", token="secret")
    assert first.status_code == 200 and not first.reached
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    again = door("GET", "/", token="secret", headers={"Cookie": f"other=1; {cookie.partition(';')[0]}"})
    assert again.status_code == 200 and again.reached


def test_every_answer_binds_the_browser(door):
    """No other host in the policy, no script in the page but those that came with it; also on refusals."""
    for response in (door("GET", "/"), door("GET", "/assets/a.js"), door("GET", "/config")):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert not re.search(r"https?:|//|\*|script-src[^;]*'unsafe-inline'", policy)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
    assert door("GET", "/").headers["content-security-policy"].count("'sha256-") == 1, "the inline script alone"


def test_what_gradio_would_believe_is_taken_off(door):
    """Forwarded addresses, and a query that fills the page's components."""
    (scope,) = door("GET", "/?deep_link=x&__theme=dark", headers={"X-Forwarded-Host": "evil.example"}).reached
    assert scope["query_string"] == b"" and not [name for name, _ in scope["headers"] if b"forwarded" in name]
