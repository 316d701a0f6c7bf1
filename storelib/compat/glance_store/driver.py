# SPDX-License-Identifier: Apache-2.0
"""glance_store's base class for drivers, and what configures them; drivers written for glance_store stand on it."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.compat.glance_store import capabilities, exceptions
from storelib.transfer.contract import MiB

CONF = cfg.CONF
LOG = logging.getLogger(__name__)
#: The group of the defaults of all named stores.
SHARED_CONF_GROUP = "backend_defaults"
_SINGLE = "glance_store"
_MULTI_BACKEND_OPTS: list[cfg.Opt] = [
    cfg.StrOpt("store_description", help="One line about this store, for its users."),
    cfg.IntOpt("weight", default=0, help="Stores with a higher weight are asked first for an image."),
]


class Store(capabilities.StoreCapability):
    """One store: ``backend_group`` is its name where there are several."""

    OPTIONS: ClassVar[Sequence[cfg.Opt] | None] = None
    MULTI_BACKEND_OPTIONS: ClassVar[Sequence[cfg.Opt] | None] = _MULTI_BACKEND_OPTS
    READ_CHUNKSIZE = 4 * MiB
    WRITE_CHUNKSIZE = READ_CHUNKSIZE

    def __init__(self, conf: Any, backend: str | None = None) -> None:
        super().__init__()
        self.conf = conf
        self.backend_group = backend
        self.store_location_class: Any = None
        self._url_prefix: str | None = None
        # With their own defaults: a driver may read them without BackendGroupConfiguration.
        for option in (*(self.OPTIONS or ()), *((self.MULTI_BACKEND_OPTIONS or ()) if backend else ())):
            safe_register(conf, option, backend or _SINGLE)
            safe_register(conf, option, SHARED_CONF_GROUP)

    def register(self, options: Sequence[cfg.Opt]) -> BackendGroupConfiguration:
        """Register options of this store, where there are none of these names yet; returns what reads them."""
        group = self.backend_group or SHARED_CONF_GROUP
        found = BackendGroupConfiguration(options, config_group=group, conf=self.conf)
        for option in options if self.backend_group is None else ():
            safe_register(self.conf, option, _SINGLE)
        return found

    @property
    def url_prefix(self) -> str | None:
        """What the URIs of this store begin with."""
        return self._url_prefix

    @property
    def weight(self) -> int:
        """Stores with a higher weight are asked first; 0 for one without a name."""
        if self.backend_group is None:
            return 0
        return int(getattr(self.conf, self.backend_group).weight or 0)

    def configure(self, re_raise_bsc: bool = False) -> None:
        """Have the driver check its options; one that cannot be written to so is read-only."""
        try:
            self.configure_add()
        except exceptions.BadStoreConfiguration as error:
            self.unset_capabilities(capabilities.BitMasks.WRITE_ACCESS)
            # In one string, as log watchers expect it.
            LOG.warning(f"Failed to configure store correctly: {error} Disabling add method.")
            if re_raise_bsc:
                raise
        finally:
            self.update_capabilities()

    def get_schemes(self) -> Sequence[str]:
        """The schemes of its URIs."""
        raise NotImplementedError

    def get_store_location_class(self) -> Any:
        """``StoreLocation`` of the driver's module."""
        if self.store_location_class is None:
            self.store_location_class = sys.modules[type(self).__module__].StoreLocation
        return self.store_location_class

    def configure_add(self) -> None:
        """Check what adding needs; raises BadStoreConfiguration."""

    @capabilities.check
    def get(
        self, location: Any, offset: int = 0, chunk_size: int | None = None, context: Any = None
    ) -> tuple[Any, int]:
        """An iterator of the bytes, and how many they are."""
        raise NotImplementedError

    def get_size(self, location: Any, context: Any = None) -> int:
        """Bytes in the image."""
        raise NotImplementedError

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
        """Store an image; returns URI, size, md5, multihash and metadata."""
        raise NotImplementedError

    @capabilities.check
    def delete(self, location: Any, context: Any = None) -> None:
        """Remove the image at ``location``; a driver overrides it."""
        raise NotImplementedError

    def set_acls(
        self,
        location: Any,
        public: bool = False,
        read_tenants: Sequence[str] | None = None,
        write_tenants: Sequence[str] | None = None,
        context: Any = None,
    ) -> None:
        """Say who may read and write an image."""
        raise NotImplementedError


def back_compat_add(store_add_fun: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates ``add``: callers who know of no algorithm get four values, without a multihash, as they used to."""
    parameters = list(inspect.signature(store_add_fun).parameters)
    if "hashing_algo" not in parameters:
        # Something around it that takes whatever it is given, or calls it otherwise: it stands where it always does.
        parameters = list(inspect.signature(Store.add).parameters)
    position = parameters.index("hashing_algo")

    @functools.wraps(store_add_fun)
    def add_adapter(*args: Any, **kwargs: Any) -> Any:
        by_position = len(args) > position and isinstance(args[position], str)
        if "hashing_algo" in kwargs or by_position or len(args) == len(parameters):
            return store_add_fun(*args, **kwargs)
        if len(args) < position:
            kwargs["hashing_algo"] = "md5"
        else:
            args = (*args[:position], "md5", *args[position:])
        uri, size, checksum, _, metadata = store_add_fun(*args, **kwargs)
        return uri, size, checksum, metadata

    return add_adapter


def safe_register(conf: Any, option: cfg.Opt, group: str) -> bool:
    """Register one option unless there is another of its name; returns whether this one is there now."""
    try:
        conf.register_opt(option, group=group)
    except cfg.DuplicateOptError:
        LOG.debug("option %s of [%s] is there already", option.dest, group)
        return False
    return True


class BackendGroupConfiguration:
    """The options of one named store: its own group first, then ``[backend_defaults]``, then the default.

    What a group does not set reads as None there, so that the shared group counts.
    """

    def __init__(self, store_opts: Sequence[cfg.Opt], config_group: str | None = None, conf: Any = None) -> None:
        self.conf = conf or CONF
        self.config_group = config_group or SHARED_CONF_GROUP
        self._defaults: dict[str, Any] = {}
        self.append_config_values(store_opts)

    def append_config_values(self, store_opts: Sequence[cfg.Opt]) -> None:
        """Register further options for this store."""
        for option in store_opts:
            safe_register(self.conf, option, SHARED_CONF_GROUP)
            # The service's own stores have another one there, with a default that is theirs.
            if self.config_group != SHARED_CONF_GROUP and safe_register(self.conf, option, self.config_group):
                self.conf.set_default(option.dest, None, group=self.config_group)

    def set_default(self, opt_name: str, default: Any) -> None:
        """Another default for this store, where neither group sets the option."""
        self._defaults[opt_name] = default

    def get(self, key: str, default: Any = None) -> Any:
        """The value of an option, ``default`` where there is no such option."""
        return getattr(self, key, default)

    def __getattr__(self, opt_name: str) -> Any:
        try:
            value = getattr(self.conf[self.config_group], opt_name)
        except cfg.NoSuchOptError as error:
            if error.opt_name != opt_name:
                # It is there, and its value refers to another one.
                raise
            raise AttributeError(opt_name) from error
        if value is not None:
            return value
        if opt_name in self._defaults and not self._is_shared(opt_name):
            return self._defaults[opt_name]
        return getattr(self.conf[SHARED_CONF_GROUP], opt_name)

    def _is_shared(self, opt_name: str) -> bool:
        found = self.conf.get_location(opt_name, group=SHARED_CONF_GROUP)
        return found is not None and found.location is not cfg.Locations.opt_default
