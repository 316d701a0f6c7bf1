# SPDX-License-Identifier: Apache-2.0
"""Which certificates of servers are trusted."""

from __future__ import annotations

import ssl

from storelib.exceptions import misconfigured


def check_certificates(path: str | None, store_name: str, option: str) -> None:
    """Raises BadStoreConfiguration, naming store and option, for a file that certificates cannot be read from."""
    if path:
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), path, store_name, option)


def _load(context: ssl.SSLContext, path: str, store_name: str, option: str) -> None:
    try:
        context.load_verify_locations(path)
    except OSError as error:  # ssl.SSLError is one
        why = f"no certificates can be read from {path}: {error.strerror}"
        raise misconfigured(store_name, option, why) from None


def tls_context(path: str | None, store_name: str, option: str, *, insecure: bool = False) -> ssl.SSLContext:
    """Verifies servers against the certificates (PEM) in the file ``path`` alone, or else the system's.

    Raises what ``check_certificates`` raises. With ``insecure`` it verifies nothing and reads no file.
    """
    # Not create_default_context(): that fails for a SSLKEYLOGFILE that cannot be written, and since Python 3.13 refuses
    # certificates that appliances make for themselves.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif path:
        _load(context, path, store_name, option)
    else:
        context.load_default_certs()
    return context
