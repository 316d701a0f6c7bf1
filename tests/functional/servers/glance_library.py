# SPDX-License-Identifier: Apache-2.0
"""glance_store, or storelib in its place, as a library: a process of its own in the environment of servers.glance."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servers.glance import SWITCHED, install

#: What stores without names are told apart by.
Stores = Mapping[str, tuple[str, Mapping[str, object]]]

_RUNNER = """
import hashlib, json, logging, sys, types, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
from oslo_config import cfg
import glance_store
from glance_store import location
exec(sys.argv[3])
conf = cfg.CONF
named = sys.argv[2] == "named"
conf.register_opt(cfg.DictOpt("enabled_backends"))
conf(args=[], default_config_files=[sys.argv[1]], default_config_dirs=[])
if named:
    glance_store.register_store_opts(conf)
    glance_store.create_multi_stores(conf)
else:
    glance_store.register_opts(conf)
    glance_store.create_stores(conf)

def add(store, image_id, path, size, context):
    with open(path, "rb") as data:
        if named:
            found = glance_store.add_with_multihash(conf, image_id, data, size, store, "sha256", context=context)
        else:
            found = glance_store.add_to_backend_with_multihash(conf, image_id, data, size, "sha256", store, context)
    return list(found)

def get(store, uri, offset, length, context):
    if named:
        data, size = glance_store.get(uri, store, offset=offset, chunk_size=length, context=context)
    else:
        data, size = glance_store.get_from_backend(uri, offset=offset, chunk_size=length, context=context)
    digest, count = hashlib.sha256(), 0
    for chunk in data:
        digest.update(chunk)
        count += len(chunk)
    return [digest.hexdigest(), count, size]

def size(store, uri, context):
    if named:
        return glance_store.get_size_from_uri_and_backend(uri, store, context=context)
    return glance_store.get_size_from_backend(uri, context=context)

def delete(store, uri, context):
    if named:
        glance_store.delete(uri, store, context=context)
    else:
        glance_store.delete_from_backend(uri, context=context)

def prefix(store, context):
    maps = location.SCHEME_TO_CLS_BACKEND_MAP.values()
    return next(stores[store]["store"].url_prefix for stores in maps if store in stores)

print(glance_store.__name__, flush=True)
for line in sys.stdin:
    operation, arguments, context = json.loads(line)
    context = types.SimpleNamespace(**context) if context else None
    try:
        found = {"found": globals()[operation](*arguments, context)}
    except Exception as error:
        kind = type(error)
        found = {"error": kind.__name__, "module": kind.__module__, "text": str(error)}
    print(json.dumps(found), flush=True)
"""


class LibraryError(Exception):
    """What it raised: ``kind`` is the name of the class, ``module`` where that is."""

    def __init__(self, kind: str, module: str, text: str) -> None:
        super().__init__(f"{module}.{kind}: {text}")
        self.kind, self.module = kind, module


class Library:
    """``with Library(directory, stores, on_storelib=...) as library``: the functions that Glance calls.

    With ``named`` false the stores have no names: there is one of each driver, found by the scheme of a URI.
    ``first`` is code that is run before anything is configured.
    """

    def __init__(
        self, directory: Path, stores: Stores, *, on_storelib: bool, named: bool = True, first: str = ""
    ) -> None:
        self.on_storelib = on_storelib
        self._first = first
        self._directory, self._stores, self._named = directory, stores, named

    def __enter__(self) -> Library:
        config = self._directory / f"library-{self.on_storelib}-{self._named}.conf"
        config.write_text(self._configuration())
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", *SWITCHED)}
        with config.with_suffix(".log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    str(install() / "python"),
                    "-c",
                    _RUNNER,
                    str(config),
                    "named" if self._named else "single",
                    self._first,
                ],
                env={**environment, **(SWITCHED if self.on_storelib else {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        expected = "storelib.compat.glance_store" if self.on_storelib else "glance_store"
        if (name := self._read()) != expected:
            self.__exit__()
            raise RuntimeError(f"{name!r} instead of {expected}: {config.with_suffix('.log').read_text()[-3000:]}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def add(self, store: str, image_id: str, data: Path, size: int | None, context: Any = None) -> Any:
        """URI, size, md5, sha256 and metadata."""
        return self._ask("add", store, image_id, str(data), size, context=context)

    def get(self, store: str | None, uri: str, offset: int = 0, length: int | None = None, context: Any = None) -> Any:
        """The sha256 of what came, how much that was, and what was announced."""
        return self._ask("get", store, uri, offset, length, context=context)

    def size(self, store: str | None, uri: str, context: Any = None) -> int:
        """Bytes in the image."""
        return int(self._ask("size", store, uri, context=context))

    def delete(self, store: str | None, uri: str, context: Any = None) -> None:
        """Remove an image."""
        self._ask("delete", store, uri, context=context)

    def prefix(self, store: str) -> str | None:
        """What URIs of this store begin with."""
        found: str | None = self._ask("prefix", store, context=None)
        return found

    def _ask(self, operation: str, *arguments: object, context: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([operation, arguments, context]) + "\n")
        self._process.stdin.flush()
        response = json.loads(self._read())
        if "error" in response:
            raise LibraryError(response["error"], response["module"], response["text"])
        return response["found"]

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _configuration(self) -> str:
        named = self._named
        backends = ",".join(f"{name}:{driver}" for name, (driver, _) in self._stores.items())
        lines = ["[DEFAULT]", f"enabled_backends = {backends}"] if named else []
        lines += ["[oslo_concurrency]", f"lock_path = {self._directory}/lock", "[glance_store]"]
        if not named:
            lines += [f"stores = {','.join(driver for driver, _ in self._stores.values())}"]
        for name, (_, options) in self._stores.items():
            lines += [f"[{name}]"] if named else []
            for option, value in options.items():
                # An option may be there several times.
                lines += [f"{option} = {each}" for each in (value if isinstance(value, list) else [value])]
        return "\n".join(lines) + "\n"
