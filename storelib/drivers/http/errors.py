# SPDX-License-Identifier: Apache-2.0
"""What is special about the errors of any server that a URL may name."""

from __future__ import annotations

from collections.abc import Mapping

from storelib.exceptions import BadStoreUri, StoreError
from storelib.transfer.http import errors


def error_of_status(status: int, headers: Mapping[str, str], subject: str) -> StoreError:
    """The error for a response that is no image."""
    return errors.error_of_status(status, headers, f"{subject}: the server answered {status}")


def error_of_exception(error: Exception, subject: str) -> StoreError | None:
    """The error for what went wrong on the way to a response or in the middle of one; None if it is not known."""
    import http.client

    import urllib3.exceptions as urllib3

    if errors.caused_by(error, urllib3.LocationParseError, http.client.InvalidURL, UnicodeError):
        return BadStoreUri(f"{subject} cannot be asked for")
    return errors.error_of_failure(error, subject, "https_ca_certificates_file", garbled_is_transient=False)
