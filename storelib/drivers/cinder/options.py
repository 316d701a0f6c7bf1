# SPDX-License-Identifier: Apache-2.0
"""The options of Cinder stores, and what they say of volumes on this host.

Names are glance_store's where the meaning is the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from oslo_config import cfg

from storelib.option_types import LocalPath
from storelib.transfer.contract import Options
from storelib.volumes.settings import Settings

OPTIONS: Sequence[cfg.Opt] = (
    # -- Where Cinder is ----------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "cinder_catalog_info",
        default="volumev3::publicURL",
        help="Where the catalog has Cinder, as type:name:interface; the name may be empty.",
    ),
    cfg.StrOpt(
        "cinder_endpoint_template",
        help="URL of Cinder instead of the one in the catalog, as https://cinder:8776/v3/%(project_id)s.",
    ),
    cfg.StrOpt(
        "cinder_os_region_name",
        deprecated_name="os_region_name",
        help="Region of Cinder, where the catalog has several.",
    ),
    cfg.Opt(
        "cinder_ca_certificates_file",
        type=LocalPath(),
        help="File of CA certificates (PEM) for Cinder and the identity service.",
    ),
    cfg.BoolOpt(
        "cinder_api_insecure",
        default=False,
        help="Do not verify certificates. A server in between can then read the password and replace every image.",
    ),
    cfg.FloatOpt(
        "cinder_read_timeout",
        default=90.0,
        min=0.1,
        help="Seconds to wait for a connection, and for a response. Longer than Cinder's rpc_response_timeout (60), "
        "after which it says itself that a service of its own did not answer.",
    ),
    cfg.IntOpt(
        "cinder_state_transition_timeout",
        default=300,
        min=1,
        help="Seconds that a volume may take to be made, grown, or removed. transfer_timeout is its limit.",
    ),
    # -- As whom ------------------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "cinder_store_auth_address",
        help="URL of the identity service, for example https://keystone:5000/v3. With user, password and project, "
        "or an application credential, all volumes belong to that project. Without it each request uses its own "
        "token, and volumes belong to the project of the request.",
    ),
    cfg.StrOpt("cinder_store_user_name", help="The user."),
    cfg.StrOpt("cinder_store_password", secret=True, help="The user's password."),
    cfg.StrOpt("cinder_store_project_name", help="The project that the volumes belong to."),
    cfg.StrOpt("cinder_store_user_domain_name", default="Default", help="Domain of the user."),
    cfg.StrOpt("cinder_store_project_domain_name", default="Default", help="Domain of the project."),
    cfg.StrOpt(
        "cinder_store_application_credential_id",
        help="An application credential, used instead of user and password.",
    ),
    cfg.StrOpt("cinder_store_application_credential_secret", secret=True, help="Its secret."),
    # -- Volumes ------------------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "cinder_volume_type",
        help="Type of new volumes; if not given, Cinder's default. One with multiattach='<is> True' lets several "
        "processes read an image at a time; of any other only one can.",
    ),
    cfg.BoolOpt(
        "cinder_thin_provisioning",
        default=True,
        help="Leave runs of zeros out of new images: volumes read back as zeros where nothing was written.",
    ),
    cfg.IntOpt(
        "cinder_concurrency",
        default=4,
        min=1,
        max=64,
        help="Reads or writes of one image in flight at most.",
    ),
    cfg.Opt(
        "cinder_state_path",
        type=LocalPath(),
        help="Directory in which processes of this host note which attachments they hold, so that gc can tell those of "
        "killed ones; it must outlive reboots and containers. If not given, storelib/cinder in $XDG_STATE_HOME, or in "
        "~/.local/state.",
    ),
    # -- Volumes in Ceph ----------------------------------------------------------------------------------------------
    cfg.Opt(
        "cinder_rbd_ceph_conf",
        type=LocalPath(),
        help="Ceph's configuration file. If not given, Cinder's word for where the monitors are is all that is needed.",
    ),
    cfg.IntOpt(
        "cinder_rbd_connect_timeout",
        default=30,
        min=-1,
        help="Seconds to wait for Ceph's monitors. -1: what ceph.conf says; 0: for ever.",
    ),
    cfg.IntOpt(
        "cinder_rbd_op_timeout",
        default=60,
        min=-1,
        help="Seconds after which an operation that Ceph does not answer is given up; transfer_retries says how often "
        "it is tried again. A full pool shows only so. transfer_timeout is its limit. -1: what ceph.conf says; 0: for "
        "ever.",
    ),
    cfg.Opt(
        "cinder_rbd_keyring",
        type=LocalPath(),
        help="File with the key of the user as which Cinder has volumes attached. If not given, ceph.conf says where "
        "it is, else Ceph's usual places are tried, as /etc/ceph/ceph.client.cinder.keyring.",
    ),
    # -- Volumes that are neither in Ceph nor on NFS, and what needs root ---------------------------------------------
    cfg.Opt(
        "rootwrap_config",
        default="/etc/glance/rootwrap.conf",
        type=LocalPath(),
        help="Configuration of the rootwrap by which an unprivileged process connects volumes that are not in Ceph: "
        "`sudo glance-rootwrap FILE` is put before what needs root. Volumes in Ceph need none, nor does root.",
    ),
    cfg.StrOpt(
        "cinder_root_helper",
        help="What to put before commands that need root instead, as `sudo` or `sudo storage-rootwrap FILE`. Empty: "
        "nothing, where the process has the capabilities.",
    ),
    cfg.Opt(
        "cinder_mount_point_base",
        default="/var/lib/glance/mnt",
        type=LocalPath(),
        help="Directory below which NFS shares are mounted, each once for all processes of this host.",
    ),
    cfg.BoolOpt(
        "cinder_use_multipath",
        default=False,
        help="Connect volumes by all the paths there are (multipathd).",
    ),
    cfg.BoolOpt(
        "cinder_enforce_multipath",
        default=False,
        help="With cinder_use_multipath: refuse to connect volumes while multipathd does not run.",
    ),
    cfg.BoolOpt(
        "cinder_do_extend_attached",
        default=False,
        help="Grow volumes of images of unknown size while they are attached, which not every back end of Cinder can. "
        "If not, they are detached meanwhile. Volumes in Ceph stay attached in any case, those on NFS never.",
    ),
)


def volume_settings(store_name: str, conf: Options) -> Settings:
    """How volumes are to come to this host."""
    return Settings(
        store_name,
        str(conf.cinder_state_path or _default_directory()),
        transfer_timeout=conf.transfer_timeout,
        grows_attached=conf.cinder_do_extend_attached,
        ceph_conf=conf.cinder_rbd_ceph_conf or None,
        ceph_keyring=conf.cinder_rbd_keyring or None,
        ceph_connect_timeout=conf.cinder_rbd_connect_timeout,
        ceph_op_timeout=conf.cinder_rbd_op_timeout,
        root_helper=conf.cinder_root_helper,
        rootwrap_config=str(conf.rootwrap_config),
        mount_point_base=conf.cinder_mount_point_base,
        use_multipath=conf.cinder_use_multipath,
        enforce_multipath=conf.cinder_enforce_multipath,
    )


def _default_directory() -> str:
    """Where attachments are noted if no option says where."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "storelib", "cinder")
