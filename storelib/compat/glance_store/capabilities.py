# SPDX-License-Identifier: Apache-2.0
"""glance_store's capabilities: bit masks of what a store can do, and the check before it is asked to."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

from storelib.compat.glance_store import exceptions


class BitMasks(enum.IntEnum):
    """Reading or writing at an offset or in chunks includes reading or writing at all: those bits are in each mask."""

    NONE = 0b00000000
    ALL = 0b11111111
    READ_ACCESS = 0b00000001
    READ_OFFSET = 0b00000011
    READ_CHUNK = 0b00000101
    READ_RANDOM = 0b00000111
    WRITE_ACCESS = 0b00001000
    WRITE_OFFSET = 0b00011000
    WRITE_CHUNK = 0b00101000
    WRITE_RANDOM = 0b00111000
    RW_ACCESS = 0b00001001
    RW_OFFSET = 0b00011011
    RW_CHUNK = 0b00101101
    RW_RANDOM = 0b00111111
    DRIVER_REUSABLE = 0b01000000


class StoreCapability:
    """The capabilities of one store: ``_CAPABILITIES`` of its class to begin with."""

    _CAPABILITIES: int = BitMasks.NONE

    def __init__(self) -> None:
        self._capabilities = int(self._CAPABILITIES)

    @property
    def capabilities(self) -> int:
        """The bits of all that the store can do."""
        return self._capabilities

    @staticmethod
    def contains(x: int, y: int) -> bool:
        """Whether ``x`` has all bits of ``y``."""
        return x & y == y

    def update_capabilities(self) -> None:
        """Look again what the back end can do, for drivers that do."""

    def is_capable(self, *capabilities: int) -> bool:
        """Whether the store has all of these."""
        return all(self.contains(self.capabilities, each) for each in capabilities)

    def set_capabilities(self, *dynamic_capabilites: int) -> None:
        """Add capabilities, bit by bit."""
        for each in dynamic_capabilites:
            self._capabilities |= int(each)

    def unset_capabilities(self, *dynamic_capabilites: int) -> None:
        """Take some away, bit by bit: without READ_ACCESS nothing can be read at an offset either."""
        for each in dynamic_capabilites:
            self._capabilities &= ~int(each)


def check(store_op_fun: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates ``get``, ``add`` and ``delete``: raises what says that the store cannot do that."""
    signature = inspect.signature(store_op_fun)

    def op_checker(store: Any, *args: Any, **kwargs: Any) -> Any:
        operation = store_op_fun.__name__
        if operation == "get":
            # However offset and length were given.
            given = {**signature.bind(store, *args, **kwargs).arguments, **kwargs}
            _check_get(store, given.get("offset"), given.get("chunk_size"))
        elif operation == "add" and not store.is_capable(BitMasks.WRITE_ACCESS):
            raise exceptions.StoreAddDisabled()
        elif operation == "delete" and not store.is_capable(BitMasks.WRITE_ACCESS):
            raise exceptions.StoreDeleteNotSupported()
        return store_op_fun(store, *args, **kwargs)

    op_checker.__doc__ = store_op_fun.__doc__
    op_checker.__wrapped__ = store_op_fun  # type: ignore[attr-defined]
    return op_checker


def _check_get(store: StoreCapability, offset: Any, chunk_size: Any) -> None:
    needed = [BitMasks.READ_ACCESS]
    needed += [BitMasks.READ_OFFSET] if offset else []
    needed += [BitMasks.READ_CHUNK] if chunk_size else []
    if store.is_capable(*needed):
        return
    if len(needed) > 1:
        raise exceptions.StoreRandomGetNotSupported(offset=offset, chunk_size=chunk_size)
    raise exceptions.StoreGetNotSupported()
