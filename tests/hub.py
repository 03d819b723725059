"""A hub on 127.0.0.1, as much of one as its clients ask for; it fails as it is told to."""

import hashlib
import json
import re
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from servers import running

API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/?]+)")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")

HEADER = "bytes=0-100000"  # what a client asks for to see the names of safetensors


class Hub(ThreadingHTTPServer):
    """Serves `root/<owner>/<name>/<revision>/<file>`; `requests` are (method, path, byte range).

    `faults` says what goes wrong with a file: "429" and "500" (that status), "cut" (the body ends
    in its middle, and any rest of it is empty), "flipped" (one byte is another), "short" (fewer
    bytes, and said so), "gone" (listed and not there). With a `token` the repositories are private.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.token = root, ""
        self.requests: list[tuple[str, str, str]] = []
        self.faults: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def fetched(self, method: str = "GET") -> list[str]:
        """`revision/file` of every body that was asked for to its end."""
        asked = [path for verb, path, part in self.requests if verb == method and part != HEADER]
        found = [FILE.fullmatch(path) for path in asked]
        return [f"{revision_of(m['revision'])}/{m['name']}" for m in found if m]


def commit_of(revision: str) -> str:
    """A commit that tells its revision: 40 hex digits."""
    return revision.encode().ljust(20).hex()


def revision_of(said: str) -> str:
    """The revision that a commit tells, or its name."""
    return bytes.fromhex(said).decode().strip() if re.fullmatch("[0-9a-f]{40}", said) else said


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(self.path)
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.server.token not in self.headers.get("Authorization", ""):
            return self.answer(401)
        if found := API.match(path):
            return self.describe(found["repo"], found["revision"])
        if found := FILE.fullmatch(path):
            if not (self.server.root / found["repo"]).is_dir():
                return self.answer(404, {"X-Error-Code": "RepoNotFound"})
            revision = revision_of(found["revision"])
            return self.send(self.server.root / found["repo"] / revision / found["name"])
        self.answer(404)

    do_HEAD = do_GET

    def describe(self, repo: str, revision: str):
        folder = self.server.root / repo
        if not folder.is_dir():
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if not (folder / revision).is_dir():
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = [{"rfilename": path.name} for path in sorted((folder / revision).iterdir())]
        said = {"id": repo, "sha": commit_of(revision), "siblings": files}
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())

    def send(self, path: Path):
        fault = self.server.faults.get(f"{path.parent.name}/{path.name}", "")
        if fault == "gone" or not path.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        if fault in ("429", "500"):
            return self.answer(int(fault))
        body = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        headers["X-Repo-Commit"] = commit_of(path.parent.name)
        if fault == "flipped":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "short":
            body = body[: len(body) // 2]
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(part[1]) if part else 0
        end = min(int(part[2]) + 1, len(body)) if part and part[2] else len(body)
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
        cut = fault == "cut" and self.headers.get("Range") != HEADER
        self.answer(206 if part else 200, headers, body[start:end], cut)

    def answer(self, status: int, headers: dict = {}, body: bytes = b"", cut: bool = False):  # noqa: B006
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":  # only a body can be cut: after HEAD the client goes on
            resumed = "Range" in self.headers
            self.wfile.write((b"" if resumed else body[: len(body) // 2]) if cut else body)
            self.close_connection = cut

    def log_message(self, *_):
        pass


def serving(root: Path) -> AbstractContextManager[Hub]:
    """A hub of the repositories below a folder, for the length of the block."""
    return running(Hub(root))
