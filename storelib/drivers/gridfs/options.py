# SPDX-License-Identifier: Apache-2.0
"""The options of GridFS stores; names are glance_store's where the meaning is the same."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from storelib.option_types import LocalPath

OPTIONS: Sequence[cfg.Opt] = (
    # -- Where ------------------------------------------------------------------------------------------------
    cfg.StrOpt(
        "mongodb_store_uri",
        secret=True,
        help="The server: a host, host:port, several of them with commas between (IPv6 addresses in brackets), or a "
        "connection string that begins with mongodb:// or mongodb+srv://, with user and password if the server wants "
        "them. The other options override what a connection string says of the same.",
    ),
    cfg.StrOpt("mongodb_store_db", help="The database; by default the one in mongodb_store_uri."),
    cfg.StrOpt(
        "mongodb_store_bucket",
        default="fs",
        help="What the names of the two collections begin with. Several stores may share a database so.",
    ),
    # -- How to get there -------------------------------------------------------------------------------------
    cfg.BoolOpt("mongodb_store_tls", help="Use TLS; by default what mongodb_store_uri says, else no."),
    cfg.Opt(
        "mongodb_store_tls_ca_file",
        type=LocalPath(),
        help="File of CA certificates (PEM) that the server is verified against, instead of the system's.",
    ),
    cfg.Opt(
        "mongodb_store_tls_certificate_key_file",
        type=LocalPath(),
        help="File with a client certificate and its key (PEM).",
    ),
    cfg.StrOpt("mongodb_store_tls_certificate_key_file_password", secret=True, help="Password of that key."),
    cfg.BoolOpt(
        "mongodb_store_tls_insecure",
        default=False,
        help="Do not verify the server's certificate. A server in between can then read the password and replace "
        "every image.",
    ),
    cfg.FloatOpt("mongodb_store_connect_timeout", default=10.0, min=0.01, help="Seconds to wait for a connection."),
    cfg.FloatOpt(
        "mongodb_store_server_selection_timeout",
        default=10.0,
        min=0.01,
        help="Seconds to look for a server that fits, for example while a replica set elects a primary.",
    ),
    cfg.FloatOpt(
        "mongodb_store_socket_timeout",
        default=60.0,
        min=0.01,
        help="Seconds to wait for a response. transfer_retries says how often it is tried again.",
    ),
    # -- How images are stored --------------------------------------------------------------------------------
    cfg.IntOpt(
        "mongodb_store_chunk_size",
        default=256,
        min=4,
        max=15 * 1024,
        help="KiB in one chunk of new images, a multiple of 4. Larger ones are not faster.",
    ),
    cfg.IntOpt(
        "mongodb_store_concurrency",
        default=4,
        min=1,
        max=64,
        help="Requests of one transfer in flight at most, each for about 4 MiB. What one transfer may hold in memory, "
        "transfer_window, limits it too.",
    ),
    cfg.StrOpt(
        "mongodb_store_write_concern",
        help="How many members of a replica set must have a write: majority, a number, or the name of a rule of the "
        "set. By default what mongodb_store_uri says, else majority.",
    ),
    cfg.BoolOpt(
        "mongodb_store_journal",
        default=False,
        help="Have every part in the server's journal before the next ones are sent. What publishes an image always "
        "waits for the journal, and finds out whether a server that crashed in between lost a part; with this option "
        "the add survives that crash.",
    ),
    cfg.StrOpt(
        "mongodb_store_read_preference",
        choices=[
            ("primary", ""),
            ("primaryPreferred", ""),
            ("secondary", "may not have the latest images yet"),
            ("secondaryPreferred", "may not have the latest images yet"),
            ("nearest", "may not have the latest images yet"),
        ],
        help="Which member of a replica set is read from; by default what mongodb_store_uri says, else the primary.",
    ),
)
