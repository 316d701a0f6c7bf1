# SPDX-License-Identifier: Apache-2.0
"""Settings: how a store wants volumes to come to this host, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What the options of one store say."""

    store_name: str
    #: Where all processes of this host note what they hold and use of it.
    directory: str
    #: Seconds that anything may take.
    transfer_timeout: float
    #: Volumes that os-brick connects may grow while they are attached.
    grows_attached: bool

    # -- Volumes in Ceph ------------------------------------------------------------------------------------------

    #: None: what the service says of the monitors is all that is needed.
    ceph_conf: str | None
    ceph_keyring: str | None
    #: Seconds; -1: what ceph.conf says; 0: for ever.
    ceph_connect_timeout: int
    ceph_op_timeout: int

    # -- All others -----------------------------------------------------------------------------------------------

    #: What to put before a command that needs root; None: glance-rootwrap with ``rootwrap_config``.
    root_helper: str | None
    rootwrap_config: str
    #: The directory below which shares are mounted.
    mount_point_base: str
    use_multipath: bool
    #: Rather no volume than one without multipathd.
    enforce_multipath: bool
