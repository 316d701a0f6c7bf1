# SPDX-License-Identifier: Apache-2.0
"""Where clients find this API: below which URL or path, whatever stands in front of it.

Links within documents (``next``, ``self``, ``file``, ``schema``) are not made here. They begin with ``/v2`` wherever
the API is mounted: clients put them behind the service's endpoint (glanceclient), or what follows the version behind
that of the version (openstacksdk), and would have the mount point twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

Environ = Mapping[str, Any]


def base_url(environ: Environ, public_endpoint: str | None) -> str:
    """The URL that ``/v2`` is below, without a slash at its end: the operator's word, else as the client wrote it."""
    if public_endpoint:
        return public_endpoint.rstrip("/")
    host = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
    return f"{environ['wsgi.url_scheme']}://{host}{mount_point(environ)}"


def location(environ: Environ, public_endpoint: str | None, path: str) -> str:
    """The Location header of a new resource at ``path``; the client completes it by its own URL (RFC 9110, 10.2.2)."""
    return (public_endpoint.rstrip("/") if public_endpoint else mount_point(environ)) + path


def mount_point(environ: Environ) -> str:
    """The path in front of ``/v2``, from the server or from a proxy that is believed; empty if there is none."""
    # PEP 3333: bytes, each as a character. A slash twice at the beginning would make a host of what follows.
    prefix = quote(environ.get("SCRIPT_NAME", "").encode("latin-1")).strip("/")
    return f"/{prefix}" if prefix else ""
