# SPDX-License-Identifier: Apache-2.0
"""The options of RBD stores; names are glance_store's where the meaning is the same."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from storelib.option_types import LocalPath

OPTIONS: Sequence[cfg.Opt] = (
    # -- Where ------------------------------------------------------------------------------------------------
    cfg.Opt(
        "rbd_store_ceph_conf",
        type=LocalPath(),
        default="",
        help="Ceph's configuration file, which says where the monitors are. Empty: /etc/ceph/ceph.conf and the other "
        "places where Ceph looks.",
    ),
    cfg.StrOpt("rbd_store_pool", default="images", help="The pool that holds the images."),
    cfg.StrOpt(
        "rbd_store_namespace",
        default="",
        help="Namespace in the pool. It must exist: rbd namespace create --pool POOL NAMESPACE.",
    ),
    cfg.StrOpt(
        "rbd_store_data_pool",
        help="Pool for the bytes of new images, for example an erasure-coded one; rbd_store_pool then holds what "
        "describes them.",
    ),
    # -- As whom ----------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "rbd_store_user",
        help="User without the 'client.' before it. If not given, librados chooses, in general admin. Needs the "
        "capabilities mon 'profile rbd' and osd 'profile rbd pool=images'.",
    ),
    cfg.Opt(
        "rbd_store_keyring",
        type=LocalPath(),
        help="File with the user's key; if not given, ceph.conf says where it is.",
    ),
    # -- How long ---------------------------------------------------------------------------------------------
    cfg.IntOpt(
        "rados_connect_timeout",
        default=30,
        min=-1,
        help="Seconds to wait for the cluster when connecting. -1: what ceph.conf says; 0: for ever.",
    ),
    cfg.IntOpt(
        "rados_osd_op_timeout",
        default=60,
        min=-1,
        help="Seconds after which an operation that the OSDs do not answer is given up; transfer_retries says how "
        "often it is tried again. A full pool shows only so: writes to it are not answered. Keep it longer than the "
        "cluster needs to replace a failed OSD; transfer_timeout is its limit. -1: what ceph.conf says; 0: for ever.",
    ),
    cfg.IntOpt("rados_mon_op_timeout", default=30, min=-1, help="The same for questions to the monitors."),
    # -- How images are stored --------------------------------------------------------------------------------
    cfg.IntOpt(
        "rbd_store_chunk_size",
        default=8,
        min=1,
        max=32,
        help="MiB in one object of new images; a power of two, others are rounded down to one.",
    ),
    cfg.IntOpt(
        "rbd_store_concurrency", default=4, min=1, max=64, help="Reads or writes of one image in flight at most."
    ),
    cfg.BoolOpt(
        "rbd_thin_provisioning",
        default=True,
        help="Leave runs of zeros out of new images. They read the same and take no room. Unlike glance_store's, this "
        "is on unless switched off.",
    ),
    cfg.BoolOpt(
        "rbd_store_protect_snapshot",
        default=True,
        help="Protect the snapshot of new images, so that clones of format 1 can be made of them. Clusters whose "
        "clients all know format 2 do without.",
    ),
    cfg.StrOpt(
        "rbd_store_clone_format",
        default="auto",
        choices=[
            ("auto", "what the cluster's least capable client understands"),
            ("1", "parents must be protected"),
            ("2", "parents need no protection; needs clients of Mimic or later"),
        ],
        help="Format of the clones that copying makes.",
    ),
    cfg.StrOpt(
        "rbd_store_copy_mode",
        default="clone",
        choices=[
            ("clone", "a copy-on-write clone, made at once; its original is kept, in the trash if need be"),
            ("deep", "all bytes are read and written; holes stay holes"),
        ],
        help="What copying within the store makes of an image whose digests are known.",
    ),
    cfg.StrOpt(
        "rbd_store_delete_in_use",
        default="trash",
        choices=[
            ("trash", "the image is moved to the trash, and gc removes it once it has no more clones"),
            ("refuse", "the image stays, and deleting it is an error (InUseByStore)"),
        ],
        help="What becomes of a deleted image of which there are clones.",
    ),
)
