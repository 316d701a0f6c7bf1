# SPDX-License-Identifier: Apache-2.0
"""A web server that gives one file at so many MiB a second, evenly: python benchmarks/slow_source.py FILE RATE.

It prints its port. nginx, which counts by whole seconds, is too coarse for a comparison of some percent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Bytes sent at a time.
BLOCK = 512 * 1024


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    path_of_file = ""
    rate = 0.0

    def do_HEAD(self) -> None:
        self._send()

    def do_GET(self) -> None:
        self._send()

    def _send(self) -> None:
        with open(self.path_of_file, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            first, last = 0, size - 1
            if asked := self.headers.get("Range"):
                begin, _, end = asked.removeprefix("bytes=").partition("-")
                first, last = int(begin), min(int(end or last), last)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(OSError):
                    self._pace(file.fileno(), first, last + 1)

    def _pace(self, file: int, first: int, end: int) -> None:
        began, position = time.monotonic(), first
        while position < end:
            position += os.sendfile(self.connection.fileno(), file, position, min(BLOCK, end - position))
            time.sleep(max(0.0, began + (position - first) / self.rate - time.monotonic()))

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.path_of_file, Handler.rate = sys.argv[1], float(sys.argv[2]) * 1024 * 1024
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
