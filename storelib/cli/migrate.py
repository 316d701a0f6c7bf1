# SPDX-License-Identifier: Apache-2.0
"""Turns a configuration of Glance, with one store of each kind or several, into one of storelib.

The stores: ``[glance_store]`` for single stores; ``enabled_backends`` in ``[DEFAULT]``, a group for each store and
``[backend_defaults]`` for several. What concerns the image API is ``migrate_api``'s. Every option that is set is in the
new file, if only in a comment. Nothing is written or printed here, since values may be secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from oslo_config import cfg

from storelib.cli.migrate_api import MARK, api_lines, assignment, remark
from storelib.config import DEFAULT_STORE, NOT_IDS, SHARED, STORES, Setting
from storelib.driver import STORE_OPTIONS
from storelib.exceptions import BadStoreConfiguration
from storelib.plugins import driver_classes

OLD = "glance_store"
#: Old names of drivers, and schemes that default_store could be.
DRIVERS = {
    "filesystem": "file",
    "https": "http",
    "swift+http": "swift",
    "swift+https": "swift",
    "swift+config": "swift",
    "vsphere": "vmware",
    "vmware_datastore": "vmware",
}
#: Where a default of storelib is another one, that of glance_store is written down.
OLD_DEFAULTS = {"file": {"filesystem_store_datadir": "/var/lib/glance/images"}}
#: Any of these options set means that the old default was not in use.
INSTEAD = {"filesystem_store_datadir": ("filesystem_store_datadir", "filesystem_store_datadirs")}
#: Where storelib is stricter on purpose.
CHANGED = {
    "http": "glance_store verified no certificates and read from any address; storelib does verify (https_insecure) "
    "and refuses private addresses (http_allowed_networks)",
    "s3": "where s3_store_host names no scheme, glance_store spoke http and storelib speaks https",
    "cinder": "volumes in Ceph need neither root nor os-brick: cinder_rbd_keyring names the file with the key of "
    "Cinder's user in Ceph; cinder_state_path is to be the same for all processes of a host",
    "swift": "swift_store_large_object_size and _chunk_size were 5120 and 200 MiB; both are 16 here, and two segments "
    "are held in memory, so set them only with a reason",
}
RESERVED = ("os_glance_staging_store", "os_glance_tasks_store")


def migrated(settings: Sequence[Setting], name: str) -> tuple[str, int]:
    """The text of the new file, and how many remarks it has about what could not be migrated."""
    # As oslo.config does: [Fast] and [fast] are one group.
    settings = [each._replace(group=each.group if each.group == "DEFAULT" else each.group.lower()) for each in settings]
    groups = {setting.group for setting in settings}
    # Glance takes an empty list for none, too.
    backends = (_last(settings, "DEFAULT", "enabled_backends") or "").strip() or None
    if SHARED in groups and SHARED not in [store for store, _ in _entries(backends or "")]:
        raise BadStoreConfiguration(f"{name} has a group [{SHARED}]: it is in storelib's form already")
    if backends is None and OLD not in groups:
        raise BadStoreConfiguration(f"{name} has neither a group [{OLD}] nor enabled_backends: nothing to migrate")
    lines = [f"# Made from {name} by storelib config migrate.", *_Migration(settings, backends).lines()]
    return "\n".join(lines) + "\n", sum(line.startswith(MARK) for line in lines)


class _Migration:
    """The stores of one old file and the options they may have."""

    def __init__(self, settings: Sequence[Setting], backends: str | None) -> None:
        self.several = backends is not None
        self.installed = driver_classes()
        listed = backends if backends is not None else _last(settings, OLD, "stores") or "file,http"
        # One that is listed twice, as http and https, is one store.
        self.stores = list(dict(_entries(listed)).items())
        names = {name.lower(): name for name, _ in self.stores} if self.several else {}
        self.settings = [each._replace(group=names.get(each.group, each.group)) for each in settings]
        #: What each store is called here, which is not always what it was called there.
        self.ids = {name: _free_id(name, self.stores) for name, _ in self.stores}

    def lines(self) -> Iterator[str]:
        """The lines of the new file."""
        shared = "backend_defaults" if self.several else OLD
        yield f"[{SHARED}]"
        yield from self._head()
        yield from self._options(shared, self.stores, {"stores", "default_store", "default_backend"})
        for name, driver in self.stores:
            group = f"[{self.ids[name]}]"
            yield from ("", group if driver in self.installed else f"# {group}")
            yield from self._group(name, driver, shared)
        for name in RESERVED:
            if any(setting.group == name for setting in self.settings):
                yield from ("", f"[{name}]")
                yield from self._options(name, [(name, "file")], set())
        if self.several:
            unread = [each for each in self.settings if each.group == OLD and each.key != "default_backend"]
            yield from ("", f"# [{OLD}]") if unread else ()
            for setting in unread:
                yield from remark(setting, "with enabled_backends Glance did not read this either")
        ours = {OLD, shared, *RESERVED, *(name for name, _ in self.stores if self.several)}
        place = (RESERVED[0], "filesystem_store_datadir")
        staged = [setting for setting in self.settings if (setting.group, setting.key) == place]
        if self.several and not staged:
            staged = [Setting("", 0, *place, f"/var/lib/glance/{RESERVED[0]}")]
        yield from api_lines([each for each in self.settings if each.group not in ours], staged)

    def _head(self) -> Iterator[str]:
        usable = [(name, driver) for name, driver in self.stores if driver in self.installed]
        for name, driver in self.stores:
            if driver not in self.installed:
                yield f"{MARK}store {name} is left out: there is no driver {driver} here"
        for name in (name for name, _ in usable if self.ids[name] != name):
            yield f"{MARK}store {name} is called {self.ids[name]} here, since [{name}] has a meaning of its own;"
            yield "# 'storelib db import-glance' goes by that, but clients that name the store have to be told"
        listed = [(self.ids[name], driver) for name, driver in usable]
        yield f"{STORES.dest} = " + ", ".join(name if name == driver else f"{name}:{driver}" for name, driver in listed)
        wanted = _last(self.settings, OLD, "default_backend" if self.several else "default_store")
        if not self.several:
            wanted = DRIVERS.get(wanted or "file", wanted or "file")
        if wanted is not None and wanted in [name for name, _ in usable]:
            yield f"{DEFAULT_STORE.dest} = {self.ids[wanted]}"
        else:
            yield f"{MARK}the default store {wanted or ''} is not among the stores; now the first of them is it"

    def _group(self, name: str, driver: str, shared: str) -> Iterator[str]:
        if self.several:
            yield from self._options(name, [(name, driver)], set())
        if driver in CHANGED:
            yield f"{MARK}{CHANGED[driver]}"
        given = {setting.key for setting in self.settings if setting.group in (name, shared)}
        for option, value in OLD_DEFAULTS.get(driver, {}).items():
            if not given.intersection(INSTEAD[option]):
                yield f"# The default of glance_store; storelib has another one.\n{option} = {value}"

    def _options(self, group: str, stores: Iterable[tuple[str, str]], done: set[str]) -> Iterator[str]:
        drivers = [self.installed[driver] for _, driver in stores if driver in self.installed]
        known: dict[str, cfg.Opt] = {}
        for option in (*STORE_OPTIONS, *(option for driver in drivers for option in driver.options)):
            known |= dict.fromkeys(_names(option), option)
        ours = [setting for setting in self.settings if setting.group == group and setting.key not in done]
        for setting in ours:
            found = known.get(setting.key)
            later = any(other.key == setting.key for other in ours[ours.index(setting) + 1 :])
            if found is None or not later or found.multi:
                yield from assignment(setting, found)


def _names(option: cfg.Opt) -> list[str]:
    return [option.dest, option.name, *(old.name for old in option.deprecated_opts if old.name)]


def _entries(listed: str) -> list[tuple[str, str]]:
    return [_entry(item) for item in listed.split(",") if item.strip()]


def _free_id(name: str, stores: Iterable[tuple[str, str]]) -> str:
    """The name, or one like it where that is none for a store here."""
    taken = {*NOT_IDS, *(other.lower() for other, _ in stores if other != name)}
    while name.lower() in taken:
        name += "-store"
    return name


def _entry(item: str) -> tuple[str, str]:
    name, colon, driver = (part.strip() for part in item.partition(":"))
    # Such as glance.store.filesystem.Store
    kind = (driver if colon else name).removeprefix("glance.store.").removesuffix(".Store")
    kind = DRIVERS.get(kind, kind)
    return (name if colon else kind), kind


def _last(settings: Iterable[Setting], group: str, key: str) -> str | None:
    values = [setting.value for setting in settings if (setting.group, setting.key) == (group, key)]
    return values[-1] if values else None
