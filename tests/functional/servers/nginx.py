# SPDX-License-Identifier: Apache-2.0
"""A real nginx on free loopback ports, with all it writes in one directory (Debian: nginx, libnginx-mod-http-lua).

``images.lua`` beside this file serves images with faults; every request is recorded as it arrives.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

_MODULES = Path("/usr/share/nginx/modules")
_LUA = Path(__file__).with_name("images.lua")

_CONFIG = """
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
worker_processes 1;
{user}
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  default_type application/octet-stream;
  root {directory}/www;
  client_body_temp_path {directory}/temp;
  proxy_temp_path {directory}/temp;
  fastcgi_temp_path {directory}/temp;
  uwsgi_temp_path {directory}/temp;
  scgi_temp_path {directory}/temp;
  lua_shared_dict counts 1m;
  lua_shared_dict requests 4m;
  rewrite_by_lua_block {{
    if ngx.var.uri == "/requests" then return end
    local of = function(name) return ngx.var["http_" .. name] or "" end
    ngx.shared.requests:rpush("all", table.concat({{
      ngx.var.server_port, ngx.req.get_method(), ngx.var.request_uri, of("host"),
      of("range"), of("if_range"), of("authorization"), ngx.var.connection }}, "\\t"))
  }}
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{other_port};
    listen 127.0.0.1:{tls_port} ssl;
    ssl_certificate {directory}/certificate.pem;
    ssl_certificate_key {directory}/key.pem;
    location / {{ }}
    location /no-ranges/ {{ alias {directory}/www/; max_ranges 0; }}
    location /gzip/ {{ alias {directory}/www/; gzip on; gzip_types *; gzip_min_length 1; }}
    location /private/ {{
      alias {directory}/www/;
      auth_basic images;
      auth_basic_user_file {directory}/passwords;
    }}
    location = /images {{ content_by_lua_file {lua}; }}
    location = /images-without-chunks {{
      chunked_transfer_encoding off;
      keepalive_timeout 0;
      content_by_lua_file {lua};
    }}
    location /redirect {{
      content_by_lua_block {{
        ngx.status = tonumber(ngx.var.arg_code)
        ngx.header["Location"] = ngx.unescape_uri(ngx.var.arg_to or ngx.var.request_uri)
        ngx.say("moved")
      }}
    }}
    location = /requests {{
      content_by_lua_block {{
        local line = ngx.shared.requests:lpop("all")
        while line do ngx.say(line); line = ngx.shared.requests:lpop("all") end
      }}
    }}
  }}
  server {{
    listen 127.0.0.1:{proxy_port};
    location / {{ proxy_pass http://127.0.0.1:{port}; proxy_set_header Host $http_host; }}
  }}
}}
"""


class Request(NamedTuple):
    """One request as nginx saw it; a header that was not sent is empty."""

    port: int
    method: str
    target: str
    host: str
    range: str
    if_range: str
    authorization: str
    connection: str


class Nginx:
    """``with Nginx(directory) as server``: files in ``server.www`` are at ``server.url("/name")``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.www = directory / "www"
        #: What clients must trust to reach ``tls_url``.
        self.certificate = directory / "certificate.pem"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Nginx:
        for path in (self.www, self.directory / "temp"):
            path.mkdir(parents=True)
        digest = base64.b64encode(hashlib.sha1(b"p@:ss/w rd").digest()).decode()
        (self.directory / "passwords").write_text(f"jane:{{SHA}}{digest}\n")
        make_certificate(self.certificate, self.directory / "key.pem")
        for _ in range(5):  # a port found free may be taken by the time nginx listens
            if self._start():
                return self
        raise RuntimeError(f"nginx does not start: {(self.directory / 'error.log').read_text()}")

    def __exit__(self, *exc_info: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(timeout=30)

    def url(self, target: str, **query: object) -> str:
        """A URL on the first port."""
        return _url(f"http://127.0.0.1:{self.port}{target}", query)

    def other_url(self, target: str, **query: object) -> str:
        """The same on another port: another origin."""
        return _url(f"http://127.0.0.1:{self.other_port}{target}", query)

    def tls_url(self, target: str, **query: object) -> str:
        """The same over https."""
        return _url(f"https://localhost:{self.tls_port}{target}", query)

    def put(self, name: str, data: bytes) -> str:
        """Publish ``data``; returns its URL."""
        (self.www / name).write_bytes(data)
        return self.url(f"/{name}")

    def requests(self) -> list[Request]:
        """What was asked since the last call."""
        with urllib.request.urlopen(self.url("/requests"), timeout=10) as response:
            lines = response.read().decode().splitlines()
        return [Request(int(line.split("\t")[0]), *line.split("\t")[1:]) for line in lines]

    def _start(self) -> bool:
        self.port, self.other_port, self.tls_port, self.proxy_port = free_ports(4)
        config = self.directory / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                modules=_MODULES,
                directory=self.directory,
                lua=_LUA,
                # As root, nginx would otherwise give up the right to read the directory.
                user="user root;" if os.geteuid() == 0 else "",
                port=self.port,
                other_port=self.other_port,
                tls_port=self.tls_port,
                proxy_port=self.proxy_port,
            )
        )
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        error_log = self.directory / "error.log"
        self._process = subprocess.Popen([program, "-c", config, "-p", self.directory, "-e", error_log])
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.proxy_port), 1):
                return True
            time.sleep(0.02)
        if self._process.poll() is None:
            self.__exit__()
        return False


def make_certificate(certificate: Path, key: Path) -> None:
    """A self-signed one for localhost."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _url(base: str, query: dict[str, object]) -> str:
    return f"{base}?{urllib.parse.urlencode(query)}" if query else base
