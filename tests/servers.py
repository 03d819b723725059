"""A real HTTP server on 127.0.0.1 that serves a folder by range, and fails as it is told to."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer(ThreadingHTTPServer):
    """Serves `folder`; `requests` are (path, start, stop, headers); `sent` counts body bytes.

    `answers` are used up first, one a request: a status with headers, or "cut" for a body that
    ends in the middle, or "whole" for one that ignores the range, or "lies" for a wrong total.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.requests, self.sent, self.answers = folder, [], 0, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: RangeServer

    def do_GET(self):
        server = self.server
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, stop = (int(match[1]), int(match[2]) + 1) if match else (0, None)
        server.requests.append((self.path, start, stop, dict(self.headers)))
        answer = server.answers.pop(0) if server.answers else None
        if isinstance(answer, tuple):
            self.send_response(answer[0])
            for name, value in answer[1].items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = server.folder / self.path.rpartition("/")[2]
        if not path.is_file():
            self.send_error(404)
            return
        content, total = path.read_bytes(), path.stat().st_size
        body = content if answer == "whole" else content[start:stop]
        sent = body[: len(body) // 2] if answer == "cut" else body
        server.sent += len(sent)  # before the client can have any of it
        self.send_response(200 if answer == "whole" else 206)
        if answer != "whole":
            said = total + (answer == "lies")
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{said}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@contextmanager
def running(server):
    """A server at work in a thread of its own, ended with the block."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serving(folder):
    """The files of a folder by range, for the length of the block."""
    return running(RangeServer(folder))
