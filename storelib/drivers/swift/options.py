# SPDX-License-Identifier: Apache-2.0
"""The options of Swift stores; names are glance_store's where the meaning is the same."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from storelib.option_types import LocalPath

OPTIONS: Sequence[cfg.Opt] = (
    # -- Who we are ---------------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "swift_store_auth_version",
        default="3",
        choices=["1", "3"],
        help="3: Keystone. 1: tokens from Swift itself, as tempauth and radosgw give them.",
    ),
    cfg.StrOpt("swift_store_auth_address", help="URL of the identity service, for example https://keystone:5000/v3."),
    cfg.StrOpt("swift_store_user", secret=True, help="The user as project:user; with version 1 as account:user."),
    cfg.StrOpt("swift_store_key", secret=True, help="The user's password."),
    cfg.StrOpt("swift_store_project_name", help="The project, if it is not part of swift_store_user."),
    cfg.StrOpt("swift_store_project_id", help="The same by its id."),
    cfg.StrOpt("swift_store_user_domain_id", default="default", help="Domain of the user."),
    cfg.StrOpt("swift_store_project_domain_id", default="default", help="Domain of the project."),
    cfg.StrOpt(
        "swift_store_application_credential_id",
        help="An application credential, used instead of user and key.",
    ),
    cfg.StrOpt("swift_store_application_credential_secret", secret=True, help="Its secret."),
    cfg.Opt(
        "swift_store_config_file",
        type=LocalPath(),
        help="File with one section per account: auth_address, user, key or application_credential_id and _secret, "
        "project_name or project_id, auth_version, and the domains of user and project by id or name. With it, URIs "
        "name the section and survive a change of anything in it.",
    ),
    cfg.StrOpt("default_swift_reference", default="ref1", help="The section that new images go to."),
    cfg.IntOpt(
        "swift_store_expire_soon_interval",
        default=60,
        min=0,
        help="Tokens that expire within so many seconds are renewed before they are used.",
    ),
    # -- Where the service is -----------------------------------------------------------------------------------------
    cfg.StrOpt(
        "swift_store_endpoint",
        help="URL of the account instead of the one in the catalog, as https://swift/v1/AUTH_%(project_id)s.",
    ),
    cfg.StrOpt("swift_store_service_type", default="object-store", help="Type of the service in the catalog."),
    cfg.StrOpt(
        "swift_store_endpoint_type",
        default="publicURL",
        choices=["publicURL", "adminURL", "internalURL"],
        help="Which of its URLs to use.",
    ),
    cfg.StrOpt("swift_store_region", help="Region of the service, where the catalog has several."),
    cfg.Opt(
        "swift_store_cacert", type=LocalPath(), help="File of CA certificates (PEM) for Swift and the identity service."
    ),
    cfg.BoolOpt(
        "swift_store_auth_insecure",
        default=False,
        help="Do not verify certificates. Whoever sits between can then read the password and replace every image.",
    ),
    cfg.FloatOpt("swift_store_connect_timeout", default=30.0, min=0.1, help="Seconds to wait for a connection."),
    cfg.FloatOpt("swift_store_read_timeout", default=60.0, min=0.1, help="Seconds to wait for the next bytes."),
    # -- What goes where ----------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "swift_store_container",
        default="glance",
        help="Container of the images, or the first part of the names of several.",
    ),
    cfg.IntOpt(
        "swift_store_multiple_containers_seed",
        default=0,
        min=0,
        max=32,
        help="Spread images over containers named after so many first characters of their ids; 0: one container.",
    ),
    cfg.BoolOpt(
        "swift_store_container_per_image",
        default=False,
        help="A container for each image, as multi-tenant stores have: racing adds then have exactly one winner, and "
        "images can be shared by access control lists.",
    ),
    cfg.StrOpt(
        "swift_store_segment_container",
        help="Container for the segments of large images, instead of the image's own. Not with a container per image.",
    ),
    cfg.BoolOpt("swift_store_create_container_on_put", default=False, help="Make containers that are missing."),
    cfg.StrOpt("swift_store_storage_policy", help="Storage policy of the containers that are made."),
    cfg.IntOpt("swift_store_delete_after", min=1, help="Seconds after which Swift removes an added image by itself."),
    cfg.BoolOpt(
        "swift_store_multi_tenant",
        default=False,
        help="Store each image in the account of the user who adds it, with the token of the request.",
    ),
    cfg.ListOpt(
        "swift_store_admin_tenants",
        default=[],
        help="Projects that may read and write every image of a multi-tenant store.",
    ),
    cfg.BoolOpt(
        "swift_store_use_trusts",
        default=True,
        help="In a multi-tenant store with a user of its own, go on with a trust when the token of the request "
        "expires in the middle of a transfer. The trust is revoked at its end.",
    ),
    cfg.StrOpt(
        "swift_store_temp_url_key",
        secret=True,
        help="The account's or the container's key for temporary URLs; without it there are none.",
    ),
    # -- How bytes move -----------------------------------------------------------------------------------------------
    cfg.IntOpt(
        "swift_store_large_object_size",
        default=16,
        min=1,
        help="Images of more MiB than this are stored in segments; those that do not fit in one segment always are.",
    ),
    cfg.IntOpt(
        "swift_store_large_object_chunk_size",
        default=16,
        min=1,
        max=5120,
        help="MiB in one segment. Two segments, or 48 MiB if that is more, are held in memory.",
    ),
    cfg.IntOpt("swift_store_upload_concurrency", default=4, min=1, max=64, help="Segments in flight at most."),
    cfg.IntOpt(
        "swift_store_download_concurrency",
        default=10,
        min=1,
        max=64,
        help="Ranges of one image in flight at most, from servers that are far away; near ones send one stream.",
    ),
    cfg.IntOpt(
        "swift_store_download_part_size",
        default=4,
        min=1,
        max=64,
        help="MiB in one such range.",
    ),
)
