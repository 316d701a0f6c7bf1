# SPDX-License-Identifier: Apache-2.0
"""The file driver of storelib."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from storelib.compat import options
from storelib.compat.glance_store._drivers.native import NativeLocation, NativeStore
from storelib.compat.glance_store.backend import check_location_metadata
from storelib.compat.glance_store.driver import SHARED_CONF_GROUP
from storelib.compat.glance_store.exceptions import BackendException, BadStoreConfiguration
from storelib.drivers.filesystem.location import FileLocation

LOG = logging.getLogger(__name__)


class StoreLocation(NativeLocation):
    """A URI of it."""

    DRIVER = "file"

    def composed(self, specs: Mapping[str, Any]) -> str:
        """The path as it is."""
        return f"file://{specs['path']}"

    def parse_uri(self, uri: str) -> None:
        """The path is as it stands there, nothing in it is encoded."""
        scheme, mark, path = uri.partition("://")
        super().parse_uri(scheme + mark + self._absolute(path.strip()).replace("%", "%25"))
        self._uri = uri

    def _absolute(self, path: str) -> str:
        """Glance and glance_store write a directory into URIs as it is configured, relative or with ``..`` in it."""
        for directory in self._configured():
            if path.startswith(directory.rstrip("/") + "/"):
                return os.path.abspath(directory) + path[len(directory.rstrip("/")) :]
        return path

    def _configured(self) -> Iterator[str]:
        for group in (self.backend_group, SHARED_CONF_GROUP) if self.backend_group else ("glance_store",):
            options = getattr(self.conf, group, None)
            one, several = (getattr(options, f"filesystem_store_datadir{end}", None) for end in ("", "s"))
            yield from (each for each in (one, *(_parted(entry)[0] for entry in several or ())) if each)


def _parted(entry: str) -> tuple[str, str]:
    """A directory, in whose name a colon may be, and its priority, which may be empty."""
    path, colon, priority = entry.rpartition(":")
    return (path.strip(), priority.strip() or "0") if colon else (entry.strip(), "0")


class Store(NativeStore):
    """Images as files in one directory or several."""

    DRIVER = "file"
    NAME = "filesystem"
    PREFIX_IS_OPEN = True
    OPTIONS = options.known_options("file")

    @property
    def datadir(self) -> str | None:
        """The directory of the images; None where there are several."""
        given = self._store().conf
        return None if given.filesystem_store_datadirs else given.filesystem_store_datadir

    @property
    def chunk_size(self) -> int:
        """Bytes per write, as configured."""
        return int(self.options.filesystem_store_chunk_size)

    @property
    def thin_provisioning(self) -> bool:
        """Whether runs of zeros are left out."""
        return bool(self.options.filesystem_thin_provisioning)

    @property
    def FILESYSTEM_STORE_METADATA(self) -> Any:  # noqa: N802  (glance_store's name)
        """The objects of the metadata file; None where there is none."""
        return list(self._store().datadirs.metadata) or None

    @FILESYSTEM_STORE_METADATA.setter
    def FILESYSTEM_STORE_METADATA(self, value: Any) -> None:  # noqa: N802
        self._store().datadirs.metadata = [value] if isinstance(value, dict) else list(value or ())

    @property
    def priority_data_map(self) -> dict[int, list[str]]:
        """The directories of each priority."""
        found: dict[int, list[str]] = {}
        for path in dict.fromkeys(self.options.filesystem_store_datadirs or ()):
            name, priority = _parted(path)
            found.setdefault(int(priority), []).append(name)
        return found

    @property
    def priority_list(self) -> list[int]:
        """The priorities, the highest first."""
        return sorted(self.priority_data_map, reverse=True)

    def adjusted(self, given: dict[str, Any]) -> dict[str, Any]:
        """A directory that is listed twice with one priority counts once, and an empty priority is none."""
        if "filesystem_store_chunk_size" in given:
            self.READ_CHUNKSIZE = self.WRITE_CHUNKSIZE = self.chunk_size
        if given.get("filesystem_store_datadirs"):
            entries = (entry.strip().removesuffix(":") for entry in given["filesystem_store_datadirs"])
            given["filesystem_store_datadirs"] = list(dict.fromkeys(entries))
        return given

    def configure_add(self) -> None:
        """Look for a directory, make it, and let those pass who may read the images."""
        if not (self.options.filesystem_store_datadir or self.options.filesystem_store_datadirs):
            reason = "Specify at least 'filesystem_store_datadir' or 'filesystem_store_datadirs' option"
            raise BadStoreConfiguration(store_name=self.NAME, reason=reason)
        super().configure_add()
        try:
            for entry in self.FILESYSTEM_STORE_METADATA or ():
                check_location_metadata(entry)
        except BackendException as error:
            raise BadStoreConfiguration(store_name=self.NAME, reason=str(error)) from error
        self._open_directories()

    def _open_directories(self) -> None:
        """Let users who may read an image by its permissions pass through its directory."""
        mode = int(str(self.options.filesystem_store_file_perm), 8)
        passing = (stat.S_IXGRP if mode & stat.S_IRWXG else 0) | (stat.S_IXOTH if mode & stat.S_IRWXO else 0)
        for datadir in self._store().datadirs.all if passing else ():
            try:
                now = stat.S_IMODE(os.stat(datadir.path).st_mode)
                if now | passing != now:
                    os.chmod(datadir.path, now | passing)
            except OSError as error:
                # Another user's directory, for example; it can be written to all the same.
                LOG.warning("%s cannot be opened to the readers of its images: %s", datadir.path, error.strerror)

    def prefix(self) -> str:
        """The directory of new images; of several the one that comes first."""
        return f"file://{self.datadir or self.priority_data_map[self.priority_list[0]][0]}"

    def shown_uri(self, uri: str) -> str:
        """The path as it is: glance_store does not encode it."""
        return f"file://{FileLocation.parse(uri).path}"


class ChunkedFile:
    """A local file in chunks, as drivers written for glance_store return it."""

    CHUNKSIZE = 65536

    def __init__(
        self, filepath: str, offset: int = 0, chunk_size: int | None = None, partial_length: int | None = None
    ):
        self.filepath = filepath
        self.chunk_size = chunk_size or self.CHUNKSIZE
        self.partial_length = partial_length
        self._file = open(filepath, "rb")  # noqa: SIM115  (close() ends it)
        self._file.seek(offset or 0)

    def __iter__(self) -> Iterator[bytes]:
        left = self.partial_length
        try:
            while left is None or left > 0:
                chunk = self._file.read(self.chunk_size if left is None else min(self.chunk_size, left))
                if not chunk:
                    break
                left = None if left is None else left - len(chunk)
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
