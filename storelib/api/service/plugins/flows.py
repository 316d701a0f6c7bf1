# SPDX-License-Identifier: Apache-2.0
"""Plug-ins that others have written for Glance: each a function that returns a task of taskflow's, or a linear flow.

Their tasks are run here, one after the other; if one fails, it and those before it are reverted. A flow gets the data
as a file of its own (``file_path``, a ``file://`` URI, which a task may provide anew) and the record of the image by
the two objects that such plug-ins use, ``action_wrapper`` and ``image_repo``. Nothing else of Glance is there. What a
flow changes in the record is kept when the whole import succeeds, and only then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

from stevedore import DriverManager

from storelib.api.errors import BadRequest
from storelib.api.schemas import RESERVED_PREFIX
from storelib.api.service.core import LOG
from storelib.api.service.material import Material, Plugin

#: Where Glance looks for plug-ins.
GROUP = "glance.image_import.plugins"
_FORMATS = ("disk_format", "container_format")


def plugin(name: str, options: SimpleNamespace) -> Plugin:
    """The plug-in ``name``; raises NoMatches where there is none."""
    get_flow: Callable[..., Any] = DriverManager(GROUP, name).driver

    def run(material: Material) -> None:
        path = material.own_file()
        record = _Record(material, os.path.getsize(path))
        given: dict[str, Any] = {
            "task_id": material.task_id,
            "task_type": "api_image_import",
            "context": material.context,
            "image_id": material.image.id,
            "image_repo": _Repository(record),
            "action_wrapper": _Wrapper(record),
            "import_req": dict(material.request),
            "backend": list(material.stores),
            "uri": None,
        }
        store: dict[str, Any] = {"file_path": f"file://{path}"}
        try:
            _run(get_flow(**given), store)
        except Exception as error:  # plug-ins raise anything
            raise BadRequest(f"the plug-in {name} failed: {type(error).__name__}") from error
        record.keep()
        material.replace_by_file(_path_of(store["file_path"], path))

    return run


def _run(flow: Any, store: dict[str, Any]) -> None:
    """Run the tasks of a flow with what is in ``store``, where what they provide goes, too."""
    begun: list[tuple[Any, Any]] = []
    try:
        for task in _tasks(flow):
            begun.append((task, None))
            known = {argument: store[name] for argument, name in task.rebind.items() if name in store}
            result = task.execute(**known, **(task.inject or {}))
            begun[-1] = task, result
            for name, index in task.save_as.items():
                store[name] = result if index is None else result[index]
    except BaseException:
        for task, result in reversed(begun):
            try:
                task.revert(result=result, flow_failures={})
            except Exception:  # noqa: BLE001  (the others are to be reverted, too)
                LOG.exception("a plug-in of an import could not be reverted")
        raise


def _tasks(flow: Any) -> Iterator[Any]:
    if hasattr(flow, "iter_nodes"):
        for node, _ in flow.iter_nodes():
            yield from _tasks(node)
    else:
        yield flow


def _path_of(provided: Any, given: str) -> str:
    """Where the data is now."""
    if not isinstance(provided, str):
        return given
    path = unquote(urlsplit(provided).path) if provided.startswith("file:") else provided
    if not os.path.isfile(path):
        raise BadRequest("a plug-in provided no file")
    return path


class _Record:
    """The image as a flow sees and changes it."""

    def __init__(self, material: Material, size: int) -> None:
        self._material = material
        image = material.image
        self.image_id, self.name, self.owner, self.status = image.id, image.name, image.owner, image.status
        self.disk_format, self.container_format = image.disk_format, image.container_format
        self.size: int | None = size
        self.virtual_size = image.virtual_size
        self.locations: list[Any] = []
        self._before = {
            name: value
            for name, value in {**image.properties, **material.properties}.items()
            if not name.startswith(RESERVED_PREFIX)
        }
        self.extra_properties = dict(self._before)

    def keep(self) -> None:
        """Take over what was changed."""
        self._material.set_formats(self.disk_format or "", self.container_format or "")
        found = {name: value for name, value in self.extra_properties.items() if not name.startswith(RESERVED_PREFIX)}
        self._material.properties.update(dict.fromkeys(self._before.keys() - found.keys()))
        for name, value in found.items():
            if self._before.get(name) != value or name not in self._before:
                self._material.properties[name] = None if value is None else str(value)


class _Repository:
    """``image_repo``: the one image."""

    def __init__(self, record: _Record) -> None:
        self._record = record

    def get(self, image_id: str) -> _Record:
        """The one record there is, whatever the id."""
        return self._record

    def save(self, image: _Record, *unused: Any) -> None:
        """Nothing: the record is kept when the flow ends."""


class _Wrapper:
    """``action_wrapper``: within it the record is changed."""

    def __init__(self, record: _Record) -> None:
        self._record = record

    @property
    def image_id(self) -> str:
        """Whose record it is."""
        return self._record.image_id

    def __enter__(self) -> _Actions:
        return _Actions(self._record)

    def __exit__(self, *unused: object) -> None:
        pass

    def assert_task_lock(self) -> None:
        """Nothing: an import that was given up ends by itself."""


class _Actions:
    """What a flow can do with the record."""

    def __init__(self, record: _Record) -> None:
        self._record = record

    def __getattr__(self, name: str) -> Any:
        """``image_size``, ``image_disk_format`` and so on."""
        if not name.startswith("image_"):
            raise AttributeError(name)
        name = "image_id" if name == "image_id" else name.removeprefix("image_")
        value = getattr(self._record, name)
        return dict(value) if isinstance(value, dict) else value

    def set_image_attribute(self, **values: Any) -> None:
        """Formats and sizes; what else there is follows from the import itself."""
        for name, value in values.items():
            if name not in (*_FORMATS, "size", "virtual_size", "status"):
                raise AttributeError(f"{name} cannot be set")
            if name != "status":
                setattr(self._record, name, value)

    def set_image_extra_properties(self, properties: Mapping[str, str]) -> None:
        """Properties to be set besides those that are there."""
        self._record.extra_properties.update(properties)

    def pop_extra_property(self, name: str) -> None:
        """Remove a property, if it is there."""
        self._record.extra_properties.pop(name, None)

    def add_importing_stores(self, stores: Any) -> None:
        """Nothing: the import itself says which stores it fills."""

    remove_importing_stores = add_failed_stores = remove_failed_stores = add_importing_stores
