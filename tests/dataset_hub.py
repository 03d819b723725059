"""A hub on 127.0.0.1 that takes data sets from its client and gives them back."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from servers import running

API = re.compile(r"/api/datasets/([^/]+/[^/]+)/(preupload|commit|revision|tree)/[^/?]+")
FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
COMMIT = "c0ffee" + "0" * 34


class DatasetHub(ThreadingHTTPServer):
    """Keeps `root/<owner>/<name>/<file>`; only `token` may write. `private` names repositories."""

    daemon_threads = True

    def __init__(self, root: Path, token: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.token = root, token
        self.private: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: DatasetHub
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer(401)
        path = unquote(self.path)
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}"
            (self.server.root / name).mkdir(parents=True, exist_ok=True)
            self.server.private += [name] if said.get("visibility") == "private" else []
            return self.tell({"url": f"{self.server.url}/{said['type']}s/{name}"})
        if path == "/api/validate-yaml":
            return self.tell({"errors": [], "warnings": []})
        repo, what = API.fullmatch(path).groups()
        if what == "preupload":
            files = [one["path"] for one in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.tell({"files": [{"path": name, **mode} for name in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = self.server.root / repo / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        url = f"{self.server.url}/datasets/{repo}/commit/{COMMIT}"
        self.tell({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def do_GET(self):
        path = unquote(self.path).partition("?")[0]
        if found := API.fullmatch(path):
            home = self.server.root / found[1]
            sizes = {p.relative_to(home).as_posix(): p.stat().st_size
                     for p in sorted(home.rglob("*")) if p.is_file()}  # fmt: skip
            if found[2] == "tree":
                return self.tell(
                    [{"type": "file", "path": p, "size": n, "oid": ""} for p, n in sizes.items()]
                )
            siblings = [{"rfilename": name} for name in sizes]
            return self.tell({"id": found[1], "sha": COMMIT, "siblings": siblings})
        if found := FILE.fullmatch(path):
            body = (self.server.root / found[1] / found[3]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.answer(200, headers, body)
        self.answer(404)

    do_HEAD = do_GET

    def tell(self, said):
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())

    def answer(self, status, headers=None, body=b""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def serving(root, token):
    """A hub that keeps data sets below a folder, for the length of the block."""
    return running(DatasetHub(root, token))
