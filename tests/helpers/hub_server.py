"""A stand-in of a model hub on this machine: the part of its interface that downloads and uploads use.

`files` holds its repositories; `requests` what it was asked. `cut` ends a download after so many bytes, once.
"""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "c" * 40


class Hub:
    def __init__(self):
        self.files = {}  # "OWNER/NAME" -> {path: bytes}
        self.plain = {}  # path of the server -> bytes, as any web server has them
        self.requests = []  # (method, path, headers)
        self.created = {}  # "OWNER/NAME" -> what it was created with
        self.blobs = {}  # sha256 -> bytes that were uploaded
        self.cut = None
        self.token = None  # that uploads must bring

    def asked(self, method, words=""):
        return [path for asked, path, _ in self.requests if asked == method and words in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.begin()
        if path in self.hub.plain:
            return self.send_file(self.hub.plain[path])
        repository, _, rest = path.lstrip("/").partition("/resolve/")
        if rest and repository in self.hub.files:
            return self.download(repository, rest.partition("/")[2])
        repository, _, tail = path.removeprefix("/api/models/").partition("/revision/")
        if tail and repository in self.hub.files:
            names = [{"rfilename": name} for name in self.hub.files[repository]]
            return self.answer(200, {"id": repository, "sha": COMMIT, "siblings": names})
        repository, _, tail = path.removeprefix("/api/models/").partition("/tree/")
        if tail and repository in self.hub.files:
            return self.answer(200, [listed(*item) for item in self.hub.files[repository].items()])
        return self.answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def do_PUT(self):
        data, path = self.body(), self.begin()
        self.hub.blobs[path.removeprefix("/blob/")] = data
        self.answer(200)

    def do_POST(self):
        body, path = self.body(), self.begin()
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.answer(401, {"error": "Invalid credentials"})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            modes = [upload_mode(file["path"]) for file in json.loads(body)["files"]]
            return self.answer(200, {"files": modes, "commitOid": COMMIT})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.base()}/blob/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            return self.commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
        return self.answer(404, {"error": path})

    def download(self, repository, name):
        data = self.hub.files[repository].get(name)
        if data is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        digest = hashlib.sha256(data).hexdigest()
        facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-ETag": f'"{digest}"'}
        return self.send_file(data, **facts, **{"X-Linked-Size": len(data)})

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.files:
            return self.answer(409, {"error": "exists", "url": f"{self.base()}/{name}"})
        self.hub.files[name], self.hub.created[name] = {}, asked
        return self.answer(200, {"url": f"{self.base()}/{name}", "id": name, "name": name})

    def commit(self, repository, body):
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[repository][value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del self.hub.files[repository][value["path"]]
        url = f"{self.base()}/{repository}/commit/{COMMIT}"
        return self.answer(200, {"success": True, "commitUrl": url, "commitOid": COMMIT})

    # ------------------------------------------------------------------------------------------------ the protocol
    def begin(self):
        self.hub.requests.append((self.command, self.path, dict(self.headers)))
        return unquote(urlparse(self.path).path)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def base(self):
        return f"http://{self.headers['Host']}"

    def answer(self, status, body=b"", **headers):
        body = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_head(status, {"Content-Length": len(body), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_file(self, data, **headers):
        """Whole, or from the first byte that is asked for; cut off once where the test says so."""
        first = self.headers.get("Range")
        start = int(first.removeprefix("bytes=").partition("-")[0]) if first else 0
        if start and start >= len(data):
            return self.answer(416, Content_Range=f"bytes */{len(data)}")
        part, cut = data[start:], self.hub.cut if self.command == "GET" else None
        headers |= {"Content-Length": len(part), "Accept-Ranges": "bytes"}
        headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.send_head(206 if start else 200, headers)
        if self.command == "HEAD":
            return None
        if cut is not None:
            self.hub.cut, self.close_connection = None, True
        self.wfile.write(part[:cut])
        return None


def listed(name, data):
    """A file as a tree lists it."""
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest(), "lfs": lfs}


def upload_mode(path):
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}


@contextmanager
def hub_server():
    """The hub and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask_here(monkeypatch, address, cache):
    """Have huggingface_hub, as this process has imported it, ask the stand-in, and keep files in `cache`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
