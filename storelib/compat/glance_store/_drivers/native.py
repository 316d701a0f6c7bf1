# SPDX-License-Identifier: Apache-2.0
"""A store of storelib as glance_store's callers know one."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from storelib.compat import options
from storelib.compat.errors import misconfigured, translating
from storelib.compat.glance_store import capabilities, driver, exceptions, location
from storelib.compat.glance_store.capabilities import BitMasks
from storelib.config import given_options
from storelib.driver import STORE_OPTIONS
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, StoreError
from storelib.plugins import driver_class
from storelib.transfer.contract import MiB
from storelib.transfer.memory import MemoryBudget
from storelib.transfer.retry import mapped

#: Larger chunks are new memory from the kernel each time, smaller ones more calls (measured: 256 KiB to 1 MiB).
_MOST_AT_ONCE = MiB // 2
#: All stores of the process share the memory of transfers.
_MEMORY = MemoryBudget()
#: A block of this size, once freed, see ``_keep_memory``.
_KEPT = 4 * MiB


def _keep_memory() -> None:
    """Have the C library keep freed memory for the next chunk of an upload.

    The readers of a request copy each chunk several times, and glibc gives all of it back to the kernel in between,
    which has to clear it page by page again: a fifth of what an upload costs the processor. What it keeps is twice the
    size of the largest block that it has seen freed.
    """
    bytes(_KEPT)


class ImageIterator:
    """The bytes of an image in chunks of ``chunk_size``; also a file to read from. Close it, or read it to the end."""

    def __init__(self, stream: Any, chunk_size: int) -> None:
        self._stream = stream
        self._chunk_size = chunk_size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = b"" if self._stream.closed else self.read(self._chunk_size)
        if not chunk:
            self.close()
            raise StopIteration
        return chunk

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes, or all that is left."""
        with translating():
            return bytes(self._stream.read(size))

    def close(self) -> None:
        """Give back what the reading holds."""
        with translating():
            self._stream.close()


class NativeLocation(location.StoreLocation):
    """A URI of a driver of storelib: ``native`` is its own form, whose fields are here, too."""

    DRIVER: ClassVar[str]

    def __init__(self, store_specs: Mapping[str, Any], conf: Any, backend_group: str | None = None) -> None:
        self.native: Any = None
        self.scheme = ""
        self._uri = ""
        super().__init__(store_specs, conf, backend_group)

    def process_specs(self) -> None:
        """Fields by glance_store's names, and the URI that they make; without one where some are missing."""
        self.__dict__.update(self.specs)
        with contextlib.suppress(KeyError):
            self._uri = self.composed(self.specs)
        with contextlib.suppress(exceptions.BadStoreUri):
            self.parse_uri(self._uri)

    def composed(self, specs: Mapping[str, Any]) -> str:
        """The URI of these fields; raises KeyError."""
        raise KeyError

    def parse_uri(self, uri: str) -> None:
        """Take a URI apart, also one that glance_store wrote; raises BadStoreUri."""
        with translating():
            self.native = driver_class(self.DRIVER).location_class.parse(uri)
        self.scheme = location.scheme_of(uri)
        self._uri = uri

    @property
    def store_location(self) -> Any:
        """Its own form by the name that storelib's stores look for: all of it, where its URI has no credentials."""
        return self.native

    def get_uri(self) -> str:
        """The URI as it was given."""
        return self._uri

    def __getattr__(self, name: str) -> Any:
        native = self.__dict__.get("native")
        if native is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(native, name)


class NativeStore(driver.Store):
    """A driver of storelib; subclasses name it, and the attributes that Glance reads.

    ``set_acls`` stays what it is in the base: Glance calls it at every change of an image, and would make public in the
    back end whatever is public in Glance, where glance_store does not.
    """

    DRIVER: ClassVar[str]
    #: What it is called in messages.
    NAME: ClassVar[str] = ""
    #: Whether nothing ends the prefix, so that the one of ``images`` is that of ``images2``, too.
    PREFIX_IS_OPEN: ClassVar[bool] = False
    _CAPABILITIES = BitMasks.READ_RANDOM | BitMasks.WRITE_ACCESS | BitMasks.DRIVER_REUSABLE

    def __init__(self, conf: Any, backend: str | None = None) -> None:
        #: The store of storelib, from ``configure`` on.
        self.native: Any = None
        self._why = "it was not configured"
        super().__init__(conf, backend)
        self._options = self.register(options.all_options(self.DRIVER))

    # -- Configuration ------------------------------------------------------------------------------------------------

    @property
    def options(self) -> Any:
        """Options as attributes, the store's own group first."""
        return self.conf.glance_store if self.backend_group is None else self._options

    def get_schemes(self) -> Sequence[str]:
        """The schemes of its URIs."""
        return tuple(driver_class(self.DRIVER).schemes)

    def configure(self, re_raise_bsc: bool = False) -> None:
        """Make the store of storelib from the options as they are now."""
        _keep_memory()
        # Anew, whatever an earlier configuration took away.
        self._capabilities = int(self._CAPABILITIES)
        super().configure(re_raise_bsc)

    def configure_add(self) -> None:
        """Make the store; raises BadStoreConfiguration where nothing can be added."""
        self.native = None
        group = self.backend_group
        groups = (group, driver.SHARED_CONF_GROUP) if group else ("glance_store",)
        known = options.all_options(self.DRIVER)
        found = self.native_class()
        name = group or self.NAME or self.DRIVER
        try:
            given = self.adjusted(options.Given(self.conf, groups).values(known))
            values = given_options(name, self.DRIVER, [*STORE_OPTIONS, *found.options], given)
            native = found(name, values)
            native.memory = _MEMORY
            native.configure()
        except BadStoreConfiguration as error:
            self._why = str(error)
            raise misconfigured(self.NAME or name, error) from error
        self.native = native
        self._url_prefix = None
        if native.add_disabled:
            raise misconfigured(self.NAME or name, BadStoreConfiguration(native.add_disabled))
        try:
            mapped(native.prepare, native.map_error, f"store {name}")
        except StoreError as error:
            # Of whatever kind: images that are there can be read, and the other stores work.
            raise misconfigured(self.NAME or name, BadStoreConfiguration(str(error))) from error

    def native_class(self) -> Any:
        """The class of storelib's store."""
        return driver_class(self.DRIVER)

    def adjusted(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options where what glance_store understands is not what storelib does."""
        return given

    @property
    def url_prefix(self) -> str | None:
        """What the URIs of this store begin with, by which Glance knows those that name no store; None if unknown."""
        if self._url_prefix is None and self.native is not None:
            self._url_prefix = self.prefix()
        return self._url_prefix

    def prefix(self) -> str | None:
        """The same, found out; asked again where it is None."""
        return None

    @property
    def precedence(self) -> int:
        """Glance takes the first store that has the prefix of a URI: those with longer ones come before others."""
        return len(self.url_prefix or "") if self.PREFIX_IS_OPEN else 0

    def _store(self) -> Any:
        if self.native is None:
            raise exceptions.BadStoreConfiguration(store_name=self.NAME or self.DRIVER, reason=self._why)
        return self.native

    # -- Images -------------------------------------------------------------------------------------------------------

    @capabilities.check
    def get(
        self, location: Any, offset: int = 0, chunk_size: int | None = None, context: Any = None
    ) -> tuple[Any, int]:
        """The bytes from ``offset`` on, ``chunk_size`` of them or all, and how many they are."""
        with translating(location):
            data, size = self._store().get(location.store_location, offset or 0, chunk_size or None, context)
        return ImageIterator(data, min(self.READ_CHUNKSIZE, _MOST_AT_ONCE)), size

    def get_size(self, location: Any, context: Any = None) -> int:
        """Bytes in the image."""
        with translating(location):
            return int(self._store().get_size(location.store_location, context))

    @driver.back_compat_add
    @capabilities.check
    def add(
        self,
        image_id: str,
        image_file: Any,
        image_size: int,
        hashing_algo: str,
        context: Any = None,
        verifier: Any = None,
    ) -> Any:
        """Store an image; a size of 0 or None is one that is not known. Returns URI, size, md5, multihash, metadata."""
        if isinstance(image_file, (str, os.PathLike)):
            # To storelib it would name a file of this host.
            raise TypeError(f"image data is a file object or an iterator of bytes, not {type(image_file).__name__}")
        with translating():
            stored = self._store().add(
                str(image_id),
                image_file,
                image_size or None,
                hashing_algo=str(hashing_algo),
                context=context,
                verifier=verifier,
            )
        metadata = dict(stored.metadata)
        if self.backend_group is None:
            metadata.pop("store", None)
        return self.shown_uri(stored.uri), stored.size, stored.checksum, stored.multihash, metadata

    def shown_uri(self, uri: str) -> str:
        """The URI of a new image in the form that glance_store reads, too."""
        return uri

    def plain(self, uri: str) -> str:
        """The names in the path of a URI as they are: glance_store's drivers for Swift and VMware encode none.

        Where storelib would take that for another place the URI stays as it is.
        """
        path, mark, query = uri.partition("?")
        found = urllib.parse.unquote(path) + mark + query
        location_class = driver_class(self.DRIVER).location_class
        with contextlib.suppress(BadStoreUri):
            if location_class.parse(found) == location_class.parse(uri):
                return found
        return uri

    @capabilities.check
    def delete(self, location: Any, context: Any = None) -> None:
        """Remove the image at ``location``; raises the exceptions of glance_store."""
        with translating(location):
            self._store().delete(location.store_location, context)
